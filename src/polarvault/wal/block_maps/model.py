"""A block map, and several of them as one.

What a reader may rely on, for files of relations (server: storage/relpath): what differs between the cluster at a map's
`start` and at its `end` is a block that the map names, or lies at or behind its fork's limit, or is of a database or
tablespace that it names, or lies behind the end that the file had at the start. Not so for free space maps, which the
server changes without WAL: they are read whole. So are all other files. Caches may differ as well, which do no harm
when they are old: hint bits, without data checksums and wal_log_hints, and what an SP-GiST index remembers of free room
in its first page, if nothing else changes in it. A map with a gap says nothing.

Maps say more than they must: every visibility map's page whose bits a record of the heap may have cleared, the first
page of SP-GiST indexes, blocks that were there before a relation was shortened. So the union of maps is a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from polarvault.model.lsn import Lsn
from polarvault.model.relation import RelationFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_LIMIT = 0xFFFF_FFFF
# Reasons are for people, who need a few; that there is one is what counts.
MOST_GAPS = 100


class ForkFlag(IntFlag):
    """What happened to a relation's fork. A dropped relation has all forks in the map, whether it had them or not."""

    CREATED = 1
    DROPPED = 2
    SHORTENED = 4


class DatabaseFlag(IntFlag):
    """What happened to a database's directory in one tablespace; a database that moves is made and dropped."""

    # By copying files, of which no block is in the WAL.
    COPIED = 1
    # With every page in the WAL.
    CREATED = 2
    DROPPED = 4


class TablespaceFlag(IntFlag):
    """What happened to a tablespace."""

    CREATED = 1
    DROPPED = 2


class ForkId(NamedTuple):
    """A fork of a relation."""

    tablespace_oid: int
    database_oid: int
    number: int
    fork: int

    @property
    def relation(self) -> RelationFile:
        """The relation."""
        return RelationFile(self.tablespace_oid, self.database_oid, self.number)


class DatabaseId(NamedTuple):
    """A database's directory in one tablespace."""

    tablespace_oid: int
    database_oid: int


class Gap(NamedTuple):
    """Why a map says nothing: at which LSN, and what is not known there."""

    lsn: Lsn
    reason: str


@dataclass(frozen=True, slots=True)
class ForkChanges:
    """What WAL did to a fork. From block `limit` on everything may differ; blocks: those that it names, rising."""

    flags: ForkFlag
    limit: int | None
    blocks: NDArray[numpy.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class BlockMap:
    """What the records do that begin from `start` to before `end`.

    forks: one row a fork (tablespace, database, relation, fork), rising; flags, limits and counts belong to the rows,
    blocks has the blocks of all rows one after the other, those of each rising.
    """

    start: Lsn
    end: Lsn
    forks: NDArray[numpy.uint32]
    flags: NDArray[numpy.uint8]
    limits: NDArray[numpy.uint32]
    counts: NDArray[numpy.uint32]
    blocks: NDArray[numpy.uint32]
    databases: Mapping[DatabaseId, DatabaseFlag] = field(default_factory=dict)
    tablespaces: Mapping[int, TablespaceFlag] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()

    def by_fork(self) -> dict[ForkId, ForkChanges]:
        """Return the forks; a reader looks for the files that it finds."""
        ends = numpy.cumsum(self.counts, dtype=numpy.int64).tolist()
        found = {}
        rows = zip(self.forks.tolist(), self.flags.tolist(), self.limits.tolist(), [0, *ends], ends, strict=False)
        for fork, flags, limit, first, last in rows:
            its_limit = None if limit == NO_LIMIT else limit
            found[ForkId(*fork)] = ForkChanges(ForkFlag(flags), its_limit, self.blocks[first:last])
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMap):
            return NotImplemented
        arrays = ("forks", "flags", "limits", "counts", "blocks")
        values = ("start", "end", "databases", "tablespaces", "gaps")
        return all(getattr(self, name) == getattr(other, name) for name in values) and all(
            numpy.array_equal(getattr(self, name), getattr(other, name)) for name in arrays
        )

    __hash__ = None  # type: ignore[assignment]


def assembled(
    start: Lsn,
    end: Lsn,
    *,
    forks: NDArray[Any],
    flags: NDArray[Any],
    limits: NDArray[Any],
    keys: NDArray[numpy.uint64],
    databases: Mapping[DatabaseId, DatabaseFlag],
    tablespaces: Mapping[int, TablespaceFlag],
    gaps: Sequence[Gap],
) -> BlockMap:
    """Return a map of rows in any order, of which several may be the same fork, and blocks: row << 32 | block."""
    if len(forks):
        order = numpy.lexsort(forks.T[::-1])
        ordered = forks[order]
        is_new = numpy.ones(len(forks), bool)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        place = numpy.empty(len(forks), numpy.uint64)
        place[order] = numpy.cumsum(is_new) - 1
        rows = ordered[is_new].astype(numpy.uint32)
    else:
        place, rows = numpy.zeros(0, numpy.uint64), numpy.zeros((0, 4), numpy.uint32)
    all_flags, all_limits = numpy.zeros(len(rows), numpy.uint8), numpy.full(len(rows), NO_LIMIT, numpy.uint32)
    numpy.bitwise_or.at(all_flags, place.astype(numpy.int64), flags.astype(numpy.uint8))
    numpy.minimum.at(all_limits, place.astype(numpy.int64), limits.astype(numpy.uint32))
    moved = numpy.unique(place[(keys >> numpy.uint64(32)).astype(numpy.int64)] << numpy.uint64(32) | keys & NO_LIMIT)
    counts = numpy.bincount((moved >> numpy.uint64(32)).astype(numpy.int64), minlength=len(rows))
    return BlockMap(
        start, end, rows, all_flags, all_limits, counts.astype(numpy.uint32),
        (moved & numpy.uint64(NO_LIMIT)).astype(numpy.uint32),
        dict(sorted(databases.items())), dict(sorted(tablespaces.items())), tuple(gaps[:MOST_GAPS]),
    )  # fmt: skip


def merged(maps: Iterable[BlockMap]) -> BlockMap:
    """Return maps that follow one another as one; what is missing between two is a gap. At least one is given.

    Nothing is forgotten: of a relation that was shortened the least limit counts, and one that was made and dropped
    again is both.
    """
    found = list(maps)
    databases: dict[DatabaseId, DatabaseFlag] = {}
    tablespaces: dict[int, TablespaceFlag] = {}
    gaps: list[Gap] = []
    keys, rows_before = [], 0
    for number, one in enumerate(found):
        if number and one.start != found[number - 1].end:
            gaps.append(Gap(found[number - 1].end, f"there is no map from here to {one.start}"))
        gaps += one.gaps
        for database, database_flags in one.databases.items():
            databases[database] = databases.get(database, DatabaseFlag(0)) | database_flags
        for tablespace, tablespace_flags in one.tablespaces.items():
            tablespaces[tablespace] = tablespaces.get(tablespace, TablespaceFlag(0)) | tablespace_flags
        rows = numpy.repeat(numpy.arange(len(one.forks), dtype=numpy.uint64), one.counts) + numpy.uint64(rows_before)
        keys.append(rows << numpy.uint64(32) | one.blocks)
        rows_before += len(one.forks)
    return assembled(
        found[0].start, found[-1].end,
        forks=numpy.concatenate([one.forks for one in found]),
        flags=numpy.concatenate([one.flags for one in found]),
        limits=numpy.concatenate([one.limits for one in found]),
        keys=numpy.concatenate(keys), databases=databases, tablespaces=tablespaces, gaps=gaps,
    )  # fmt: skip
