"""Scan WAL: feed it, get marks, and know exactly where valid WAL ends and why."""

from __future__ import annotations

from polarvault.model.lsn import Lsn
from polarvault.wal.marks import MarkKind, MarkRecord, Marks, WalMark, kind_of, wanted_bytes
from polarvault.wal.records import RecordReader

__all__ = ["MarkKind", "Marks", "WalMark", "WalScanner"]


class WalScanner:
    """Feed consecutive WAL bytes from `start` on, cut anywhere.

    start is a record's LSN, or the first byte of a page (such as a segment's): then the rest of a record that began
    before is passed over. WAL is valid as far as the server would replay it; with check_crc that includes every
    record's checksum. Raises ValueError for a start where neither a record nor a page can begin.
    """

    def __init__(self, start: Lsn, segment_size_bytes: int, *, check_crc: bool = True) -> None:
        self._reader = RecordReader(start, segment_size_bytes, check_crc=check_crc, wanted_bytes=wanted_bytes)

    def feed(self, view: memoryview) -> Marks:
        """Take the bytes that follow those of the last call; return the marks that end in them.

        Everything fed after valid WAL has ended is ignored.
        """
        return Marks(
            [
                MarkRecord(r.lsn, r.end_lsn, r.xid, r.rmgr, r.info, r.magic, r.body)
                for r in self._reader.feed(view)
                if kind_of(r.rmgr, r.info) is not None
            ]
        )

    @property
    def next_lsn(self) -> Lsn:
        """Just past the last whole valid record; `start` (or the first record after it) while there is none."""
        return self._reader.next_lsn

    @property
    def end_reason(self) -> str | None:
        """What stands where the next record should; None while valid WAL may go on."""
        return None if self._reader.end is None else str(self._reader.end)
