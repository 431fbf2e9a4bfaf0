"""Read every WAL record that a backup needs: all there, one after the other, with right checksums.

Theory of operation. The manifest names ranges of WAL, one for each timeline. Each is read segment by segment with a
scanner that stops where the server's recovery would stop. That place is noted, and reading goes on with a new scanner
at the next page, so that one run names everything that is damaged; behind zeros or old content it goes on with the next
segment. After the end of a range nothing is judged: there the backup's last segment holds what came later.

Findings (`check` names):
  wal-range           nothing can be read: a range that no backup can have, by a wrong LSN in manifest or label
  wal-records         OK: the records of a range are all there and right
  wal-absent          there is no WAL at all for a range, as after -X none
  wal-missing         segments are missing, as runs
  wal-foreign         a segment is of another cluster, or of a cluster with other segments
  wal-damaged         a record or a page is damaged: LSN, segment, position in the file, reason
  wal-ends-early      valid WAL ends before the range does
  wal-size            a segment file is shorter or longer than a segment (a warning when nothing that is needed is gone)
  wal-unreadable      the file system or the compressed file does not give the content
  wal-checkpoint      at backup_label's CHECKPOINT LOCATION stands no such checkpoint
  wal-backup-end      the end-of-backup record, without which a backup of a primary never becomes consistent
  wal-minimum-recovery  the WAL does not reach pg_control's minimum recovery point (backup of a standby)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polarvault.backupset.model import compression_of
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.finding import Finding
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment, is_segment_size
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.pgfiles.control import ControlFile
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.findings import RangeReport
from polarvault.verify.wal.sources import SegmentContent, WalSource
from polarvault.verify.wal.spans import is_segment_of, last_byte, range_problem
from polarvault.wal.marks import MarkKind
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, Ending, PageSequence, WalEnd, read_page_header
from polarvault.wal.scan import WalScanner

if TYPE_CHECKING:
    from polarvault.verify.pages.fates import PageFates

# A segment full of rubbish has a damaged record on every page: after some of them it is given up.
_MAX_DAMAGE_IN_SEGMENT = 10
# Behind these there is no WAL up to the end of the segment, unless it was overwritten with zeros.
_UNWRITTEN = (Ending.ZERO_RECORD, Ending.ZERO_PAGE, Ending.PAGE_ADDRESS)
_WRONG_PAGE = (Ending.PAGE_MAGIC, Ending.PAGE_FLAGS)
_FOREIGN = (Ending.SYSTEM_IDENTIFIER, Ending.SEGMENT_SIZE, Ending.BLOCK_SIZE)


@dataclass(slots=True)
class WalVerdict:
    """What was found, and what was read for it; is_complete: False when `stop` ended it.

    histories: names and contents of timeline history files in a tar with WAL.
    """

    findings: list[Finding] = field(default_factory=list)
    histories: list[tuple[str, bytes | OSError]] = field(default_factory=list)
    segments: int = 0
    records: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    is_complete: bool = True


def check_wal(
    ranges: Sequence[WalRange],
    source: WalSource | None,
    *,
    segment_size_bytes: int | None,
    label: BackupLabel | None = None,
    control: ControlFile | None = None,
    system_identifier: int | None = None,
    fates: PageFates | None = None,
    advance: Callable[[int], None] = lambda count: None,
    stop: Callable[[], bool] = lambda: False,
) -> WalVerdict:
    """Read the WAL of all ranges and return everything that is wrong with it; raises nothing for bad WAL.

    source None: the backup has no WAL and no other place was named. Without ranges (a backup without manifest) the
    label tells where WAL begins; it is then read up to the end-of-backup record, or for a backup of a standby up to
    pg_control's minimum recovery point. fates is shown every record. advance gets the bytes read since the last call;
    stop is asked as often.
    The source is closed.
    """
    verdict = WalVerdict()
    began = time.monotonic()
    try:
        _Check(verdict, label, control, fates, advance, stop).run(ranges, source, segment_size_bytes, system_identifier)
        if source is not None and verdict.is_complete:
            verdict.findings += _rest_of(source, verdict.findings)
            verdict.histories = source.histories()
    finally:
        if source is not None:
            source.close()
    verdict.seconds = time.monotonic() - began
    return verdict


def _rest_of(source: WalSource, known: Sequence[Finding]) -> list[Finding]:
    """Return what is wrong with a tar behind the segments, unless that was said already."""
    try:
        source.finish()
    except (IntegrityError, StorageFailed) as problem:
        finding = RangeReport.unreadable(source.place, problem)
        return [] if any(finding.message == other.message for other in known) else [finding]
    return []


class _Stopped(Exception):
    """The caller wants no more."""


@dataclass(slots=True)
class _Seen:
    """What the records said, over all ranges."""

    checkpoint_redo: Lsn | None = None
    has_backup_end: bool = False
    system_identifier: int | None = None
    magic: int = 0


class _Check:
    def __init__(
        self,
        verdict: WalVerdict,
        label: BackupLabel | None,
        control: ControlFile | None,
        fates: PageFates | None,
        advance: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        self._verdict = verdict
        self.fates = fates
        self._label = label
        self._control = control
        self._advance = advance
        self._stop = stop
        self._seen = _Seen()

    def run(
        self, ranges: Sequence[WalRange], source: WalSource | None, size: int | None, system_identifier: int | None
    ) -> None:
        """Judge all ranges, oldest timeline first: the manifest names the newest first."""
        spans = sorted(ranges, key=lambda wanted: wanted.timeline_id) or self._spans_of_label()
        if source is not None and size is None:
            size = self._size_of(source)
        if source is None or size is None or not is_segment_size(size):
            place = None if source is None else source.place
            for span in spans:
                self._verdict.findings += RangeReport(span, place, self._label).nothing_there()
            return
        for span in spans:
            if (problem := range_problem(span, size)) is not None:
                self._verdict.findings.append(RangeReport.impossible(span, problem))
        newest = spans[-1].timeline_id if spans else 0
        # An empty range is one of a timeline that was left where it began.
        spans = [span for span in spans if span.start != span.end and range_problem(span, size) is None]
        self._seen.system_identifier = self._control.system_identifier if self._control else system_identifier
        source.prepare(lambda name: is_segment_of(spans, name, size))
        reports = []
        try:
            for position, span in enumerate(spans):
                later = [other for other in spans[position + 1 :] if other.start // size == last_byte(span) // size]
                reading = _RangeReading(self, span, source, size, newer=later, is_last=span.timeline_id == newest)
                reports.append(reading.report)
                reading.run()
        except _Stopped:
            self._verdict.is_complete = False
        for report in reports:
            self._verdict.findings += report.findings(is_complete=self._verdict.is_complete)
        if reports and self._verdict.is_complete and all(report.is_good for report in reports):
            self._judge_marks(spans, reports[-1])

    def _spans_of_label(self) -> list[WalRange]:
        label, control = self._label, self._control
        if label is None or (label.is_from_standby and control is None):
            return []
        end = control.minimum_recovery_lsn if label.is_from_standby and control is not None else None
        return [WalRange(label.timeline_id, label.start_lsn, end)]

    def _size_of(self, source: WalSource) -> int | None:
        try:
            header = source.first_header()
        except (IntegrityError, StorageFailed) as problem:
            self._verdict.findings.append(RangeReport.unreadable(source.place, problem))
            return None
        return None if header is None else header.segment_size_bytes

    # What the readings of the ranges report

    def count(self, content: int) -> None:
        """Take note of bytes that were read."""
        self._verdict.bytes_read += content
        self._advance(content)
        if self._stop():
            raise _Stopped

    def count_segment(self) -> None:
        self._verdict.segments += 1

    def count_records(self, records: int) -> None:
        self._verdict.records += records

    @property
    def seen(self) -> _Seen:
        return self._seen

    @property
    def label(self) -> BackupLabel | None:
        return self._label

    def _judge_marks(self, spans: Sequence[WalRange], report: RangeReport) -> None:
        """Say what the records themselves must hold; asked only when all of them could be read."""
        label, findings = self._label, self._verdict.findings
        if label is None:
            return
        if any(span.start <= label.checkpoint_lsn < (span.end or 1 << 64) for span in spans):
            findings.append(report.checkpoint(self._seen.checkpoint_redo))
        if not label.is_from_standby:
            findings.append(report.backup_end(self._seen.has_backup_end))
        elif self._control is not None and spans[-1].end is not None:
            findings.append(report.minimum_recovery(self._control.minimum_recovery_lsn, spans[-1].end))


class _RangeReading:
    """Reads one range. `_at` is the next byte to be judged; the scanner is None when one has to begin there."""

    def __init__(
        self, check: _Check, span: WalRange, source: WalSource, size: int, *, newer: Sequence[WalRange], is_last: bool
    ) -> None:
        self._check = check
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
        self.report = RangeReport(span, source.place, check.label)

    def run(self) -> None:
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
        number = min(self._source.next_number(segment), last if segment.number < last else last + 1) - 1
        until = WalSegment(segment.timeline_id, number, self._size)
        self._drop_scanner(until.end)
        return until

    def _is_done(self) -> bool:
        """Tell whether the end of a range without a known end was found."""
        return self._span.end is None and self._check.seen.has_backup_end

    def _find(self, segment: WalSegment) -> SegmentContent | None:
        content = self._source.find(segment)
        if content is None and self._newer and segment.number == last_byte(self._span) // self._size:
            # A server that switches timelines copies the beginning of the segment into the new timeline's one, and
            # recovery prefers that copy (access/transam/xlogrecovery.c, XLogFileReadAnyTLI).
            copy = WalSegment(self._newer[0].timeline_id, segment.number, self._size)
            content = self._source.find(copy)
        return content

    def _read(self, segment: WalSegment, content: SegmentContent) -> None:
        self._check.count_segment()
        self.report.found()
        self._damage_in_segment = 0
        needed = min(self._end, int(segment.end))
        held = int(segment.start)
        for offset, view in content.pieces(max(0, self._at - segment.start)):
            if offset == 0 and not self._accept_header(segment, content, view):
                break
            held = segment.start + offset + len(view)
            self._feed(segment, content, segment.start + offset, view)
            self._check.count(len(view))
            if held >= needed or self._at >= segment.end or self._is_done():
                break
        else:
            if self._at < needed and self._span.end is not None:
                self.report.short(segment, content.where, held - segment.start)
                self._drop_scanner(segment.end)
            elif self._span.end is None and held < segment.end:
                self._drop_scanner(segment.end)
        if content.size_bytes not in (None, self._size) and not content.may_be_short and held >= needed:
            self.report.odd_size(segment, content.where, content.size_bytes or 0)

    def _accept_header(self, segment: WalSegment, content: SegmentContent, view: memoryview) -> bool:
        """Look at the first page as the server does, also when reading begins behind it; False: pass the segment over.

        Only the header tells whose the segment is. When it is damaged reading goes on at the next page.
        """
        header = read_page_header(bytes(view[:LONG_HEADER_BYTES]))
        if header is None:
            return True  # Too short to have one: reported as a short file.
        pages = PageSequence(self._size)
        pages.system_identifier, pages.magic = self._check.seen.system_identifier or 0, self._check.seen.magic
        problem = pages.problem(header, segment.start)
        if problem is None and header.timeline_id > segment.timeline_id:
            problem = self._too_new(segment, header.timeline_id)
        if problem is None:
            self._check.seen.magic = header.magic
            self._check.seen.system_identifier = self._check.seen.system_identifier or header.system_identifier
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

    def _feed(self, segment: WalSegment, content: SegmentContent, first: int, view: memoryview) -> None:
        """Judge what lies in the view of the range; `first` is the LSN of its first byte, where a page begins."""
        until = min(first + len(view), self._end)
        while max(self._at, first) < until:
            if self._scanner is None:
                with_blocks = self._check.fates is not None
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
        self._check.count_records(new_records)
        self.report.count_records(new_records)
        if self._check.fates is not None:
            self._check.fates.accept(marks, self._check.seen.magic)
        label = self._check.label
        if label is None:
            return
        for mark in marks.select((MarkKind.CHECKPOINT, MarkKind.BACKUP_END)):
            if mark.kind is MarkKind.BACKUP_END:
                self._check.seen.has_backup_end |= mark.lsn_argument == label.start_lsn
            elif mark.lsn == label.checkpoint_lsn:
                self._check.seen.checkpoint_redo = mark.lsn_argument

    def _drop_scanner(self, next_byte: int) -> None:
        self._scanner = None
        self._at = int(next_byte)

    def _finish(self) -> None:
        scanner = self._scanner
        # A stop LSN is the end of a record. A timeline may be left in the middle of one, which then never took place.
        if scanner is not None and self._is_last and self._span.end is not None and scanner.next_lsn < self._end:
            segment = WalSegment.holding(scanner.next_lsn, self._span.timeline_id, self._size)
            self.report.beyond_end(segment, scanner.next_lsn)
