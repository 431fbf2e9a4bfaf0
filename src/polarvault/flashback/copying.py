"""Give a table in the clone the name that it is to have elsewhere, so that its dump has no other name in it.

The clone is a throw-away copy: what a copy beside the original must not have is taken off here, foreign keys and
triggers above all, because its rows may have lost their partners and nothing is to fire. Indexes and owned sequences
share their namespace with tables, so they get names that are free in the target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import sql

from polarvault.flashback.model import FoundTable
from polarvault.flashback.names import TableName, derived_name
from polarvault.flashback.session import Connection
from polarvault.flashback.tables import identifier

_SCHEMA_OF = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
_NAMES_IN = "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s"
_FOREIGN_KEYS = """
    SELECT conrelid::bigint, conname FROM pg_constraint
     WHERE contype = 'f' AND conparentid = 0 AND conrelid = ANY (%s::bigint[]::oid[])
"""
_TRIGGERS = """
    SELECT tgrelid::bigint, tgname FROM pg_trigger
     WHERE NOT tgisinternal AND tgparentid = 0 AND tgrelid = ANY (%s::bigint[]::oid[])
"""
_RULES = "SELECT ev_class::bigint, rulename FROM pg_rewrite WHERE ev_class = ANY (%s::bigint[]::oid[])"
_PARENTS = """
    SELECT i.inhrelid::bigint, n.nspname, c.relname, p.relispartition, c.relkind::text
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_class p ON p.oid = i.inhrelid
     WHERE i.inhrelid = ANY (%(oids)s::bigint[]::oid[]) AND i.inhparent <> ALL (%(oids)s::bigint[]::oid[])
"""
# Sequences that belong to a column move with the table; they are named by themselves.
_PARTS = """
    SELECT c.relkind::text, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
     WHERE i.indrelid = %(oid)s::bigint::oid
    UNION ALL
    SELECT 'S', c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
       AND d.refobjid = %(oid)s::bigint::oid AND d.deptype IN ('a', 'i')
"""


def give_name(
    connection: Connection, table: FoundTable, wanted: TableName, taken: Iterable[str]
) -> tuple[list[TableName], list[str]]:
    """Give a table of the clone another name, and its parts names that are not taken in the target's schema.

    Returns the new names of its members, itself first, and what was left off, in words. Raises psycopg.Error.
    """
    assert wanted.schema is not None
    schema = wanted.schema
    if not connection.execute(_SCHEMA_OF, (schema,)).fetchone():
        _run(connection, "CREATE SCHEMA {}", sql.Identifier(schema))
    left_off = _take_off(connection, table)
    here = {str(row[0]) for row in connection.execute(_NAMES_IN, (schema,)).fetchall()}
    own = {member.name.name for member in table.members if member.name.schema == schema}
    used = set(taken) | here | {wanted.name}
    if wanted.name in here and wanted.name not in own:
        # Whatever had the name in the source then is in the way; nobody needs it here.
        obstacle = derived_name(wanted.name, wanted.name, "polarvault_aside", used)
        _run(connection, "ALTER TABLE {} RENAME TO {}", identifier(wanted), sql.Identifier(obstacle))
    old = table.name.name
    result = []
    for member in table.members:
        parts = connection.execute(_PARTS, {"oid": member.oid}).fetchall()
        new = wanted.name if member.is_root else derived_name(member.name.name, old, wanted.name, used)
        moved = _moved(connection, "TABLE", member.name, TableName(schema, new))
        result.append(moved)
        for kind, name in parts:
            words = "SEQUENCE" if kind == "S" else "INDEX"
            new_name = derived_name(name, member.name.name, new, used)
            _moved(connection, words, TableName(schema, name), TableName(schema, new_name))
    return result, left_off


def _take_off(connection: Connection, table: FoundTable) -> list[str]:
    """Remove foreign keys, triggers, rules and the bonds to a parent from a table of the clone; name them."""
    names = {member.oid: member.name for member in table.members}
    oids = list(names)
    left_off = []
    for query, statement, what in (
        (_FOREIGN_KEYS, "ALTER TABLE {} DROP CONSTRAINT {}", "foreign key"),
        (_TRIGGERS, "DROP TRIGGER {1} ON {0}", "trigger"),
        (_RULES, "DROP RULE {1} ON {0}", "rule"),
    ):
        for oid, name in connection.execute(query, (oids,)).fetchall():
            _run(connection, statement, identifier(names[oid]), sql.Identifier(name))
            left_off.append(f"{what} {name} of {names[oid]}")
    for oid, schema, name, is_partition, _ in connection.execute(_PARENTS, {"oids": oids}).fetchall():
        parent = TableName(schema, name)
        statement = "ALTER TABLE {1} DETACH PARTITION {0}" if is_partition else "ALTER TABLE {0} NO INHERIT {1}"
        _run(connection, statement, identifier(names[oid]), identifier(parent))
        left_off.append(f"{names[oid]} as a part of {parent}")
    return left_off


def _moved(connection: Connection, kind: str, old: TableName, new: TableName) -> TableName:
    """Rename in its own schema first: that name is nobody's, and in the other schema either."""
    if old.name != new.name:
        _run(connection, f"ALTER {kind} {{}} RENAME TO {{}}", identifier(old), sql.Identifier(new.name))
    # Indexes and owned sequences go where their table goes.
    if old.schema != new.schema and kind == "TABLE":
        assert new.schema is not None
        here = identifier(TableName(old.schema, new.name))
        _run(connection, f"ALTER {kind} {{}} SET SCHEMA {{}}", here, sql.Identifier(new.schema))
    return new


def _run(connection: Connection, statement: str, *words: Any) -> None:
    connection.execute(sql.SQL(statement).format(*words))
