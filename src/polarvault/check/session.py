"""What every area of the check asks through: one SQL and one replication connection, either of which may be missing.

A question never ends the check. What the role may not ask, and what failed, is remembered in `unanswered` and becomes
a finding of its own; the answer is None then. Nothing here changes the server: SQL runs read-only, and gives up on a
lock after a few seconds rather than queue behind somebody's ALTER TABLE.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from polarvault.errors import ConnectionLost, PolarvaultError, ServerError
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, show
from polarvault.server.session_settings import later_settings

Row = dict[str, str | None]
INSUFFICIENT_PRIVILEGE = "42501"
# The grants that the unanswered questions need, as they stand after GRANT.
MONITOR = "pg_monitor"
STAT_FILE = "EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean)"
# Settings that only these may read (GUC_SUPERUSER_ONLY): asking all the same would leave errors in the server's log.
_RESTRICTED_SETTINGS = frozenset(
    {"data_directory", "config_file", "hba_file", "ident_file", "hosts_file", "shared_preload_libraries"}
)
# Longer than statement_timeout below: only a network, or a server that hangs, is silent for that long.
_ANSWER_TIMEOUT_S = 75.0
_PREPARE = (
    # First, or the next ones could be cut off by a role's limit, or an operator in front of the server's own be called.
    "SET statement_timeout = '60s'",
    "SET search_path = pg_catalog, pg_temp",
    # Names come as UTF-8 whatever the database keeps them in, but for one that does not know, and would refuse.
    "SELECT pg_catalog.set_config('client_encoding', CASE pg_catalog.current_setting('server_encoding')"
    " WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, false)",
    "SET default_transaction_read_only = on",
    "SET lock_timeout = '3s'",
    # What is read here is parsed: spellings must not depend on the role's or the database's settings.
    "SET datestyle = 'ISO, YMD'",
    "SET timezone = 'UTC'",
    "SET intervalstyle = 'postgres'",
)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question without an answer: what it was about, why, and the grant that would answer it, if one would."""

    what: str
    reason: str
    grant: str | None = None


@dataclass(slots=True)
class CheckSession:
    """The connections of one check, and what they could not tell.

    `sql`, `replication` and `identity` are None where the server refused; `target` is the absolute path of --target.
    """

    connector: Connector
    sql: Connection | None
    replication: Connection | None
    identity: ServerIdentity | None
    target: str | None = None
    refusal: str | None = None
    """Why there is no replication connection, in the server's words."""
    unanswered: list[Unanswered] = field(default_factory=list)

    @property
    def is_polardb(self) -> bool:
        """Tell whether the server is a PolarDB, with or without shared storage."""
        if self.identity is not None:
            return self.identity.polar_version is not None
        return self.setting("polar_version") is not None

    @property
    def shared_storage(self) -> bool:
        """Tell whether the data lies in two halves, on PolarDB's shared storage."""
        if self.identity is not None:
            return self.identity.shared_storage
        return self.setting("polar_enable_shared_storage_mode") == "on"

    @property
    def version_num(self) -> int:
        """The server's version as in server_version_num; 0 when there is no connection at all."""
        connection = self.sql or self.replication
        return connection.server_version_num if connection else 0

    @property
    def in_recovery(self) -> bool | None:
        """Tell whether the server is a standby, or a PolarDB replica; None when there is no connection at all."""
        if (answer := self.value("SELECT pg_catalog.pg_is_in_recovery()")) is not None:
            return answer == "t"
        return self.identity.in_recovery if self.identity else None

    def rows(self, sql: str, *, what: str | None = None, grant: str | None = None) -> list[Row] | None:
        """Return the rows of a query, or None when it could not be asked or failed.

        what: the object of the question; a failure is then remembered, with the grant that would have helped. Leave it
        out for questions that may fail, such as those to an extension that need not be there.
        """
        if self.sql is None:
            return None
        try:
            result = self.sql.query(sql)
        except ServerError as problem:
            if what is not None:
                refused = problem.sqlstate == INSUFFICIENT_PRIVILEGE
                self.miss(what, problem.message, grant=grant if refused else None)
            return None
        except ConnectionLost as problem:
            self.sql = None
            self.miss("everything after the connection was lost", problem.message)
            return None
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

    def row(self, sql: str, *, what: str | None = None, grant: str | None = None) -> Row | None:
        """Return the first row of a query; None when there is none or it could not be asked."""
        rows = self.rows(sql, what=what, grant=grant)
        return rows[0] if rows else None

    def value(self, sql: str, *, what: str | None = None, grant: str | None = None) -> str | None:
        """Return the first value of a query; None for NULL, no row, and when it could not be asked."""
        row = self.row(sql, what=what, grant=grant)
        return next(iter(row.values()), None) if row else None

    def setting(self, name: str) -> str | None:
        """Return a setting as SHOW prints it; None when the server does not know it or does not tell this role.

        Asked by SQL, or on the replication connection where SQL is refused.
        """
        if name in _RESTRICTED_SETTINGS and not self._reads_all_settings():
            self.miss(f"setting {name}", "permission denied", grant=MONITOR)
            return None
        try:
            if self.sql is not None:
                return self.sql.query(f"SELECT pg_catalog.current_setting('{name}', true)").rows[0][0]
            return show(self.replication, name) if self.replication is not None else None
        except ServerError as problem:
            if problem.sqlstate == INSUFFICIENT_PRIVILEGE:
                self.miss(f"setting {name}", problem.message, grant=MONITOR)
        except PolarvaultError:
            pass  # A lost connection has been, or will be, reported by the next question.
        return None

    def _reads_all_settings(self) -> bool:
        # Without SQL there is nobody to ask but the setting itself.
        return self.value("SELECT pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')") != "f"

    def size_setting(self, name: str) -> int | None:
        """Return a setting that is a size, in bytes; -1 where the server says -1, None where `setting` does."""
        text = self.setting(name)
        return None if text is None else parse_size_setting(text)

    def miss(self, what: str, reason: str, *, grant: str | None = None) -> None:
        """Remember a question that has no answer."""
        missed = Unanswered(what, reason, grant)
        if missed not in self.unanswered:
            self.unanswered.append(missed)

    @contextmanager
    def in_database(self, name: str) -> Iterator[CheckSession]:
        """Open a session in another database of the same server; raise ConnectionFailed where it is refused."""
        connection = prepared(self.connector.without_prompt().sql(name))
        inner = CheckSession(self.connector, connection, None, self.identity, self.target, unanswered=self.unanswered)
        try:
            yield inner
        finally:
            connection.close()

    def close(self) -> None:
        """Close both connections; safe to call twice."""
        for connection in (self.sql, self.replication):
            if connection is not None:
                connection.close()


def patient(connection: Connection) -> Connection:
    """Let a connection wait for an answer, but not for ever."""
    connection.answer_timeout_s = _ANSWER_TIMEOUT_S
    return connection


def prepared(connection: Connection) -> Connection:
    """Make an SQL connection harmless: read-only, without waiting for locks, with names that nobody can shadow."""
    patient(connection)
    has_limit = "transaction_timeout" in later_settings(connection.server_version_num)
    limit = ("SET transaction_timeout = '60s'",) if has_limit else ()
    for statement in (*limit, *_PREPARE):
        # A pooler or an odd server may refuse one of them; the questions themselves are read-only anyway.
        with suppress(ServerError):
            connection.query(statement)
    return connection


def parse_size_setting(text: str) -> int | None:
    """Parse a size as SHOW prints it: 16MB, 0, -1; None when it is none. Returns bytes."""
    units = {"kB": 10, "MB": 20, "GB": 30, "TB": 40, "B": 0}
    for unit, shift in units.items():
        if text.endswith(unit) and text.removesuffix(unit).lstrip("-").isdecimal():
            return int(text.removesuffix(unit)) << shift
    return int(text) if text.lstrip("-").isdecimal() else None
