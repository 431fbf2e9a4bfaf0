"""Block maps in a repository: made of the WAL that is there, read back as they were, kept and removed with that WAL."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest

from polarvault.config.model import Retention
from polarvault.errors import IntegrityError, ObjectDamaged, ObjectMissing
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.report.repository.maps import maps_json, maps_text
from polarvault.repository.catalogue.rebuild import Rebuilt, rebuild
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.copying import copy_repository
from polarvault.repository.format import columns
from polarvault.repository.maps.format import decode, encode
from polarvault.repository.maps.making import MadeMaps, make_maps
from polarvault.repository.maps.stored import RepositoryMaps, maps_beside
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.retention.expire import ExpireRequest, expire
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.verify.stored.check import check_repository
from polarvault.wal.block_maps.builder import BlockMapBuilder
from polarvault.wal.block_maps.model import (
    MOST_GAPS,
    BlockMap,
    DatabaseFlag,
    DatabaseId,
    Gap,
    TablespaceFlag,
    merged,
)
from support.made_changes import BTREE, HEAP, Block, body_of, change, end_transaction, message_up_to, truncate
from support.repositories import back_up, facts, new_repository, reopened, two_trees
from support.wal_bytes import XLOG, WalBuilder

MIB = 1 << 20
SYSTEM = facts().system_identifier
TABLE, INDEX = (1663, 5, 16384), (1663, 5, 16390)


def some_wal(*, segments: int = 4, first: int = 1) -> WalBuilder:
    """Return WAL of whole segments, of which each one's last record ends in the next one, and the end of the last."""
    wal = WalBuilder(segment=first)
    for number in range(segments):
        change(wal, Block(TABLE, number), rmgr=HEAP)
        truncate(wal, INDEX, 100 - number)
        message_up_to(wal, wal.start + (number + 1) * MIB - 8192)
        change(wal, Block(INDEX, number, data=10_000), rmgr=BTREE)
    return wal


def expected(wal: WalBuilder) -> dict[int, BlockMap]:
    """Return the maps by segment number."""
    builder = BlockMapBuilder(Lsn(wal.start), wal.timeline, MIB)
    return {segment.number: found for segment, found in builder.feed(memoryview(wal.content))}


def repository_with(wal: WalBuilder, *, encrypted: bool = False, pieces: int = 300_000) -> Repository:
    repository = new_repository(encrypted=encrypted)
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, MIB, 1 << 30, True))
    put(repository, wal, 0, len(wal.content), pieces=pieces)
    return repository


def put(
    repository: Repository, wal: WalBuilder, first: int, last: int, *, timeline: int = 1, pieces: int = MIB
) -> None:
    """Write a part of some WAL as ranges."""
    stored = repository.wal("shop", SYSTEM, MIB)
    while first < last:
        end = min(first + pieces, last, (first // MIB + 1) * MIB)
        stored.put_range(timeline, wal.start + first, bytes(wal.content[first:end]))
        first = end


def places(repository: Repository) -> tuple[RepositoryWal, RepositoryMaps]:
    wal = repository.wal_of("shop")
    return wal, maps_beside(wal, repository, "shop")


def made(repository: Repository) -> list[MadeMaps]:
    return list(make_maps(*places(repository)))


def stored_maps(repository: Repository, timeline: int = 1) -> dict[int, BlockMap]:
    _, maps = places(repository)
    return {segment.number: maps.read(segment) for segment, _ in maps.stored(timeline)}


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_is_missing_is_made_once_and_read_back_as_it_was(encrypted: bool):
    wal = some_wal()
    repository = repository_with(wal, encrypted=encrypted)
    (report,) = made(repository)
    assert (report.made, report.present, report.gaps, report.waiting, report.problems) == (4, 0, [], [], [])
    copy = reopened(repository) if encrypted else repository
    assert stored_maps(copy) == expected(wal)
    assert merged(stored_maps(copy).values()).gaps == ()
    (again,) = made(repository)
    assert (again.made, again.present, again.read_bytes) == (0, 4, 0)
    # Somebody else made it at the same time, sealed with another salt.
    _, maps = places(repository)
    maps.put(WalSegment(1, 1, MIB), expected(wal)[1])


def test_the_last_segment_waits_for_the_rest_of_its_last_record():
    wal = some_wal()
    repository = new_repository()
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, MIB, 1 << 30, True))
    put(repository, wal, 0, 2 * MIB)
    (report,) = made(repository)
    assert (report.made, [one.number for one in report.waiting]) == (1, [2])
    assert "000000010000000000000002 waits" in "\n".join(maps_text("shop", "memory:", [report]))
    # A few bytes that are not enough, and a gap behind which there is more.
    put(repository, wal, 2 * MIB, 2 * MIB + 100)
    put(repository, wal, 3 * MIB, 4 * MIB)
    (report,) = made(repository)
    assert (report.made, [one.number for one in report.waiting]) == (0, [2, 4])
    put(repository, wal, 2 * MIB + 50, len(wal.content))
    (report,) = made(repository)
    assert (report.made, report.present, report.waiting) == (3, 1, [])
    assert stored_maps(repository) == expected(wal)


def test_the_end_of_a_record_may_be_on_the_timeline_on_which_the_wal_goes_on():
    wal = some_wal()
    repository = new_repository()
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, MIB, 1 << 30, True))
    put(repository, wal, 0, 2 * MIB + 60)
    # Of its parent the child has the segment in which it branched off.
    put(repository, wal, 2 * MIB, len(wal.content), timeline=2)
    first, second = made(repository)
    assert (first.made, first.waiting, second.made, second.waiting) == (2, [], 2, [])
    assert stored_maps(repository) | stored_maps(repository, 2) == expected(wal)
    _, maps = places(repository)
    path = [WalSegment(1, 1, MIB), WalSegment(1, 2, MIB), WalSegment(2, 3, MIB), WalSegment(2, 4, MIB)]
    assert maps.changes(path) == merged(expected(wal).values())


def test_ranges_that_overlap_and_gaps_between_them():
    wal = some_wal(segments=6)
    repository = repository_with(wal, pieces=70_000)
    put(repository, wal, 30_000, 5 * MIB, pieces=200_000)
    stored = repository.wal("shop", SYSTEM, MIB)
    for one, there in stored.stored(1):
        if one.segment.number == 3 and one.first - one.segment.start < 300_000:
            repository.store.delete(there.name)
    (report,) = made(repository)
    # Without its successor the second one has no end.
    assert (report.made, [one.number for one in report.waiting]) == (4, [2])
    _, maps = places(repository)
    changes = maps.changes([WalSegment(1, number, MIB) for number in range(1, 7)])
    assert [gap.reason for gap in changes.gaps] == [
        "there is no map of 000000010000000000000002",
        "there is no map of 000000010000000000000003",
        f"there is no map from here to {expected(wal)[4].start}",
    ]


def test_wal_that_cannot_be_read_is_named_and_what_comes_after_it_gets_its_maps():
    wal = some_wal(segments=5)
    wal.content[MIB + 50_000] ^= 1
    repository = repository_with(wal)
    (victim,) = [
        there.name for one, there in repository.wal("shop", SYSTEM, MIB).stored(1)
        if one.segment.number == 4 and one.first == one.segment.start
    ]  # fmt: skip
    content = repository.store.get(victim, most_bytes=1 << 30)
    repository.store.delete(victim)
    repository.store.put_new(victim, [content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]])
    (report,) = made(repository)
    # The last record of the third one ends where nothing can be read.
    assert [segment.number for segment, _ in report.problems] == [2, 3, 4]
    assert "wrong checksum" in report.problems[0][1]
    assert victim in report.problems[1][1]
    assert sorted(stored_maps(repository)) == [1, 5]
    text = "\n".join(maps_text("shop", "memory:", [report]))
    assert "no map of 000000010000000000000002: the record at" in text
    assert [one["segment"] for one in maps_json("shop", "memory:", [report])["timelines"][0]["problems"]] == [
        "000000010000000000000002",
        "000000010000000000000003",
        "000000010000000000000004",
    ]


def test_a_map_with_a_gap_is_kept_and_named():
    wal = some_wal(segments=1)
    wal.add(body_of([Block(TABLE, 1)], b"x"), rmgr=200)
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    repository = repository_with(wal)
    (report,) = made(repository)
    ((segment, gap),) = report.gaps
    assert (report.made, segment.number) == (2, 2)
    assert "resource manager 200" in gap.reason
    assert stored_maps(repository)[2].gaps == (gap,)
    assert "gap in 000000010000000000000002 at 0/2" in "\n".join(maps_text("shop", "memory:", [report]))


def test_maps_are_checked_made_again_copied_and_expire_with_their_wal():
    wal = some_wal()
    repository = repository_with(wal)
    made(repository)
    assert check_repository(repository, read_data=True).problems == []
    name = f"clusters/shop/maps/{SYSTEM}/00000001/000000010000000000000002"
    content = repository.store.get(name, most_bytes=MIB)
    repository.store.delete(name)
    repository.store.put_new(name, [content[:70] + bytes([content[70] ^ 4]) + content[71:]])
    assert [one.name for one in check_repository(repository, read_data=False).problems] == [name]
    assert list(rebuild(repository)) == [Rebuilt(name)]
    assert stored_maps(repository) == expected(wal)
    assert check_repository(repository, read_data=False).problems == []

    # Two backups, of which the first one goes: its WAL, and what that changed.
    start = facts().start_lsn // MIB
    later = some_wal(segments=3, first=start)
    put(repository, later, 0, len(later.content))
    made(repository)
    back_up(repository, two_trees()[0])
    target = WriteOnce(MemoryStore())
    copied = copy_repository(repository.store, target)
    assert copied.problems == []
    there = {one.name.rpartition("/")[2] for one in target.list_objects("clusters/shop/maps")}
    # Not of WAL that is not copied.
    assert there == {WalSegment(1, number, MIB).file_name for number in range(start, start + 3)}
    assert copy_repository(repository.store, target).objects == 0
    dry = expire(repository, ExpireRequest("shop", Retention(keep=1), dry_run=True, safety_s=0))
    assert dry.removed.maps == 4
    assert expire(repository, ExpireRequest("shop", Retention(keep=1), safety_s=3600)).removed.maps == 0
    assert expire(repository, ExpireRequest("shop", Retention(keep=1), safety_s=0)).removed.maps == 4
    assert sorted(stored_maps(repository)) == [start, start + 1, start + 2]


def test_a_damaged_map_of_wal_that_is_gone_stays_and_is_named():
    wal = some_wal()
    repository = repository_with(wal)
    made(repository)
    name = f"clusters/shop/maps/{SYSTEM}/00000001/000000010000000000000002"
    repository.store.delete(name)
    repository.store.put_new(name, [b"no map"])
    for _, there in repository.wal("shop", SYSTEM, MIB).stored(1):
        repository.store.delete(there.name)
    (one,) = rebuild(repository)
    assert (one.name, "its WAL is not there" in one.problem) == (name, True)
    assert repository.store.get(name, most_bytes=MIB) == b"no map"
    _, maps = places(repository)
    with pytest.raises(IntegrityError):
        maps.read(WalSegment(1, 2, MIB))
    with pytest.raises(ObjectMissing):
        maps.read(WalSegment(1, 9, MIB))


def a_map() -> BlockMap:
    wal = some_wal(segments=2)
    end_transaction(wal, 0, [(1700, 9, 7)])
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    found = merged(expected(wal).values())
    return replace(
        found,
        databases={DatabaseId(1663, 5): DatabaseFlag.COPIED, DatabaseId(1700, 5): DatabaseFlag.DROPPED},
        tablespaces={1700: TablespaceFlag.CREATED | TablespaceFlag.DROPPED},
        gaps=tuple(Gap(Lsn(number), f"reason {number} ä") for number in range(MOST_GAPS)),
    )


def test_a_map_is_what_was_written():
    found = a_map()
    assert decode(encode(found), "a map") == found


def test_a_map_that_is_too_large_is_a_gap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("polarvault.model.limits.MAP_BYTES", 400)
    found = decode(encode(a_map()), "a map")
    assert (found.start, found.end, len(found.forks)) == (a_map().start, a_map().end, 0)
    assert "at most 400" in found.gaps[0].reason


def rewritten(**changes: object) -> bytes:
    """Return a map of which some columns were replaced, by number."""
    parsed = columns.Columns(encode(a_map()), "a map")
    sizes = {1: 8, **dict.fromkeys((2, 3, 4, 7, 8, 9, 10, 11, 13), 4), **dict.fromkeys((5, 6, 12, 14, 15), 1)}
    found = {number: numpy.array(parsed.numbers(number, size)) for number, size in sizes.items()}
    for name, value in changes.items():
        number = int(name[1:])
        found[number] = numpy.array(value, found[number].dtype)
    return columns.encode(found)


BLOCKS = a_map().blocks.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"c1": [5, 4]},
        {"c1": [5]},
        {"c2": [1, 1]},
        {"c2": [0xFFFFFFFF, *a_map().forks[1:, 0].tolist()]},
        {"c5": [9] * len(a_map().forks)},
        {"c6": [8] * len(a_map().forks)},
        {"c8": [0xFFFFFFFF] * len(a_map().forks)},
        {"c9": BLOCKS[:-1]},
        {"c9": [BLOCKS[0]] * len(BLOCKS)},
        {"c10": [1663, 1663]},
        {"c12": [8, 1]},
        {"c12": [1]},
        {"c13": []},
        {"c14": [4]},
        {"c15": list(b"[")},
        {"c15": list(b"[]")},
        {"c15": list(b'[["1", "x"]]')},
        {"c15": list(b"[[1, 2]]")},
        {"c15": list(b'[[-1, "x"]]')},
        {"c15": list(b'{"a": 1}')},
        {"c15": list(b"[" * 100_000)},
    ],
)
def test_what_no_map_can_be_is_refused(changes: dict[str, object]):
    assert decode(rewritten(), "a map") == a_map()
    with pytest.raises(ObjectDamaged):
        decode(rewritten(**changes), "a map")


def test_a_map_of_another_segment_is_refused():
    wal = some_wal(segments=2)
    content = encode(expected(wal)[1])
    decode(content, "a map", WalSegment(1, 1, MIB))
    for other in (WalSegment(1, 2, MIB), WalSegment(1, 0, MIB)):
        with pytest.raises(ObjectDamaged, match="not its segment"):
            decode(content, "a map", other)
