"""Which moments the WAL in a repository reaches: gaps, branches, what no backup leads to."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

from polarvault.model.lsn import Lsn
from polarvault.report.repository.timelines import timeline_tree
from polarvault.report.repository.wal import wal_json, wal_text
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.catalogue.wal_windows import (
    GenerationWal,
    ServerWal,
    TimelineWal,
    lag_bytes,
    look_at_wal,
)
from polarvault.repository.states.gaps import AcknowledgedGap
from polarvault.repository.states.states import CLUSTER, GAP_ACKNOWLEDGED, States
from polarvault.wal.source import HeldRange
from support.crossing import SEGMENT, SYSTEM, with_wal
from support.repositories import NOW, back_up, new_repository, two_trees
from support.wal_bytes import TRANSACTION, WalBuilder


def looked(repository: Repository) -> GenerationWal:
    (found,) = look_at_wal(repository, "shop")
    return found


def test_a_window_goes_from_the_end_of_a_backup_to_the_first_gap() -> None:
    repository = with_wal(new_repository())
    assert [one.windows for one in looked(repository).timelines] == [[]]
    label = back_up(repository, two_trees()[0]).label
    (one,) = looked(repository).timelines
    ((window),) = one.windows
    assert (window.start, window.end, window.backups) == (Lsn(0x2000000), Lsn(0x3000000), (label,))
    # In front of the backup something is missing, which nobody needs.
    assert one.gaps == [HeldRange(Lsn(100), Lsn(SEGMENT))]
    assert looked(repository).lost_gaps == []
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    wal.put_range(1, 0x4000000, bytes(SEGMENT))
    found = looked(repository)
    assert found.lost_gaps == [(1, HeldRange(Lsn(0x3000000), Lsn(0x4000000)))]
    text = "\n".join(wal_text("shop", "memory:", [found]))
    assert "GAP from 0/3000000 to 0/4000000" in text
    assert f"any moment from 0/2000000 to 0/3000000: shop@{label}" in text
    (generation,) = wal_json("shop", "memory:", [found])["generations"]
    (window,) = generation["timelines"][0]["windows"]
    assert (window["start"], window["end"], window["backups"]) == ("0/2000000", "0/3000000", [label])


def test_the_first_segment_of_a_new_timeline_has_the_end_of_the_old_one() -> None:
    """A promoted server archives the segment that it left without its zeros; a dead primary has archived none of it."""
    for missing_from in (0x27FFFF9, 0x2000000):
        repository = new_repository()
        repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
        wal = repository.wal("shop", SYSTEM, SEGMENT)
        wal.put_range(1, 0x1000000, bytes(SEGMENT))
        if missing_from > 0x2000000:
            wal.put_range(1, 0x2000000, bytes(missing_from - 0x2000000))
        label = back_up(repository, two_trees()[0]).label
        for timeline_id, switch in ((2, 0x2800000), (3, 0x2900000)):
            lines = "1\t0/2800000\tpromoted\n" + ("2\t0/2900000\tpromoted\n" if timeline_id == 3 else "")
            wal.put_file(timeline_id, f"{timeline_id:08X}.history", lines.encode())
            wal.put_range(timeline_id, 0x2000000, bytes(SEGMENT))
            line = looked(repository).timelines[timeline_id - 1]
            ((window),) = line.windows
            assert (window.start, window.end, window.backups) == (Lsn(switch), Lsn(0x3000000), (label,))
        # Of a branch the first segment of which is not there nothing is reached.
        wal.put_file(4, "00000004.history", b"1\t0/2800000\tpromoted\n")
        wal.put_range(4, 0x3000000, bytes(SEGMENT))
        assert looked(repository).timelines[3].windows == []


def test_a_window_goes_on_where_a_timeline_branched_off() -> None:
    repository = with_wal(new_repository())
    label = back_up(repository, two_trees()[0]).label
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    wal.put_file(2, "00000002.history", b"1\t0/2800000\tno recovery target specified\n")
    wal.put_range(2, 0x2000000, bytes(SEGMENT))
    # Of this one the WAL of its parent does not reach the switch.
    wal.put_file(3, "00000003.history", b"1\t0/5800000\tno recovery target specified\n")
    wal.put_range(3, 0x5000000, bytes(SEGMENT))
    # And of this one nobody knows where it came from.
    wal.put_range(4, 0x2000000, bytes(SEGMENT))
    first, second, third, fourth = looked(repository).timelines
    assert [window.end for window in first.windows] == [Lsn(0x3000000)]
    assert (second.parent, second.switch_lsn) == (1, Lsn(0x2800000))
    assert [(one.start, one.end, one.backups) for one in second.windows] == [(Lsn(0x2800000), Lsn(0x3000000), (label,))]
    assert third.windows == []
    assert (fourth.windows, fourth.problem) == ([], "00000004.history is missing")
    text = "\n".join(wal_text("shop", "memory:", [looked(repository)]))
    assert "timeline 2, branched from 1 at 0/2800000: 1 object, " in text
    tree = ["  1", "  ├─ 2 from 0/2800000", "  └─ 3 from 0/5800000", "  4  <- the last one"]
    assert list(timeline_tree(looked(repository), None)) == tree
    assert "\n".join(tree) in text
    on_two = list(timeline_tree(looked(repository), ServerWal(SYSTEM, 2, Lsn(0x3000000))))
    assert on_two[1] == "  ├─ 2 from 0/2800000  <- the server is on it"
    assert "nothing of it is reached from a backup" in text


def test_a_gap_that_somebody_knows_of_is_shown_and_alarms_nobody() -> None:
    repository = with_wal(new_repository())
    back_up(repository, two_trees()[0])
    repository.wal("shop", SYSTEM, SEGMENT).put_range(1, 0x5000000, bytes(SEGMENT))
    gap = HeldRange(Lsn(0x3000000), Lsn(0x5000000))
    assert looked(repository).lost_gaps == [(1, gap)]
    states = States(repository, "shop")

    def acknowledge(first: int, last: int, *, timeline: int = 1, system: int = SYSTEM, note: str = "") -> None:
        known = AcknowledgedGap(system, timeline, Lsn(first), Lsn(last), note, NOW)
        states.add(CLUSTER, GAP_ACKNOWLEDGED, now=NOW, text=note, finding=known.finding())

    # Another one's, of another timeline, and a part of it: it is not that.
    acknowledge(gap.start, gap.end, system=SYSTEM + 1)
    acknowledge(gap.start, gap.end, timeline=2)
    acknowledge(gap.start, gap.end - 1)
    # What somebody else has written there is nothing.
    states.add(CLUSTER, GAP_ACKNOWLEDGED, now=NOW, finding={"system_identifier": [], "first": "x"})
    assert looked(repository).lost_gaps == [(1, gap)]
    acknowledge(gap.start, gap.end, note="disk full")
    found = looked(repository)
    assert found.lost_gaps == []
    text = "\n".join(wal_text("shop", "memory:", [found]))
    assert "GAP from 0/3000000 to 0/5000000, acknowledged on 2026-11-25: disk full" in text
    # It has become larger.
    store = repository.store
    for one in list(store.list_objects("clusters/shop/wal")):
        if one.name.endswith("0000000005000000-0000000006000000"):
            store.delete(one.name)
    repository.wal("shop", SYSTEM, SEGMENT).put_range(1, 0x6000000, bytes(SEGMENT))
    assert looked(repository).lost_gaps == [(1, HeldRange(gap.start, Lsn(0x6000000)))]


def test_windows_have_the_times_of_backups_and_commits() -> None:
    repository = with_wal(new_repository())
    back_up(repository, two_trees()[0])
    (window,) = looked(repository).timelines[0].windows
    # Of zeros nothing is known but the backup.
    assert (window.start_time, window.end_time) == (NOW, NOW)
    builder = WalBuilder(segment=3, segment_bytes=SEGMENT, system=SYSTEM)
    for minutes in (1, 2, 3):
        at = NOW + timedelta(minutes=minutes) - datetime(2000, 1, 1, tzinfo=UTC)
        builder.add_main(struct.pack("<q", at // timedelta(microseconds=1)), rmgr=TRANSACTION, info=0, xid=700)
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    wal.put_range(1, builder.start, bytes(builder.content))
    switch = builder.records[1][1]
    wal.put_file(2, "00000002.history", f"1\t{Lsn(switch)}\tpromoted\n".encode())
    wal.put_range(2, builder.start, bytes(SEGMENT))
    first, second = looked(repository).timelines
    assert first.windows[0].end_time == NOW + timedelta(minutes=3)
    # It begins with the last commit before the switch; what came behind it holds none.
    assert second.windows[0].start_time == NOW + timedelta(minutes=2)
    assert second.windows[0].end_time == NOW
    text = "\n".join(wal_text("shop", "memory:", [looked(repository)]))
    assert "from 2026-11-25 22:44:01 UTC to 2026-11-25 22:47:01 UTC" in text
    # Damage is for verify to tell.
    names = [one.name for one in repository.store.list_objects("clusters/shop/wal")]
    (name,) = (one for one in names if "/00000001/" in one and "/0000000003000000-" in one)
    content = bytearray(repository.store.get(name, most_bytes=1 << 26))
    content[-1] ^= 1
    repository.store.delete(name)
    repository.store.put_new(name, [bytes(content)])
    assert looked(repository).timelines[0].windows[0].end_time == NOW


def test_what_is_to_be_merged_and_what_has_been_is_counted() -> None:
    repository = with_wal(new_repository())
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    for at in range(0, 5000, 1000):
        wal.put_range(1, 0x3000000 + at, bytes(1000))
    # Of a segment that is being written so few are left alone.
    assert (looked(repository).timelines[0].to_merge, looked(repository).timelines[0].superseded) == (0, 0)
    wal.put_range(1, 0x4000000, bytes(1000))
    assert (looked(repository).timelines[0].to_merge, looked(repository).timelines[0].superseded) == (5, 0)
    assert "; 5 small ones are to be merged" in "\n".join(wal_text("shop", "memory:", [looked(repository)]))
    wal.put_range(1, 0x3000000, bytes(5000))
    assert (looked(repository).timelines[0].to_merge, looked(repository).timelines[0].superseded) == (0, 5)
    assert "; 5 lie in others, and go with expire" in "\n".join(wal_text("shop", "memory:", [looked(repository)]))


def test_a_tree_of_timelines_is_of_any_depth() -> None:
    def line(number: int, parent: int | None) -> TimelineWal:
        return TimelineWal(number, parent, None if parent is None else Lsn(number << 24), [], 0, 0, [])

    branches = [line(1, None), line(2, 1), line(3, 2), line(4, 2), line(5, 1), line(9, 7)]
    assert list(timeline_tree(GenerationWal(SYSTEM, branches), None)) == [
        "  1",
        "  ├─ 2 from 0/2000000",
        "  │  ├─ 3 from 0/3000000",
        "  │  └─ 4 from 0/4000000",
        "  └─ 5 from 0/5000000",
        "  9 from 0/9000000 on 7, of which there is no WAL  <- the last one",
    ]
    chain = [line(number, number - 1 or None) for number in range(1, 3001)]
    lines = list(timeline_tree(GenerationWal(SYSTEM, chain), None))
    assert lines[-1] == "  and 2960 more; --json has all"
    # One alone is no tree.
    assert list(timeline_tree(GenerationWal(SYSTEM, chain[:1]), None)) == []


def test_how_far_the_server_is_ahead() -> None:
    repository = with_wal(new_repository())
    found = [looked(repository)]
    assert lag_bytes(ServerWal(SYSTEM, 1, Lsn(0x3000000 + 4096)), found) == 4096
    assert lag_bytes(ServerWal(SYSTEM, 1, Lsn(0x2F00000)), found) == 0
    for other in (ServerWal(SYSTEM, 2, Lsn(0x3000000)), ServerWal(SYSTEM + 1, 1, Lsn(0x3000000)), ServerWal()):
        assert lag_bytes(other, found) is None
    behind = "\n".join(wal_text("shop", "memory:", found, ServerWal(SYSTEM, 1, Lsn(0x3000000 + 4096))))
    assert "server: timeline 1 at 0/3001000; the WAL here is 4.0 kB behind" in behind
    away = "\n".join(wal_text("shop", "memory:", found, ServerWal(problem="no route")))
    assert "server: could not be asked: no route" in away
    other = wal_json("shop", "memory:", found, ServerWal(SYSTEM, 2, Lsn(16)))["server"]
    assert other == {
        "system_identifier": str(SYSTEM), "timeline": 2, "lsn": "0/10", "lag_bytes": None, "problem": None
    }  # fmt: skip
