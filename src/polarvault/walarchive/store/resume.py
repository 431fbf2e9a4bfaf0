"""Where the WAL in a directory ends, so that receiving goes on there.

The rules are pg_receivewal's, so that either tool goes on in the other's directory: the newest segment decides, its
timeline too; an unfinished one is fetched again from its first byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace

from polarvault.errors import IntegrityError, StorageFailed, UsageError
from polarvault.model.segment import WalSegment
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_segment_name
from polarvault.wal.segment_header import SegmentHeader
from polarvault.wal.store import Cluster, StartPoint
from polarvault.walfiles.files import WalFile, read_segment_header, wal_file

# More segments than a receiver has open at a time: the one that is received, and the backlog of `durability`.
_MOST_UNFINISHED = 8


def after_kept_wal(
    directory: str,
    cluster: Cluster,
    warn: Callable[[str], None],
    *,
    counts: Callable[[WalSegment], bool],
) -> StartPoint | None:
    """Return where the WAL in the directory ends, None if there is none; refuse that of another cluster.

    counts chooses the segments that are looked at.
    """
    found = [pair for pair in _newest_first(directory, cluster.segment_size_bytes, warn) if counts(pair[1])]
    for file, segment in found:
        if _is_whole(file, cluster, warn):
            _check_cluster(file, cluster)
            return StartPoint(segment.timeline_id, segment.end)
        if file.partial:
            _check_cluster(file, cluster)
            first = _first_unfinished(segment, found, cluster, warn)
            return StartPoint(first.timeline_id, first.start)
        _check_whose(file, cluster)
    return None


def _first_unfinished(
    segment: WalSegment, found: list[tuple[WalFile, WalSegment]], cluster: Cluster, warn: Callable[[str], None]
) -> WalSegment:
    """Step back over segments that are not whole, or not here any more: a receiver ended before it had finished them.

    It receives a segment while the ones before are still being made durable, so the newest alone does not tell.
    """
    first = segment
    for distance in range(1, min(_MOST_UNFINISHED, segment.number) + 1):
        before = replace(segment, number=segment.number - distance)
        files = [file for file, its_segment in found if its_segment == before]
        if any(_is_whole(file, cluster, warn) for file in files):
            return replace(segment, number=before.number + 1)
        if files:
            first = before
    return first


def _newest_first(
    directory: str, segment_size_bytes: int, warn: Callable[[str], None]
) -> list[tuple[WalFile, WalSegment]]:
    found = []
    try:
        names = os.listdir(directory)
    except OSError as problem:
        raise storage_failed(problem, "read directory", directory) from problem
    for name in names:
        file = wal_file(directory, name, in_pg_wal=False)
        if not is_segment_name(file.name):
            continue
        try:
            found.append((file, WalSegment.parse(file.name, segment_size_bytes)))
        except ValueError:
            warn(f'segment file "{file.path}" belongs to another segment size, skipping')
    # Segment before timeline, whole before partial: pg_receivewal's order.
    found.sort(key=lambda pair: (pair[1].number, pair[1].timeline_id, not pair[0].partial), reverse=True)
    return found


def _is_whole(file: WalFile, cluster: Cluster, warn: Callable[[str], None]) -> bool:
    if file.partial:
        return False
    problem = _size_problem(file, cluster.segment_size_bytes)
    if problem is not None:
        warn(f'segment file "{file.path}" {problem}, skipping')
    return problem is None


def _size_problem(file: WalFile, expected: int) -> str | None:
    """Tell what is wrong with a whole segment's size; None if it is right."""
    try:
        if file.compression == "gz":
            with open_regular(file.path) as source:
                source.seek(-4, os.SEEK_END)
                size = int(struct.unpack("<I", source.read(4))[0])
        elif file.compression is None:
            size = os.stat(file.path).st_size
        else:
            size = sum(map(len, file.views()))
    except (OSError, IntegrityError) as problem:
        return f"cannot be read ({problem})"
    return None if size == expected else f"has {size} bytes instead of {expected}"


def _check_cluster(file: WalFile, cluster: Cluster) -> None:
    if file.partial and os.stat(file.path).st_size == 0:
        return
    try:
        header = read_segment_header(file)
    except IntegrityError:
        if file.partial:
            return  # Opened before its first byte came, or cut before anything could be decoded.
        raise
    _check_header(file, header, cluster)


def _check_whose(file: WalFile, cluster: Cluster) -> None:
    """Like `_check_cluster`, of a whole segment with a wrong size: only a damaged one of ours is passed over.

    Names repeat after a change of the segment size: receiving on would overwrite the older WAL, file by file.
    """
    try:
        header = read_segment_header(file)
    except (IntegrityError, StorageFailed):
        return
    _check_header(file, header, cluster)


def _check_header(file: WalFile, header: SegmentHeader, cluster: Cluster) -> None:
    if str(header.system_identifier) != cluster.system_identifier:
        raise UsageError(
            f'"{file.path}" belongs to cluster {header.system_identifier}, the server to {cluster.system_identifier}: '
            "WAL of two clusters must not be mixed",
            hint="give -D a directory of its own for each cluster",
        )
    if header.segment_size_bytes != cluster.segment_size_bytes:
        raise UsageError(
            f'"{file.path}" is a segment of {header.segment_size_bytes} bytes, '
            f"the server's have {cluster.segment_size_bytes}",
            hint="give -D another directory: the server's segment size was changed",
        )
