"""What several backups reach together, from listings of plain files; no server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.recovery.reachability import Reachable, Window
from polarvault.restore.plan.windows import cut_off_warnings, describe_windows, settled_windows, with_their_base

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
OLD = Window(("/b/1", "/b/2"), Lsn(0x2000100), NOON, NOON, Lsn(0x4000000), NOON, 731, "000000010000000000000004")
NEW = Window(("/b/3",), Lsn(0x6000100), None, NOON, Lsn(0x9000000), None, 0, "000000010000000000000009")


def test_every_backup_before_a_hole_is_cut_off_and_no_other() -> None:
    found = cut_off_warnings([OLD, NEW])
    assert [path for path, _ in found] == ["/b/1", "/b/2"]
    assert "segment 000000010000000000000004 is missing, and it leads only to LSN 0/4000000" in found[0][1]
    assert cut_off_warnings([NEW]) == []
    assert cut_off_warnings([]) == []


def test_windows_are_described_with_the_hole_between_them() -> None:
    assert describe_windows([OLD, NEW], UTC) == [
        "earliest: LSN 0/2000100, 2026-11-22 12:00:00+00, with /b/1",
        "latest: LSN 0/4000000, last transaction 731 at 2026-11-22 12:00:00+00",
        "nothing behind that up to the next backup: segment 000000010000000000000004 is missing",
        "earliest: LSN 0/6000100; the backup began at 2026-11-22 12:00:00+00, with /b/3",
        "latest: LSN 0/9000000",
    ]


def test_what_was_read_of_the_planned_backup_is_better_than_what_was_listed() -> None:
    seen = Reachable(NOON, Lsn(0x6000200), NOON, Lsn(0x9000200), NOON, 800, 1, (), ())
    old, new = settled_windows((OLD, NEW), seen, "/b/3")
    assert old == OLD
    assert (new.earliest_lsn, new.latest_lsn, new.latest_xid) == (0x6000200, 0x9000200, 800)
    # It is not the one with which its window begins.
    old, _ = settled_windows((OLD, NEW), replace(seen, latest_lsn=Lsn(0x4000000)), "/b/2")
    assert old.earliest_lsn == OLD.earliest_lsn


def label(start: int, base: int | None = None) -> BackupLabel:
    made = parse_backup_label(
        b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n"
        b"BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-22 11:55:00 UTC\nLABEL: x\n"
        b"START TIMELINE: 1\n"
    )
    return replace(made, start_lsn=Lsn(start), incremental_from_lsn=None if base is None else Lsn(base))


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        ([label(100), label(200, 100), label(300, 200)], [100, 200, 300]),
        ([label(300, 200), label(100), label(200, 100)], [100, 200, 300]),
        ([label(200, 100), label(300, 200), label(400)], [400]),
        ([label(100), label(300, 200), label(400, 300)], [100]),
    ],
    ids=["whole chain", "in any order", "no full one", "a link is missing"],
)
def test_an_incremental_backup_counts_only_with_all_that_it_builds_on(
    labels: list[BackupLabel], kept: list[int]
) -> None:
    assert [int(one.start_lsn) for _, one in with_their_base([("/b", one) for one in labels])] == kept
