"""Which backups a policy keeps, and why; whatever the clocks and names say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarvault.config.model import Retention
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.ranges import StoredRange
from polarvault.retention.plan import WalNeed, is_wal_needed
from polarvault.retention.policy import Kept, Verdict, judge

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
MB = 1 << 20


def daily(days: int, **more: bool) -> list[Kept]:
    """Return a backup of each day, the last one from this morning."""
    return [Kept(f"d{age:02}", (0, 1, 1000 - age), NOW - timedelta(days=age, hours=1), **more) for age in range(days)]


def kept(verdicts: list[Verdict]) -> set[str]:
    return {verdict.label for verdict in verdicts if verdict.is_kept}


def test_a_window_begins_with_a_backup_from_before_it() -> None:
    verdicts = judge(daily(30), Retention(window_s=7 * 86_400), NOW)
    assert kept(verdicts) == {f"d{age:02}" for age in range(8)}
    by_label = {verdict.label: verdict for verdict in verdicts}
    assert by_label["d07"].reasons == ("the window of 7 days begins with it",)
    assert by_label["d08"].reasons == ("older than the window of 7 days, and no point of the policy",)
    assert by_label["d07"].needs_later_wal
    assert all(verdict.needs_later_wal == verdict.is_kept for verdict in verdicts)


def test_points_need_only_their_own_wal() -> None:
    policy = Retention(window_s=2 * 86_400, weekly=3, monthly=2)
    verdicts = judge(daily(60), policy, NOW)
    reasons = {verdict.label: verdict.reasons for verdict in verdicts if verdict.is_kept}
    # 2026-11-26 is a Thursday: the weeks end on Sundays, four and eleven days ago; October ended 26 days ago.
    assert set(reasons) == {"d00", "d01", "d02", "d04", "d11", "d26"}
    assert reasons["d04"] == ("the last of week 2026-W47",)
    assert reasons["d26"] == ("the last of month 2026-10",)
    assert {verdict.label for verdict in verdicts if verdict.needs_later_wal} == {"d00", "d01", "d02"}


def test_damaged_backups_count_for_nothing_that_is_kept_by_number_and_the_last_good_one_stays() -> None:
    backups = daily(5)
    bad = [
        Kept(one.label, one.order, one.recorded, is_good=one.label == "d03", why_not_good="damaged") for one in backups
    ]
    verdicts = judge(bad, Retention(keep=2), NOW)
    assert kept(verdicts) == {"d03"}
    assert {verdict.reasons for verdict in verdicts if not verdict.is_kept} == {("damaged, and nothing keeps it",)}


def test_a_pin_keeps_whatever_the_policy_says() -> None:
    backups = daily(9)
    pinned = [Kept(one.label, one.order, one.recorded, is_pinned=one.label == "d08") for one in backups]
    verdicts = judge(pinned, Retention(keep=1), NOW)
    assert kept(verdicts) == {"d00", "d08"}
    assert not next(verdict for verdict in verdicts if verdict.label == "d08").needs_later_wal


def test_order_is_that_of_histories_and_not_of_names_or_clocks() -> None:
    # After pg_upgrade LSNs begin anew, and the machine's clock was a day behind: its labels sort first.
    before = [Kept(f"20261126-{n}", (0, 1, 9000 + n), NOW - timedelta(hours=30 - n)) for n in range(3)]
    after = [Kept(f"20261125-{n}", (1, 1, 100 + n), NOW - timedelta(hours=5 - n)) for n in range(2)]
    verdicts = judge([*after, *before], Retention(keep=2), NOW)
    assert kept(verdicts) == {"20261125-0", "20261125-1"}
    assert [verdict.label for verdict in verdicts] == [one.label for one in (*before, *after)]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 99), st.integers(0, 900), st.booleans()),
        min_size=1, max_size=25,
    ),
    st.one_of(st.none(), st.integers(1, 400)), st.one_of(st.none(), st.integers(1, 5)), st.integers(0, 4),
)  # fmt: skip
def test_whatever_there_is_the_promises_hold(
    given_backups: list[tuple[int, int, int, int, bool]], window_h: int | None, keep: int | None, weekly: int
) -> None:
    backups = [
        Kept(f"b{n}", (rank, tli, lsn, n), NOW - timedelta(hours=age), is_good=good)
        for n, (rank, tli, lsn, age, good) in enumerate(given_backups)
    ]
    policy = Retention(window_s=None if window_h is None else window_h * 3600, keep=keep, weekly=weekly or None)
    verdicts = judge(backups, policy, NOW)
    assert sorted(verdict.label for verdict in verdicts) == sorted(one.label for one in backups)
    assert all(verdict.reasons for verdict in verdicts)
    good = sorted((one for one in backups if one.is_good), key=lambda one: one.order)
    remaining = kept(verdicts)
    if not good:
        assert remaining == {one.label for one in backups}
        return
    assert good[-1].label in remaining
    if keep is not None:
        assert {one.label for one in good[-keep:]} <= remaining
    if window_h is not None:
        begin = NOW - timedelta(hours=window_h)
        assert {one.label for one in backups if one.recorded >= begin} <= remaining
        earlier = [one.label for one in good if one.recorded < begin]
        assert set(earlier[-1:]) <= remaining
    # What is kept today by this policy is not more tomorrow, and a second look decides the same.
    again = judge([one for one in backups if one.label in remaining], policy, NOW)
    assert kept(again) == remaining


def wal_range(timeline: int, first: int, last: int) -> StoredRange:
    return StoredRange(WalSegment.holding(first, timeline, MB), Lsn(first), Lsn(last))


@pytest.mark.parametrize(
    ("timeline", "first", "last", "rank", "wanted"),
    [
        (1, 5 * MB, 6 * MB, 0, False),
        # A point: its own WAL from its segment's start, and no more.
        (1, 10 * MB, 10 * MB + 100, 0, True),
        (1, 11 * MB, 12 * MB, 0, False),
        (2, 10 * MB, 11 * MB, 0, False),
        # The window: everything later, on every timeline; and all of later system identifiers.
        (1, 20 * MB, 20 * MB + 50, 0, True),
        (2, 25 * MB, 26 * MB, 0, True),
        (1, 19 * MB, 20 * MB, 0, False),
        (1, MB, 2 * MB, 1, True),
    ],
)
def test_wal_is_kept_for_the_window_and_for_points_only_what_makes_them_consistent(
    timeline: int, first: int, last: int, rank: int, wanted: bool
) -> None:
    needs = [
        WalNeed(0, 7, 1, Lsn(10 * MB + 40), Lsn(10 * MB + 900), onward=False),
        WalNeed(0, 7, 1, Lsn(20 * MB + 40), Lsn(20 * MB + 900), onward=True),
    ]
    system = 7 if rank == 0 else 8
    assert is_wal_needed(wal_range(timeline, first, last), system, rank, needs) is wanted
    assert is_wal_needed(wal_range(timeline, first, last), system, rank, [])
