"""Makes the block maps that are missing for the WAL that is in a repository.

A segment gets its map when ranges cover it and the last record that begins in it is there as well: that one may end in
the next segment, of the same timeline or of a child. Segments that follow one another are read once, in order; while
one range is decoded the next one is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from polarvault.errors import IntegrityError, ObjectMissing
from polarvault.model.segment import WalSegment
from polarvault.repository.maps.stored import RepositoryMaps
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.wal.block_maps.builder import BlockMapBuilder
from polarvault.wal.block_maps.model import BlockMap, Gap
from polarvault.wal.source import HeldRange, joined

# Ranges that are fetched ahead: with the one that is decoded 48 MiB of those that receivers and push write.
_AHEAD = 2
# What is looked at beyond a segment for the end of its last record, at a time.
_BEYOND_BYTES = 256 << 10


@dataclass(slots=True)
class MadeMaps:
    """What was made of one timeline. waiting: segments whose last record is not there as a whole."""

    system_identifier: int
    timeline_id: int
    made: int = 0
    present: int = 0
    gaps: list[tuple[WalSegment, Gap]] = field(default_factory=list)
    waiting: list[WalSegment] = field(default_factory=list)
    problems: list[tuple[WalSegment, str]] = field(default_factory=list)
    read_bytes: int = 0
    seconds: float = 0.0


def make_maps(
    wal: RepositoryWal,
    maps: RepositoryMaps,
    *,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[MadeMaps]:
    """Make what is missing, and yield what came of each timeline. Running it twice, or at the same time, is safe."""
    timelines = sorted(wal.timelines())
    ranges = {timeline_id: wal.ranges(timeline_id) for timeline_id in timelines}
    for timeline_id in timelines:
        report = MadeMaps(wal.system_identifier, timeline_id)
        began = clock()
        there = {segment for segment, _ in maps.stored(timeline_id)}
        covered = list(covered_segments(ranges[timeline_id], timeline_id, wal.segment_bytes))
        report.present = len(there.intersection(covered))
        missing = [segment for segment in covered if segment not in there]
        for run in _runs(missing):
            tell(f"{run[0].file_name} to {run[-1].file_name}")
            _make_run(wal, maps, ranges, run, report)
        report.seconds = clock() - began
        yield report


def make_map(wal: RepositoryWal, segment: WalSegment) -> BlockMap:
    """Make the map of one segment; IntegrityError if its WAL, or what comes after it, is not there or not valid."""
    ranges = {timeline_id: wal.ranges(timeline_id) for timeline_id in wal.timelines()}
    report = MadeMaps(wal.system_identifier, segment.timeline_id)
    if segment in covered_segments(ranges.get(segment.timeline_id, []), segment.timeline_id, wal.segment_bytes):
        for _, found in _maps_of_run(wal, ranges, [segment], report):
            return found
    why = report.problems[0][1] if report.problems else "its WAL is not there as a whole"
    raise IntegrityError(
        f"no map of {segment.file_name} can be made: {why}", hint="polarvault wal status shows the WAL"
    )


def covered_segments(ranges: Sequence[StoredRange], timeline_id: int, segment_bytes: int) -> Iterator[WalSegment]:
    """Yield the segments that ranges cover."""
    for held in joined(HeldRange(one.first, one.last) for one in ranges):
        for number in range(-(-held.start // segment_bytes), held.end // segment_bytes):
            yield WalSegment(timeline_id, number, segment_bytes)


def _runs(segments: Sequence[WalSegment]) -> Iterator[list[WalSegment]]:
    """Yield segments that follow one another."""
    for _, run in groupby(enumerate(segments), key=lambda one: one[1].number - one[0]):
        yield [segment for _, segment in run]


def _make_run(
    wal: RepositoryWal,
    maps: RepositoryMaps,
    ranges: dict[int, list[StoredRange]],
    run: Sequence[WalSegment],
    report: MadeMaps,
) -> None:
    for segment, block_map in _maps_of_run(wal, ranges, run, report):
        maps.put(segment, block_map)
        report.made += 1
        report.gaps += [(segment, gap) for gap in block_map.gaps[:1]]


def _maps_of_run(
    wal: RepositoryWal, ranges: dict[int, list[StoredRange]], run: Sequence[WalSegment], report: MadeMaps
) -> Iterator[tuple[WalSegment, BlockMap]]:
    """Yield the maps of segments that follow one another; behind one that is not valid it begins anew."""
    left = list(run)
    while left:
        builder = BlockMapBuilder(left[0].start, left[0].timeline_id, wal.segment_bytes)
        wanted = _chosen(ranges[left[0].timeline_id], left[0].start, left[-1].end)
        why = ""
        try:
            for view in _read_ahead(wal, wanted):
                report.read_bytes += len(view)
                yield from builder.feed(view)
                if builder.end is not None:
                    why = str(builder.end)
                    break
        except (IntegrityError, ObjectMissing) as problem:
            # An expire removes WAL from its beginning on; what is gone needs no map.
            why = problem.message
        if why:
            report.problems.append((builder.segment, why))
            left = [segment for segment in left if segment.number > builder.segment.number]
            continue
        behind = [segment for segment in left if segment.number >= builder.segment.number]
        if behind:
            found = _finish(wal, ranges, builder, left[-1])
            yield from found
            report.waiting += [] if found else behind
        return


def _finish(
    wal: RepositoryWal, ranges: dict[int, list[StoredRange]], builder: BlockMapBuilder, last: WalSegment
) -> list[tuple[WalSegment, BlockMap]]:
    """Feed what follows the last segment until its last record is whole; return its map, and others that waited."""
    at = int(last.end)
    for timeline_id in [one for one in sorted(ranges) if one >= last.timeline_id]:
        # Of a child only what it has in the segment in which it branched off.
        most = at + wal.segment_bytes if timeline_id > last.timeline_id else 1 << 63
        try:
            for view in _read_ahead(wal, _chosen(ranges[timeline_id], at, most)):
                for offset in range(0, len(view), _BEYOND_BYTES):
                    part = view[offset : offset + _BEYOND_BYTES]
                    at += len(part)
                    found = [one for one in builder.feed(part) if one[0].number <= last.number]
                    if found or builder.end is not None:
                        return found
        except (IntegrityError, ObjectMissing):
            return []
    return []


def _chosen(ranges: Sequence[StoredRange], start: int, end: int) -> list[tuple[StoredRange, int, int]]:
    """Return ranges that together hold the WAL from start on, up to end or a gap: each with the bytes to take of it."""
    found, at, number = [], start, 0
    best: StoredRange | None = None
    while at < end:
        # They are sorted by their first byte; of those that may overlap the one that reaches farthest counts.
        while number < len(ranges) and ranges[number].first <= at:
            if best is None or ranges[number].last > best.last:
                best = ranges[number]
            number += 1
        if best is None or best.last <= at:
            break
        found.append((best, at - best.first, min(int(best.last), end) - best.first))
        at = int(best.last)
    return found


def _read_ahead(wal: RepositoryWal, wanted: Sequence[tuple[StoredRange, int, int]]) -> Iterator[memoryview]:
    """Yield the bytes of ranges in order, while the next ones are fetched."""
    with ThreadPoolExecutor(1, thread_name_prefix="maps") as pool:
        waiting: list[Future[memoryview]] = []
        try:
            for number, (_, first, last) in enumerate(wanted):
                while len(waiting) < _AHEAD and number + len(waiting) < len(wanted):
                    waiting.append(pool.submit(wal.read_range, wanted[number + len(waiting)][0]))
                yield waiting.pop(0).result()[first:last]
        finally:
            for one in waiting:
                one.cancel()
