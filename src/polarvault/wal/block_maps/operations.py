"""Which records are known, by resource manager and info byte: what they change is what they register, or is decoded.

Sources: the `*_xlog.h` of each resource manager, access/xact.h, catalog/pg_control.h, commands/dbcommands_xlog.h, in
PostgreSQL 13 to 18. A number that one version alone has is known in all: each of these records registers every block
that it changes, but for what `SILENT` says.
"""

from __future__ import annotations

import functools
from enum import IntEnum, IntFlag

import numpy
from numpy.typing import NDArray

from polarvault.wal.blocks import RMGR_DATABASE, RMGR_STORAGE
from polarvault.wal.records import RMGR_TABLESPACE, RMGR_TRANSACTION, RMGR_XLOG

RMGR_HEAP2, RMGR_HEAP, RMGR_SPGIST = 9, 10, 16
XLOG_PARAMETER_CHANGE, XLOG_POLARDB = 0x60, 0xF0


class Silent(IntFlag):
    """What else changes in a relation that records of some resource managers change."""

    # A bit of the visibility map is cleared.
    VISIBILITY_MAP = 1
    # The first page remembers which pages have room (server: access/spgist/spgutils.c, SpGistUpdateMetaPage). Vacuum
    # may change that without any record: it is a cache, like hint bits, and an old one does no harm.
    FIRST_PAGE = 2


SILENT = {
    RMGR_HEAP2: Silent.VISIBILITY_MAP,
    RMGR_HEAP: Silent.VISIBILITY_MAP,
    RMGR_SPGIST: Silent.FIRST_PAGE,
}


class Look(IntEnum):
    """What has to be done about a record beyond gathering the blocks that it registers."""

    NOTHING = 0
    # Its main data say something about files, or about the WAL as a whole.
    DECODE = 1
    # As DECODE, if its flags say that it drops relations: nearly none do.
    DECODE_IF_IT_DROPS = 2
    UNKNOWN = 3


# For each resource manager the upper halves of the info bytes that it uses.
_KNOWN: dict[int, tuple[int, ...]] = {
    # XLOG; 0xC has not been used since 12, 0xF is PolarDB's own record, which is looked at.
    0: (*range(0xC), 0xD, 0xE, 0xF),
    # Transaction: the topmost bit says that flags follow.
    1: (*range(7), *range(8, 0xF)),
    # Storage, commit log, database, tablespace, multixact, relation map, standby
    2: (1, 2),
    3: (0, 1),
    4: (0, 1, 2),
    5: (0, 1),
    6: (0, 1, 2, 3),
    7: (0,),
    8: (0, 1, 2),
    # Heap2, heap: the topmost bit says that the page is made anew.
    9: (*range(8), 0xD),
    10: (*range(8), 8, 0xA, 0xC),
    # B-tree, hash, GIN, GiST, sequence, SP-GiST, BRIN
    11: tuple(range(0xF)),
    12: tuple(range(0xD)),
    13: tuple(range(1, 10)),
    14: (0, 1, 2, 3, 6, 7),
    15: (0,),
    16: tuple(range(1, 9)),
    17: (*range(6), 9, 0xA),
    # Commit timestamps, replication origin, generic, logical message
    18: (0, 1, 2),
    19: (0, 1),
    20: (0,),
    21: (0,),
}
_DECODED = (RMGR_STORAGE, RMGR_DATABASE, RMGR_TABLESPACE)
# COMMIT, ABORT, COMMIT PREPARED, ABORT PREPARED, each with flags.
_TRANSACTION_ENDS = (0x8, 0xA, 0xB, 0xC)


@functools.cache
def looks() -> NDArray[numpy.uint8]:
    """Return the `Look` for every value of resource manager << 8 | info."""
    found = numpy.full(1 << 16, Look.UNKNOWN, numpy.uint8)
    for rmgr, operations in _KNOWN.items():
        for operation in operations:
            look = Look.NOTHING
            if rmgr in _DECODED or (rmgr == RMGR_XLOG and operation << 4 in (XLOG_PARAMETER_CHANGE, XLOG_POLARDB)):
                look = Look.DECODE
            elif rmgr == RMGR_TRANSACTION and operation in _TRANSACTION_ENDS:
                look = Look.DECODE_IF_IT_DROPS
            first = rmgr << 8 | operation << 4
            # The lower half is the WAL's own.
            found[first : first + 16] = look
    return found
