"""Read every relation of a database through the server, so that each page passes its checks on the way in.

Tables, materialized views, TOAST tables, catalogs and sequences are counted by a sequential scan; indexes, and all that
a sample takes, go through the extension pg_prewarm, which reads blocks and looks at nothing else. The server checks a
page's header, and its checksum where the cluster has checksums (server: bufmgr.c, PageIsVerified).

So do free space and visibility maps. The server itself replaces a bad page of a map by an empty one (freespace.c and
visibilitymap.c, RBM_ZERO_ON_ERROR), so that nobody would hear of the damage.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from polarvault.drill.look.parallel import work_through
from polarvault.drill.model import DrillRequest, Reading, RelationRead
from polarvault.drill.place.server import Connection, DrillServer, printable
from polarvault.wire.commands import quote_identifier

# A damaged disk can have millions of bad pages; these tell enough.
_SHOWN_BLOCKS = 10
_SAMPLE_CHUNK_BLOCKS = 16
_LOCK_NOT_AVAILABLE = "55P03"
# First and last block of a range; None is the beginning or the end of the relation.
_Blocks = tuple[int | None, int | None]
# A count over an index would leave the table's own pages unread; one connection is one reader.
_SCAN = {
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
}
# "invalid page in block 7 of relation base/5/16384"; since 18 also "3 invalid pages among blocks 7..9 of ...", whose
# detail names the first.
_BLOCK = re.compile(r"\bin block (\d+)|Block (\d+) held the first")
_RELATIONS = """
    SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relispopulated, c.relpersistence = 'u',
           coalesce(i.indrelid, o.oid)::regclass::text
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class o ON o.reltoastrelid = c.oid AND c.relkind = 't'
     WHERE c.relkind IN ('r', 'm', 't', 'S', 'i') AND c.relpersistence <> 't'
       AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery()) AND (NOT c.relisshared OR %s)
     ORDER BY c.relpages DESC, 2, 3
"""
_PAGES = """
    SELECT pg_relation_size(%s::oid::regclass) / current_setting('block_size')::int8,
           pg_relation_size(%s::oid::regclass, 'fsm') > 0, pg_relation_size(%s::oid::regclass, 'vm') > 0
"""
_LOCKED = "a transaction that the source had open or prepared keeps it locked"


@dataclass(frozen=True, slots=True)
class _Relation:
    oid: int
    schema: str
    name: str
    kind: str
    is_populated: bool
    is_unlogged: bool
    belongs_to: str | None
    pages: int = 0


@dataclass(frozen=True, slots=True)
class DatabaseRead:
    """What was read of one database. indexes_were_read is false where pg_prewarm is missing."""

    database: str
    relations: tuple[RelationRead, ...]
    indexes_were_read: bool
    unlogged_tables: int


def read_database(server: DrillServer, dbname: str, request: DrillRequest, *, shared_too: bool) -> DatabaseRead:
    """Read a database's relations; raise psycopg.Error when the database itself cannot be opened or listed.

    shared_too: the catalogs that all databases share are read as well; one database is enough for them.
    """
    prewarm = _prewarm_schema(server, dbname)
    with server.connect(dbname) as connection:
        rows = connection.execute(_RELATIONS, [shared_too]).fetchall()
    # Biggest first, so that no connection is left alone with it at the end.
    found = [_Relation(*row) for row in rows]
    wanted = [one for one in found if prewarm is not None or one.kind != "i"]
    reader = _Reader(dbname, request, prewarm)
    relations = work_through(server, dbname, wanted, reader.read, reader.lost, jobs=request.jobs, settings=_SCAN)
    relations.sort(key=lambda one: (one.schema, one.name))
    unlogged = sum(one.is_unlogged and one.kind == "r" for one in found)
    return DatabaseRead(dbname, tuple(relations), prewarm is not None, unlogged)


def _prewarm_schema(server: DrillServer, dbname: str) -> str | None:
    """Return the schema of pg_prewarm, which is installed in the copy if need be; None where it cannot be had."""
    query = "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = %s"
    with server.connect(dbname, writable=not server.in_recovery) as connection:
        row = connection.execute(query, ["pg_prewarm"]).fetchone()
        if row is None and not server.in_recovery:
            try:
                connection.execute("CREATE EXTENSION pg_prewarm SCHEMA pg_catalog")
            except psycopg.Error:
                return None
            return "pg_catalog"
    return row[0] if row else None


class _Reader:
    """Reads single relations of one database."""

    def __init__(self, dbname: str, request: DrillRequest, prewarm: str | None) -> None:
        self._dbname = dbname
        self._request = request
        self._prewarm = prewarm

    def read(self, connection: Connection, relation: _Relation) -> RelationRead:
        """Read one relation; raise psycopg.Error only for a connection that is lost."""
        if not relation.is_populated:
            return self._result(relation, None, skipped="it has never been filled")
        try:
            # Asked one by one, because this takes a lock: a relation that is locked must not hide the others.
            row = connection.execute(_PAGES, [relation.oid] * 3).fetchone()
        except psycopg.Error as problem:
            if connection.closed:
                raise
            return self._damaged(connection, relation, problem)
        pages, has_fsm, has_vm = row or (0, False, False)
        found = self._read_through(connection, replace(relation, pages=pages or 0))
        forks = [fork for fork, is_there in (("fsm", has_fsm), ("vm", has_vm)) if is_there]
        return replace(found, map_problems=tuple(self._bad_maps(connection, relation, forks)))

    def _bad_maps(
        self, connection: Connection, relation: _Relation, forks: Iterable[str]
    ) -> Iterator[tuple[str, int | None, str]]:
        """Yield the first bad page of each map, and what the server said of it."""
        for fork in forks if self._prewarm is not None else ():
            with suppress(_StillLockedError):
                if (problem := self._load(connection, relation, None, None, fork=fork)) is not None:
                    yield (fork, *problem)

    def _read_through(self, connection: Connection, relation: _Relation) -> RelationRead:
        is_sample = self._request.reading is Reading.SAMPLE and relation.kind != "S"
        if relation.kind == "i" or (is_sample and relation.kind == "t"):
            return self._read_blocks(connection, relation, is_sample=is_sample)
        try:
            rows = self._count(connection, relation, is_sample=is_sample)
        except psycopg.Error as problem:
            if connection.closed:
                raise
            return self._damaged(connection, relation, problem)
        if relation.kind == "S" and rows != 1:
            return self._result(relation, rows, ((None, f"a sequence has one row, this one {rows}"),))
        return self._result(relation, rows)

    def lost(self, relation: _Relation, problem: psycopg.Error) -> RelationRead:
        """Return the result for a relation that ends the server process which reads it."""
        words = f"the server process that read it ended: {' '.join(str(problem).split())}"
        return self._result(relation, None, ((None, words),))

    def _count(self, connection: Connection, relation: _Relation, *, is_sample: bool) -> int:
        query = f"SELECT count(*) FROM ONLY {quote_identifier(relation.schema)}.{quote_identifier(relation.name)}"
        if is_sample:
            query += f" TABLESAMPLE SYSTEM ({self._request.sample_percent!r})"
        # As bytes: psycopg would refuse a name that is no UTF-8.
        row = connection.execute(query.encode("utf-8", "surrogateescape")).fetchone()
        return int(row[0]) if row else 0

    def _damaged(self, connection: Connection, relation: _Relation, problem: psycopg.Error) -> RelationRead:
        """Describe a relation that could not be read to its end, with every bad block where they can be found."""
        if problem.sqlstate == _LOCK_NOT_AVAILABLE:
            return self._result(relation, None, skipped=_LOCKED)
        first = _described(problem)
        if first[0] is None or self._prewarm is None:
            return self._result(relation, None, (first,))
        found = tuple(self._bad_blocks(connection, relation, [(None, None)]))
        return self._result(relation, None, found or (first,))

    def _read_blocks(self, connection: Connection, relation: _Relation, *, is_sample: bool) -> RelationRead:
        if self._prewarm is None:
            return self._result(relation, None, skipped="pg_prewarm, which would read it, cannot be had")
        ranges: Iterable[_Blocks] = self._sampled(relation) if is_sample else [(None, None)]
        try:
            return self._result(relation, None, tuple(self._bad_blocks(connection, relation, ranges)))
        except _StillLockedError:
            return self._result(relation, None, skipped=_LOCKED)

    def _sampled(self, relation: _Relation) -> Iterator[_Blocks]:
        # The same backup gives the same sample, so that a finding can be looked at again.
        draw = random.Random(relation.oid)
        for first in range(0, relation.pages, _SAMPLE_CHUNK_BLOCKS):
            if draw.random() * 100 < self._request.sample_percent:
                yield first, min(first + _SAMPLE_CHUNK_BLOCKS, relation.pages) - 1

    def _bad_blocks(
        self, connection: Connection, relation: _Relation, ranges: Iterable[_Blocks]
    ) -> Iterator[tuple[int | None, str]]:
        shown = 0
        for first, last in ranges:
            while True:
                problem = self._load(connection, relation, first, last)
                if problem is None:
                    break
                yield problem
                shown += 1
                if problem[0] is None or shown == _SHOWN_BLOCKS:
                    return
                first = problem[0] + 1
                if first > (relation.pages - 1 if last is None else last):
                    break

    def _load(
        self, connection: Connection, relation: _Relation, first: int | None, last: int | None, *, fork: str = "main"
    ) -> tuple[int | None, str] | None:
        """Read a range of blocks, all for None, into the server's cache; return the first that is bad and why."""
        assert self._prewarm is not None
        query = sql.SQL("SELECT {}(%s::oid::regclass, 'buffer', %s, %s::int8, %s::int8)").format(
            sql.Identifier(self._prewarm, "pg_prewarm")
        )
        try:
            connection.execute(query, [relation.oid, fork, first, last])
        except psycopg.Error as problem:
            if connection.closed:
                raise
            if problem.sqlstate == _LOCK_NOT_AVAILABLE:
                raise _StillLockedError from problem
            return _described(problem)
        return None

    def _result(
        self,
        relation: _Relation,
        rows: int | None,
        problems: tuple[tuple[int | None, str], ...] = (),
        skipped: str | None = None,
    ) -> RelationRead:
        return RelationRead(
            self._dbname, printable(relation.schema), printable(relation.name), relation.kind, relation.pages, rows,
            problems, skipped, printable(relation.belongs_to) if relation.belongs_to else relation.belongs_to,
        )  # fmt: skip


class _StillLockedError(Exception):
    """A lock could not be had in time."""


def _described(problem: psycopg.Error) -> tuple[int | None, str]:
    """Return the block that an error names, if it does, and what the server said, in one line."""
    message = problem.diag.message_primary or str(problem)
    match = _BLOCK.search(f"{message}\n{problem.diag.message_detail or ''}")
    block = None if match is None else int(match[1] or match[2])
    return block, " ".join(message.split())
