"""amcheck over every database: do indexes agree with their tables, are tables sound inside?

pg_amcheck does it where the server has one (14 and later); the functions of the extension do it by SQL elsewhere. On a
writable copy the extension is installed where it is missing, and indexes get the parent check, which also finds a
page that lies in the wrong place of its tree; a copy that is paused in recovery can only take the weaker one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

from polarvault.backupset.backup import verify_command
from polarvault.drill.look.parallel import work_through
from polarvault.drill.look.second_look import Unchecked, index_check, look_again
from polarvault.drill.place.server import Connection, DrillServer, printable
from polarvault.instance.programs import run_program
from polarvault.model import versions
from polarvault.model.finding import Finding, Severity

_CHECK = "amcheck"
_FOUND_CORRUPTION = 2
_SHOWN_PROBLEMS = 50
_OBJECT = re.compile(r"(?:heap|btree|gin|table|index)\b.*:\Z")
_INDEXES = """
    SELECT c.oid::int8, quote_ident(n.nspname) || '.' || quote_ident(c.relname), n.nspname || '.' || c.relname
      FROM pg_index i JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_am a ON a.oid = c.relam
     WHERE a.amname = 'btree' AND c.relkind = 'i' AND indisvalid AND indisready AND c.relpersistence <> 't'
       AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery())
     ORDER BY c.relpages DESC
"""
_TABLES = """
    SELECT c.oid::int8, quote_ident(n.nspname) || '.' || quote_ident(c.relname), n.nspname || '.' || c.relname
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am a ON a.oid = c.relam
     WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'
       AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery())
     ORDER BY c.relpages DESC
"""


@dataclass(frozen=True, slots=True)
class StructureChecked:
    """What amcheck found; not_proved says what it could not look at."""

    findings: tuple[Finding, ...]
    not_proved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Object:
    """An index or table; name: as SQL writes it, plain_name: as pg_amcheck does."""

    oid: int
    name: str
    plain_name: str
    is_index: bool


def amcheck_is_there(server: DrillServer) -> bool:
    """Tell whether the server's programs came with the extension; raise psycopg.Error."""
    with server.connect("template1") as connection:
        row = connection.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'").fetchone()
    return bool(row and row[0])


def no_amcheck(server: DrillServer) -> StructureChecked:
    """Return what is to be said when the extension is not there; it was asked for, so this is a failure."""
    where = server.binaries.directory
    finding = Finding(
        severity=Severity.PROBLEM,
        check=_CHECK,
        subject=where,
        message=f"not proved: the extension amcheck is not installed with the server programs in {where}",
        meaning="nobody looked whether indexes agree with their tables",
        advice=f"install it (Debian: apt-get install postgresql-{server.binaries.major}), or leave --amcheck out",
    )
    return StructureChecked((finding,), ("that indexes agree with their tables: the server has no amcheck",))


def check_structure(server: DrillServer, dbname: str, *, jobs: int) -> StructureChecked:
    """Check one database; raise psycopg.Error when the database itself cannot be opened."""
    schema = _extension_schema(server, dbname)
    if schema is None:
        why = "amcheck is not installed in it, and a copy in recovery cannot be changed"
        finding = _problem(dbname, f"not proved: {why}", "install it on the source: CREATE EXTENSION amcheck")
        return StructureChecked((finding,), (f'that indexes of database "{dbname}" agree with their tables: {why}',))
    with server.connect(dbname) as connection:
        objects = list(_objects(connection, server.binaries.major))
    if _checks_heaps(server.binaries.major) and os.access(server.binaries.program("pg_amcheck"), os.X_OK):
        problems, way = _by_program(server, dbname, jobs), "pg_amcheck"
    else:
        problems, way = _by_sql(server, dbname, schema, objects, jobs), "the functions of amcheck"
    problems, unchecked = _looked_at_again(server, dbname, schema, objects, problems)
    findings = [_could_not_be_checked(one) for one in unchecked]
    not_proved = [f"that every row is in the {one.name}: {one.error}" for one in unchecked]
    if problems:
        return StructureChecked((*_shortened(server, dbname, problems), *findings), tuple(not_proved))
    tables = sum(not one.is_index for one in objects)
    heap = f" and {tables} tables" if tables else ""
    message = f"{way} found {len(objects) - tables - len(unchecked)} B-tree indexes{heap} sound"
    good = Finding(severity=Severity.OK, check=_CHECK, subject=dbname, message=message)
    if not tables:
        why = f"PostgreSQL {server.binaries.major} checks indexes only"
        not_proved.append(f'that tables of database "{dbname}" are sound inside: {why}')
    return StructureChecked((good, *findings), tuple(not_proved))


def _looked_at_again(
    server: DrillServer, dbname: str, schema: str, objects: list[_Object], problems: list[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[Unchecked]]:
    """Split what amcheck complains of into what is damaged, and indexes whose own expressions raise errors."""
    indexes = {f'btree index "{dbname}.{one.plain_name}"': one for one in objects if one.is_index}
    suspects = [name for name, _ in problems if name in indexes]
    unchecked: dict[str, Unchecked] = {}

    def look(connection: Connection, name: str) -> None:
        oid = indexes[name].oid
        if (found := look_again(connection, schema, oid, name, parent=not server.in_recovery)) is not None:
            unchecked[name] = found

    def lost(name: str, problem: psycopg.Error) -> None:
        """Leave it among the damaged."""

    if suspects:
        work_through(server, dbname, suspects[:_SHOWN_PROBLEMS], look, lost, jobs=1, settings={})
    return [found for found in problems if found[0] not in unchecked], list(unchecked.values())


def _could_not_be_checked(one: Unchecked) -> Finding:
    structure = "; its structure is sound" if one.structure_is_sound else ""
    return Finding(
        severity=Severity.WARNING,
        check=_CHECK,
        subject=one.name,
        message=f"it could not be compared with its table: {one.error}{structure}",
        meaning="nobody looked whether every row is in the index; the error comes from a function in the index, or "
        "from a limit of the server, and is no sign of damage",
        advice="the source has the same error: SELECT bt_index_check('INDEX', true); a function must name everything "
        "with its schema, or: ALTER FUNCTION ... SET search_path = ...",
    )


def _extension_schema(server: DrillServer, dbname: str) -> str | None:
    """Return the schema of amcheck in a database, installed there if the copy can be written; None if it is not."""
    query = "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'amcheck'"
    with server.connect(dbname, writable=not server.in_recovery) as connection:
        if not server.in_recovery:
            connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA pg_catalog")
            # A database that came through pg_upgrade can still have the version of its first server.
            connection.execute("ALTER EXTENSION amcheck UPDATE")
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def _checks_heaps(major: int) -> bool:
    return versions.of_server(major * 10000).checks_heaps


def _objects(connection: Connection, major: int) -> Iterator[_Object]:
    for oid, name, plain_name in connection.execute(_INDEXES).fetchall():
        yield _Object(oid, printable(name), printable(plain_name), is_index=True)
    if _checks_heaps(major):
        for oid, name, plain_name in connection.execute(_TABLES).fetchall():
            yield _Object(oid, printable(name), printable(plain_name), is_index=False)


def _by_program(server: DrillServer, dbname: str, jobs: int) -> list[tuple[str, str]]:
    """Run pg_amcheck on one database; return (object, what is wrong)."""
    # heapallindexed: every row is in its index. The parent check locks its table, which a standby cannot.
    thorough = ["--heapallindexed", *([] if server.in_recovery else ["--parent-check"])]
    conninfo = server.conninfo(dbname, server.session())
    words = [server.binaries.program("pg_amcheck"), f"--jobs={jobs}", *thorough, "--no-password", conninfo]
    finished = run_program(words, server.account, timeout_s=None)
    if finished.returncode == 0:
        return []
    problems = list(parse_program_output(finished.stdout))
    if finished.returncode != _FOUND_CORRUPTION or not problems:
        said = " ".join((finished.stderr or finished.stdout).split())
        problems.append((dbname, f"pg_amcheck ended with status {finished.returncode}: {said or 'no message'}"))
    return problems


def parse_program_output(text: str) -> Iterator[tuple[str, str]]:
    """Yield (object, what is wrong) from pg_amcheck's report: a line that names the object, indented ones that follow.

    For example ``btree index "db.public.t_pkey":`` and ``    ERROR:  item order invariant violated``; a table's line
    also names block, offset and attribute.
    """
    name, lines = "", list[str]()
    for line in [*text.splitlines(), "end:"]:
        if line.startswith((" ", "\t")) or not line.strip():
            lines.append(line.strip())
            continue
        if name:
            yield name, " ".join(filter(None, lines))
        is_object = _OBJECT.match(line) is not None
        name, lines = (line.rstrip(":"), []) if is_object else ("", [])


def _by_sql(server: DrillServer, dbname: str, schema: str, objects: list[_Object], jobs: int) -> list[tuple[str, str]]:
    check_index = index_check(schema, parent=not server.in_recovery, with_rows=True)
    check_table = sql.SQL("SELECT blkno, offnum, msg FROM {}(%s::oid::regclass) LIMIT 10").format(
        sql.Identifier(schema, "verify_heapam")
    )

    def check(connection: Connection, one: _Object) -> list[tuple[str, str]]:
        kind = "btree index" if one.is_index else "heap table"
        name = f'{kind} "{dbname}.{one.plain_name}"'
        try:
            rows = connection.execute(check_index if one.is_index else check_table, [one.oid]).fetchall()
        except psycopg.Error as problem:
            if connection.closed:
                raise
            return [(name, _described(problem))]
        return [] if one.is_index else [(f"{name}, block {row[0]}, offset {row[1]}", str(row[2])) for row in rows]

    def lost(one: _Object, problem: psycopg.Error) -> list[tuple[str, str]]:
        return [(f"{dbname}.{one.name}", f"the server process that checked it ended: {_described(problem)}")]

    found = work_through(server, dbname, objects, check, lost, jobs=jobs, settings={})
    return [problem for problems in found for problem in problems]


def _described(problem: psycopg.Error) -> str:
    detail = problem.diag.message_detail
    words = problem.diag.message_primary or str(problem)
    return " ".join((f"{words} ({detail})" if detail else words).split())


def _shortened(server: DrillServer, dbname: str, problems: list[tuple[str, str]]) -> Iterator[Finding]:
    files = verify_command(server.plan.source.path)
    advice = f"restore another backup, or REINDEX what is only an index; to see which files are damaged: {files}"
    for name, message in problems[:_SHOWN_PROBLEMS]:
        yield _problem(name, message, advice)
    if len(problems) > _SHOWN_PROBLEMS:
        more = len(problems) - _SHOWN_PROBLEMS
        yield _problem(dbname, f"{more} more problems were found", advice)


def _problem(subject: str, message: str, advice: str) -> Finding:
    return Finding(
        severity=Severity.PROBLEM,
        check=_CHECK,
        subject=subject,
        message=message,
        meaning="the restored copy is damaged: queries give wrong answers or fail",
        advice=advice,
    )
