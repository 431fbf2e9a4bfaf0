"""A stretch of the WAL that leads to a backup, read for what it does to pages; along the backup's own history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from polarvault.errors import WalGap
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.wal.history import TimelineHistory
from polarvault.wal.marks import Marks
from polarvault.wal.records import Record, RecordReader
from polarvault.wal.scan import WalScanner
from polarvault.walfiles.choice import find, history_of

# What a scanner found is kept up to so much, for whoever asks next about other pages; more is read again.
_KEPT_BYTES = 64 << 20
# More is not read for the sake of damaged pages: at a gigabyte a second it takes a minute.
_MOST_BYTES = 64 << 30
_STEP_BYTES = 16 << 10


class Accepts(Protocol):
    """Takes records in the order of the WAL: `wal.page_fates.PageFates`, `wal.last_touches.LastTouches`."""

    def accept(self, marks: Marks, magic: int) -> None:
        """Take the next ones."""


def read_history(archive: RepositoryWalSource, timeline_id: int) -> TimelineHistory:
    """Return the history of a timeline; raise WalGap if its file is not there."""
    if timeline_id == 1:
        return TimelineHistory(1)
    content = history_of(archive, timeline_id)
    if content is None:
        raise WalGap(f"the history of timeline {timeline_id} is not in {archive.place}")
    return TimelineHistory.parse(content, timeline_id)


def is_held(archive: RepositoryWalSource, history: TimelineHistory, start: Lsn, stop: Lsn) -> bool:
    """Tell whether ranges cover a stretch of WAL, by their names; of a switch the newer timeline's segment counts."""
    size = archive.segment_bytes
    for one in history.ranges:
        first = max(int(start), one.start // size * size)
        end = int(stop) if one.end is None or one.end > stop else one.end // size * size
        if first < end and not any(
            held.start <= first and end <= held.end for held in archive.ranges(one.timeline_id, size)
        ):
            return False
    return True


class WalStretch:
    """WAL from a record up to, not including, another one."""

    def __init__(self, archive: RepositoryWalSource, history: TimelineHistory, start: Lsn, stop: Lsn) -> None:
        self._archive, self._history = archive, history
        self.start, self.stop = start, stop
        self._kept: list[tuple[Marks, int]] | None = None

    def show(self, taker: Accepts) -> None:
        """Show all records to somebody; raise WalGap, IntegrityError or StorageFailed if not all of them are there."""
        if self._kept is not None:
            for marks, magic in self._kept:
                taker.accept(marks, magic)
            return
        if self.stop - self.start > _MOST_BYTES:
            raise WalGap(f"more than {_MOST_BYTES >> 30} GB of WAL lie between {self.start} and {self.stop}")
        kept: list[tuple[Marks, int]] | None = []
        size = 0
        scanner = WalScanner(
            self.start, self._archive.segment_bytes, expected_bytes=self.stop - self.start, with_blocks=True
        )
        for at, magic, view in self._views(self.start):
            marks = scanner.feed(view[: max(0, self.stop - at)])
            if scanner.end is not None:
                raise WalGap(f"the WAL is not whole: {scanner.end}")
            taker.accept(marks, magic)
            size += marks.words.nbytes + len(marks.bodies)
            if kept is not None and size <= _KEPT_BYTES:
                kept.append((marks, magic))
            else:
                kept = None
            if at + len(view) >= self.stop:
                break
        self._kept = kept

    def records(self, lsns: Iterable[Lsn]) -> Iterator[Record]:
        """Yield records of the stretch, all of each; raise as `show` does. Each segment is read once."""
        by_segment: dict[int, list[Lsn]] = {}
        for lsn in sorted(set(lsns)):
            by_segment.setdefault(lsn // self._archive.segment_bytes, []).append(lsn)
        for wanted in by_segment.values():
            yield from self._records_near(wanted)

    def _records_near(self, wanted: list[Lsn]) -> Iterator[Record]:
        readers: list[tuple[Lsn, RecordReader]] = []
        waiting = deque(wanted)
        for at, magic, view in self._views(wanted[0]):
            while waiting and waiting[0] < at + len(view):
                readers.append((waiting[0], RecordReader(waiting[0], self._archive.segment_bytes)))
                waiting.popleft()
            left: list[tuple[Lsn, RecordReader]] = []
            for lsn, reader in readers:
                record = _first_record(reader, view[max(0, lsn - at) :])
                if record is None:
                    left.append((lsn, reader))
                else:
                    # In front of the first page header that was read a record does not know the magic number.
                    yield replace(record, magic=record.magic or magic)
            readers = left
            if not readers and not waiting:
                return

    def _views(self, start: Lsn) -> Iterator[tuple[int, int, memoryview]]:
        """Yield WAL from there on without a gap: its LSN, the magic number of its pages, and the bytes."""
        at, magic = int(start), 0
        while True:
            segment = self._segment(at)
            copy = find(self._archive, segment)
            if copy is None:
                raise WalGap(f"segment {segment.file_name} is not in {self._archive.place}")
            offset = int(segment.start)
            for view in copy.views():
                if not magic:
                    magic = int.from_bytes(view[:2], "little")
                if offset + len(view) > at:
                    piece = view[at - offset :]
                    yield at, magic, piece
                    at += len(piece)
                offset += len(view)
            if at < segment.end:
                raise WalGap(f"segment {segment.file_name} ends at {Lsn(at)} in {self._archive.place}")

    def _segment(self, at: int) -> WalSegment:
        """Return the segment that replay reads: of the newest timeline that begins in it or before."""
        size = self._archive.segment_bytes
        last = (at // size + 1) * size - 1
        return WalSegment.holding(Lsn(at), self._history.timeline_of(min(last, self.stop)), size)


def _first_record(reader: RecordReader, view: memoryview) -> Record | None:
    """Return the first record that ends in the view; None if more is needed."""
    for offset in range(0, len(view), _STEP_BYTES):
        for record in reader.feed(view[offset : offset + _STEP_BYTES]):
            return record
        if reader.end is not None:
            raise WalGap(f"the WAL is not whole: {reader.end}")
    return None
