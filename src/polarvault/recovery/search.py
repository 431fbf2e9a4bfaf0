"""Find the record at which the server will stop: fed with the marks of the WAL, in its order. Pure.

The server's rules (access/transam/xlogrecovery.c, recoveryStopsBefore and recoveryStopsAfter):
time: before the first commit or abort later than the time (exclusive: at or after it); xid: after (exclusive: before)
the first commit or abort of that transaction; name: after the first restore point of that name; LSN: after (exclusive:
before) the first record that begins at or after it. None of them asks whether the backup is consistent yet: a stop
before that is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from polarvault.model.lsn import Lsn
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.wal.records import Record, RecordReader
from polarvault.wal.scan import MarkKind, Marks, WalMark

_TRANSACTION_ENDS = (MarkKind.COMMIT, MarkKind.ABORT)
SIDE_EFFECTS = frozenset({MarkKind.TABLESPACE, MarkKind.PARAMETER_CHANGE, MarkKind.FULL_PAGE_WRITES_CHANGE})
WATCHED_KINDS = frozenset({*_TRANSACTION_ENDS, *SIDE_EFFECTS, MarkKind.RESTORE_POINT, MarkKind.BACKUP_END})
# More names than a person reads; the newest are kept.
_MAX_RESTORE_POINTS = 200
_PAGE_BYTES = 8192
# Sessions that commit at the same moment write their records in another order than their times; a clock that is put
# back makes more of a difference.
_CLOCK_STEP = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class StopPoint:
    """Where recovery stops: before or after the record at lsn. end_lsn is None where only the position is known.

    is_end: it is the last record of the WAL.
    """

    lsn: Lsn
    is_before: bool
    end_lsn: Lsn | None = None
    kind: MarkKind | None = None
    xid: int = 0
    time: datetime | None = None
    name: str | None = None
    is_end: bool = False

    @property
    def applied_up_to(self) -> Lsn:
        """The LSN up to which WAL is applied, as far as it is known."""
        return self.lsn if self.is_before or self.end_lsn is None else self.end_lsn


def stop_at(mark: WalMark, target: RecoveryTarget) -> StopPoint | None:
    """Return where the server stops if this record makes it stop, else None; LSN targets are not decided by marks."""
    is_before: bool | None = None
    if mark.kind in _TRANSACTION_ENDS:
        if target.kind is TargetKind.TIME and mark.time is not None and target.time is not None:
            late = mark.time > target.time if target.inclusive else mark.time >= target.time
            is_before = True if late else None
        elif target.kind is TargetKind.XID and mark.xid == target.xid:
            is_before = not target.inclusive
    elif mark.kind is MarkKind.RESTORE_POINT and target.kind is TargetKind.NAME and mark.name == target.name:
        is_before = False
    if is_before is None:
        return None
    return StopPoint(mark.lsn, is_before, mark.end_lsn, mark.kind, mark.xid, mark.time, mark.name)


@dataclass(slots=True)
class TargetSearch:
    """What the WAL says about one target, from first_lsn on.

    last_transaction: the last commit or abort that is applied before the stop. before_consistency: the last one that
    the backup itself holds. repeated: where the restore point's name occurs again. side_effects: marks
    that do more than change data, up to where the reader stopped, which may be behind the target. seen_last,
    latest_seen_time: the last commit or abort that was read, applied or not, and the latest time of any. barrier: a
    record at which every recovery ends with an error. earlier_behind: a transaction behind a stop at a time that ended
    before that time, and long before the one at which recovery stops: a clock was put back.
    """

    target: RecoveryTarget
    first_lsn: Lsn
    start_lsn: Lsn
    consistent_lsn: Lsn | None
    stop: StopPoint | None = None
    last_transaction: WalMark | None = None
    before_consistency: WalMark | None = None
    latest_time: datetime | None = None
    restore_points: list[WalMark] = field(default_factory=list)
    repeated: list[WalMark] = field(default_factory=list)
    side_effects: list[WalMark] = field(default_factory=list)
    seen_last: WalMark | None = None
    latest_seen_time: datetime | None = None
    barrier: WalMark | None = None
    earlier_behind: WalMark | None = None
    _at_target: WalMark | None = None

    def take_scanned(self, marks: Marks) -> None:
        """Look at the next marks of a scanner; most commits are passed over without being decoded."""
        around = [lsn for lsn in (self.start_lsn, self.consistent_lsn, self.target.lsn) if lsn is not None]
        was_found = self.stop is not None
        not_before = None if was_found else self.target.time
        self.take(marks.outline(WATCHED_KINDS, not_before=not_before, xid=self.target.xid, around=around))
        if was_found and self.target.time is not None and self.earlier_behind is None:
            assert self.stop is not None
            earliest = marks.earliest_end()
            if earliest is not None and self._is_left_behind(earliest):
                self.earlier_behind = earliest

    def take(self, marks: Iterable[WalMark]) -> None:
        """Look at the next marks."""
        for mark in marks:
            # Records before the backup's start lie in the same segment, but the server does not replay them.
            if mark.lsn < self.start_lsn:
                continue
            if self.barrier is not None:
                return
            if mark.kind is MarkKind.PARAMETER_CHANGE and mark.name == "minimal":
                self.barrier = mark
                return
            if mark.kind in _TRANSACTION_ENDS:
                self._see(mark)
            if mark.kind is MarkKind.BACKUP_END:
                if self.consistent_lsn is None and mark.lsn_argument == self.start_lsn:
                    self.set_consistent(mark.end_lsn)
                continue
            if mark.kind in SIDE_EFFECTS:
                self.side_effects.append(mark)
            if self.target.lsn is not None and mark.lsn >= self.target.lsn:
                self._at_target = self._at_target or mark
                continue
            if mark.kind in SIDE_EFFECTS:
                continue
            found = stop_at(mark, self.target)
            if self.stop is None:
                self.stop = found
                # A record that recovery stops before is not applied.
                if not (found and found.is_before):
                    self._apply(mark)
            elif found is not None and mark.kind is MarkKind.RESTORE_POINT:
                self.repeated.append(mark)

    def _see(self, mark: WalMark) -> None:
        self.seen_last = mark
        if mark.time is not None and (self.latest_seen_time is None or mark.time > self.latest_seen_time):
            self.latest_seen_time = mark.time
        if self.stop is not None and self.earlier_behind is None and self._is_left_behind(mark):
            self.earlier_behind = mark

    def _is_left_behind(self, mark: WalMark) -> bool:
        """Tell whether a transaction behind the stop had ended by the target time, by a clock that was put back."""
        target, stop = self.target.time, self.stop
        if target is None or mark.time is None or stop is None or stop.time is None or mark.kind is MarkKind.ABORT:
            return False
        return mark.lsn > stop.lsn and mark.time <= target and stop.time - mark.time >= _CLOCK_STEP

    def set_consistent(self, lsn: Lsn) -> None:
        """Learn from the WAL itself where the backup ends."""
        self.consistent_lsn = lsn
        self.before_consistency = self.last_transaction

    def stop_at_record(self, record: Record) -> None:
        """Take the record that decides an LSN target, after the marks up to it."""
        if self.barrier is not None and (record.lsn, self.target.inclusive) >= (self.barrier.lsn, True):
            # The server does not get so far; it can only stop right before.
            return
        mark = self._at_target
        if mark is not None and mark.lsn != record.lsn:
            mark = None
        if mark is not None and self.target.inclusive:
            self._apply(mark)
        self.stop = StopPoint(
            record.lsn, not self.target.inclusive, record.end_lsn, mark.kind if mark else None,
            mark.xid if mark else 0, mark.time if mark else None, mark.name if mark else None,
        )  # fmt: skip

    def _apply(self, mark: WalMark) -> None:
        if mark.kind is MarkKind.RESTORE_POINT:
            self.restore_points.append(mark)
            del self.restore_points[:-_MAX_RESTORE_POINTS]
            return
        self.last_transaction = mark
        if mark.time is not None and (self.latest_time is None or mark.time > self.latest_time):
            self.latest_time = mark.time
        if self.consistent_lsn is not None and mark.end_lsn <= self.consistent_lsn:
            self.before_consistency = mark


class RecordFinder:
    """Find the first record that begins at or after an LSN, whatever kind it is; fed from the LSN's page on.

    The scanner tells marks apart quickly and passes over everything else; this reader sees every record, slowly, and
    is needed for one page or a few.
    """

    def __init__(self, lsn: Lsn, segment_size_bytes: int) -> None:
        self._lsn = lsn
        self._first = lsn // _PAGE_BYTES * _PAGE_BYTES
        self._reader: RecordReader | None = None
        self._size = segment_size_bytes
        self.found: Record | None = None

    def feed(self, view: memoryview, position: int) -> None:
        """Look at bytes that begin at position and follow those of the last call."""
        if self.found is not None:
            return
        if self._reader is None:
            if position + len(view) <= self._first:
                return
            # Views are cut anywhere; the reader has to begin with a page.
            start = max(self._first, position)
            self._reader = RecordReader(start, self._size, wanted_bytes=lambda rmgr, info: 0)
            view = view[start - position :]
        while view and self.found is None:
            records = self._reader.feed(view[:_PAGE_BYTES])
            self.found = next((record for record in records if record.lsn >= self._lsn), None)
            view = view[_PAGE_BYTES:]
