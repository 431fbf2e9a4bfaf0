"""Turns a stream of WAL into the segment files of a directory, and knows what of it is durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage import files
from polarvault.walarchive.store.durability import Durability, Step
from polarvault.walarchive.store.segment_file import PlainSegment, SegmentFile, open_segment
from polarvault.walarchive.store.tail import end_of_segment, tail
from polarvault.walarchive.views import split


class DirectoryWriter:
    """A `wal.store.WalWriter`: writes one stream into a directory."""

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
        self._directory = directory
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

    begins_anywhere = False

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

    def can_go_on(self, timeline_id: int) -> bool:
        """Tell whether the next byte continues an open segment of this timeline, or begins the one after."""
        at_start = self.received % self.segment_size_bytes == 0
        return timeline_id == self.timeline_id != 0 and (self._file is not None or at_start)

    def begin(self, lsn: Lsn, timeline_id: int) -> None:
        """Start over at the first byte of a segment."""
        self.end_segment()
        self._durability.start_at(lsn)
        self.received = self._synced = lsn
        self.timeline_id = timeline_id

    def write(self, views: list[memoryview]) -> None:
        """Take WAL that follows what came before; raise StorageFailed."""
        while views:
            file = self._file or self._open()
            room = file.segment.size_bytes - file.position
            now, views = split(views, room)
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

    def before(self, length: int, timeline_of: Callable[[int], int]) -> bytes:
        """Return what is kept in front of the next byte; a compressed file that is written is not read in a block."""
        offset = self.received % self.segment_size_bytes
        if offset:
            file = self._file
            return tail(file.path, offset, length) if isinstance(file, PlainSegment) else b""
        if self.received == 0:
            return b""
        last = self.received - 1
        return end_of_segment(
            self._directory, WalSegment.holding(last, timeline_of(last), self.segment_size_bytes), length
        )

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
                self._directory, segment, self._compression, mode=self._mode, sync=self._sync, reserve=self._synchronous
            )
        except OSError as problem:
            path = os.path.join(self._directory, segment.file_name)
            raise files.storage_failed(problem, "open file", path) from problem
        return self._file
