"""What an earlier receiver has left in a spool: whose it is, and how it comes into the repositories."""

from __future__ import annotations

from polarvault.errors import UsageError
from polarvault.walarchive.streaming.places import Places
from polarvault.walarchive.streaming.slices import HistoryItem
from polarvault.walarchive.streaming.spool import SliceHead, Spool


def upload_leftovers(places: Places, spool: Spool) -> int:
    """Upload what waits in a spool, whosever it is, without a server; return how many slices that were."""
    done = 0
    waiting = spool.waiting()
    known = {head.system_identifier for head, _ in waiting if head is not None}
    for head, item in waiting:
        if isinstance(item, HistoryItem):
            # A history does not say whose it is.
            if len(known) > 1:
                raise UsageError(
                    f'the spool "{spool.path}" holds WAL of several clusters: {", ".join(map(str, sorted(known)))}',
                    hint="move the slices of all but one of them out of it, and try again with each",
                )
            for place in places.opened(next(iter(known), None)):
                place.put_history(item.timeline_id, item.content)
            if item.name is not None:
                spool.remove(item.name)
            continue
        assert head is not None
        for place in places.opened(head.system_identifier):
            check_segments(head, place.wal.segment_bytes, spool)
            place.put(item.timeline_id, item.first, item.content())
        item.remove()
        done += 1
    return done


def check_segments(head: SliceHead, segment_bytes: int, spool: Spool | None) -> None:
    """Raise UsageError for a slice of a cluster with segments of another size."""
    if head.segment_bytes != segment_bytes:
        raise UsageError(
            f'the spool "{spool.path if spool else ""}" holds WAL from {head.first} on of a cluster with segments of '
            f"{head.segment_bytes} bytes, and those of this one have {segment_bytes}",
            hint="see whose it is, and move it out of the spool",
        )
