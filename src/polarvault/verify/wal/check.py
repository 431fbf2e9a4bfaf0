"""Read every WAL record that a backup needs: all there, one after the other, with right checksums.

Theory of operation. The manifest names ranges of WAL, one for each timeline. Each is read (`reading`) segment by
segment with a scanner that stops where the server's recovery would stop. That place is noted, and reading goes on with
a new scanner at the next page, so that one run names everything that is damaged; behind zeros or old content it goes on
with the next segment. After the end of a range nothing is judged: there the last segment holds what came later.

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
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.finding import Finding
from polarvault.model.segment import is_segment_size
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.pgfiles.control import ControlFile
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.findings import RangeReport
from polarvault.verify.wal.reading import RangeReading, Seen, Stopped
from polarvault.verify.wal.spans import is_segment_of, last_byte, range_problem
from polarvault.wal.source import WalSource

if TYPE_CHECKING:
    from polarvault.wal.page_fates import PageFates


@dataclass(frozen=True, slots=True)
class WalVerdict:
    """What was found, and what was read for it; is_complete: False when `stop` ended it."""

    findings: list[Finding]
    segments: int
    records: int
    bytes_read: int
    seconds: float
    is_complete: bool


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
    check, began = _Check(control, Seen(label, fates, advance, stop)), time.monotonic()
    findings, seen = check.findings, check.seen
    try:
        check.run(ranges, source, segment_size_bytes, system_identifier)
        if source is not None and check.is_complete:
            findings += _rest_of(source, findings)
    finally:
        if source is not None:
            source.close()
    seconds = time.monotonic() - began
    return WalVerdict(findings, seen.segments, seen.records, seen.bytes_read, seconds, check.is_complete)


def _rest_of(source: WalSource, known: Sequence[Finding]) -> list[Finding]:
    """Return what is wrong with a tar behind the segments, unless that was said already."""
    try:
        source.finish()
    except (IntegrityError, StorageFailed) as problem:
        finding = RangeReport.unreadable(source.place, problem)
        return [] if any(finding.message == other.message for other in known) else [finding]
    return []


class _Check:
    def __init__(self, control: ControlFile | None, seen: Seen) -> None:
        self.findings: list[Finding] = []
        self.is_complete = True
        self.seen = seen
        self._label = seen.label
        self._control = control

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
                self.findings += RangeReport(span, place, self._label).nothing_there()
            return
        for span in spans:
            if (problem := range_problem(span, size)) is not None:
                self.findings.append(RangeReport.impossible(span, problem))
        newest = spans[-1].timeline_id if spans else 0
        # An empty range is one of a timeline that was left where it began.
        spans = [span for span in spans if span.start != span.end and range_problem(span, size) is None]
        self.seen.system_identifier = self._control.system_identifier if self._control else system_identifier
        source.expect(lambda name: is_segment_of(spans, name, size))
        reports = []
        try:
            for position, span in enumerate(spans):
                later = [other for other in spans[position + 1 :] if other.start // size == last_byte(span) // size]
                reading = RangeReading(self.seen, span, source, size, newer=later, is_last=span.timeline_id == newest)
                reports.append(reading.report)
                reading.run()
        except Stopped:
            self.is_complete = False
        for report in reports:
            self.findings += report.findings(is_complete=self.is_complete)
        if reports and self.is_complete and all(report.is_good for report in reports):
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
            self.findings.append(RangeReport.unreadable(source.place, problem))
            return None
        return None if header is None else header.segment_size_bytes

    def _judge_marks(self, spans: Sequence[WalRange], report: RangeReport) -> None:
        """Say what the records themselves must hold; asked only when all of them could be read."""
        label, findings = self._label, self.findings
        if label is None:
            return
        if any(span.start <= label.checkpoint_lsn < (span.end or 1 << 64) for span in spans):
            findings.append(report.checkpoint(self.seen.checkpoint_redo))
        if not label.is_from_standby:
            findings.append(report.backup_end(self.seen.has_backup_end))
        elif self._control is not None and spans[-1].end is not None:
            findings.append(report.minimum_recovery(self._control.minimum_recovery_lsn, spans[-1].end))
