"""Does the WAL that a server sends continue what is here? Looked at once, where receiving goes on.

Two histories can have the same names: two standbys that were promoted at one LSN, or a server that was put back to a
snapshot and has written as much again. But every record names the one before it, and a record that lies on both sides
of the border has one checksum. A few pages on either side tell, so this costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.errors import TimelineDiverged
from polarvault.model.lsn import Lsn
from polarvault.wal.history import TimelineHistory
from polarvault.wal.pages import PAGE_BYTES, Ending
from polarvault.wal.scan import PlainReader
from polarvault.wal.store import WalWriter

# How much to look back for the start of a record, one after the other; few are longer than a page.
_BEFORE_BYTES = (8 * PAGE_BYTES, 128 * PAGE_BYTES, 2048 * PAGE_BYTES)
# A record that is longer than this tells nothing; what follows is not looked at.
_AFTER_BYTES = 1 << 20
# What other WAL looks like there; what speaks of another version or page size is not judged.
_PARTED = {
    Ending.ZERO_RECORD,
    Ending.RECORD_LENGTH,
    Ending.RESOURCE_MANAGER,
    Ending.PREVIOUS_RECORD,
    Ending.CHECKSUM,
    Ending.UNEXPECTED_CONTINUATION,
    Ending.MISSING_CONTINUATION,
    Ending.CONTINUATION_LENGTH,
}


class Continuity:
    """Watches the first WAL behind `lsn`; `before` is what lies in front of it here, from the start of a page on."""

    def __init__(self, before: bytes, lsn: Lsn, timeline_id: int, segment_size_bytes: int, hint: str) -> None:
        self._lsn, self._hint = lsn, hint
        self._timeline_id = timeline_id
        self._left = _AFTER_BYTES
        self._reader = PlainReader(lsn - len(before), segment_size_bytes)
        self._reader.feed(before)
        is_begun = lsn - len(before) < self._reader.next_lsn < lsn
        self.knows_record = is_begun or self._reader.record_count > 0 or self._reader.end is not None
        """Whether a record begins in `before`; else nothing can be said about what follows."""

    def is_settled(self) -> bool:
        """Tell whether there is no more to find out: it continues, or nothing can be said.

        Nothing can be said behind a segment that was switched early or is damaged.
        """
        return self._reader.end is not None or self._reader.next_lsn > self._lsn or self._left <= 0

    def check(self, views: Sequence[memoryview]) -> None:
        """Look at the next WAL; raise TimelineDiverged if it continues something else."""
        for view in views:
            if self.is_settled():
                return
            self._left -= len(view)
            self._reader.feed(view[:_AFTER_BYTES])
            end = self._reader.end
            if end is not None and end.ending in _PARTED:
                raise TimelineDiverged(
                    f"the WAL that the server has from {self._lsn} on (timeline {self._timeline_id}) does not continue "
                    f"what is kept up to there: {end}",
                    hint=self._hint,
                )


def continuity(writer: WalWriter, history: TimelineHistory, *, hint: str) -> Continuity | None:
    """Return what checks the next WAL against the WAL that is here in front of it; None where there is none.

    history: the server's. hint: what to do where it does not continue.
    """
    for length in _BEFORE_BYTES:
        before = writer.before(length, history.timeline_of)
        if not before:
            return None
        found = Continuity(before, writer.received, writer.timeline_id, writer.segment_size_bytes, hint)
        if found.knows_record or len(before) < length:
            return found
    return None
