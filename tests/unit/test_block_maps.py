"""Which blocks and files a map names, and when it says that it does not know."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.block_maps.builder import BlockMapBuilder
from polarvault.wal.block_maps.model import (
    BlockMap,
    DatabaseFlag,
    DatabaseId,
    ForkFlag,
    ForkId,
    TablespaceFlag,
    merged,
)
from polarvault.wal.pages import PAGE_BYTES
from support.made_changes import (
    BTREE,
    DATABASE,
    HEAP,
    HEAP2,
    SPGIST,
    TABLESPACE,
    Block,
    body_of,
    change,
    create,
    end_transaction,
    message_up_to,
    truncate,
)
from support.wal_bytes import LOGICAL_MESSAGE, OVERWRITES, XLOG, WalBuilder, make_record

TABLE, INDEX, OTHER = (1663, 5, 16384), (1663, 5, 16390), (1700, 9, 20000)


def maps_of(wal: WalBuilder, *, start: int | None = None) -> list[tuple[WalSegment, BlockMap]]:
    """Return the maps of all whole segments of some WAL."""
    first = wal.start if start is None else start
    builder = BlockMapBuilder(Lsn(first), wal.timeline, wal.segment_bytes)
    return builder.feed(memoryview(wal.content)[first - wal.start :])


def only_map(wal: WalBuilder) -> BlockMap:
    """Close the segment and return its map."""
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    ((_, found),) = maps_of(wal)
    return found


def blocks_of(block_map: BlockMap) -> dict[tuple[int, ...], list[int]]:
    """Return the blocks by fork, of forks that have any."""
    return {tuple(f): c.blocks.tolist() for f, c in block_map.by_fork().items() if len(c.blocks)}


def test_every_block_that_a_record_registers_is_there_once():
    wal = WalBuilder()
    change(wal, Block(INDEX, 7, data=20), Block(INDEX, 3, same=True, image=100))
    change(wal, Block(INDEX, 7), Block(OTHER, 0xFFFF_FFFE, fork=3, image=8000, hole=True), Block(OTHER, 1, same=True))
    wal.add(body_of([Block(INDEX, 9)], bytes(300), before=b"\xfd\x01\x00\xfc\x07\x00\x00\x00"), rmgr=BTREE)
    found = only_map(wal)
    assert blocks_of(found) == {(*INDEX, 0): [3, 7, 9], (*OTHER, 0): [1], (*OTHER, 3): [0xFFFF_FFFE]}
    assert found.gaps == ()


@pytest.mark.parametrize(("rmgr", "info"), [(HEAP, 0x00), (HEAP, 0x60), (HEAP2, 0x50), (HEAP2, 0x60)])
def test_records_of_the_heap_name_the_page_of_the_visibility_map_too(rmgr: int, info: int):
    wal = WalBuilder()
    change(wal, Block(TABLE, 32_671), rmgr=rmgr, info=info)
    change(wal, Block(TABLE, 32_672), Block(INDEX, 5, fork=1), rmgr=rmgr, info=info)
    change(wal, Block(INDEX, 90_000))
    found = blocks_of(only_map(wal))
    assert found == {
        (*TABLE, 0): [32_671, 32_672],
        (*TABLE, 2): [0, 1],
        (*INDEX, 0): [90_000],
        (*INDEX, 1): [5],
    }


def test_records_of_an_sp_gist_index_name_its_first_page_too():
    wal = WalBuilder()
    change(wal, Block(INDEX, 12), rmgr=SPGIST, info=0x10)
    assert blocks_of(only_map(wal)) == {(*INDEX, 0): [0, 12]}


def test_new_shortened_and_dropped_relations_have_limits():
    wal = WalBuilder()
    change(wal, Block(TABLE, 500), rmgr=HEAP)
    truncate(wal, TABLE, 70_000)
    truncate(wal, TABLE, 40_000)
    truncate(wal, TABLE, 50_000)
    create(wal, OTHER)
    create(wal, INDEX, fork=3)
    found = only_map(wal).by_fork()
    assert {f: c.limit for f, c in found.items()} == {
        ForkId(*TABLE, 0): 40_000,
        # Bits behind the end are cleared in the page that stays.
        ForkId(*TABLE, 1): 0,
        ForkId(*TABLE, 2): 1,
        ForkId(*OTHER, 0): 0,
        ForkId(*INDEX, 3): 0,
    }
    assert found[ForkId(*TABLE, 0)].flags == ForkFlag.SHORTENED
    assert found[ForkId(*TABLE, 0)].blocks.tolist() == [500]
    assert found[ForkId(*INDEX, 3)].flags == ForkFlag.CREATED


@pytest.mark.parametrize("info", [0x00, 0x20, 0x30, 0x40])
@pytest.mark.parametrize("before", [b"", b"\xfd\x01\x00\xfc\x07\x00\x00\x00"])
def test_every_end_of_a_transaction_drops(info: int, before: bytes):
    wal = WalBuilder()
    wal.add_main(bytes(8), rmgr=1, info=info)
    end_transaction(wal, info, [TABLE, OTHER], before=before)
    found = only_map(wal).by_fork()
    assert set(found) == {ForkId(*one, fork) for one in (TABLE, OTHER) for fork in range(4)}
    assert {(one.flags, one.limit) for one in found.values()} == {(ForkFlag.DROPPED, 0)}


@pytest.mark.parametrize(
    ("magic", "copied", "logged", "dropped"), [(0xD106, 0x00, None, 0x10), (0xD118, 0x00, 0x10, 0x20)]
)
def test_databases_are_made_moved_and_dropped(magic: int, copied: int, logged: int | None, dropped: int):
    wal = WalBuilder(magic=magic)
    wal.add_main(struct.pack("<IIII", 100, 1663, 1, 1663), rmgr=DATABASE, info=copied)
    # ALTER DATABASE SET TABLESPACE
    wal.add_main(struct.pack("<IIII", 100, 1700, 100, 1663), rmgr=DATABASE, info=copied)
    wal.add_main(struct.pack("<IiI", 100, 1, 1663), rmgr=DATABASE, info=dropped)
    wal.add_main(struct.pack("<IiII", 200, 2, 1663, 1700), rmgr=DATABASE, info=dropped)
    expected = {
        DatabaseId(1663, 100): DatabaseFlag.COPIED | DatabaseFlag.DROPPED,
        DatabaseId(1700, 100): DatabaseFlag.COPIED,
        DatabaseId(1663, 200): DatabaseFlag.DROPPED,
        DatabaseId(1700, 200): DatabaseFlag.DROPPED,
    }
    if logged is not None:
        wal.add_main(struct.pack("<II", 300, 1663), rmgr=DATABASE, info=logged)
        expected[DatabaseId(1663, 300)] = DatabaseFlag.CREATED
    found = only_map(wal)
    assert (found.databases, found.gaps) == (expected, ())


def test_tablespaces_are_made_and_dropped():
    wal = WalBuilder()
    wal.add_main(struct.pack("<I", 16400) + b"/srv/fast\0", rmgr=TABLESPACE, info=0x00)
    wal.add_main(struct.pack("<I", 16500), rmgr=TABLESPACE, info=0x10)
    assert only_map(wal).tablespaces == {16400: TablespaceFlag.CREATED, 16500: TablespaceFlag.DROPPED}


@pytest.mark.parametrize(
    ("rmgr", "info", "body", "reason"),
    [
        (128, 0x00, body_of([Block(INDEX, 4)], b"x"), "resource manager 128 with info 00 is not known"),
        (HEAP2, 0x80, body_of([Block(INDEX, 4)], b"x"), "resource manager 9 with info 80"),
        (12, 0xF0, body_of([Block(INDEX, 4)], b"x"), "resource manager 12 with info F0"),
        (XLOG, 0xC0, body_of([], b"x"), "resource manager 0 with info C0"),
        (1, 0x70, body_of([], b"x"), "resource manager 1 with info 70"),
        (DATABASE, 0x30, body_of([], bytes(16)), "resource manager 4 with info 30"),
        (2, 0x10, body_of([], bytes(10)), "resource manager 2 is not laid out"),
        (2, 0x20, body_of([], bytes(19)), "resource manager 2 is not laid out"),
        (DATABASE, 0x20, body_of([], struct.pack("<IiI", 7, 2, 1663)), "resource manager 4 is not laid out"),
        (1, 0x80, body_of([], bytes(8) + struct.pack("<II", 4, 9)), None),
        (1, 0x80, body_of([], bytes(8) + struct.pack("<I", 4)), "resource manager 1 is not laid out"),
        (XLOG, 0x60, body_of([], struct.pack("<5iI", 1, 1, 1, 1, 1, 0)), "wal_level is minimal"),
        (XLOG, 0xF0, body_of([], struct.pack("<I", 99)), "PolarDB's own record 99"),
        (BTREE, 0x00, body_of([Block(INDEX, 4)], b"x") + b"y", "headers cannot be read"),
        (BTREE, 0x00, body_of([Block(INDEX, 4, same=True)], b"x"), "headers cannot be read"),
        (BTREE, 0x00, body_of([Block(INDEX, 4, fork=4)], b"x"), "headers cannot be read"),
        (BTREE, 0x00, b"\x63" + bytes(30), "headers cannot be read"),
    ],
)
def test_what_is_not_known_is_a_gap(rmgr: int, info: int, body: bytes, reason: str | None):
    wal = WalBuilder()
    change(wal, Block(TABLE, 1))
    lsn = wal.add(body, rmgr=rmgr, info=info)
    change(wal, Block(TABLE, 2))
    found = only_map(wal)
    assert (*TABLE, 0) in blocks_of(found)
    if reason is None:
        # A list that is shorter than it says: fewer relations than were dropped must not pass for all of them.
        reason = "is not laid out"
    (gap,) = found.gaps
    assert gap.lsn == lsn
    assert reason in gap.reason


@pytest.mark.parametrize("kind", [3, 11, 13])
def test_what_polardb_writes_for_its_own_nodes_is_no_gap(kind: int):
    wal = WalBuilder(magic=0xD110)
    # The third holds the image of a page, behind which the reader keeps no more.
    blocks = [Block(TABLE, 8, image=8000)] if kind == 13 else []
    wal.add(body_of(blocks, struct.pack("<I", kind)), rmgr=XLOG, info=0xF0)
    assert only_map(wal).gaps == ()


def test_a_version_whose_records_nobody_has_tried_is_a_gap():
    wal = WalBuilder(magic=0xD122)
    change(wal, Block(TABLE, 1))
    assert "PostgreSQL 19" in only_map(wal).gaps[0].reason


def test_a_record_belongs_to_the_segment_in_which_it_begins_and_the_map_waits_for_its_end():
    wal = WalBuilder()
    second = wal.start + wal.segment_bytes
    message_up_to(wal, second - PAGE_BYTES)
    crossing = change(wal, Block(INDEX, 1, data=20_000), rmgr=BTREE)
    after = change(wal, Block(INDEX, 2))
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    builder = BlockMapBuilder(Lsn(wal.start), 1, wal.segment_bytes)
    assert crossing < second < after
    assert builder.feed(memoryview(wal.content)[: wal.segment_bytes]) == []
    maps = builder.feed(memoryview(wal.content)[wal.segment_bytes :])
    assert [one.number for one, _ in maps] == [1, 2]
    (_, one), (_, two) = maps
    assert (one.start, one.end, two.start, two.end) == (wal.start, after, after, wal.lsn)
    assert (blocks_of(one)[*INDEX, 0], blocks_of(two)[*INDEX, 0]) == ([1], [2])
    # Read alone, the second one begins at the same place.
    assert maps_of(wal, start=second) == maps[1:]


def test_segments_within_one_record_have_empty_maps_that_join_the_others():
    wal = WalBuilder()
    wal.add(body_of([], bytes(3 << 20)), rmgr=LOGICAL_MESSAGE)
    change(wal, Block(INDEX, 2))
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    maps = maps_of(wal)
    assert len(maps) == 4
    assert all(before.end == after.start for (_, before), (_, after) in pairwise(maps))
    assert merged([one for _, one in maps]).gaps == ()
    # Begun within the record, nobody knows the end of it before it is there.
    assert maps_of(wal, start=wal.start + wal.segment_bytes) == maps[1:]


def test_a_record_that_ends_with_the_segment_leaves_no_gap():
    wal = WalBuilder()
    change(wal, Block(INDEX, 2))
    second = wal.start + wal.segment_bytes
    message_up_to(wal, second)
    change(wal, Block(INDEX, 3))
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    (_, one), (_, two) = maps_of(wal)
    assert one.end == two.start == second
    ((_, alone),) = maps_of(wal, start=second)
    assert alone == two


def test_what_a_crash_left_of_a_record_is_in_no_map_and_no_gap():
    wal = WalBuilder()
    second = wal.start + wal.segment_bytes
    message_up_to(wal, second - PAGE_BYTES)
    change(wal, Block(INDEX, 1))
    left = second - wal.lsn
    record = make_record(body_of([Block(INDEX, 77, data=left)], b"x"), rmgr=BTREE, info=0, xid=0, previous=wal.previous)
    wal.write(record[:left])
    wal.begin_page_if_due(OVERWRITES)
    change(wal, Block(INDEX, 2))
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    maps = [one for _, one in maps_of(wal)]
    assert [blocks_of(one)[*INDEX, 0] for one in maps] == [[1], [2]]
    assert merged(maps).gaps == ()


def test_a_segment_of_which_the_beginning_was_not_read_has_no_map():
    wal = WalBuilder()
    change(wal, Block(INDEX, 1))
    start = change(wal, Block(INDEX, 2))
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    change(wal, Block(INDEX, 3))
    wal.add_main(b"", rmgr=XLOG, info=0x40)
    assert [one.number for one, _ in maps_of(wal, start=start)] == [2]


def test_wal_that_is_not_valid_ends_the_maps():
    wal = WalBuilder()
    change(wal, Block(INDEX, 1))
    wal.add(body_of([Block(INDEX, 2)]), rmgr=BTREE, crc=1)
    wal.fill_segment()
    builder = BlockMapBuilder(Lsn(wal.start), 1, wal.segment_bytes)
    assert builder.feed(memoryview(wal.content)) == []
    assert "wrong checksum" in str(builder.end)


def test_maps_that_do_not_follow_one_another_have_a_gap_between_them():
    wal = WalBuilder()
    for number in range(3):
        change(wal, Block(INDEX, number), rmgr=BTREE)
        truncate(wal, INDEX, 90 - number)
        wal.add_main(b"", rmgr=XLOG, info=0x40)
    one, two, three = [found for _, found in maps_of(wal)]
    whole = merged([one, two, three])
    assert (whole.start, whole.end, whole.gaps) == (one.start, three.end, ())
    assert blocks_of(whole)[*INDEX, 0] == [0, 1, 2]
    assert whole.by_fork()[ForkId(*INDEX, 0)].limit == 88
    (gap,) = merged([one, three]).gaps
    assert gap.reason == f"there is no map from here to {three.start}"
