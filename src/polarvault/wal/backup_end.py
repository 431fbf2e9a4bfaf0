"""Find the end-of-backup record at the stop LSN of a base backup.

A backup taken from a primary can be recovered only if the WAL holds this record (XLOG_BACKUP_END with the backup's
start LSN); without it recovery ends with "WAL ends before end of online backup". PolarDB's server reports the stop
LSN before the record is on disk (facts 1.6), so its presence has to be checked in what was really saved.

Record layout (server: access/xlogrecord.h, little-endian): tot_len u32, xid u32, prev u64, info u8, rmid u8, 2 bytes of
padding, crc u32; then a short data header (0xFF, length 8) and the start LSN u64. 34 bytes, 40 with alignment. A page
header of 24 bytes (40 at a segment's start) interrupts a record that crosses an 8 kB page.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import google_crc32c

from polarvault.model.lsn import Lsn

_PAGE_BYTES = 8192
_SHORT_HEADER, _LONG_HEADER = 24, 40
_RECORD_BYTES, _ALIGNED_BYTES = 34, 40
_RECORD = struct.Struct("<IIQBBxxI")
_XLOG_RMGR, _BACKUP_END = 0, 0x50
_DATA_SHORT = 0xFF

ReadWal = Callable[[int, int], bytes]


def backup_end_problem(read: ReadWal, *, start_lsn: Lsn, stop_lsn: Lsn, segment_size_bytes: int) -> str | None:
    """Return None if the record for start_lsn ends at stop_lsn, else what is there instead.

    read(lsn, length) returns saved WAL bytes, fewer where none are saved.
    """
    record = _read_record(read, stop_lsn, segment_size_bytes)
    if len(record) < _RECORD_BYTES:
        return f"the saved WAL ends before {stop_lsn}"
    length, _, _, info, rmgr, stored_crc = _RECORD.unpack_from(record)
    if (length, rmgr, info) != (_RECORD_BYTES, _XLOG_RMGR, _BACKUP_END):
        if not any(record):
            return f"the saved WAL holds only zeros before {stop_lsn}"
        return f"the record that ends at {stop_lsn} is no end-of-backup record (rmgr {rmgr}, info {info:#x})"
    crc = google_crc32c.extend(google_crc32c.value(record[24:_RECORD_BYTES]), record[:20])
    if crc != stored_crc:
        return f"the end-of-backup record before {stop_lsn} has a wrong checksum"
    found_start = Lsn(struct.unpack_from("<Q", record, 26)[0])
    if record[24] != _DATA_SHORT or found_start != start_lsn:
        return f"the end-of-backup record before {stop_lsn} belongs to the backup that started at {found_start}"
    return None


def _read_record(read: ReadWal, stop_lsn: int, segment_size_bytes: int) -> bytes:
    """Return the 34 bytes of the record that ends (with its alignment) at the stop LSN."""
    page = (stop_lsn - 1) // _PAGE_BYTES * _PAGE_BYTES
    header = _LONG_HEADER if page % segment_size_bytes == 0 else _SHORT_HEADER
    in_page = stop_lsn - page - header
    if in_page >= _ALIGNED_BYTES:
        return read(stop_lsn - _ALIGNED_BYTES, _RECORD_BYTES)
    before = _ALIGNED_BYTES - in_page
    joined = read(page - before, before) + read(page + header, in_page)
    return joined[:_RECORD_BYTES]
