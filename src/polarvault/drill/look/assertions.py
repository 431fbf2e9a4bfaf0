"""The user's own proofs: a file of SQL holds when its last statement returns one row with one column that is true.

Each file is sent as it is, in one message, over a connection of its own and in a read-only transaction that is rolled
back. Everything else than true is a failure: false, null, another type, several rows or columns, no rows, an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
from psycopg import pq

from polarvault.drill.model import Assertion
from polarvault.drill.place.server import Connection, DrillServer
from polarvault.model.finding import Finding, Severity

_BOOL_OID = 16
_SHOWN_CHARACTERS = 200


def run_assertions(server: DrillServer, dbname: str, assertions: tuple[Assertion, ...]) -> Iterator[Finding]:
    """Yield a finding for each file, in their order."""
    for assertion in assertions:
        wrong = _what_is_wrong(server, dbname, assertion)
        name = os.path.basename(assertion.path)
        yield Finding(
            severity=Severity.OK if wrong is None else Severity.PROBLEM,
            check="assertion",
            subject=assertion.path,
            message=f'returned true in database "{dbname}"' if wrong is None else wrong,
            meaning=None if wrong is None else "the restored data is not what this file says that it must be",
            advice=None if wrong is None else f"look at the copy with --keep: psql -d {dbname} -f {name}",
        )


def _what_is_wrong(server: DrillServer, dbname: str, assertion: Assertion) -> str | None:
    """Run one file; return None if it holds, else why it does not, in one line."""
    text = assertion.text.removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        return "the file is empty: it must end in a statement that returns true"
    if b"\0" in text:
        return "the file holds a zero byte, which SQL cannot"
    try:
        with server.connect_like_a_user(dbname) as connection:
            return _judge(connection, text)
    except psycopg.Error as problem:
        return _one_line(problem)


def _judge(connection: Connection, text: bytes) -> str | None:
    connection.execute("BEGIN READ ONLY")
    try:
        with connection.cursor() as cursor:
            cursor.execute(text)
            while cursor.nextset():
                pass
            return _judge_result(cursor.pgresult)
    finally:
        if not connection.closed:
            connection.rollback()


def _judge_result(result: pq.abc.PGresult | None) -> str | None:
    if result is None or result.status != pq.ExecStatus.TUPLES_OK:
        said = "" if result is None or not result.command_status else f" ({result.command_status.decode()})"
        return f"the last statement returns no rows{said}; it must return true"
    if result.nfields != 1 or result.ntuples != 1:
        return f"the last statement returned {_counted(result)}, not one row with one column"
    value = result.get_value(0, 0)
    shown = "null" if value is None else value.decode("utf-8", "replace")
    if result.ftype(0) != _BOOL_OID:
        return f"the last statement returned {_shortened(shown)!r}, which is not of type boolean"
    return None if value == b"t" else f"the last statement returned {'false' if value == b'f' else shown}"


def _counted(result: pq.abc.PGresult) -> str:
    shape = f"{result.ntuples} row(s) with {result.nfields} column(s)"
    if not result.ntuples or not result.nfields:
        return shape
    first = ", ".join((result.get_value(0, column) or b"null").decode("utf-8", "replace")
                      for column in range(result.nfields))  # fmt: skip
    return f"{shape}, the first ({_shortened(first)})"


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _one_line(problem: psycopg.Error) -> str:
    """Return the server's message with its SQLSTATE and, for a syntax error, the place in the file."""
    message = problem.diag.message_primary or str(problem)
    position = problem.diag.statement_position
    where = f" at character {position}" if position else ""
    state = f" (SQLSTATE {problem.sqlstate})" if problem.sqlstate else ""
    return f"error{where}: {_shortened(message)}{state}"
