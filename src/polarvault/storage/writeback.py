"""Have written bytes go to the disk while more are written, so that the fsync at the end finds little left to do.

One thread of the process asks the kernel for it, whoever writes: where several threads that write ask themselves, they
hold each other up (2.2 GB by four threads took 4 s that way, 2.3 s without, 1.6 s like this). All of it is a hint:
nothing is promised, what fails does not matter, and what comes too fast is left to the fsync.
"""

from __future__ import annotations

import os
import queue
import threading

from polarvault.storage.files import start_writeback

_STEP_BYTES = 16 << 20
# Less is not worth the request; the fsync takes a small file in one.
_LEAST_BYTES = 1 << 20
# Each holds a descriptor.
_WAITING = 32

_waiting: queue.Queue[tuple[int, int, int]] = queue.Queue(_WAITING)
_starting = threading.Lock()
_threads: list[threading.Thread] = []


def start_aside(descriptor: int, start: int, end: int) -> None:
    """Have a range of an open file begin its way to the disk soon; the descriptor may be closed at once."""
    if end - start < _LEAST_BYTES:
        return
    with _starting:
        if not _threads:
            _threads.append(threading.Thread(target=_run, name="writeback", daemon=True))
            _threads[0].start()
    try:
        held = os.dup(descriptor)
    except OSError:
        return
    try:
        _waiting.put_nowait((held, start, end))
    except queue.Full:
        os.close(held)


def _run() -> None:
    while True:
        descriptor, start, end = _waiting.get()
        try:
            start_writeback(descriptor, start, end - start)
        finally:
            os.close(descriptor)


class Writeback:
    """What one thread writes into one open file: every so often all that came is sent on its way."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = self._end = 0
        self._start = -1

    def wrote(self, offset: int, size: int) -> None:
        """Note a range that was written."""
        if self._start < 0 or offset < self._start:
            self._start = offset
        self._end = max(self._end, offset + size)
        self._bytes += size
        if self._bytes >= _STEP_BYTES:
            self.finish()

    def finish(self) -> None:
        """Send on what was noted; to be called before the descriptor is closed, and the file then takes more."""
        if self._bytes >= _LEAST_BYTES:
            start_aside(self._descriptor, self._start, self._end)
        self._bytes = self._end = 0
        self._start = -1
