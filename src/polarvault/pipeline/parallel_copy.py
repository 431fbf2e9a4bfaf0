"""Copy contents into open files by several threads, each with a buffer that is used again and again.

One large file is cut into stretches, so that the last one of a backup does not keep one thread busy while the others
have nothing to do. A failure ends all: it is raised by the next call of the thread that feeds.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading

from polarvault.errors import PolarvaultError
from polarvault.pipeline.contents import ContentPart, FileContent
from polarvault.storage import files
from polarvault.storage.writeback import start_aside

# A processor's cache holds it: what was read is still there when it is checked, and when it is written.
_BUFFER_BYTES = 512 << 10
_STRETCH_BYTES = 16 << 20
# Jobs that wait, for each thread: enough that none runs dry while the feeding thread lists a directory.
_WAITING_JOBS = 8
_TICK_S = 0.2


class _Target:
    """An open file, closed when its last stretch is written."""

    def __init__(self, descriptor: int, path: str, stretches: int) -> None:
        self.path = path
        self.descriptor = descriptor
        # One thread at a time writes: the kernel lets no two into one file, and has the second spin on a core.
        self.writing = threading.Lock()
        self._left = stretches
        self._lock = threading.Lock()

    def stretch_done(self) -> None:
        """One less; OSError from closing."""
        with self._lock:
            self._left -= 1
            descriptor = self.descriptor
            if self._left:
                return
            self.descriptor = -1
        os.close(descriptor)

    def abandon(self) -> None:
        """Close after a failure."""
        with self._lock:
            descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class ParallelCopy:
    """Copies with threads of its own, which `finish` or `abandon` ends; fed by one thread."""

    def __init__(self, *, writeback: bool, threads: int | None = None) -> None:
        self._writeback = writeback
        count = threads or os.cpu_count() or 1
        self._jobs: queue.Queue[tuple[_Target, ContentPart, int, int] | None] = queue.Queue(count * _WAITING_JOBS)
        self._failure: BaseException | None = None
        self._content: FileContent | None = None
        self._open: set[_Target] = set()
        self._emptied = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"copy-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def copy(self, descriptor: int, path: str, content: FileContent) -> None:
        """Fill an empty file, whose descriptor is given up to this object; path for messages."""
        self._content, size = content, content.size
        step = _STRETCH_BYTES if content.is_divisible else max(size, 1)
        target = _Target(descriptor, path, max(1, -(-size // step)))
        with self._emptied:
            self._open.add(target)
        if not size:
            self._end_stretch(target)
        for start in range(0, size, step):
            length = min(step, size - start)
            self._put((target, content.part(start, length), start, length))

    def drain(self) -> None:
        """Wait until everything is written; raise what went wrong."""
        while self._open:
            self._raise()
            with self._emptied:
                self._emptied.wait_for(lambda: not self._open or self._failure is not None, _TICK_S)
            self._wait()
        self._raise()

    def finish(self) -> None:
        """Wait until everything is written, end the threads; raise what went wrong."""
        self.drain()
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def abandon(self) -> None:
        """Stop after a failure; safe to call at any time and twice."""
        if self._failure is None:
            self._failure = PolarvaultError("the copy was given up")
        for thread in self._threads:
            while thread.is_alive():
                with contextlib.suppress(queue.Full):
                    self._jobs.put_nowait(None)
                thread.join(0.02)
        self._threads = []
        for target in list(self._open):
            target.abandon()

    def _put(self, job: tuple[_Target, ContentPart, int, int] | None) -> None:
        while True:
            self._raise()
            try:
                self._jobs.put(job, timeout=_TICK_S)
            except queue.Full:
                self._wait()
                continue
            return

    def _wait(self) -> None:
        if self._content is not None:
            self._content.waiting()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while True:
            job = self._jobs.get()
            if job is None:
                return
            if self._failure is not None:
                continue
            target = job[0]
            try:
                self._copy(buffer, *job)
                self._end_stretch(target)
            except OSError as problem:
                self._failure = files.storage_failed(problem, "write to file", target.path)
            except BaseException as failure:  # Everything must reach the thread that feeds, which raises it.
                self._failure = failure

    def _copy(self, buffer: memoryview, target: _Target, part: ContentPart, start: int, size: int) -> None:
        position, end = start, start + size
        while position < end:
            view = buffer[: min(len(buffer), end - position)]
            part.read_into(view)
            with target.writing:
                while view:
                    # A short write is legal (a signal, a nearly full disk); the next one then reports the real error.
                    written = os.pwrite(target.descriptor, view, position)
                    view, position = view[written:], position + written
        if self._writeback:
            start_aside(target.descriptor, start, end)

    def _end_stretch(self, target: _Target) -> None:
        target.stretch_done()
        if target.descriptor < 0:
            with self._emptied:
                self._open.discard(target)
                if not self._open:
                    self._emptied.notify_all()
