"""Make received WAL durable, beside receiving more of it.

Theory of operation. The receiving thread writes segments and hands over what is to become durable: a whole segment
(sync, rename, sync the directory) or what an unfinished one holds so far (sync). A second thread works these off in
order, so that `flushed` only ever means: file and directory are on disk. With --synchronous nothing is handed over, the
receiving thread does it itself and so answers the server as fast as the disk allows.

An fsync that fails is final: the kernel may have dropped what it could not write, and a second fsync would succeed
without it. The failure reaches the receiving thread, which gives up; the next start fetches the segment again.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.storage import files
from polarvault.walarchive.store.segment_file import SegmentFile

# Whole segments that may wait for the disk; more would let the received LSN run far ahead of the flushed one.
_BACKLOG = 4


class Step(Enum):
    """What is to be done with a segment."""

    SYNC = auto()
    FINISH = auto()
    CLOSE = auto()


@dataclass(frozen=True, slots=True)
class _Task:
    step: Step
    file: SegmentFile
    lsn: Lsn
    position: int


class Durability:
    """Turns written WAL into flushed WAL; `flushed` grows only."""

    def __init__(self, directory: str, *, sync: bool, inline: bool, wake: Callable[[], None]) -> None:
        self._directory = directory
        self._sync = sync
        self._wake = wake
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self._unfinished = 0
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._flushed = Lsn(0)
        # The file whose name in the directory is durable.
        self._named: SegmentFile | None = None
        self._thread: threading.Thread | None = None
        if not inline:
            self._thread = threading.Thread(target=self._work, name="durability", daemon=True)
            self._thread.start()

    @property
    def flushed(self) -> Lsn:
        """Everything before this LSN is on disk, under a name that is on disk; raise what prevented more."""
        if self._failure is not None:
            raise self._failure
        return self._flushed

    @property
    def has_room(self) -> bool:
        """Tell whether another task may be handed over without the backlog growing too long."""
        return self._unfinished < _BACKLOG or self._failure is not None

    def start_at(self, lsn: Lsn) -> None:
        """Forget what was flushed: the stream begins anew here, on another timeline perhaps."""
        self.wait()
        self._flushed = lsn

    def submit(self, step: Step, file: SegmentFile, lsn: Lsn) -> None:
        """Have it done, now or by the other thread; the file holds WAL up to the LSN."""
        task = _Task(step, file, lsn, file.position)
        if self._thread is None:
            self._do(task)
            return
        with self._changed:
            self._unfinished += 1
        self._tasks.put(task)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all is done; raise what failed. False when the time is over first."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._unfinished, timeout_s)
        if self._failure is not None:
            raise self._failure
        return done

    def close(self) -> None:
        """End the thread after what was handed over; safe to call twice."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                if self._failure is None:
                    self._do(task)
            except BaseException as failure:  # Kept for the receiving thread, which raises it.
                self._failure = failure
            with self._changed:
                self._unfinished -= 1
                self._changed.notify_all()
            self._wake()

    def _do(self, task: _Task) -> None:
        file = task.file
        try:
            if task.step is Step.FINISH:
                whole_path = file.finish()
                os.replace(file.path, whole_path)
                self._sync_directory()
            elif task.step is Step.CLOSE:
                file.close()
                self._sync_directory()
            else:
                if self._sync:
                    file.sync()
                # The first sync also makes the new file's name durable.
                if file.settle(task.position) or self._named is not file:
                    self._sync_directory()
                    self._named = file
        except PolarvaultError:
            raise
        except OSError as problem:
            failed = files.storage_failed(problem, "make durable", file.path)
            if isinstance(problem, FileNotFoundError):
                failed.hint = "somebody removed it while it was received; start again, and it is fetched anew"
            raise failed from problem
        self._flushed = Lsn(max(self._flushed, task.lsn))

    def _sync_directory(self) -> None:
        if self._sync:
            files.fsync_path(self._directory)
