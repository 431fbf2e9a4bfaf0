"""The findings about one range of WAL, in words; what is read and judged is decided by `check`."""

from __future__ import annotations

from polarvault.errors import PolarvaultError
from polarvault.model.finding import Finding, Severity, ok, problem
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.verify.facts.backup import WalRange
from polarvault.wal.pages import PAGE_BYTES, WalEnd

_STOPS = "recovery needs this WAL to make the backup consistent and stops there: it cannot be restored with it"
_ENDS = "the restored server stops with FATAL: WAL ends before end of online backup, unless an archive has the rest"
_NAME_ARCHIVE = "name a directory that has the WAL: -w DIR"
_USE_ARCHIVE = f"put a good copy from a WAL archive in its place, or {_NAME_ARCHIVE}"


class RangeReport:
    """Collects what is wrong with a range, in the order of the WAL; damage that is seen twice is reported once."""

    def __init__(self, span: WalRange, place: str | None, label: BackupLabel | None) -> None:
        self._span = span
        self._place = place
        self._label = label
        self._findings: list[Finding] = []
        self._missing: tuple[WalSegment, WalSegment] | None = None
        self._read = 0
        self._records = 0
        # Zeros or old content: the end of the WAL, unless records follow.
        self._unwritten: tuple[WalSegment, str, WalEnd] | None = None
        self._damaged_page = -1

    @property
    def is_good(self) -> bool:
        """Tell whether every record of the range could be read and is right."""
        return (
            self._missing is None
            and self._unwritten is None
            and all(found.severity is not Severity.PROBLEM for found in self._findings)
        )

    @property
    def _range(self) -> str:
        end = "the end of the backup" if self._span.end is None else str(self._span.end)
        return f"from {self._span.start} to {end}"

    # What the reading finds

    def count_records(self, records: int) -> None:
        """Take note of right records."""
        self._records += records
        if records and self._unwritten is not None:
            # The WAL goes on behind the zeros, so they are a hole.
            segment, where, end = self._unwritten
            self._unwritten = None
            self._add_damage(segment, where, end)

    def missing(self, first: WalSegment, last: WalSegment) -> None:
        """Segments are not there."""
        if self._missing is not None and self._missing[1].number + 1 == first.number:
            first = self._missing[0]
        else:
            self._end_run()
        self._missing = first, last

    def found(self) -> None:
        """A segment is there."""
        self._read += 1
        self._end_run()

    def not_readable(self, segment: WalSegment, failure: PolarvaultError) -> bool:
        """The segment's content cannot be had; False when the same was said of another one."""
        finding = self.unreadable(segment.file_name, failure)
        is_new = not any((finding.check, finding.message) == (known.check, known.message) for known in self._findings)
        if is_new:
            self._add(finding)
        return is_new

    def compressed(self, segment: WalSegment, where: str, compression: str) -> None:
        """The file is compressed, and its name does not say so: no restore_command would decompress it."""
        message = f"{where} is compressed ({compression}), and its name does not end in .{compression}"
        advice = f"give it that name, and it is read: mv {where} {where}.{compression}"
        self._add(problem("wal-unreadable", segment.file_name, message, _STOPS, advice))

    @staticmethod
    def unreadable(subject: str, failure: PolarvaultError) -> Finding:
        """Return the finding about content that cannot be had."""
        return problem("wal-unreadable", subject, failure.message, _STOPS, failure.hint or _USE_ARCHIVE)

    @staticmethod
    def impossible(span: WalRange, reason: str) -> Finding:
        """Return the finding about a range that no backup can have."""
        subject, message = f"timeline {span.timeline_id}", f"WAL from {span.start} on cannot be checked: {reason}"
        meaning = "the manifest or backup_label names a wrong place in the WAL"
        return problem("wal-range", subject, message, meaning, "use another backup")

    def foreign(self, segment: WalSegment, where: str, reason: str) -> None:
        """The segment is of another cluster."""
        message = f"{where} is not of the cluster that was backed up: {reason}"
        self._add(problem("wal-foreign", segment.file_name, message, _STOPS, _USE_ARCHIVE))

    def unwritten(self, segment: WalSegment, where: str, end: WalEnd) -> None:
        """Zeros or old content stand where the next record should."""
        self._unwritten = self._unwritten or (segment, where, end)

    def is_known(self, lsn: Lsn) -> bool:
        """Tell whether damage on this page was reported: reading may have gone on at a page with a damaged header."""
        return lsn // PAGE_BYTES == self._damaged_page

    def damaged(self, segment: WalSegment, where: str, end: WalEnd) -> bool:
        """A record or a page is wrong; False when that was reported already."""
        if self.is_known(end.lsn):
            return False
        self._damaged_page = end.lsn // PAGE_BYTES
        self._add_damage(segment, where, end)
        return True

    def _add_damage(self, segment: WalSegment, where: str, end: WalEnd) -> None:
        holding = WalSegment.holding(end.lsn, segment.timeline_id, segment.size_bytes)
        goes_on = f", noticed in {where}" if holding != segment else f" of {where}"
        message = f"{end}; that is byte {end.lsn - holding.start}{goes_on}"
        meaning = _STOPS
        if self._label is not None and end.lsn == self._label.checkpoint_lsn:
            meaning = "this is the checkpoint with which recovery begins: " + meaning
        self._add(problem("wal-damaged", holding.file_name, message, meaning, _USE_ARCHIVE))

    def given_up(self, segment: WalSegment) -> None:
        """The segment has more damage than is worth naming."""
        message = "there is too much damage in it to name every place; the rest of the segment was not read"
        self._add(problem("wal-damaged", segment.file_name, message, _STOPS, _USE_ARCHIVE))

    def short(self, segment: WalSegment, where: str, size_bytes: int) -> None:
        """The file ends before the WAL does that is needed of it."""
        message = (
            f"{where} holds {size_bytes} of {segment.size_bytes} bytes: the WAL from {Lsn(segment.start + size_bytes)} "
            f"to {self._until(segment)} is missing"
        )
        self._add(problem("wal-size", segment.file_name, message, _STOPS, _USE_ARCHIVE))

    def odd_size(self, segment: WalSegment, where: str, size_bytes: int) -> None:
        """The file has not the size of a segment, but what is needed of it is there."""
        message = f"{where} has {size_bytes} bytes, a segment has {segment.size_bytes}; what the backup needs is there"
        meaning = "the file was cut or padded after the backup; a restore_command that delivers it ends recovery"
        self._add(Finding(
            severity=Severity.WARNING, check="wal-size", subject=segment.file_name, message=message, meaning=meaning,
            advice=_USE_ARCHIVE,
        ))  # fmt: skip

    def open_end(self, segment: WalSegment) -> None:
        """No end-of-backup record was found up to the last segment that is there."""
        if self._unwritten is not None:
            return
        message = f"no end-of-backup record from {self._span.start} on, and segment {segment.file_name} is not there"
        self._add(problem("wal-backup-end", self._place or "", message, _ENDS, _NAME_ARCHIVE))

    def beyond_end(self, segment: WalSegment, lsn: Lsn) -> None:
        """The last record reaches beyond the range, which ends with a record."""
        message = (
            f"the record at {lsn} goes on beyond {self._span.end}, where the last record of the backup ends; "
            f"that is byte {lsn - segment.start} of the segment"
        )
        self._add(problem("wal-damaged", segment.file_name, message, _STOPS, _USE_ARCHIVE))

    # What comes of it

    def nothing_there(self) -> list[Finding]:
        """Return the finding that there is no WAL of the range at all."""
        where = "the backup holds no WAL" if self._place is None else f"{self._place} holds no WAL"
        message = f"WAL parsing failed for timeline {self._span.timeline_id}: {where} {self._range}"
        meaning = "the backup can be restored only where a restore_command brings this WAL"
        advice = f"{_NAME_ARCHIVE}; or leave WAL out of the verification: -n"
        return [problem("wal-absent", f"timeline {self._span.timeline_id}", message, meaning, advice)]

    def findings(self, *, is_complete: bool) -> list[Finding]:
        """Return everything that was found; is_complete: the range was read to its end."""
        if self._missing and not self._read and not self._findings:
            return self.nothing_there()
        self._end_run()
        if self._unwritten is not None and is_complete:
            self._findings.append(self._ends_early(*self._unwritten))
        if is_complete and self.is_good:
            count = f"{self._records} records in {self._read} segment{'s' if self._read != 1 else ''}"
            message = f"{count} {self._range} are there with right checksums"
            subject = f"timeline {self._span.timeline_id}"
            self._findings.append(ok("wal-records", subject, message))
        return self._findings

    def _ends_early(self, segment: WalSegment, where: str, end: WalEnd) -> Finding:
        message = f"WAL ends early, the backup needs it up to {self._span.end or 'its end-of-backup record'}: {end}"
        message += f"; that is byte {end.lsn % segment.size_bytes} of {where}"
        is_primary = self._label is not None and not self._label.is_from_standby
        meaning = _ENDS if is_primary else _STOPS
        return problem("wal-ends-early", segment.file_name, message, meaning, _NAME_ARCHIVE)

    def checkpoint(self, redo: Lsn | None) -> Finding:
        """Judge the record at the label's CHECKPOINT LOCATION; redo is None when it is no checkpoint."""
        assert self._label is not None
        label, subject = self._label, f"backup_label, CHECKPOINT LOCATION {self._label.checkpoint_lsn}"
        if redo == label.start_lsn:
            return ok("wal-checkpoint", subject, f"the checkpoint is there; redo begins at {redo}")
        message = "no checkpoint record begins there"
        if redo is not None:
            message = f"the checkpoint there has its redo point at {redo}, the label says {label.start_lsn}"
        meaning = "recovery cannot find the checkpoint with which it begins: label and WAL are of two backups"
        return problem("wal-checkpoint", subject, message, meaning, "use another backup, or " + _NAME_ARCHIVE)

    def backup_end(self, is_there: bool) -> Finding:
        """Judge whether the backup's end-of-backup record is inside the WAL."""
        assert self._label is not None
        subject = f"end-of-backup record of {self._label.start_lsn}"
        if is_there:
            return ok("wal-backup-end", subject, "it is there")
        message = f"it is not in the WAL {self._range}"
        return problem("wal-backup-end", subject, message, _ENDS, _NAME_ARCHIVE)

    def minimum_recovery(self, minimum: Lsn, end: Lsn) -> Finding:
        """Judge whether a standby's backup becomes consistent inside the WAL."""
        subject = f"minimum recovery point {minimum}"
        if minimum <= end:
            return ok("wal-minimum-recovery", subject, f"the WAL of the backup reaches {end}")
        message = f"the WAL of the backup ends at {end}, before the minimum recovery point of pg_control"
        return problem("wal-minimum-recovery", subject, message, _STOPS, _NAME_ARCHIVE)

    def _until(self, segment: WalSegment) -> Lsn:
        return segment.end if self._span.end is None else min(segment.end, self._span.end)

    def _add(self, finding: Finding) -> None:
        self._end_run()
        self._findings.append(finding)

    def _end_run(self) -> None:
        """Turn segments that are missing one after the other into one finding."""
        run, self._missing = self._missing, None
        if run is None:
            return
        names, verb, count = run[0].file_name, "is", run[1].number - run[0].number + 1
        if count > 1:
            names, verb = f"{run[0].file_name} to {run[1].file_name}, {count} segments,", "are"
        begin = max(run[0].start, self._span.start)
        message = (
            f"{names} {verb} not in {self._place} (timeline {run[0].timeline_id}, "
            f"WAL from {begin} to {self._until(run[1])})"
        )
        self._findings.append(problem("wal-missing", run[0].file_name, message, _STOPS, _USE_ARCHIVE))
