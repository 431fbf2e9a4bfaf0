"""A store of WAL in memory: ranges, kept in a `MemoryWal`, durable when `sync` says so and not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from polarvault.errors import DiskFull, TimelineDiverged, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.history import history_file_name
from polarvault.wal.names import is_written
from polarvault.wal.source import segment_numbers
from polarvault.wal.store import Cluster, StartPoint
from support.memory_wal import MemoryWal


@dataclass
class MemoryStore:
    """Implements `wal.store.WalStore`. Only what is durable is in `kept`; room_bytes: what fits in."""

    gap_hint: ClassVar[str] = "receive into another one"
    lost_slot_hint: ClassVar[str] = "make it again"
    diverged_hint: ClassVar[str] = "receive into another one"

    kept: MemoryWal = field(default_factory=MemoryWal)
    room_bytes: int = 1 << 40
    status: dict[str, Any] | None = None
    is_locked: bool = False
    writers: list[MemoryWriter] = field(default_factory=list)

    def lock(self) -> MemoryLock:
        if self.is_locked:
            raise UsageError('another receivewal writes to "memory"')
        self.is_locked = True
        return MemoryLock(self)

    def note_failed_start(self, status: dict[str, Any]) -> None:
        if self.status is not None and not self.is_locked:
            self.status = status

    def resume_point(
        self,
        cluster: Cluster,
        warn: Callable[[str], None],
        *,
        counts: Callable[[WalSegment], bool] = lambda segment: True,
        held_from: Lsn | None = None,
    ) -> StartPoint | None:
        size = cluster.segment_size_bytes
        header = self.kept.first_header()
        if header is not None and str(header.system_identifier) != cluster.system_identifier:
            raise UsageError(f"memory holds WAL of cluster {header.system_identifier}")
        held = [
            (number, timeline_id)
            for timeline_id in self.kept.timelines()
            for number in segment_numbers(self.kept.ranges(timeline_id, size), size)
            if counts(WalSegment(timeline_id, number, size))
        ]
        if not held:
            return None
        number, timeline_id = max(held)
        newest = WalSegment(timeline_id, number, size)
        is_whole = self.kept.copies(newest.file_name)[0].is_final
        return StartPoint(timeline_id, newest.end if is_whole else newest.start)

    def history(self, timeline_id: int) -> bytes | None:
        content = self.kept.files.get(history_file_name(timeline_id), b"")
        return content if is_written(content) else None

    def add_history(self, timeline_id: int, content: bytes) -> None:
        if self.history(timeline_id) not in (None, content):
            raise TimelineDiverged(f"memory holds another history of timeline {timeline_id}")
        self.kept.files[history_file_name(timeline_id)] = content

    def open(
        self,
        *,
        segment_size_bytes: int,
        group_access: bool,
        wake: Callable[[], None],
        on_segment: Callable[[WalSegment], None],
    ) -> MemoryWriter:
        self.kept.segment_size_bytes = segment_size_bytes
        self.writers.append(MemoryWriter(self, segment_size_bytes, wake, on_segment))
        return self.writers[-1]

    def has_space(self, size_bytes: int) -> bool:
        return self.room_bytes >= size_bytes

    def space_warning(self, segment_size_bytes: int) -> str | None:
        return None if self.room_bytes >= 4 * segment_size_bytes else '"memory" is nearly full'


@dataclass
class MemoryLock:
    """Implements `wal.store.StoreLock`."""

    store: MemoryStore

    def tell(self, status: dict[str, Any]) -> None:
        self.store.status = status

    def forget_failure(self) -> None:
        if not self.store.kept.slices:
            self.store.status = None

    def release(self) -> None:
        self.store.is_locked = False


@dataclass
class MemoryWriter:
    """Implements `wal.store.WalWriter`."""

    begins_anywhere: ClassVar[bool] = False

    store: MemoryStore
    segment_size_bytes: int
    wake: Callable[[], None]
    on_segment: Callable[[WalSegment], None]
    timeline_id: int = 0
    received: Lsn = field(default_factory=lambda: Lsn(0))
    flushed: Lsn = field(default_factory=lambda: Lsn(0))
    has_room: bool = True
    # What was received and is not durable yet; it begins at `flushed`.
    waiting: bytearray = field(default_factory=bytearray)
    is_open: bool = False

    def can_go_on(self, timeline_id: int) -> bool:
        at_start = self.received % self.segment_size_bytes == 0
        return timeline_id == self.timeline_id != 0 and (self.is_open or at_start)

    def begin(self, lsn: Lsn, timeline_id: int) -> None:
        self.end_segment()
        self.received = self.flushed = lsn
        self.timeline_id = timeline_id

    def write(self, views: list[memoryview]) -> None:
        for view in views:
            if len(self.waiting) + len(view) > self.store.room_bytes:
                raise DiskFull('could not write to "memory"')
            before = self.received // self.segment_size_bytes
            self.waiting += view
            self.received = Lsn(self.received + len(view))
            self.is_open = self.received % self.segment_size_bytes != 0
            for number in range(before, self.received // self.segment_size_bytes):
                self.on_segment(WalSegment(self.timeline_id, number, self.segment_size_bytes))

    def sync(self) -> None:
        if self.waiting:
            self.store.room_bytes -= len(self.waiting)
            self.store.kept.add(self.timeline_id, self.flushed, bytes(self.waiting))
            self.waiting.clear()
            self.flushed = self.received
            self.wake()

    def wait(self, timeout_s: float) -> bool:
        return True

    def end_segment(self) -> None:
        self.sync()
        self.is_open = False

    def before(self, length: int, timeline_of: Callable[[int], int]) -> bytes:
        if self.received == 0:
            return b""
        last = self.received - 1
        segment = WalSegment.holding(last, timeline_of(last), self.segment_size_bytes)
        content = b"".join(bytes(view) for copy in self.store.kept.copies(segment.file_name) for view in copy.views())
        kept = content + bytes(self.waiting) if self.is_open else content
        if segment.start + len(kept) != self.received:
            return b""
        return kept[max(0, len(kept) - length) // 8192 * 8192 :]

    def close(self) -> None:
        self.end_segment()

    def abandon(self) -> None:
        self.waiting.clear()
