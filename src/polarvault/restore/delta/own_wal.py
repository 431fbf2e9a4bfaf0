"""The WAL of a target that nobody else has: what was committed last may be in it alone, so it is kept.

A delta restore removes what does not belong, and the target's own WAL does not. What the repository lacks of it is
moved to a directory inside of pg_wal, which servers and base backups pass by, and which `--wal` can name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from polarvault.errors import PolarvaultError
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.control import ControlFile
from polarvault.wal.source import WalSource, segment_numbers
from polarvault.walfiles.directory import wal_sources

KEPT_DIRECTORY = "pg_wal/polarvault-before"


def segments_to_keep(data: str, control: ControlFile, archives: Sequence[WalSource]) -> tuple[str, ...]:
    """Return the names of the segments in a data directory that hold WAL which no archive has whole.

    control: the target's own. A segment that was recycled for later use holds none.
    """
    [own] = wal_sources([os.path.join(data, "pg_wal")])
    size = control.wal_segment_size
    found = []
    for timeline_id in own.timelines():
        for number in segment_numbers(own.ranges(timeline_id, size), size):
            segment = WalSegment(timeline_id, number, size)
            if _holds_wal(own, segment) and not any(_has(archive, segment, control) for archive in archives):
                found.append(segment.file_name)
    return tuple(found)


def _holds_wal(own: WalSource, segment: WalSegment) -> bool:
    try:
        # One that is recycled begins with pages of an older segment.
        headers = [copy.look_at_start().header for copy in own.copies(segment.file_name)]
        return any(header is not None and header.page_address == segment.start for header in headers)
    except PolarvaultError:
        # Whatever it is, it is not thrown away.
        return True


def _has(archive: WalSource, segment: WalSegment, control: ControlFile) -> bool:
    end = segment.end
    is_last = control.timeline_id == segment.timeline_id and segment.start <= control.checkpoint_lsn < segment.end
    if is_last and control.state.is_clean:
        # The last record of a server that was shut down is its checkpoint.
        end = control.checkpoint_lsn
    return any(
        held.start <= segment.start and end <= held.end and (end == segment.end or end < held.end)
        for held in archive.ranges(segment.timeline_id, segment.size_bytes)
    )
