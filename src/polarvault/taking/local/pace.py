"""How fast files may be read: counts what reading threads took, and keeps them to --max-rate and --nice-to-server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

Pause = Callable[[int, Callable[[], None]], None]


class Pace:
    """Told of bytes by any thread, which may be made to wait. rate: bytes a second, None for no limit.

    pause: waits for the server's sake, given the bytes so far; None where nobody asked for it.
    """

    def __init__(self, *, rate: int | None, pause: Pause | None) -> None:
        self.done_bytes = 0
        self._rate, self._pause = rate, pause
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        # Held by who waits: the others have to wait as well.
        self._turn = threading.Lock()

    def taken(self, count: int) -> None:
        """So many bytes were read."""
        with self._lock:
            self.done_bytes += count
            done = self.done_bytes
        if self._rate is None and self._pause is None:
            return
        with self._turn:
            if self._rate is not None:
                ahead = done / self._rate - (time.monotonic() - self._started)
                if ahead > 0:
                    self._stop.wait(ahead)
            if self._pause is not None and not self._stop.is_set():
                with contextlib.suppress(_Stopped):
                    self._pause(done, self._look)

    def stop(self) -> None:
        """Nobody waits any more."""
        self._stop.set()

    def _look(self) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):  # It ends a wait, and is no error.
    pass
