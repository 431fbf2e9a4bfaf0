"""Try again what is worth it: StoreUnreachable, until a deadline. The one place of the stores that does.

`put_new` may be repeated because `write_once` stands above: a try whose answer was lost has perhaps written the object.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from polarvault.errors import PolarvaultError, StoreUnreachable
from polarvault.storage.objects.model import StoredObject
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.wrapper import Wrapper

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
# A store that has never answered is more likely misspelled than overloaded: nobody wants to wait minutes for that.
_FIRST_DEADLINE_S = 10.0

Result = TypeVar("Result")


class Retrying(Wrapper):
    """Repeats requests that were not answered, with growing and uneven waits, until deadline_s have passed."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        uneven: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(inner)
        self._deadline_s = deadline_s
        self._clock = clock
        self._sleep = sleep
        self._uneven = uneven
        self._answered = False

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object."""
        self._repeated(lambda: self._inner.put_new(name, views, from_reserve=from_reserve))

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object."""
        return self._repeated(lambda: self._inner.get(name, most_bytes=most_bytes))

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length)."""
        return self._repeated(lambda: self._inner.get_ranges(name, ranges))

    def stat(self, name: str) -> StoredObject:
        """Return size and time of an object."""
        return self._repeated(lambda: self._inner.stat(name))

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the last words of the folders directly in a folder."""
        return self._repeated(lambda: self._inner.list_folders(folder))

    def delete(self, name: str) -> None:
        """Remove an object; a success if there is none."""
        self._repeated(lambda: self._inner.delete(name))

    def extend_retention(self, name: str, until: datetime) -> None:
        """See that nobody can remove an object before a time."""
        self._repeated(lambda: self._inner.extend_retention(name, until))

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield every object below a folder; a listing that breaks off goes on where it was if it came in order."""
        started, waits = self._clock(), self._waits()
        last, in_order = after, True
        while True:
            try:
                for found in self._inner.list_objects(folder, after=last):
                    self._answered = True
                    yield found
                    # Progress: what comes later has a deadline of its own.
                    started, waits = self._clock(), self._waits()
                    in_order = in_order and found.name > last
                    last = found.name
            except StoreUnreachable as problem:
                if not in_order:
                    raise
                self._wait_or_give_up(problem, started, next(waits))
            else:
                return

    def _repeated(self, operation: Callable[[], Result]) -> Result:
        started, waits = self._clock(), self._waits()
        while True:
            try:
                result = operation()
            except StoreUnreachable as problem:
                self._wait_or_give_up(problem, started, next(waits))
            except PolarvaultError:
                self._answered = True
                raise
            else:
                self._answered = True
                return result

    def _wait_or_give_up(self, problem: StoreUnreachable, started: float, wait_s: float) -> None:
        passed = self._clock() - started
        deadline_s = self._deadline_s if self._answered else min(self._deadline_s, _FIRST_DEADLINE_S)
        if passed + wait_s >= deadline_s:
            problem.detail = f"tried for {passed:.0f} s" + (f"; {problem.detail}" if problem.detail else "")
            raise problem
        # A store that is overloaded gets less, and not all at once.
        self._sleep(wait_s)

    def _waits(self) -> Iterator[float]:
        wait_s = _FIRST_WAIT_S
        while True:
            yield wait_s * (0.5 + self._uneven() / 2)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
