"""The directory that WAL is received into: turns a stream of WAL into segment files, and knows what is durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from polarvault.errors import TimelineDiverged
from polarvault.model import limits
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.wal.names import is_written
from polarvault.walarchive.durability import Durability, Step
from polarvault.walarchive.segment_file import PlainSegment, SegmentFile, open_segment
from polarvault.wire.wal_messages import WalBatch


class WalFiles:
    """Writes one stream. `received` is where the next byte belongs, `flushed` what is on disk."""

    def __init__(
        self,
        directory: str,
        *,
        segment_size_bytes: int,
        compression: Compression,
        mode: int,
        sync: bool,
        synchronous: bool,
        wake: Callable[[], None],
        on_segment: Callable[[WalSegment], None],
    ) -> None:
        self.directory = directory
        self.received = Lsn(0)
        self.timeline_id = 0
        self.segment_size_bytes = segment_size_bytes
        self._compression = compression
        self._mode = mode
        self._sync = sync
        self._synchronous = synchronous
        self._on_segment = on_segment
        self._file: SegmentFile | None = None
        self._synced = Lsn(0)
        self._durability = Durability(directory, sync=sync, inline=synchronous, wake=wake)

    @property
    def flushed(self) -> Lsn:
        """What may be acknowledged to the server; raise StorageFailed if something could not be made durable."""
        return self._durability.flushed

    @property
    def has_room(self) -> bool:
        """False while the disk is so far behind that no more should be received."""
        return self._durability.has_room

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything handed over is durable; False when the time is over first."""
        return self._durability.wait(timeout_s)

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait for the disk."""
        self._durability.wait(timeout_s)

    def can_go_on(self, timeline_id: int) -> bool:
        """Tell whether the next byte continues an open segment of this timeline, or begins the one after."""
        at_start = self.received % self.segment_size_bytes == 0
        return timeline_id == self.timeline_id != 0 and (self._file is not None or at_start)

    @property
    def open_plain_path(self) -> str | None:
        """The file that the next byte belongs into, if it has others already and can be read; None else."""
        file = self._file
        return file.path if isinstance(file, PlainSegment) else None

    def begin(self, lsn: Lsn, timeline_id: int) -> None:
        """Start over at the first byte of a segment."""
        self.end_segment()
        self._durability.start_at(lsn)
        self.received = self._synced = lsn
        self.timeline_id = timeline_id

    def write(self, batch: WalBatch) -> None:
        """Take WAL that follows what came before; raise StorageFailed."""
        views = batch.views
        while views:
            file = self._file or self._open()
            room = file.segment.size_bytes - file.position
            now, views = _split(views, room)
            size = sum(map(len, now))
            try:
                file.write(now)
            except OSError as problem:
                raise files.storage_failed(problem, "write to file", file.path) from problem
            self.received = Lsn(self.received + size)
            if size == room:
                self._file = None
                self._synced = self.received
                self._durability.submit(Step.FINISH, file, self.received)
                self._on_segment(file.segment)
        if self._synchronous:
            self.sync()

    def sync(self) -> None:
        """Have everything received so far made durable; does nothing when there is nothing new."""
        if self._file is None or self._synced == self.received:
            return
        try:
            self._file.flush()
        except OSError as problem:
            raise files.storage_failed(problem, "write to file", self._file.path) from problem
        self._synced = self.received
        self._durability.submit(Step.SYNC, self._file, self.received)

    def end_segment(self) -> None:
        """Close an unfinished segment: it keeps its partial name; what it holds becomes durable."""
        file, self._file = self._file, None
        if file is not None:
            self._durability.submit(Step.CLOSE, file, self.received)

    def add_history(self, file_name: str, content: bytes) -> None:
        """Keep a timeline history file; durable on return. One that is here must be the same: TimelineDiverged.

        The caller has made sure that the name belongs to the timeline.
        """
        path = os.path.join(self.directory, file_name)
        try:
            with Below(self.directory) as below:
                kept = below.read(file_name, limits.HISTORY_BYTES) if below.exists(file_name) else b""
                # What a crash of a careless archive_command has left, nothing or zeros, is replaced.
                if is_written(kept):
                    if kept != content:
                        raise _another_history(path)
                    return
                below.write(f"{file_name}.tmp", content, self._mode, sync=self._sync, replace=True)
                below.rename(f"{file_name}.tmp", file_name)
                if self._sync:
                    below.sync_directory()
        except OSError as problem:
            raise files.storage_failed(problem, "write", path) from problem

    def has_history(self, file_name: str) -> bool:
        """Tell whether the history file is here."""
        path = os.path.join(self.directory, file_name)
        try:
            return os.stat(path, follow_symlinks=False).st_size > 0
        except FileNotFoundError:
            return False
        except OSError as problem:
            raise files.storage_failed(problem, "look for", path) from problem

    def close(self) -> None:
        """Make everything received durable and end; raise what could not be. Safe to call twice."""
        try:
            self.end_segment()
            self._durability.wait()
        finally:
            self._durability.close()

    def abandon(self) -> None:
        """End after a failure: what cannot be written any more is left as it is."""
        file, self._file = self._file, None
        self._durability.close()
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _open(self) -> SegmentFile:
        segment = WalSegment.holding(self.received, self.timeline_id, self.segment_size_bytes)
        try:
            self._file = open_segment(
                self.directory, segment, self._compression, mode=self._mode, sync=self._sync, reserve=self._synchronous
            )
        except OSError as problem:
            path = os.path.join(self.directory, segment.file_name)
            raise files.storage_failed(problem, "open file", path) from problem
        return self._file


def _another_history(path: str) -> TimelineDiverged:
    return TimelineDiverged(
        f'"{path}" holds another history of its timeline than the server',
        hint="two servers were promoted to the same timeline: receive from this one into another directory; "
        "the file that is here belongs to the WAL that is here",
    )


def _split(views: list[memoryview], room: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a list of views after so many bytes."""
    for number, view in enumerate(views):
        if room <= len(view):
            rest = [view[room:]] if room < len(view) else []
            return [*views[:number], view[:room]], [*rest, *views[number + 1 :]]
        room -= len(view)
    return views, []
