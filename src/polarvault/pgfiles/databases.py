"""Which databases a cluster has, by the files themselves: pg_filenode.map, the pages of pg_database, pg_xact. No I/O.

Sources: utils/cache/relmapper.c (pg_filenode.map: magic u32, count u32, then pairs of oid and file number), storage
bufpage.h and itemid.h (pages), access/htup_details.h (tuples), catalog/pg_database.h (columns), access/transam/clog.c
(two bits a transaction). All of it is input from a stranger: bounded, and what makes no sense is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.pages import PAGE_BYTES

MAP_NAME = "global/pg_filenode.map"
PG_DATABASE = 1262
DEFAULT_TABLESPACE = 1663
# What a DROP DATABASE that was interrupted leaves in datconnlimit (DATCONNLIMIT_INVALID_DB).
_INVALID = -2
_MAP_MAGIC, _MOST_MAPPINGS = 0x592717, 64
_PAGE_HEADER_BYTES, _NORMAL_ITEM = 24, 1
_XMIN_COMMITTED, _XMIN_INVALID, _XMAX_COMMITTED, _XMAX_INVALID = 0x0100, 0x0200, 0x0400, 0x0800
_XMAX_IS_MULTI, _XMAX_LOCKS_ONLY = 0x1000, 0x0080
_FIRST_NORMAL_TRANSACTION = 3
TRANSACTIONS_PER_FILE = PAGE_BYTES * 4 * 32
_COMMITTED = 1

HasCommitted = Callable[[int], bool | None]
"""Tells of a transaction id whether it committed; None: not known."""


@dataclass(frozen=True, slots=True)
class DatabaseRow:
    """A database as pg_database has it; lsn: of the page that the row is on."""

    oid: int
    name: str
    tablespace_oid: int
    lsn: Lsn


def file_number_of(relation_map: bytes, oid: int) -> int | None:
    """Return the number of the file of a mapped catalog; None when the map does not tell."""
    if len(relation_map) < 8:
        return None
    magic, count = struct.unpack_from("<II", relation_map)
    if magic != _MAP_MAGIC or count > _MOST_MAPPINGS or len(relation_map) < 8 + 8 * count:
        return None
    return dict(struct.iter_unpack("<II", relation_map[8 : 8 + 8 * count])).get(oid)


def has_committed(pg_xact: bytes, transaction_id: int) -> bool | None:
    """Tell from the file of pg_xact that a transaction belongs into whether it committed; None: beyond its end."""
    number = transaction_id % TRANSACTIONS_PER_FILE
    if number // 4 >= len(pg_xact):
        return None
    return pg_xact[number // 4] >> number % 4 * 2 & 3 == _COMMITTED


def pg_xact_name(transaction_id: int) -> str:
    """Return the name of the file in pg_xact that a transaction belongs into."""
    return f"pg_xact/{transaction_id // TRANSACTIONS_PER_FILE:04X}"


def live_databases(content: bytes, major: int, committed: HasCommitted) -> Iterator[DatabaseRow]:
    """Yield the databases in the file of pg_database that are there for sure: no row in doubt, none half dropped.

    None of a version that is not known.
    """
    if major not in versions.VERSIONS:
        return
    columns = versions.VERSIONS[major].database_columns
    limit_at, tablespace_at = columns.datconnlimit, columns.dattablespace
    for lsn, tuple_ in _tuples(content):
        row = tuple_[tuple_[22] :]
        if len(row) < tablespace_at + 4 or not _is_live(tuple_, committed):
            continue
        (oid,), (limit,) = struct.unpack_from("<I", row), struct.unpack_from("<i", row, limit_at)
        (tablespace,) = struct.unpack_from("<I", row, tablespace_at)
        name = row[4:68].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        if oid and tablespace and limit != _INVALID:
            yield DatabaseRow(oid, name, tablespace, lsn)


def _tuples(content: bytes) -> Iterator[tuple[Lsn, bytes]]:
    for start in range(0, len(content) - PAGE_BYTES + 1, PAGE_BYTES):
        page = content[start : start + PAGE_BYTES]
        high, low, lower = *struct.unpack_from("<II", page), *struct.unpack_from("<H", page, 12)
        for (item,) in struct.iter_unpack("<I", page[_PAGE_HEADER_BYTES : max(lower, _PAGE_HEADER_BYTES) & ~3]):
            offset, flags, length = item & 0x7FFF, item >> 15 & 3, item >> 17
            if flags == _NORMAL_ITEM and length > 23 and offset + length <= PAGE_BYTES:
                yield Lsn(high << 32 | low), page[offset : offset + length]


def _is_live(tuple_: bytes, committed: HasCommitted) -> bool:
    """Tell whether a row is there for everybody, as far as the tuple and pg_xact tell (heapam_visibility.c)."""
    inserted_by, removed_by = struct.unpack_from("<II", tuple_)
    (flags,) = struct.unpack_from("<H", tuple_, 20)
    if not flags & _XMIN_COMMITTED and (flags & _XMIN_INVALID or not committed(inserted_by)):
        return False
    if flags & (_XMAX_INVALID | _XMAX_LOCKS_ONLY) or removed_by < _FIRST_NORMAL_TRANSACTION:
        return True
    if flags & (_XMAX_COMMITTED | _XMAX_IS_MULTI):
        return False
    return committed(removed_by) is False
