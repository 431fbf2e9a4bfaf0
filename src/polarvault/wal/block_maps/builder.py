"""Makes block maps of WAL that is fed in its order: one for each segment, as soon as its last record is whole.

A record belongs to the segment in which it begins. One that goes on in the next segment is needed whole, so that the
map of a segment comes out after the first bytes of the next one went in (of the child timeline if that is where the WAL
goes on). A map's `end` is where its last record ends, which is the `start` of the next map: that tells whether maps
follow one another.
"""

from __future__ import annotations

import numpy

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.block_maps.changes import Changes, entries_of
from polarvault.wal.block_maps.model import BlockMap
from polarvault.wal.block_maps.state import LSN
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, SHORT_HEADER_BYTES, WalEnd
from polarvault.wal.scan import WalScanner


class BlockMapBuilder:
    """Feed consecutive WAL bytes from `start` on, cut anywhere; get (segment, map) of each segment that is done.

    start: a segment's first byte. If it is not, the segment gets no map, and start must be a record's LSN or a page's
    first byte. timeline_id: the one that the segments are named by. Memory: 64 MB for a segment at worst.
    """

    def __init__(self, start: Lsn, timeline_id: int, segment_size_bytes: int, *, check_crc: bool = True) -> None:
        self._scanner = WalScanner(start, segment_size_bytes, check_crc=check_crc, with_blocks=True)
        self._segment = WalSegment.holding(start, timeline_id, segment_size_bytes)
        self._is_whole = start == self._segment.start
        # Where the last map ended; None before the first one.
        self._start: Lsn | None = None
        self._changes = Changes()

    @property
    def segment(self) -> WalSegment:
        """The segment whose map comes next."""
        return self._segment

    @property
    def next_lsn(self) -> Lsn:
        """Just past the last whole valid record."""
        return self._scanner.next_lsn

    @property
    def end(self) -> WalEnd | None:
        """Why valid WAL ended, after which no more maps come; None while it has not."""
        return self._scanner.end

    def feed(self, view: memoryview) -> list[tuple[WalSegment, BlockMap]]:
        """Take the bytes that follow those of the last call; return the maps that they complete, in order."""
        marks = self._scanner.feed(view)
        entries = entries_of(marks)
        lsns = numpy.ascontiguousarray(entries[:, LSN])
        found: list[tuple[WalSegment, BlockMap]] = []
        first = 0
        # While the rest of a record from before is passed over, nobody knows where the next one begins.
        while self._scanner.record_count or self.next_lsn % PAGE_BYTES:
            last = int(numpy.searchsorted(lsns, int(self._segment.end)))
            self._changes.add(marks, entries, first, last)
            first = last
            if self.next_lsn < self._segment.end:
                break
            following = int(lsns[last]) if last < len(lsns) else self.next_lsn
            self._finish(_page_or_record(following, self._segment.size_bytes), found)
        return found

    def _finish(self, following: Lsn, found: list[tuple[WalSegment, BlockMap]]) -> None:
        """Make the segment's map, and begin with the next one; following: where the record after its last begins."""
        changes = self._changes
        # Without a record in it, the whole segment is the middle of one that began before.
        end = changes.end or self._start or following
        start = self._start
        if start is None:
            start = end if changes.start is None else _page_or_record(changes.start, self._segment.size_bytes)
        if self._is_whole:
            found.append((self._segment, changes.map(Lsn(start), end)))
        self._start, self._is_whole, self._changes = end, True, Changes()
        self._segment = self._segment.next()


def _page_or_record(lsn: int, segment_size_bytes: int) -> Lsn:
    """Return where the record before ended: the page's beginning for one that is the first of its page."""
    header_bytes = SHORT_HEADER_BYTES if lsn // PAGE_BYTES * PAGE_BYTES % segment_size_bytes else LONG_HEADER_BYTES
    return Lsn(lsn - header_bytes if lsn % PAGE_BYTES == header_bytes else lsn)
