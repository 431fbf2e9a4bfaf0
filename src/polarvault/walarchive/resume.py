"""Where to start receiving: after what the directory holds, at the slot, or at the server's present position.

The rules are pg_receivewal's, so that either tool goes on in the other's directory: the newest whole segment decides,
its timeline too; an unfinished one is fetched again from its first byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.errors import IntegrityError, TimelineDiverged, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage.files import storage_failed
from polarvault.wal.history import TimelineHistory
from polarvault.walarchive.directory import WalFile, is_segment_name, read_segment_header, read_wal, wal_file


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


def after_kept_wal(directory: str, cluster: Cluster, warn: Callable[[str], None]) -> StartPoint | None:
    """Return where the WAL in the directory ends, None if there is none; refuse that of another cluster."""
    for file, segment in _newest_first(directory, cluster.segment_size_bytes, warn):
        problem = None if file.partial else _size_problem(file, cluster.segment_size_bytes)
        if problem is not None:
            warn(f'segment file "{file.path}" {problem}, skipping')
            continue
        _check_cluster(file, cluster)
        return StartPoint(segment.timeline_id, segment.start if file.partial else segment.end)
    return None


def on_servers_history(
    wanted: StartPoint, server: TimelineHistory, kept: TimelineHistory | None, segment_size_bytes: int
) -> StartPoint:
    """Move a start point onto the server's history; raise TimelineDiverged where no WAL would connect.

    kept: the history of the wanted timeline, as far as it is known here.
    """
    found = server.range_of(wanted.timeline_id)
    if found is not None and (found.end is None or wanted.lsn <= found.end):
        return wanted
    if found is None and server.timeline_id < wanted.timeline_id:
        raise TimelineDiverged(
            f"the server is on timeline {server.timeline_id}, the directory already holds timeline "
            f"{wanted.timeline_id} up to {wanted.lsn}: this is an old primary",
            hint="connect to the promoted server, or give all hosts and target_session_attrs=read-write",
        )
    fork, timeline_id = _fork(wanted, server, kept)
    return StartPoint(
        timeline_id,
        WalSegment.holding(fork, timeline_id, segment_size_bytes).start,
        f"timeline {timeline_id} branched off at {fork}; WAL of timeline {wanted.timeline_id} is here up to "
        f"{wanted.lsn}: what lies between is kept, but is not part of the new timeline",
    )


def _fork(wanted: StartPoint, server: TimelineHistory, kept: TimelineHistory | None) -> tuple[Lsn, int]:
    """Return where the server's history leaves ours, and the timeline that it goes on with."""
    ours = {found.timeline_id: found for found in (kept or TimelineHistory(wanted.timeline_id)).ranges}
    shared = [found for found in server.ranges if found.timeline_id in ours and found.end is not None]
    if not shared:
        raise TimelineDiverged(
            f"timeline {wanted.timeline_id}, of which the directory holds WAL up to {wanted.lsn}, is not in the "
            f"history of the server's timeline {server.timeline_id}",
            hint="receive into another directory, and take a new base backup from this server",
        )
    last = shared[-1]
    assert last.end is not None
    following = server.ranges[server.ranges.index(last) + 1]
    return last.end, following.timeline_id


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


def _size_problem(file: WalFile, expected: int) -> str | None:
    """Tell what is wrong with a whole segment's size; None if it is right."""
    try:
        if file.compression == "gz":
            with open(file.path, "rb") as source:
                source.seek(-4, os.SEEK_END)
                size = int(struct.unpack("<I", source.read(4))[0])
        elif file.compression is None:
            size = os.stat(file.path).st_size
        else:
            size = sum(map(len, read_wal(file)))
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
