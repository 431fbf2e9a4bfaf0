"""Where to start receiving: after what the directory holds, at the slot, or at the server's present position.

The rules are pg_receivewal's, so that either tool goes on in the other's directory: the newest segment decides, its
timeline too; an unfinished one is fetched again from its first byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polarvault.errors import IntegrityError, StorageFailed, TimelineDiverged, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.history import TimelineHistory, TimelineRange
from polarvault.wal.names import is_segment_name
from polarvault.wal.segment_header import SegmentHeader
from polarvault.walfiles.files import WalFile, read_segment_header, wal_file

# More segments than a receiver has open at a time: the one that is received, and the backlog of `durability`.
_MOST_UNFINISHED = 8


@dataclass(frozen=True, slots=True)
class StartPoint:
    """The first byte to ask for, and its timeline; remark says what is unusual about it."""

    timeline_id: int
    lsn: Lsn
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the WAL in a directory must belong to."""

    system_identifier: str
    segment_size_bytes: int


def after_kept_wal(
    directory: str,
    cluster: Cluster,
    warn: Callable[[str], None],
    *,
    counts: Callable[[WalSegment], bool] = lambda segment: True,
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


def on_servers_history(
    wanted: StartPoint, server: TimelineHistory, kept: TimelineHistory | None, segment_size_bytes: int
) -> StartPoint:
    """Move a start point onto the server's history; raise TimelineDiverged where no WAL would connect.

    kept: the history of the wanted timeline, as far as it is known here.
    """
    if server.timeline_id < wanted.timeline_id:
        raise TimelineDiverged(
            f"the server is on timeline {server.timeline_id}, the directory already holds timeline "
            f"{wanted.timeline_id} up to {wanted.lsn}: this is an old primary",
            hint="connect to the promoted server, or give all hosts and target_session_attrs=read-write",
        )
    parting = _parting(wanted, server, kept)
    if parting is None:
        return wanted
    fork, timeline_id = parting
    return StartPoint(
        timeline_id,
        WalSegment.holding(fork, timeline_id, segment_size_bytes).start,
        f"timeline {server.timeline_id} of the server parts at {fork} from what is here, timeline "
        f"{wanted.timeline_id} up to {wanted.lsn}: what lies between is kept, but is not part of the new timeline",
    )


def continues(start: StartPoint, server: TimelineHistory, segment: WalSegment) -> bool:
    """Tell whether a segment is on the server's history at or after a start point: fetched there before."""
    found = server.range_of(segment.timeline_id)
    return (
        found is not None
        and segment.timeline_id >= start.timeline_id
        and segment.start >= start.lsn
        and (found.end is None or segment.start < found.end)
    )


def _parting(wanted: StartPoint, server: TimelineHistory, kept: TimelineHistory | None) -> tuple[Lsn, int] | None:
    """Return where the server's history leaves ours, and the timeline it goes on with there; None if it does not."""
    ours = (kept or TimelineHistory(wanted.timeline_id)).ranges
    theirs = server.ranges
    if kept is None:
        # What came before the wanted timeline is not known here; its number has to do.
        theirs = tuple(found for found in theirs if found.timeline_id >= wanted.timeline_id)
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        shared = number + 1
        if our.timeline_id != their.timeline_id:
            if number == 0:
                break
            shared, parting = number, (their.start, their.timeline_id)
        elif our is ours[-1] and (their.end is None or wanted.lsn <= their.end):
            return None
        elif our.end == their.end:
            continue
        elif our.end is not None and (their.end is None or our.end < their.end):
            parting = our.end, our.timeline_id
        else:
            assert their.end is not None
            parting = their.end, theirs[shared].timeline_id
        if {found.timeline_id for found in ours[shared:]} & {found.timeline_id for found in theirs[shared:]}:
            break  # Two timelines of one number: their files would have the same names.
        return parting
    raise TimelineDiverged(
        f"timeline {wanted.timeline_id}, of which the directory holds WAL up to {wanted.lsn}, is not in the "
        f"history of the server's timeline {server.timeline_id}",
        detail=f"here: {_described(ours)}; the server: {_described(server.ranges)}",
        hint="receive into another directory, and take a new base backup from this server",
    )


def _described(ranges: Sequence[TimelineRange]) -> str:
    return ", ".join(
        f"timeline {found.timeline_id}" + (f" up to {found.end}" if found.end is not None else "") for found in ranges
    )


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
