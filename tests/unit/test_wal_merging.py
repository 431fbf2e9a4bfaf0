"""Small ranges of WAL become one, and those that lie in another one are superseded."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from polarvault.errors import IntegrityError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.merging import SMALL_RANGES, merge_small_ranges, superseded, to_merge
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from support.repositories import new_repository

MB = 1 << 20
SEGMENT = WalSegment(1, 3, 16 * MB)
CONTENT = random.Random(4).randbytes(16 * MB)


def wal() -> RepositoryWal:
    return new_repository().wal("shop", 7_000_000_000_000_000_001, 16 * MB)


def stored(first: int, last: int) -> StoredRange:
    return StoredRange(SEGMENT, Lsn(SEGMENT.start + first), Lsn(SEGMENT.start + last))


def put(into: RepositoryWal, first: int, last: int) -> StoredRange:
    return into.put_range(1, SEGMENT.start + first, CONTENT[first:last])


def test_what_lies_in_a_longer_range_is_superseded() -> None:
    ranges = [stored(0, 10), stored(0, 5), stored(2, 20), stored(3, 9), stored(15, 20), stored(20, 30)]
    assert superseded(ranges) == {stored(0, 5), stored(3, 9), stored(15, 20)}
    other = StoredRange(WalSegment(2, 3, 16 * MB), Lsn(SEGMENT.start + 1), Lsn(SEGMENT.start + 4))
    assert superseded([stored(0, 10), other]) == set()


@pytest.mark.parametrize("seed", range(30))
def test_superseded_ranges_are_not_missed_by_a_reader(seed: int) -> None:
    rng = random.Random(seed)
    ranges = {stored(*sorted(rng.sample(range(40), 2))) for _ in range(15)}
    left = ranges - superseded(ranges)

    def covered(of: set[StoredRange]) -> set[int]:
        return {lsn for one in of for lsn in range(one.first, one.last)}

    assert covered(left) == covered(ranges)
    for one in ranges:
        inside = any(other != one and other.first <= one.first and one.last <= other.last for other in ranges)
        assert (one not in left) == inside


def test_ranges_of_a_whole_segment_become_one() -> None:
    there = wal()
    ends = [0, 100, 5000, 70_000, 3 * MB, 3 * MB + 1, 16 * MB - 5, 16 * MB]
    for first, last in pairwise(ends):
        put(there, first, last)
    # Behind what becomes one is a range that is large enough, and a last one that is alone.
    assert merge_small_ranges(there, SEGMENT, is_whole=True) == 1
    assert there.read_segment(SEGMENT) == (CONTENT, SEGMENT.end)
    left = set(there.ranges(1)) - superseded(there.ranges(1))
    assert (
        sorted(left)
        == [stored(0, 3 * MB + 1), stored(3 * MB + 1, 16 * MB - 5), stored(16 * MB - 5, 16 * MB)][: len(left)]
    )
    assert merge_small_ranges(there, SEGMENT, is_whole=True) == 0


def test_of_an_unfinished_segment_few_ranges_are_left_alone() -> None:
    there = wal()
    for number in range(SMALL_RANGES - 1):
        put(there, number * 100, number * 100 + 100)
    assert merge_small_ranges(there, SEGMENT, is_whole=False) == 0
    put(there, (SMALL_RANGES - 1) * 100, SMALL_RANGES * 100)
    assert merge_small_ranges(there, SEGMENT, is_whole=False) == 1
    assert there.read(1, SEGMENT.start, SMALL_RANGES * 100) == CONTENT[: SMALL_RANGES * 100]


def test_a_gap_is_not_merged_over_and_overlaps_are_compared() -> None:
    assert to_merge([stored(0, 10), stored(11, 20)], is_whole=True) == []
    there = wal()
    put(there, 0, 1000)
    put(there, 500, 1500)
    put(there, 600, 1600)
    assert merge_small_ranges(there, SEGMENT, is_whole=True) == 1
    assert there.read(1, SEGMENT.start, 1600) == CONTENT[:1600]
    torn = wal()
    put(torn, 0, 1000)
    torn.put_range(1, SEGMENT.start + 900, b"x" * 200)
    with pytest.raises(IntegrityError, match="two ranges"):
        merge_small_ranges(torn, SEGMENT, is_whole=True)


def test_a_part_is_read_over_the_end_of_a_segment_without_listing_the_timeline() -> None:
    there = wal()
    put(there, 15 * MB, 16 * MB)
    there.put_range(1, SEGMENT.end, b"next")
    assert there.read(1, SEGMENT.end - 3, 7) == CONTENT[-3:] + b"next"
    assert there.read(1, SEGMENT.end - 3, 100) == CONTENT[-3:] + b"next"
    assert there.read(1, SEGMENT.start, 10) == b""
