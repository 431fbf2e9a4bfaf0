"""Does the WAL that a server sends continue what is here? Looked at once, where receiving goes on.

Two histories can have the same names: two standbys that were promoted at one LSN, or a server that was put back to a
snapshot and has written as much again. But every record names the one before it, and a record that lies on both sides
of the border has one checksum. A few pages on either side tell, so this costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.errors import TimelineDiverged
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.history import TimelineHistory
from polarvault.wal.pages import PAGE_BYTES, Ending
from polarvault.wal.scan import PlainReader
from polarvault.wal.segment_header import BEGINNING_BYTES, begins_anew
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

    def __init__(
        self, before: bytes, lsn: Lsn, timeline_id: int, segment_size_bytes: int, hint: str, reset_hint: str
    ) -> None:
        self._lsn, self._hint, self._reset_hint = lsn, hint, reset_hint
        self._timeline_id, self._segment_size = timeline_id, segment_size_bytes
        # pg_resetwal begins a segment, and names no record before; None: that is not to be looked at, or done.
        self._beginning: bytes | None = b"" if before and lsn % segment_size_bytes == 0 else None
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
        return self._beginning is None and self._is_read()

    def check(self, views: Sequence[memoryview]) -> None:
        """Look at the next WAL; raise TimelineDiverged if it continues something else."""
        for view in views:
            self._look_at_beginning(view)
            if self._is_read():
                continue
            self._left -= len(view)
            self._reader.feed(view[:_AFTER_BYTES])
            end = self._reader.end
            if end is not None and end.ending in _PARTED:
                raise TimelineDiverged(
                    f"the WAL that the server has from {self._lsn} on (timeline {self._timeline_id}) does not continue "
                    f"what is kept up to there: {end}",
                    hint=self._hint,
                )

    def _is_read(self) -> bool:
        return self._reader.end is not None or self._reader.next_lsn > self._lsn or self._left <= 0

    def _look_at_beginning(self, view: memoryview) -> None:
        """Refuse what pg_resetwal has begun right behind what is kept: without a gap it would look as if it went on."""
        if self._beginning is None:
            return
        self._beginning += view[: BEGINNING_BYTES - len(self._beginning)]
        if len(self._beginning) < BEGINNING_BYTES:
            return
        if begins_anew(self._beginning):
            segment = WalSegment.holding(self._lsn, self._timeline_id, self._segment_size)
            raise TimelineDiverged(
                f"the server's segment {segment.file_name} was begun by pg_resetwal, and does not continue what is "
                f"kept up to {self._lsn}",
                hint=self._reset_hint,
            )
        self._beginning = None


def continuity(writer: WalWriter, history: TimelineHistory, *, hint: str, reset_hint: str) -> Continuity | None:
    """Return what checks the next WAL against the WAL that is here in front of it; None where there is none.

    history: the server's. hint: what to do where it does not continue, reset_hint: where pg_resetwal has begun it.
    """
    for length in _BEFORE_BYTES:
        before = writer.before(length, history.timeline_of)
        if not before:
            return None
        found = Continuity(before, writer.received, writer.timeline_id, writer.segment_size_bytes, hint, reset_hint)
        if found.knows_record or len(before) < length:
            return found
    return None
