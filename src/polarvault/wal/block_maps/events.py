"""What records say about files and the WAL as a whole: relations made, shortened, dropped; databases; tablespaces.

Layouts (server: catalog/storage_xlog.h, access/xact.h, commands/dbcommands_xlog.h, commands/tablespace.h,
catalog/pg_control.h); a record that is not as long as it must be is a gap.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy

from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.model.relation import FREE_SPACE_FORK, INIT_FORK, MAIN_FORK, VISIBILITY_FORK, RelationFile
from polarvault.wal.block_maps.model import (
    MOST_GAPS,
    NO_LIMIT,
    DatabaseFlag,
    DatabaseId,
    ForkFlag,
    ForkId,
    Gap,
    TablespaceFlag,
)
from polarvault.wal.block_maps.operations import XLOG_PARAMETER_CHANGE
from polarvault.wal.blocks import (
    RMGR_DATABASE,
    RMGR_STORAGE,
    KeptRecord,
    made_fork,
    main_data,
    removed_relations,
    shortened_relation,
)
from polarvault.wal.marks import HAS_RELATIONS
from polarvault.wal.records import (
    HEADER_BYTES,
    RMGR_INFO_MASK,
    RMGR_TABLESPACE,
    RMGR_TRANSACTION,
    RMGR_XLOG,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two bits for each page of the heap, behind the page header (server: access/visibilitymap.h).
HEAP_BLOCKS_IN_VISIBILITY_PAGE = (8192 - 24) * 8 // 2
# PolarDB's settings for a whole cluster, and images of pages for its own replicas in files of their own.
_POLARDB_HARMLESS = (3, 11, 13)
_COPY, _FORKS = 0, range(INIT_FORK + 1)
_TRUNCATES_MAIN = 1
_TABLESPACE_CREATE = 0x00


@dataclass(slots=True)
class Events:
    """What was found so far; `accept` takes records in any order."""

    forks: dict[ForkId, tuple[ForkFlag, int]] = field(default_factory=dict)
    databases: dict[DatabaseId, DatabaseFlag] = field(default_factory=dict)
    tablespaces: dict[int, TablespaceFlag] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)

    def accept(self, record: KeptRecord) -> None:
        """Take a record that `Look.DECODE` is for."""
        try:
            self._decode(record)
        except (struct.error, _Malformed):
            self.add_gap(record.lsn, f"a record of resource manager {record.rmgr} is not laid out as it must be")

    def add_gap(self, lsn: int, reason: str) -> None:
        """Note that the map says nothing; more than some gaps are no more than some."""
        if len(self.gaps) < MOST_GAPS:
            self.gaps.append(Gap(Lsn(lsn), reason))

    def rows(self) -> tuple[NDArray[numpy.uint32], NDArray[numpy.uint8], NDArray[numpy.uint32]]:
        """Return forks, flags and limits as `BlockMap` has them, in any order."""
        forks = numpy.array(list(self.forks), numpy.uint32).reshape(len(self.forks), 4)
        flags = numpy.array([flag for flag, _ in self.forks.values()], numpy.uint8)
        return forks, flags, numpy.array([limit for _, limit in self.forks.values()], numpy.uint32)

    def _decode(self, record: KeptRecord) -> None:
        if record.rmgr == RMGR_STORAGE:
            self._storage(record)
        elif record.rmgr == RMGR_TRANSACTION:
            self._transaction(record)
        elif record.rmgr == RMGR_DATABASE:
            self._database(record)
        elif record.rmgr == RMGR_TABLESPACE:
            self._tablespace(record)
        elif record.rmgr == RMGR_XLOG:
            self._xlog(record)

    def _storage(self, record: KeptRecord) -> None:
        if (made := made_fork(record)) is not None:
            self._limit(*made, ForkFlag.CREATED, 0)
            return
        shortened = shortened_relation(record)
        if shortened is None:
            raise _Malformed
        relation, block = shortened
        (flags,) = struct.unpack_from("<I", main_data(record), 16)
        if flags & _TRUNCATES_MAIN:
            self._limit(relation, MAIN_FORK, ForkFlag.SHORTENED, block)
        # The bits of what goes are cleared in the last page that stays, which no record registers.
        self._limit(relation, VISIBILITY_FORK, ForkFlag.SHORTENED, block // HEAP_BLOCKS_IN_VISIBILITY_PAGE)
        self._limit(relation, FREE_SPACE_FORK, ForkFlag.SHORTENED, 0)

    def _transaction(self, record: KeptRecord) -> None:
        (flags,) = struct.unpack_from("<I", main_data(record), 8)
        if not flags & HAS_RELATIONS:
            return
        removed = removed_relations(record)
        if not removed or len(record.body) < record.total_bytes - HEADER_BYTES:
            raise _Malformed
        for relation in removed:
            for fork in _FORKS:
                self._limit(relation, fork, ForkFlag.DROPPED, 0)

    def _database(self, record: KeptRecord) -> None:
        main, operation = main_data(record), record.info & RMGR_INFO_MASK
        layout = versions.record_layout(record.magic)
        if operation in (_COPY, layout.database_create):
            database, tablespace = struct.unpack_from("<II", main)
            flag = DatabaseFlag.COPIED if operation == _COPY else DatabaseFlag.CREATED
            self._change_database(tablespace, database, flag)
        elif operation == layout.database_drop:
            database, count = struct.unpack_from("<Ii", main)
            if not 0 < count <= (len(main) - 8) // 4:
                raise _Malformed
            for tablespace in struct.unpack_from(f"<{count}I", main, 8):
                self._change_database(tablespace, database, DatabaseFlag.DROPPED)
        else:
            raise _Malformed

    def _tablespace(self, record: KeptRecord) -> None:
        (oid,) = struct.unpack_from("<I", main_data(record))
        is_new = record.info & RMGR_INFO_MASK == _TABLESPACE_CREATE
        flag = TablespaceFlag.CREATED if is_new else TablespaceFlag.DROPPED
        self.tablespaces[oid] = self.tablespaces.get(oid, TablespaceFlag(0)) | flag

    def _xlog(self, record: KeptRecord) -> None:
        main = main_data(record)
        if record.info & RMGR_INFO_MASK == XLOG_PARAMETER_CHANGE:
            (level,) = struct.unpack_from("<I", main, 20)
            if level == 0:
                self.add_gap(record.lsn, "wal_level is minimal from here on: pages are written without WAL")
            return
        if len(main) < 4 and len(record.body) < record.total_bytes - HEADER_BYTES:
            # Behind the image of a page, which is not kept: of all of them only the image for replicas has one.
            return
        (kind,) = struct.unpack_from("<I", main)
        if kind not in _POLARDB_HARMLESS:
            self.add_gap(record.lsn, f"PolarDB's own record {kind} is not known")

    def _limit(self, relation: RelationFile, fork: int, flag: ForkFlag, limit: int) -> None:
        if fork not in _FORKS or limit >= NO_LIMIT:
            raise _Malformed
        key = ForkId(*relation, fork)
        flags, before = self.forks.get(key, (ForkFlag(0), NO_LIMIT))
        self.forks[key] = flags | flag, min(before, limit)

    def _change_database(self, tablespace: int, database: int, flag: DatabaseFlag) -> None:
        key = DatabaseId(tablespace, database)
        self.databases[key] = self.databases.get(key, DatabaseFlag(0)) | flag


class _Malformed(Exception):
    pass
