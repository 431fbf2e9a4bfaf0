"""Block maps do not depend on how the WAL is cut, on the segments, or on which of two gatherers makes them."""

from __future__ import annotations

from itertools import pairwise

import numpy
from hypothesis import given
from hypothesis import strategies as st

from polarvault.model.lsn import Lsn
from polarvault.wal.block_maps.builder import BlockMapBuilder
from polarvault.wal.block_maps.changes import entries_of
from polarvault.wal.block_maps.kernel import CompiledGatherer
from polarvault.wal.block_maps.model import BlockMap, merged
from polarvault.wal.block_maps.references import Gatherer, PlainGatherer
from polarvault.wal.scan import PlainReader, WalScanner
from support.made_changes import BTREE, HEAP, SPGIST, Block, body_of, create, end_transaction, truncate
from support.wal_bytes import XLOG, WalBuilder

_OIDS = st.sampled_from([5, 1663, 16384, 0xFFFF_FFFF])
_RELATIONS = st.tuples(_OIDS, _OIDS, st.integers(16384, 16390))
_BLOCKS = st.builds(
    Block, _RELATIONS, st.one_of(st.integers(0, 40), st.integers(0, 0xFFFF_FFFF)), fork=st.integers(0, 3),
    image=st.none() | st.integers(0, 9000), hole=st.booleans(), same=st.booleans(), data=st.integers(0, 300),
)  # fmt: skip
_BODIES = st.builds(
    body_of,
    st.lists(_BLOCKS, max_size=33),
    st.sampled_from([b"", b"\0\0\0", bytes(400)]),
    before=st.sampled_from([b"", b"\xfd\x01\x00", b"\xfc\x07\x00\x00\x00"]),
)
# Honest ones, and whatever a stranger may give a right checksum to.
_ANY = st.one_of(
    _BODIES, st.binary(max_size=200), _BODIES.flatmap(lambda body: st.integers(0, len(body)).map(lambda n: body[:n]))
)
_RECORDS = st.lists(st.tuples(_ANY, st.sampled_from([BTREE, HEAP, SPGIST])), max_size=60)


def as_sets(gatherer: Gatherer) -> dict[tuple[int, ...], tuple[int, set[int]]]:
    """Return what was gathered, whatever its order."""
    forks, silent, keys = gatherer.result()
    found: dict[tuple[int, ...], tuple[int, set[int]]] = {
        tuple(fork): (kind, set()) for fork, kind in zip(forks.tolist(), silent.tolist(), strict=True)
    }
    for row, block in zip(
        (keys >> numpy.uint64(32)).tolist(), (keys & numpy.uint64(0xFFFF_FFFF)).tolist(), strict=True
    ):
        found[tuple(forks[row].tolist())][1].add(block)
    return found


@given(_RECORDS)
def test_both_gatherers_find_the_same_whatever_the_records_hold(records: list[tuple[bytes, int]]):
    wal = WalBuilder()
    for body, rmgr in records:
        wal.add(body, rmgr=rmgr)
    plain_marks = PlainReader(wal.start, wal.segment_bytes, with_blocks=True).feed(wal.content)
    marks = WalScanner(Lsn(wal.start), wal.segment_bytes, with_blocks=True).feed(memoryview(wal.content))
    plain, compiled = PlainGatherer(), CompiledGatherer()
    wrong = plain.add(plain_marks, entries_of(plain_marks), 0, len(plain_marks))
    assert compiled.add(marks, entries_of(marks), 0, len(marks)) == wrong
    assert as_sets(compiled) == as_sets(plain)
    assert compiled.block_count == plain.block_count


@given(st.integers(1, 2**32), st.integers(700, 3000))
def test_tables_grow_as_far_as_they_have_to(seed: int, forks: int):
    chance = numpy.random.default_rng(seed)
    wal = WalBuilder(segment_bytes=16 << 20)
    expected: dict[tuple[int, ...], set[int]] = {}
    for number in range(forks):
        relation = (1663, int(chance.integers(1, 1 << 32)), number + 1)
        blocks = chance.integers(0, 1 << 32, 20).tolist()
        wal.add(body_of([Block(relation, block) for block in blocks]), rmgr=BTREE)
        expected[*relation, 0] = set(blocks)
    marks = WalScanner(Lsn(wal.start), wal.segment_bytes, with_blocks=True).feed(memoryview(wal.content))
    compiled = CompiledGatherer()
    assert compiled.add(marks, entries_of(marks), 0, len(marks)) is None
    assert {fork: blocks for fork, (_, blocks) in as_sets(compiled).items()} == expected


_STEPS = st.one_of(
    st.builds(lambda body, rmgr: lambda wal: wal.add(body, rmgr=rmgr), _BODIES, st.sampled_from([BTREE, HEAP])),
    st.builds(lambda relation, fork: lambda wal: create(wal, relation, fork), _RELATIONS, st.integers(0, 3)),
    st.builds(lambda relation, block: lambda wal: truncate(wal, relation, block), _RELATIONS, st.integers(0, 99)),
    st.builds(lambda gone: lambda wal: end_transaction(wal, 0, gone), st.lists(_RELATIONS, min_size=1, max_size=30)),
    st.just(lambda wal: wal.add_main(b"", rmgr=XLOG, info=0x40)),
    st.builds(lambda size: lambda wal: wal.add(body_of([], bytes(size)), rmgr=21), st.integers(1, 2_500_000)),
)


@given(st.lists(_STEPS, max_size=25), st.lists(st.integers(1, 1 << 20), max_size=20))
def test_a_map_does_not_depend_on_how_the_wal_is_cut(steps, cuts: list[int]):
    wal = WalBuilder()
    for step in steps:
        step(wal)
    wal.add_main(b"", rmgr=XLOG, info=0x40)

    def read(view: memoryview, pieces: list[int], start: int) -> list[tuple[int, BlockMap]]:
        builder = BlockMapBuilder(Lsn(start), 1, wal.segment_bytes)
        places = sorted({0, len(view), *[piece for piece in pieces if piece < len(view)]})
        return [(one.number, found) for a, b in pairwise(places) for one, found in builder.feed(view[a:b])]

    whole = read(memoryview(wal.content), [], wal.start)
    assert read(memoryview(wal.content), cuts, wal.start) == whole
    for number in range(len(whole)):
        # Begun later, the maps are the same.
        at = number * wal.segment_bytes
        assert read(memoryview(wal.content)[at:], [], wal.start + at) == whole[number:]
    for (_, before), (_, after) in pairwise(whole):
        assert before.end == after.start
    if whole:
        maps = [found for _, found in whole]
        all_of_them = merged(maps)
        assert merged([all_of_them]) == all_of_them
        some = merged(maps[: len(maps) // 2 + 1])
        assert merged([some, *maps[len(maps) // 2 + 1 :]]) == all_of_them
