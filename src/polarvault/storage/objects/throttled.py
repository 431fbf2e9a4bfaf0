"""Use no more of the network than is allowed, all threads together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.wrapper import Wrapper


class Throttled(Wrapper):
    """Sends and receives at most bytes_per_s each, on the average over whole objects and ranges."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._sending = _Lane(bytes_per_s, clock, sleep)
        self._receiving = _Lane(bytes_per_s, clock, sleep)

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object when it is its turn."""
        self._sending.pass_by(sum(map(len, views)))
        self._inner.put_new(name, views, from_reserve=from_reserve)

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object; the next one waits for the time that this one takes."""
        self._receiving.pass_by(0)
        content = self._inner.get(name, most_bytes=most_bytes)
        self._receiving.book(len(content))
        return content

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length) when it is their turn."""
        self._receiving.pass_by(sum(length for _, length in ranges))
        return self._inner.get_ranges(name, ranges)


class _Lane:
    """One direction: who comes books the time that his bytes take, and waits until those before him have passed."""

    def __init__(self, bytes_per_s: int, clock: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def book(self, size: int) -> float:
        """Take the lane for a number of bytes; return how long it takes until they may begin, in seconds."""
        with self._lock:
            now = self._clock()
            # What was not used is not saved up: a limit protects others from bursts.
            begin = max(now, self._free_at)
            self._free_at = begin + size / self._bytes_per_s
            return begin - now

    def pass_by(self, size: int) -> None:
        """Book, and wait for the turn."""
        if (wait_s := self.book(size)) > 0:
            self._sleep(wait_s)
