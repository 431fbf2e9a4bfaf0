"""Find tables in a clone: in which database, with which partitions, and what else was bound to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from polarvault.clones.model import CloneRecord
from polarvault.flashback.errors import FlashbackRefused, TableNotFound
from polarvault.flashback.model import FoundTable, Kind, Member
from polarvault.flashback.names import TableName
from polarvault.flashback.session import Connection, connect, databases_of

_FIND = """
    SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, pg_get_userbyid(c.relowner),
           c.relpersistence = 'u', EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = %(name)s::text AND (%(schema)s::text IS NULL OR n.nspname = %(schema)s::text)
       AND c.relkind IN ('r', 'p', 'm', 'v', 'f') AND c.relpersistence <> 't'
       AND (%(schema)s::text IS NOT NULL OR n.nspname !~ '^pg_' AND n.nspname <> 'information_schema')
     ORDER BY 2
"""
# Of a diamond each member once, behind all that it inherits from.
_MEMBERS = """
    WITH RECURSIVE below(oid, depth) AS (
      SELECT %(oid)s::bigint::oid, 0
      UNION ALL
      SELECT i.inhrelid, b.depth + 1 FROM below b JOIN pg_inherits i ON i.inhparent = b.oid WHERE b.depth < 100
    )
    SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, t.spcname
      FROM (SELECT oid, max(depth) AS depth FROM below GROUP BY oid) b JOIN pg_class c ON c.oid = b.oid
      JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
     ORDER BY b.depth, n.nspname, c.relname
"""
_SIMILAR = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE lower(c.relname) = lower(%(name)s::text) AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_'
     ORDER BY 1, 2 LIMIT 5
"""
_REFERENCING = """
    SELECT format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
      FROM pg_constraint
     WHERE contype = 'f' AND confrelid = ANY (%(oids)s::bigint[]::oid[]) AND conparentid = 0
       AND conrelid <> ALL (%(oids)s::bigint[]::oid[])
     ORDER BY 1 LIMIT 20
"""
_VIEWS = """
    SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
     WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
       AND d.refobjid = ANY (%(oids)s::bigint[]::oid[]) AND r.ev_class <> ALL (%(oids)s::bigint[]::oid[])
     ORDER BY 1 LIMIT 20
"""
_STATISTICS = """
    SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = ANY (%(oids)s::bigint[]::oid[])
     ORDER BY 1 LIMIT 20
"""
_NOT_TABLES = {
    Kind.VIEW: ("a view", "its rows are those of tables: name these"),
    Kind.MATERIALISED_VIEW: (
        "a materialised view",
        "it is computed anew from its tables: bring these back, and REFRESH it",
    ),
    Kind.FOREIGN_TABLE: ("a foreign table", "its rows are on the foreign server: bring them back there"),
}


@dataclass(frozen=True, slots=True)
class Bound:
    """What pg_dump leaves out of a table's dump: statements that make foreign keys of others, and statistics; views."""

    foreign_keys: tuple[str, ...]
    views: tuple[str, ...]
    statistics: tuple[str, ...]


def find_tables(record: CloneRecord, names: Sequence[TableName], database: str | None) -> list[FoundTable]:
    """Return the tables that were asked for, all from one database.

    Raises TableNotFound, and FlashbackRefused where it is not certain which ones are meant. Raises psycopg.Error.
    """
    known = databases_of(record)
    if database is not None and database not in known:
        raise TableNotFound(
            f'at that moment there was no database "{database}"', hint=f"there were: {', '.join(known)}"
        )
    found: dict[str, list[FoundTable]] = {}
    missing: set[TableName] = set(names)
    similar: list[str] = []
    for one in [database] if database is not None else known:
        with connect(record, one) as connection:
            here = {name: _found_in(connection, one, name) for name in names}
            missing -= {name for name, table in here.items() if table is not None}
            tables = [table for table in here.values() if table is not None]
            if len(tables) == len(names):
                found[one] = tables
            similar += [f"{like} in database {one}" for name in names if here[name] is None
                        for like in _similar(connection, name)]  # fmt: skip
    if not found:
        raise _not_found(names, missing, database, similar, record)
    if len(found) > 1:
        several = " and ".join(found)
        raise FlashbackRefused(
            f"{_listed(names)}: there is such a table in the databases {several}",
            hint=f"name one: -d {next(iter(found))}",
        )
    [tables] = found.values()
    return tables


def bound_to(connection: Connection, tables: Sequence[FoundTable]) -> Bound:
    """Return what a dump of the tables alone does not hold; raise psycopg.Error."""
    parameters = {"oids": [member.oid for table in tables for member in table.members]}
    queries = (_REFERENCING, _VIEWS, _STATISTICS)
    found = (connection.execute(query, parameters).fetchall() for query in queries)
    return Bound(*(tuple(str(row[0]) for row in rows) for rows in found))


def count_rows(connection: Connection, name: TableName) -> int:
    """Return how many rows a table has with its partitions; raise psycopg.Error."""
    query = sql.SQL("SELECT count(*) FROM {}").format(identifier(name))
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def identifier(name: TableName) -> sql.Identifier:
    """Return a name for a statement."""
    return sql.Identifier(*(one for one in (name.schema, name.name) if one is not None))


def _found_in(connection: Connection, database: str, name: TableName) -> FoundTable | None:
    rows = connection.execute(_FIND, {"name": name.name, "schema": name.schema}).fetchall()
    if not rows:
        return None
    if len(rows) > 1:
        names = ", ".join(str(TableName(row[1], row[2])) for row in rows)
        raise FlashbackRefused(f"{name} of database {database} can be any of {names}", hint="name it with its schema")
    oid, schema, relname, kind, owner, is_unlogged, is_part = rows[0]
    full = TableName(schema, relname)
    if Kind(kind) in _NOT_TABLES:
        what, hint = _NOT_TABLES[Kind(kind)]
        raise FlashbackRefused(f"{full} of database {database} was {what} at that moment", hint=hint)
    members = connection.execute(_MEMBERS, {"oid": oid}).fetchall()
    return FoundTable(
        database,
        tuple(Member(row[0], TableName(row[1], row[2]), row[3], row[0] == oid) for row in members),
        Kind(kind), owner, tuple(sorted({row[4] for row in members if row[4]})), is_part, is_unlogged,
    )  # fmt: skip


def _similar(connection: Connection, name: TableName) -> list[str]:
    rows = connection.execute(_SIMILAR, {"name": name.name}).fetchall()
    return [str(TableName(schema, relname)) for schema, relname in rows]


def _listed(names: Sequence[TableName]) -> str:
    return ", ".join(map(str, names))


def _not_found(
    names: Sequence[TableName], missing: set[TableName], database: str | None, similar: list[str], record: CloneRecord
) -> TableNotFound:
    where = f"in database {database}" if database is not None else "in any database"
    asked = sorted(missing, key=str) or names
    words = f"{_listed(asked)} did not exist {where} at that moment ({record.moment})"
    if not missing:
        words = f"{_listed(names)} were not all in one database at that moment: one command takes tables of one"
    elif similar:
        words += f"; there was {', '.join(dict.fromkeys(similar))}"
    hint = "look when it was made, changed or dropped: polarvault flashback find SOURCE --table NAME --since TIME"
    return TableNotFound(words, hint=hint)
