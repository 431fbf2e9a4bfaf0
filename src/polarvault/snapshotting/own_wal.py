"""Where the WAL ends that lies in a copy's own pg_wal."""

from __future__ import annotations

import os

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.control import ControlFile
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_segment_name
from polarvault.wal.scan import WalScanner

_READ_BYTES = 1 << 20


def wal_end(directory: str, control: ControlFile) -> Lsn:
    """Return where the valid WAL of a directory ends, from the redo point on; raise StorageFailed.

    It is looked for on the timeline of the checkpoint, and on later ones where that has no more segments: a standby
    goes on to the next one with the segment in which it begins.
    """
    timelines = sorted({int(name[:8], 16) for name in _segment_names(directory)} | {control.timeline_id})
    segment = WalSegment.holding(control.redo_lsn, control.timeline_id, control.wal_segment_size)
    scanner = WalScanner(segment.start, segment.size_bytes)
    while scanner.end is None:
        path = _newest(directory, segment, [one for one in timelines if one >= control.timeline_id])
        if path is None:
            break
        try:
            with open_regular(path) as stream:
                left = segment.size_bytes
                while left and (block := stream.read(min(left, _READ_BYTES))):
                    scanner.feed(memoryview(block))
                    left -= len(block)
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem
        if left:
            break
        segment = segment.next()
    return scanner.next_lsn


def _segment_names(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if is_segment_name(name)]
    except OSError as problem:
        raise storage_failed(problem, "list", directory) from problem


def _newest(directory: str, segment: WalSegment, timelines: list[int]) -> str | None:
    """Return the segment on the highest timeline, which begins with a copy (server: XLogInitNewTimeline)."""
    for timeline_id in reversed(timelines):
        path = os.path.join(directory, WalSegment(timeline_id, segment.number, segment.size_bytes).file_name)
        if os.path.exists(path):
            return path
    return None
