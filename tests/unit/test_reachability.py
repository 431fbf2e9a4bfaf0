"""Whether a target can be reached, and what is said when it cannot. No files, no server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, timedelta

import pytest

from polarvault.errors import PolarvaultError, TargetUnreachable, WalGap
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.recovery.reachability import (
    ValidWalEnd,
    check_stop,
    describe_reachable,
    show_time,
    stop_at_end,
    what_is_reachable,
)
from polarvault.recovery.search import TargetSearch
from polarvault.recovery.side_effects import full_page_warnings
from polarvault.recovery.target import RecoveryTarget, TargetKind, parse_target_time
from polarvault.recovery.wal.chain import BackupSpan, ChainSegment, WalChain
from polarvault.recovery.warnings import plan_warnings
from polarvault.wal.history import TimelineHistory
from polarvault.wal.scan import MarkKind, WalMark

MB = 1 << 20
NOON = parse_target_time("2026-11-22 12:00Z").time
assert NOON is not None
SPAN = BackupSpan("/b", Lsn(2 * MB + 40), 1, Lsn(2 * MB + 400), 1, MB, start_time=NOON - timedelta(minutes=5))
CHAIN = WalChain(
    TimelineHistory(1),
    tuple(ChainSegment(WalSegment(1, n, MB), f"/w/{n}", size_bytes=MB) for n in (2, 3)),
    WalSegment(1, 4, MB),
)


def commit(lsn: int, xid: int, minute: float) -> WalMark:
    assert NOON is not None
    return WalMark(MarkKind.COMMIT, Lsn(lsn), Lsn(lsn + 40), xid, NOON + timedelta(minutes=minute))


INSIDE = commit(2 * MB + 100, 7, -2)
FIRST, SECOND = commit(2 * MB + 1000, 8, 1), commit(3 * MB + 1000, 9, 2)
POINT = WalMark(MarkKind.RESTORE_POINT, Lsn(3 * MB + 500), Lsn(3 * MB + 600), 0, NOON, "p")
END = ValidWalEnd(Lsn(3 * MB + 2000), "zeros", "/w/3", SECOND)


def time_target(minute: float) -> RecoveryTarget:
    assert NOON is not None
    return RecoveryTarget(TargetKind.TIME, time=NOON + timedelta(minutes=minute))


def judge(
    target: RecoveryTarget,
    marks: tuple[WalMark, ...] = (INSIDE, FIRST, POINT, SECOND),
    *,
    span: BackupSpan = SPAN,
    chain: WalChain = CHAIN,
    end: ValidWalEnd = END,
    others: tuple[int, ...] = (),
) -> TargetSearch:
    """Search and judge; raises what a user would see."""
    search = TargetSearch(target, span.start_lsn, span.start_lsn, span.end_lsn)
    search.take(marks)
    check_stop(span, chain, search, end, what_is_reachable(span, chain, search, end, others))
    return search


def refused(error: type[PolarvaultError], *args: object, **more: object) -> PolarvaultError:
    with pytest.raises(error) as caught:
        judge(*args, **more)  # type: ignore[arg-type]
    assert caught.value.hint
    assert "earliest: LSN 0/200190" in (caught.value.detail or "")
    assert "latest: LSN 0/" in (caught.value.detail or "")
    return caught.value


@pytest.mark.parametrize(
    "target",
    [time_target(1.5), time_target(0), RecoveryTarget(TargetKind.XID, xid=9), RecoveryTarget(TargetKind.NAME, name="p"),
     RecoveryTarget(TargetKind.IMMEDIATE), RecoveryTarget(TargetKind.LATEST)],
    ids=str,
)  # fmt: skip
def test_what_can_be_reached_is_let_through(target: RecoveryTarget) -> None:
    judge(target)


def test_a_time_behind_the_last_transaction_names_that_one_and_offers_latest() -> None:
    problem = refused(TargetUnreachable, time_target(2), others=(3,))
    assert "transaction in the WAL ends at 2026-11-22 12:02:00+00 (LSN 0/3003E8)" in problem.message
    assert problem.hint == "go as far as the WAL goes: --target latest; or follow another timeline: --target-timeline 3"


def test_a_time_within_the_backup_names_the_backups_end() -> None:
    problem = refused(TargetUnreachable, time_target(-3))
    assert "lies before the end of the backup: it would stop before the commit of transaction 7" in problem.message
    assert "consistent only from LSN 0/200190 on" in problem.message
    assert "older backup" in (problem.hint or "")


@pytest.mark.parametrize(("is_refused", "seconds", "is_end"), [(False, 1, True), (True, 1, False), (True, 0, True)])
def test_the_second_in_which_a_backup_ended_counts_unless_its_wal_goes_on_unread(
    is_refused: bool, seconds: float, is_end: bool
) -> None:
    assert NOON is not None
    # The time in the .backup file is cut to seconds; a second is added to it.
    span, target = replace(SPAN, end_time=NOON + timedelta(seconds=1)), time_target(seconds / 60)
    search = TargetSearch(target, span.start_lsn, span.start_lsn, span.end_lsn)
    search.take([INSIDE])
    stop = stop_at_end(span, search, replace(END, is_refused=is_refused, last_lsn=INSIDE.lsn))
    assert (stop is not None) == is_end


@pytest.mark.parametrize("minute", [-500, -6, -4.999])
def test_a_time_before_the_backup_is_refused_though_the_server_would_go_on(minute: float) -> None:
    problem = refused(TargetUnreachable, time_target(minute), (FIRST, SECOND))
    assert "which began at 2026-11-22 11:55:00+00" in problem.message


def test_a_time_between_the_backups_start_and_the_first_transaction_is_reached() -> None:
    search = judge(time_target(-3), (FIRST, SECOND))
    assert search.stop is not None
    assert search.stop.xid == 8


def test_a_backup_with_an_unknown_start_time_follows_the_servers_rules_alone() -> None:
    judge(time_target(-500), (FIRST, SECOND), span=replace(SPAN, start_time=None))


@pytest.mark.parametrize("inclusive", [True, False])
def test_a_transaction_that_ended_before_the_backup_did_is_refused(inclusive: bool) -> None:
    refused(TargetUnreachable, RecoveryTarget(TargetKind.XID, xid=7, inclusive=inclusive))


def test_a_missing_name_lists_the_names_that_are_there() -> None:
    problem = refused(TargetUnreachable, RecoveryTarget(TargetKind.NAME, name="q"))
    assert 'no restore point "q" on timeline 1' in problem.message
    assert 'restore points: "p" (0/3001F4,' in (problem.detail or "")


def test_a_missing_transaction_and_lsn_are_named() -> None:
    assert "transaction 99 neither" in refused(TargetUnreachable, RecoveryTarget(TargetKind.XID, xid=99)).message
    target = RecoveryTarget(TargetKind.LSN, lsn=Lsn(9 * MB))
    assert "the WAL ends at 0/3007D0 (zeros)" in refused(TargetUnreachable, target).message


GAP = replace(CHAIN, later=ChainSegment(WalSegment(1, 6, MB), "/w/6"))
BROKEN = replace(END, is_broken=True, follows="more segments follow")


@pytest.mark.parametrize("target", [time_target(9), RecoveryTarget(TargetKind.LATEST)], ids=str)
def test_a_gap_names_the_segment_its_timeline_and_its_lsn(target: RecoveryTarget) -> None:
    problem = refused(WalGap, target, chain=GAP)
    assert "segment 000000010000000000000004 (timeline 1, LSN 0/400000) is missing" in problem.message
    assert "while 000000010000000000000006 is there" in problem.message
    problem = refused(WalGap, target, end=BROKEN)
    assert '"/w/3" is valid only up to 0/3007D0 (zeros), and more segments follow' in problem.message


def test_a_target_before_the_gap_is_reached_all_the_same() -> None:
    judge(time_target(1.5), chain=GAP)
    judge(RecoveryTarget(TargetKind.XID, xid=8), end=BROKEN)


def test_a_missing_beginning_of_a_timeline_is_named() -> None:
    cut = replace(CHAIN, missing=WalSegment(2, 3, MB), limit=Lsn(3 * MB + 700))
    problem = refused(WalGap, RecoveryTarget(TargetKind.LATEST), chain=cut)
    assert "segment 000000020000000000000003 of timeline 2 is missing, which began at 0/3002BC" in problem.message


def test_wal_that_ends_within_the_backup_is_a_gap_for_every_target() -> None:
    short = replace(END, lsn=Lsn(2 * MB + 300), last_transaction=None)
    for target in (RecoveryTarget(TargetKind.LATEST), RecoveryTarget(TargetKind.IMMEDIATE), time_target(1)):
        problem = refused(WalGap, target, (INSIDE,), end=short)
        assert "does not reach the end of the backup at 0/200190" in problem.message
        # All segments up to there are at hand, so the one that is not valid to its end is to blame.
        assert problem.message.endswith('"/w/3" is valid only up to 0/20012C (zeros)')


def test_a_backup_whose_end_nobody_knows_is_not_trusted() -> None:
    unknown = replace(SPAN, end_lsn=None)
    with pytest.raises(WalGap, match="record that ends the backup"):
        judge(RecoveryTarget(TargetKind.LATEST), span=unknown)


def test_the_account_of_what_can_be_reached_is_bounded() -> None:
    search = TargetSearch(RecoveryTarget(TargetKind.LATEST), Lsn(0), Lsn(0), Lsn(1))
    search.take(replace(POINT, lsn=Lsn(n * 100), end_lsn=Lsn(n * 100 + 8), name=f"p{n}") for n in range(1, 1001))
    seen = what_is_reachable(SPAN, CHAIN, search, END, ())
    text = describe_reachable(seen, UTC)
    assert '"p1000"' in text
    assert '"p980"' not in text
    assert len(text) < 2000


def test_an_assumed_zone_and_a_repeated_name_are_warned_of() -> None:
    from zoneinfo import ZoneInfo

    target = parse_target_time("2026-11-22 20:00", local=ZoneInfo("Asia/Shanghai"))
    search = TargetSearch(target, Lsn(0), Lsn(0), Lsn(1))
    (warning,) = plan_warnings(SPAN, search, None)
    assert "UTC+08:00 (CST), this machine's, is assumed (2026-11-22 12:00:00+00)" in warning
    search = judge(RecoveryTarget(TargetKind.NAME, name="p"), (POINT, replace(POINT, lsn=Lsn(3 * MB + 900))))
    (warning,) = plan_warnings(SPAN, search, UTC)
    assert "occurs 2 times" in warning
    assert "0/300384 (2026-11-22 12:00:00+00)" in warning


def test_times_are_shown_in_the_zone_of_the_target() -> None:
    target = parse_target_time("2026-11-22 14:00+05:30")
    assert target.time is not None
    assert show_time(NOON, target.time.tzinfo) == "2026-11-22 17:30:00+05:30"
    assert show_time(None, UTC) == "unknown"


def label(*, standby: bool) -> BackupLabel:
    method = "standby" if standby else "primary"
    return parse_backup_label(
        b"START WAL LOCATION: 0/200028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/200060\n"
        b"BACKUP METHOD: streamed\nBACKUP FROM: " + method.encode() + b"\n"
        b"START TIME: 2026-11-22 11:55:00 UTC\nLABEL: test\nSTART TIMELINE: 1\n"
    )


def full_page_writes(lsn: int, value: str) -> WalMark:
    return WalMark(MarkKind.FULL_PAGE_WRITES_CHANGE, Lsn(lsn), Lsn(lsn + 40), name=value)


def test_full_page_writes_that_were_off_while_a_standby_was_backed_up_are_warned_of() -> None:
    within, behind = full_page_writes(2 * MB + 200, "off"), full_page_writes(3 * MB, "off")
    (warning,) = full_page_warnings([within, behind], SPAN, label(standby=True))
    assert "full_page_writes was switched off at LSN 0/2000C8, while this standby was backed up" in warning
    assert full_page_warnings([behind], SPAN, label(standby=True)) == []
    assert full_page_warnings([full_page_writes(2 * MB + 200, "on")], SPAN, label(standby=True)) == []
    # A primary writes whole pages while it is backed up, whatever the setting says.
    assert full_page_warnings([within], SPAN, label(standby=False)) == []
