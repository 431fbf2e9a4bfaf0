"""What a drill looks at in a running copy: amcheck, reading, the user's assertions; what is wrong becomes findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg

from polarvault.backupset.backup import verify_command
from polarvault.drill.look.assertions import run_assertions
from polarvault.drill.look.reading import read_database
from polarvault.drill.look.structure import amcheck_is_there, check_structure, no_amcheck
from polarvault.drill.model import DrillRequest, Part, Reading, RelationRead
from polarvault.drill.notes import Notes
from polarvault.drill.place.server import DrillServer
from polarvault.errors import StartFailed
from polarvault.model.finding import Finding, Severity

_MAPS = {"fsm": "free space map", "vm": "visibility map"}


def look_inside(server: DrillServer, request: DrillRequest, notes: Notes) -> None:
    """Do what was asked of amcheck, reading, assertions; what is wrong becomes findings."""
    _free_locks(server, notes)
    try:
        databases = server.databases()
        request = replace(request, jobs=server.most_jobs(request.jobs))
    except (psycopg.Error, UnicodeError) as problem:
        raise StartFailed(f"the databases of the restored server cannot be listed: {_words(problem)}") from problem
    readable = [name for name, why in databases if why is None]
    notes.not_proved += [f'anything about database "{name}": {why}' for name, why in databases if why is not None]
    if request.amcheck:
        with notes.part(Part.AMCHECK, f"checking indexes and tables of {len(readable)} databases"):
            _amcheck(server, readable, request, notes)
    if request.reading is not Reading.NONE:
        share = "every page" if request.reading is Reading.ALL else f"{request.sample_percent:g} % of the pages"
        what = f"{share} of {len(readable)} databases"
        with notes.part(Part.READING, what, lambda: _bytes_read(server, request, notes)):
            _read(server, readable, request, notes)
    if request.assertions:
        with notes.part(Part.ASSERTIONS, ", ".join(one.path for one in request.assertions)):
            notes.findings += run_assertions(server, request.dbname, request.assertions)


def _free_locks(server: DrillServer, notes: Notes) -> None:
    try:
        count = server.roll_back_prepared()
    except (psycopg.Error, UnicodeError) as problem:
        notes.add(Severity.WARNING, "prepared-transactions", "the copy", _words(problem),
                  meaning="they keep their locks, so that some tables cannot be read")  # fmt: skip
        return
    if count:
        message = f"{count} were recovered, and rolled back in the copy so that their locks hold nothing up"
        notes.add(Severity.OK, "prepared-transactions", "the copy", message)


def _amcheck(server: DrillServer, databases: list[str], request: DrillRequest, notes: Notes) -> None:
    try:
        is_there = amcheck_is_there(server)
    except psycopg.Error as problem:
        notes.add(Severity.PROBLEM, "amcheck", "template1", _words(problem), meaning="amcheck could not be run")
        return
    if not is_there:
        checked = no_amcheck(server)
        notes.findings += checked.findings
        notes.not_proved += checked.not_proved
        return
    for dbname in databases:
        try:
            checked = check_structure(server, dbname, jobs=request.jobs)
        except (psycopg.Error, UnicodeError) as problem:
            notes.add(Severity.PROBLEM, "amcheck", dbname, _words(problem), meaning="amcheck could not be run in it")
            continue
        notes.findings += checked.findings
        notes.not_proved += checked.not_proved


def _read(server: DrillServer, databases: list[str], request: DrillRequest, notes: Notes) -> None:
    is_first = True
    for dbname in databases:
        try:
            found = read_database(server, dbname, request, shared_too=is_first)
        except (psycopg.Error, UnicodeError) as problem:
            notes.add(Severity.PROBLEM, "read-database", dbname, _words(problem), meaning="it cannot be read")
            continue
        is_first = False
        notes.relations += found.relations
        notes.findings += _reading_findings(found.database, found.relations, request)
        notes.not_proved += [
            f'anything about {relation.database}.{relation.schema}.{relation.name}: {relation.skipped}'
            for relation in found.relations if relation.skipped
        ]  # fmt: skip
        if found.unlogged_tables:
            notes.not_proved.append(
                f'what {found.unlogged_tables} unlogged tables of database "{dbname}" held: no backup brings it back'
            )
        if not found.indexes_were_read:
            notes.not_proved.append(
                f'that the pages of indexes in database "{dbname}" can be read: the extension pg_prewarm cannot be had'
            )


def _reading_findings(dbname: str, relations: tuple[RelationRead, ...], request: DrillRequest) -> Iterator[Finding]:
    good = [one for one in relations if not one.problems and not one.skipped]
    damaged = f"to see which files are damaged: {verify_command(request.backup)}"
    for relation in relations:
        for block, words in relation.problems:
            place = "" if block is None else f"block {block}: "
            yield Finding(
                severity=Severity.PROBLEM,
                check="read-index" if relation.kind == "i" else "read-table",
                subject=f"{dbname}.{relation.schema}.{relation.name}",
                message=f"{place}{words}",
                meaning=_meaning(relation, is_page=block is not None),
                advice=f"restore another backup; {damaged}",
            )
        for fork, block, words in relation.map_problems:
            place = "" if block is None else f"block {block}: "
            yield Finding(
                severity=Severity.WARNING,
                check="read-map",
                subject=f"{dbname}.{relation.schema}.{relation.name}",
                message=f"{_MAPS[fork]}, {place}{words}",
                meaning="the server makes such a page anew when it comes to it; but the backup holds damaged bytes",
                advice=damaged,
            )
    indexes = sum(one.kind == "i" for one in good)
    sequences = sum(one.kind == "S" for one in good)
    rows = sum(one.rows or 0 for one in good if one.kind != "S")
    pages = sum(one.pages for one in good)
    sampled = request.reading is Reading.SAMPLE
    read = f"a sample of {request.sample_percent:g} % of {pages} pages" if sampled else f"{pages} pages"
    yield Finding(
        severity=Severity.OK,
        check="read-database",
        subject=dbname,
        message=f"{len(good) - indexes - sequences} tables, {indexes} indexes and {sequences} sequences were read: "
        f"{read}, {rows} rows",
    )


def _meaning(relation: RelationRead, *, is_page: bool) -> str:
    if relation.kind == "i":
        return f"queries that use this index of table {relation.belongs_to} fail, and so do writes to the table"
    if relation.kind == "t":
        return f"queries that need a long value of table {relation.belongs_to} fail"
    return "queries that come to this page fail" if is_page else "queries of it fail"


def _bytes_read(server: DrillServer, request: DrillRequest, notes: Notes) -> int:
    control = server.plan.inventory.control
    size = sum(one.pages for one in notes.relations) * (control.block_size if control else 8192)
    return size if request.reading is Reading.ALL else int(size * request.sample_percent / 100)


def _words(problem: Exception) -> str:
    return " ".join(str(problem).split())
