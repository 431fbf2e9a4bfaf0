"""The live server that gets a table back: looked at before anything is done, and never overwritten in anything.

All of the restore is one transaction, and begins with CREATE TABLE: a name that is taken ends it, and nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from polarvault.flashback.dumping import restore
from polarvault.flashback.errors import FlashbackRefused
from polarvault.flashback.model import FoundTable
from polarvault.flashback.names import TableName
from polarvault.server.connection import Connection, Connector
from polarvault.server.conninfo import format_conninfo
from polarvault.server.session_settings import SESSION_SETTINGS, startup_options

_SECRETS = ("password", "sslpassword")
_OTHER_SETTINGS = ("default_transaction_read_only", "default_transaction_isolation", "statement_timeout")


@dataclass(frozen=True, slots=True)
class Target:
    """A database of a live server, and how it is reached. words: as it is shown."""

    connector: Connector
    parameters: dict[str, str]
    database: str

    @property
    def words(self) -> str:
        """Where it is, without secrets."""
        shown = ("host", "port", "dbname", "service")
        return format_conninfo({name: value for name, value in self.parameters.items() if name in shown})

    def check(self, names: Sequence[TableName]) -> None:
        """Raise FlashbackRefused if one of the names, which have a schema, is taken, or cannot be made."""
        connection = self.connector.sql(self.database)
        try:
            if connection.query("SELECT pg_is_in_recovery()").value(0, 0) == "t":
                raise FlashbackRefused("the server of --into is a standby", hint="name the primary")
            for name in names:
                self._check_name(connection, name)
        finally:
            connection.close()

    def _check_name(self, connection: Connection, name: TableName) -> None:
        assert name.schema is not None
        schemas = f"SELECT 1 FROM pg_namespace WHERE nspname = {_literal(name.schema)}"
        if not connection.query(schemas).rows:
            raise FlashbackRefused(
                f'the database of --into has no schema "{name.schema}"',
                hint=f"make it there: CREATE SCHEMA {TableName(None, name.schema)}; or name another: --as SCHEMA.NAME",
            )
        # A type has its namespace in common with the row type of a table.
        taken = connection.query(
            "SELECT 'a table, view, index or sequence' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            f" WHERE n.nspname = {_literal(name.schema)} AND c.relname = {_literal(name.name)} UNION ALL"
            " SELECT 'a type' FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
            f" WHERE n.nspname = {_literal(name.schema)} AND t.typname = {_literal(name.name)}"
        ).rows
        if taken:
            raise FlashbackRefused(
                f"{name} is there already: {taken[0][0]} in the database of --into; nothing is overwritten",
                hint=f"give it another name: --as {TableName(name.schema, f'{name.name}_then'[-63:])}",
            )

    def taken_in(self, schema: str) -> set[str]:
        """Return the names of tables, indexes and sequences of a schema."""
        connection = self.connector.sql(self.database)
        try:
            rows = connection.query(
                "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                f" WHERE n.nspname = {_literal(schema)}"
            ).rows
            return {row[0] for row in rows if row[0] is not None}
        finally:
            connection.close()

    def restore(self, program: str, path: str, tables: Sequence[FoundTable]) -> list[str]:
        """Restore a dump; return what had to be left out, in words. Raises DumpFailed: then nothing is there."""
        more, notes = self._left_out(tables)
        given = self.connector.options.get("options")
        kept = {name: value for name, value in self.parameters.items() if name not in (*_SECRETS, "options")}
        ours = {name: SESSION_SETTINGS[name] for name in _OTHER_SETTINGS}
        restore(
            program, path, format_conninfo({**kept, "dbname": self.database}),
            password=self.connector.password or self.parameters.get("password"),
            options=startup_options(ours, before=given.value if given else None), more=more,
        )  # fmt: skip
        return notes

    def _left_out(self, tables: Sequence[FoundTable]) -> tuple[list[str], list[str]]:
        """Return options of pg_restore for what the target cannot have, and the same in words."""
        owners = {table.owner for table in tables}
        spaces = {space for table in tables for space in table.tablespaces}
        connection = self.connector.sql(self.database)
        try:
            [me, is_superuser] = connection.query(
                "SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user"
            ).rows[0]
            roles = {row[0] for row in connection.query("SELECT rolname FROM pg_roles").rows}
            there = {row[0] for row in connection.query("SELECT spcname FROM pg_tablespace").rows}
        finally:
            connection.close()
        more, notes = [], []
        if (is_superuser != "t" and owners != {me}) or not owners <= roles:
            more += ["--no-owner", "--no-acl"]
            notes.append(f"it belongs to {me}, without the grants of {', '.join(sorted(owners))}")
        if not spaces <= there:
            more.append("--no-tablespaces")
            notes.append(f"it lies in the default tablespace: {', '.join(sorted(spaces - there))} is not there")
        return more, notes


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)
