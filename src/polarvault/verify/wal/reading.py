"""Read the WAL of one range, segment by segment, and report what is damaged or missing; see `check`."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polarvault.backupset.model import compression_of
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.findings import RangeReport
from polarvault.verify.wal.spans import last_byte
from polarvault.wal.marks import MarkKind
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, Ending, PageSequence, WalEnd, read_page_header
from polarvault.wal.scan import WalScanner
from polarvault.wal.source import WalCopy, WalSource, segment_numbers
from polarvault.walfiles.choice import choose

if TYPE_CHECKING:
    from polarvault.wal.page_fates import PageFates

# A segment full of rubbish has a damaged record on every page: after some of them it is given up.
_MAX_DAMAGE_IN_SEGMENT = 10
# Behind these there is no WAL up to the end of the segment, unless it was overwritten with zeros.
_UNWRITTEN = (Ending.ZERO_RECORD, Ending.ZERO_PAGE, Ending.PAGE_ADDRESS)
_WRONG_PAGE = (Ending.PAGE_MAGIC, Ending.PAGE_FLAGS)
_NO_MORE = 1 << 64
_FOREIGN = (Ending.SYSTEM_IDENTIFIER, Ending.SEGMENT_SIZE, Ending.BLOCK_SIZE)


class Stopped(Exception):
    """The caller wants no more."""


@dataclass(slots=True)
class Seen:
    """What the readings of all ranges share: what is looked for, what was counted, what the records said."""

    label: BackupLabel | None
    fates: PageFates | None
    advance: Callable[[int], None]
    stop: Callable[[], bool]
    segments: int = 0
    records: int = 0
    bytes_read: int = 0
    checkpoint_redo: Lsn | None = None
    has_backup_end: bool = False
    system_identifier: int | None = None
    magic: int = 0

    def count(self, content: int) -> None:
        """Take note of bytes that were read; raise Stopped when no more are wanted."""
        self.bytes_read += content
        self.advance(content)
        if self.stop():
            raise Stopped


class RangeReading:
    """Reads one range; `report` says what was found.

    `_at` is the next byte to be judged; the scanner is None when one has to begin there.
    """

    def __init__(
        self, seen: Seen, span: WalRange, source: WalSource, size: int, *, newer: Sequence[WalRange], is_last: bool
    ) -> None:
        self._seen = seen
        self._span = span
        self._source = source
        self._size = size
        self._newer = newer
        self._is_last = is_last
        self._end = (1 << 64) - 1 if span.end is None else int(span.end)
        self._at = int(span.start)
        self._scanner: WalScanner | None = None
        self._counted = 0
        self._damage_in_segment = 0
        self._numbers: list[int] | None = None
        self.report = RangeReport(span, source.place, seen.label)

    def run(self) -> None:
        """Read to the end of the range; raise Stopped."""
        segment = WalSegment.holding(self._span.start, self._span.timeline_id, self._size)
        while segment.start < self._end and not self._is_done():
            try:
                content = self._find(segment)
                if content is None:
                    self._drop_scanner(segment.end)
                    if self._span.end is None:
                        self.report.open_end(segment)
                        return
                    segment = self._pass_missing(segment)
                else:
                    self._read(segment, content)
            except (IntegrityError, StorageFailed) as problem:
                is_new = self.report.not_readable(segment, problem)
                self._drop_scanner(segment.end)
                if not is_new:
                    # A tar that was cut says so of every segment it is asked for, to the end of all numbers.
                    if self._span.end is None:
                        return
                    with contextlib.suppress(StorageFailed):
                        segment = self._pass_absent(segment)
            segment = segment.next()
        self._finish()

    def _pass_missing(self, segment: WalSegment) -> WalSegment:
        """Report all segments that are missing from here on; return the last one."""
        until = self._pass_absent(segment)
        self.report.missing(segment, until)
        return until

    def _pass_absent(self, segment: WalSegment) -> WalSegment:
        """Pass over the segments that are not there behind this one; return the last of them, or this one.

        A wrong digit in an LSN makes millions of them. The last one of the range may be there on the next timeline.
        """
        last = last_byte(self._span) // self._size
        number = min(self._next_number(segment), last if segment.number < last else last + 1) - 1
        until = WalSegment(segment.timeline_id, number, self._size)
        self._drop_scanner(until.end)
        return until

    def _next_number(self, segment: WalSegment) -> int:
        """Return the number of the next segment that is there behind one that is not; beyond all when none is."""
        if self._numbers is None:
            ranges = self._source.ranges(segment.timeline_id, segment.size_bytes)
            self._numbers = list(segment_numbers(ranges, segment.size_bytes))
        position = bisect_right(self._numbers, segment.number)
        return self._numbers[position] if position < len(self._numbers) else _NO_MORE

    def _is_done(self) -> bool:
        """Tell whether the end of a range without a known end was found."""
        return self._span.end is None and self._seen.has_backup_end

    def _find(self, segment: WalSegment) -> WalCopy | None:
        content = _held(self._source, segment)
        if content is None and self._newer and segment.number == last_byte(self._span) // self._size:
            # A server that switches timelines copies the beginning of the segment into the new timeline's one, and
            # recovery prefers that copy (access/transam/xlogrecovery.c, XLogFileReadAnyTLI).
            copy = WalSegment(self._newer[0].timeline_id, segment.number, self._size)
            content = _held(self._source, copy)
        return content

    def _read(self, segment: WalSegment, content: WalCopy) -> None:
        self._seen.segments += 1
        self.report.found()
        self._damage_in_segment = 0
        needed = min(self._end, int(segment.end))
        held = int(segment.start)
        for offset, view in content.pieces(max(0, self._at - segment.start)):
            if offset == 0 and not self._accept_header(segment, content, view):
                break
            held = segment.start + offset + len(view)
            self._feed(segment, content, segment.start + offset, view)
            self._seen.count(len(view))
            if held >= needed or self._at >= segment.end or self._is_done():
                break
        else:
            if self._at < needed and self._span.end is not None:
                self.report.short(segment, content.where, held - segment.start)
                self._drop_scanner(segment.end)
            elif self._span.end is None and held < segment.end:
                self._drop_scanner(segment.end)
        if content.size_bytes not in (None, self._size) and not content.partial and held >= needed:
            self.report.odd_size(segment, content.where, content.size_bytes or 0)

    def _accept_header(self, segment: WalSegment, content: WalCopy, view: memoryview) -> bool:
        """Look at the first page as the server does, also when reading begins behind it; False: pass the segment over.

        Only the header tells whose the segment is. When it is damaged reading goes on at the next page.
        """
        header = read_page_header(bytes(view[:LONG_HEADER_BYTES]))
        if header is None:
            return True  # Too short to have one: reported as a short file.
        pages = PageSequence(self._size)
        pages.system_identifier, pages.magic = self._seen.system_identifier or 0, self._seen.magic
        problem = pages.problem(header, segment.start)
        if problem is None and header.timeline_id > segment.timeline_id:
            problem = self._too_new(segment, header.timeline_id)
        if problem is None:
            self._seen.magic = header.magic
            self._seen.system_identifier = self._seen.system_identifier or header.system_identifier
            return True
        compression = compression_of(bytes(view[:LONG_HEADER_BYTES])) if problem.ending is Ending.PAGE_MAGIC else None
        if compression is not None:
            self.report.compressed(segment, content.where, compression)
        elif problem.ending in _FOREIGN:
            self.report.foreign(segment, content.where, str(problem))
        elif problem.ending in _UNWRITTEN:
            self.report.unwritten(segment, content.where, problem)
        else:
            self._damage_in_segment += self.report.damaged(segment, content.where, problem)
            self._drop_scanner(max(self._at, segment.start + PAGE_BYTES))
            return True
        self._drop_scanner(segment.end)
        return False

    def _too_new(self, segment: WalSegment, timeline_id: int) -> WalEnd | None:
        if any(span.timeline_id == timeline_id for span in self._newer):
            return None
        return WalEnd(Ending.TIMELINE, segment.start, timeline_id, segment.timeline_id)

    def _feed(self, segment: WalSegment, content: WalCopy, first: int, view: memoryview) -> None:
        """Judge what lies in the view of the range; `first` is the LSN of its first byte, where a page begins."""
        until = min(first + len(view), self._end)
        while max(self._at, first) < until:
            if self._scanner is None:
                with_blocks = self._seen.fates is not None
                to_come = self._end - self._at
                self._scanner = WalScanner(Lsn(self._at), self._size, expected_bytes=to_come, with_blocks=with_blocks)
                self._counted = 0
            self._look_at(self._scanner, view[self._at - first : until - first])
            end = self._scanner.end
            if end is None or self._is_done():
                self._at = until
                return
            # A record may have begun pages before: whatever lies between is a part of it. A page whose own header is
            # wrong is passed over; with it a new scanner would take the wrong version for granted.
            last_page = end.lsn if end.ending in _WRONG_PAGE else self._scanner.next_lsn
            restart = max((last_page // PAGE_BYTES + 1) * PAGE_BYTES, first)
            if end.ending in _UNWRITTEN and not self.report.is_known(end.lsn):
                self.report.unwritten(segment, content.where, end)
                restart = int(segment.end)
            else:
                self._damage_in_segment += self.report.damaged(segment, content.where, end)
            if self._damage_in_segment >= _MAX_DAMAGE_IN_SEGMENT:
                self.report.given_up(segment)
                restart = int(segment.end)
            self._drop_scanner(restart)

    def _look_at(self, scanner: WalScanner, view: memoryview) -> None:
        marks = scanner.feed(view)
        new_records = scanner.record_count - self._counted
        self._counted = scanner.record_count
        self._seen.records += new_records
        self.report.count_records(new_records)
        if self._seen.fates is not None:
            self._seen.fates.accept(marks, self._seen.magic)
        label = self._seen.label
        if label is None:
            return
        for mark in marks.select((MarkKind.CHECKPOINT, MarkKind.BACKUP_END)):
            if mark.kind is MarkKind.BACKUP_END:
                self._seen.has_backup_end |= mark.lsn_argument == label.start_lsn
            elif mark.lsn == label.checkpoint_lsn:
                self._seen.checkpoint_redo = mark.lsn_argument

    def _drop_scanner(self, next_byte: int) -> None:
        self._scanner = None
        self._at = int(next_byte)

    def _finish(self) -> None:
        scanner = self._scanner
        # A stop LSN is the end of a record. A timeline may be left in the middle of one, which then never took place.
        if scanner is not None and self._is_last and self._span.end is not None and scanner.next_lsn < self._end:
            segment = WalSegment.holding(scanner.next_lsn, self._span.timeline_id, self._size)
            self.report.beyond_end(segment, scanner.next_lsn)


def _held(source: WalSource, segment: WalSegment) -> WalCopy | None:
    """Return the copy that a recovery would be given; of those that it would pass over, which are findings, the first.

    A single one is not looked at before: a compressed tar gives it once.
    """
    copies = source.copies(segment.file_name)
    return (choose(copies, segment) if len(copies) > 1 else None) or next(iter(copies), None)
