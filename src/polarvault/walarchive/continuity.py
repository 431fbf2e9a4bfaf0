"""Does the WAL that a server sends continue what is here? Looked at once, where receiving goes on.

Two histories can have the same names: two standbys that were promoted at one LSN, or a server that was put back to a
snapshot and has written as much again. But every record names the one before it, and a record that lies on both sides
of the border has one checksum. A few pages on either side tell, so this costs next to nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

from polarvault.errors import IntegrityError, StorageFailed, TimelineDiverged
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage.files import open_regular
from polarvault.wal.history import TimelineHistory
from polarvault.wal.pages import PAGE_BYTES, Ending
from polarvault.wal.scan import PlainReader
from polarvault.wal.source import WalCopy
from polarvault.walarchive.wal_files import WalFiles
from polarvault.walfiles.choice import find
from polarvault.walfiles.directory import WalDirectory

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

    def __init__(self, before: bytes, lsn: Lsn, timeline_id: int, segment_size_bytes: int) -> None:
        self._lsn = lsn
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
                    f"what the directory holds up to there: {end}",
                    hint="the server was put back to an older state, or two servers were promoted at one place: "
                    "connect to the one whose WAL is here; or receive into another directory and take a new base "
                    "backup",
                )


def continuity(files: WalFiles, history: TimelineHistory) -> Continuity | None:
    """Return what checks the next WAL against the WAL that is here in front of it; None where there is none.

    history: the server's.
    """
    size = files.segment_size_bytes
    for length in _BEFORE_BYTES:
        before = _kept_before(files, history, length)
        if not before:
            return None
        found = Continuity(before, files.received, files.timeline_id, size)
        if found.knows_record or len(before) < length:
            return found
    return None


def _kept_before(files: WalFiles, history: TimelineHistory, length: int) -> bytes:
    """Return so much of the WAL that is here in front of the next byte, from the start of a page on; less of a file."""
    size = files.segment_size_bytes
    offset = files.received % size
    if offset:
        # A compressed file that is being written cannot be read in the middle of a block.
        path = files.open_plain_path
        return b"" if path is None else _tail(path, offset, length)
    if files.received == 0:
        return b""
    segment = WalSegment.holding(Lsn(files.received - 1), history.timeline_of(files.received - 1), size)
    file = find(WalDirectory(files.directory), segment)
    return b"" if file is None or not file.is_final else _end_of(file, size, length)


def _tail(path: str, end: int, length: int) -> bytes:
    """Return the last pages of a plain file before an offset."""
    start = max(0, end - length) // PAGE_BYTES * PAGE_BYTES
    try:
        with open_regular(path) as source:
            return os.pread(source.fileno(), end - start, start)
    except OSError:
        return b""  # Receiving finds out what is wrong with it.


def _end_of(file: WalCopy, size: int, length: int) -> bytes:
    if file.path is not None and file.size_bytes is not None:
        return _tail(file.path, size, length)
    kept, kept_bytes = deque[bytes](), 0
    try:
        for view in file.views():
            kept.append(bytes(view))
            kept_bytes += len(view)
            while kept_bytes - len(kept[0]) >= length:
                kept_bytes -= len(kept.popleft())
    except (IntegrityError, StorageFailed):
        return b""
    end = b"".join(kept)[-length:]
    return end if len(end) == min(size, length) else b""
