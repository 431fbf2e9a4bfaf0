"""At which record the server stops: its rules, fed with marks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from polarvault.model.lsn import Lsn
from polarvault.recovery.search import TargetSearch, stop_at
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.recovery.warnings import plan_warnings
from polarvault.wal.scan import MarkKind, WalMark

SPAN = BackupSpan("/b", Lsn(1000), 1, Lsn(1100), 1, 1 << 20)
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def mark(kind: MarkKind, lsn: int, *, xid: int = 0, second: float = 0, name: str | None = None) -> WalMark:
    moment = NOON + timedelta(seconds=second)
    return WalMark(kind, Lsn(lsn), Lsn(lsn + 40), xid, moment, name)


def commit(lsn: int, xid: int, second: float) -> WalMark:
    return mark(MarkKind.COMMIT, lsn, xid=xid, second=second)


def backup_end(lsn: int, start: int) -> WalMark:
    return WalMark(MarkKind.BACKUP_END, Lsn(lsn), Lsn(lsn + 40), lsn_argument=Lsn(start))


def time_target(second: float, *, inclusive: bool = True) -> RecoveryTarget:
    return RecoveryTarget(TargetKind.TIME, time=NOON + timedelta(seconds=second), inclusive=inclusive)


def search(target: RecoveryTarget, consistent: int | None = 1100) -> TargetSearch:
    return TargetSearch(target, Lsn(1000), Lsn(1000), None if consistent is None else Lsn(consistent))


STORY = [
    commit(900, 5, -9), commit(1200, 10, 1), mark(MarkKind.ABORT, 1300, xid=11, second=2), commit(1400, 12, 3),
    mark(MarkKind.RESTORE_POINT, 1500, second=4, name="p"), commit(1600, 13, 5),
    mark(MarkKind.RESTORE_POINT, 1700, second=6, name="p"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "lsn", "is_before", "last"),
    [
        (time_target(1), 1300, True, 10),
        (time_target(1, inclusive=False), 1200, True, None),
        (time_target(2.5), 1400, True, 11),
        (time_target(4.5), 1600, True, 12),
        (time_target(-1), 1200, True, None),
        (RecoveryTarget(TargetKind.XID, xid=11), 1300, False, 11),
        (RecoveryTarget(TargetKind.XID, xid=11, inclusive=False), 1300, True, 10),
        (RecoveryTarget(TargetKind.NAME, name="p"), 1500, False, 12),
    ],
)
def test_the_record_that_stops_recovery_is_found(
    target: RecoveryTarget, lsn: int, is_before: bool, last: int | None
) -> None:
    looking = search(target)
    looking.take(STORY)
    assert looking.stop is not None
    assert (looking.stop.lsn, looking.stop.is_before) == (lsn, is_before)
    assert (looking.last_transaction.xid if looking.last_transaction else None) == last
    assert looking.stop.applied_up_to == (lsn if is_before else lsn + 40)


@pytest.mark.parametrize(
    "target",
    [time_target(5), RecoveryTarget(TargetKind.XID, xid=5), RecoveryTarget(TargetKind.NAME, name="q"),
     RecoveryTarget(TargetKind.LATEST), RecoveryTarget(TargetKind.IMMEDIATE)],
    ids=str,
)  # fmt: skip
def test_a_target_that_does_not_come_leaves_everything_applied(target: RecoveryTarget) -> None:
    looking = search(target)
    looking.take(STORY)
    assert looking.stop is None
    assert looking.last_transaction is not None
    assert looking.last_transaction.xid == 13
    assert [point.lsn for point in looking.restore_points] == [1500, 1700]


def test_a_restore_point_is_no_moment_and_no_transaction() -> None:
    point = mark(MarkKind.RESTORE_POINT, 1500, second=4, name="p")
    assert stop_at(point, time_target(0)) is None
    assert stop_at(point, RecoveryTarget(TargetKind.XID, xid=0)) is None


def test_a_second_point_of_the_same_name_is_remembered() -> None:
    looking = search(RecoveryTarget(TargetKind.NAME, name="p"))
    looking.take(STORY)
    assert [point.lsn for point in looking.repeated] == [1700]


def test_the_backups_own_end_is_learned_from_the_wal() -> None:
    looking = search(RecoveryTarget(TargetKind.LATEST), consistent=None)
    looking.take([commit(1050, 8, 0), backup_end(1060, 77), backup_end(1110, 1000), commit(1200, 9, 1)])
    assert looking.consistent_lsn == 1150
    assert looking.before_consistency is not None
    assert looking.before_consistency.xid == 8


def test_what_the_backup_holds_is_told_from_what_comes_after() -> None:
    looking = search(RecoveryTarget(TargetKind.LATEST), consistent=1350)
    looking.take(STORY)
    assert looking.before_consistency is not None
    assert looking.before_consistency.xid == 11


def test_cutting_the_marks_anywhere_makes_no_difference() -> None:
    whole = search(time_target(2.5))
    whole.take(STORY)
    for cut in range(len(STORY)):
        pieces = search(time_target(2.5))
        pieces.take(STORY[:cut])
        pieces.take(STORY[cut:])
        assert pieces == whole


CLOCK_BACK = [commit(1200, 10, 1), commit(1300, 11, 120), commit(1400, 12, 10)]


@pytest.mark.parametrize("together", [True, False])
def test_a_transaction_behind_the_stop_that_ended_before_the_target_shows_a_clock_that_was_put_back(
    together: bool,
) -> None:
    looking = search(time_target(30))
    for marks in [CLOCK_BACK] if together else [[one] for one in CLOCK_BACK]:
        looking.take(marks)
    assert looking.stop is not None
    assert looking.stop.xid == 11
    assert looking.earlier_behind is not None
    assert looking.earlier_behind.xid == 12
    (warning,) = plan_warnings(SPAN, looking, UTC)
    assert "a clock was put back: transaction 12 at 0/578 ended at 2026-11-22 12:00:10+00, before the target" in warning
    assert "stands behind the commit of transaction 11 at 0/514, 2026-11-22 12:02:00+00" in warning


@pytest.mark.parametrize(
    ("target", "last"),
    [
        # Of the same moment: sessions that commit together write their records in any order.
        (time_target(30), commit(1400, 12, 29.9999)),
        (time_target(30), mark(MarkKind.ABORT, 1400, xid=12, second=10)),
        (RecoveryTarget(TargetKind.XID, xid=11), commit(1400, 12, 10)),
        (time_target(200), commit(1400, 12, 10)),
    ],
    ids=["together", "abort", "not a time", "everything is applied"],
)
def test_no_clock_is_blamed_without_reason(target: RecoveryTarget, last: WalMark) -> None:
    second = commit(1300, 11, 30.5) if last.time == NOON + timedelta(seconds=29.9999) else commit(1300, 11, 120)
    looking = search(target)
    looking.take([commit(1200, 10, 1), second, last])
    assert plan_warnings(SPAN, looking, UTC) == []
