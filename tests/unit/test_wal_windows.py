"""Which moments the WAL in a repository reaches: gaps, branches, what no backup leads to."""

from __future__ import annotations

from polarvault.model.lsn import Lsn
from polarvault.report.repository.wal import wal_json, wal_text
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.catalogue.wal_windows import GenerationWal, look_at_wal
from polarvault.wal.source import HeldRange
from support.crossing import SEGMENT, SYSTEM, with_wal
from support.repositories import back_up, new_repository, two_trees


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
    assert generation["timelines"][0]["windows"] == [{"start": "0/2000000", "end": "0/3000000", "backups": [label]}]


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
    assert "nothing of it is reached from a backup" in text
