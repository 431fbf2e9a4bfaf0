"""Which ranges of an object are read with one request. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.model.dataclass import dataclass

# A request costs as much time as some hundred kB of data, on a disk that turns as well as over a network.
_GAP_BYTES = 256 << 10
# What one read brings into memory at most, unless a single range is longer.
_JOINED_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class JoinedRange:
    """One read: where, and the numbers of the ranges that lie in it."""

    offset: int
    length: int
    members: tuple[int, ...]


def join_ranges(ranges: Sequence[tuple[int, int]]) -> list[JoinedRange]:
    """Return the reads that together hold every (offset, length), in the order of the object."""
    joined: list[JoinedRange] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        offset, length = ranges[number]
        if offset < 0 or length < 0:
            raise ValueError(f"({offset}, {length}) is no range")
        if joined:
            last = joined[-1]
            end = max(last.offset + last.length, offset + length)
            if offset <= last.offset + last.length + _GAP_BYTES and end - last.offset <= _JOINED_BYTES:
                joined[-1] = JoinedRange(last.offset, end - last.offset, (*last.members, number))
                continue
        joined.append(JoinedRange(offset, length, (number,)))
    return joined


def cut_ranges(
    ranges: Sequence[tuple[int, int]], read: JoinedRange, content: memoryview
) -> list[tuple[int, memoryview]]:
    """Return the number and the bytes of each range that a read holds; nothing is copied."""
    return [(number, content[ranges[number][0] - read.offset :][: ranges[number][1]]) for number in read.members]
