"""What `snapshot follow` says of its source, and which snapshots it keeps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from polarvault.model.lsn import Lsn
from polarvault.snapshotting.follow import SourceFacts, judge_source, kept_of

GOOD = SourceFacts(
    in_recovery=True, replayed=Lsn(100), received=Lsn(100), receives=True, is_paused=False, archive_mode="always",
    failed_wal=None,
)  # fmt: skip


def test_a_standby_that_replays_and_archives_is_not_mentioned() -> None:
    assert list(judge_source(None, GOOD)) == []
    assert list(judge_source(GOOD, GOOD)) == []
    assert list(judge_source(GOOD, replace(GOOD, replayed=Lsn(200), received=Lsn(300)))) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (replace(GOOD, is_paused=True), "SELECT pg_wal_replay_resume()"),
        (replace(GOOD, received=Lsn(300)), "does not replay"),
        (replace(GOOD, receives=False), "connected to no primary"),
        (replace(GOOD, failed_wal="000000010000000000000009"), "000000010000000000000009"),
    ],
)
def test_what_holds_a_standby_up_is_told(now: SourceFacts, said: str) -> None:
    [found] = judge_source(GOOD, now)
    assert said in found


@pytest.mark.parametrize(
    "now", [replace(GOOD, archive_mode="on"), replace(GOOD, in_recovery=False, archive_mode="off")]
)
def test_who_archives_nothing_is_told_so_once(now: SourceFacts) -> None:
    [found] = judge_source(None, now)
    assert "archive_mode" in found
    assert list(judge_source(now, replace(now, replayed=Lsn(200), received=Lsn(200)))) == []


def test_the_newest_stay_and_the_last_of_each_day() -> None:
    noon = datetime(2026, 11, 27, 12, tzinfo=UTC)
    made = [(f"{hours}h", noon - timedelta(hours=hours)) for hours in range(0, 96, 6)]
    assert kept_of(made, 2, 0) == {"0h", "6h"}
    # 11:27's last is the newest, those of the days before are from 18:00.
    assert kept_of(made, 2, 3) == {"0h", "6h", "18h", "42h"}
    assert kept_of(made, 100, 0) == {name for name, _ in made}
    assert kept_of([], 1, 1) == set()
