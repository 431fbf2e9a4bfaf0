"""What amcheck complains of is looked at again: is the index damaged, or could it just not be checked?

To find a row's entry amcheck evaluates the index's expressions and predicate. A function that finds what it needs only
on its users' search_path, or refuses a value, raises an error then, in the copy as at the source. PostgreSQL tells such
errors from damage by their class: XX is "data corrupted", "index corrupted" and internal errors, 58 files that are
missing or cannot be read (manual, appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from polarvault.drill.place.server import Connection

_DAMAGE = ("XX", "58")


@dataclass(frozen=True, slots=True)
class Unchecked:
    """An index that amcheck could not be run through. error: the server's words; structure_is_sound: without rows."""

    name: str
    error: str
    structure_is_sound: bool


def is_damage(problem: psycopg.Error) -> bool:
    """Tell whether an error says that something is damaged; one without a code is taken to."""
    return problem.sqlstate is None or problem.sqlstate.startswith(_DAMAGE)


def index_check(schema: str, *, parent: bool, with_rows: bool) -> sql.Composed:
    """Return the call that checks an index, whose oid is the only parameter; with_rows: is every row in it, too?"""
    function = sql.Identifier(schema, "bt_index_parent_check" if parent else "bt_index_check")
    return sql.SQL("SELECT {}(%s::oid::regclass, {})").format(function, sql.Literal(with_rows))


def look_again(connection: Connection, schema: str, oid: int, name: str, *, parent: bool) -> Unchecked | None:
    """Check an index once more; None: it is damaged, or amcheck has nothing to say against it now.

    Raises psycopg.Error only for a connection that is lost.
    """
    error = _error(connection, index_check(schema, parent=parent, with_rows=True), [oid])
    if error is None or is_damage(error):
        return None
    structure = _error(connection, index_check(schema, parent=parent, with_rows=False), [oid])
    if structure is not None and is_damage(structure):
        return None
    words = " ".join((error.diag.message_primary or str(error)).split())
    return Unchecked(name, f"{words} (SQLSTATE {error.sqlstate})", structure is None)


def _error(connection: Connection, query: sql.Composed, parameters: Sequence[object]) -> psycopg.Error | None:
    try:
        connection.execute(query, parameters)
    except psycopg.Error as problem:
        if connection.closed:
            raise
        return problem
    return None
