"""Many small ranges become one: a stream writes one every few seconds, and a segment may have a gigabyte.

What was merged stays until `expire` removes it, a safety time later: somebody may be reading it. A range that lies in
another one is superseded, however it came there, so nothing has to be remembered of a merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polarvault.errors import IntegrityError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange

# Larger ones are left: to write them again would cost more than it saves.
SMALL_BYTES = 8 << 20
# Of a segment that is still being written so many are left alone.
SMALL_RANGES = 64
_MERGED_BYTES = min(limits.WAL_RANGE_BYTES, 16 << 20)


def superseded(ranges: Iterable[StoredRange]) -> set[StoredRange]:
    """Return the ranges that lie in a longer one of the same segment."""
    found: set[StoredRange] = set()
    longest: StoredRange | None = None
    # The longest of those that begin at one place comes first, so one look back is enough.
    for one in sorted(ranges, key=lambda one: (one.segment, one.first, -one.last)):
        if longest is not None and longest.segment == one.segment and one.last <= longest.last:
            found.add(one)
        else:
            longest = one
    return found


def to_merge(ranges: Sequence[StoredRange], *, is_whole: bool) -> list[list[StoredRange]]:
    """Return groups of small ranges of one segment that become one each, without a gap in any of them.

    is_whole: nothing more of the segment will come, so two are enough for a group.
    """
    there = superseded(ranges)
    groups: list[list[StoredRange]] = []
    group: list[StoredRange] = []
    for one in sorted(set(ranges) - there):
        fits = bool(group) and one.first <= group[-1].last and one.last - group[0].first <= _MERGED_BYTES
        if one.last - one.first > SMALL_BYTES or not fits:
            groups.append(group)
            group = []
        if one.last - one.first <= SMALL_BYTES:
            group.append(one)
    groups.append(group)
    least = 2 if is_whole else SMALL_RANGES
    return [one for one in groups if len(one) >= least]


def merge_small_ranges(wal: RepositoryWal, segment: WalSegment, *, is_whole: bool) -> int:
    """Write the merged ranges of a segment; return how many. IntegrityError where two that overlap differ."""
    groups = to_merge(wal.segment_ranges(segment), is_whole=is_whole)
    for group in groups:
        wal.put_range(segment.timeline_id, group[0].first, _joined(wal, group))
    return len(groups)


def _joined(wal: RepositoryWal, group: Sequence[StoredRange]) -> bytes:
    content, first = bytearray(), int(group[0].first)
    for one in group:
        part = wal.read_range(one)
        shared = first + len(content) - int(one.first)
        if content[len(content) - shared :][: len(part)] != part[:shared]:
            raise IntegrityError(
                f"two ranges of {one.segment.file_name} differ: the one from {one.first} to {one.last} and those "
                f"before it, from {Lsn(first)} on",
                hint="two servers have written here; see which of them is the cluster",
            )
        content += part[shared:]
    return bytes(content)
