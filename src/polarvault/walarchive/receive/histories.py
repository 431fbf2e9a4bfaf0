"""Does what is kept lie on the server's history, and where does receiving go on if it does? Pure."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.errors import TimelineDiverged
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.history import TimelineHistory, TimelineRange
from polarvault.wal.store import StartPoint


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
