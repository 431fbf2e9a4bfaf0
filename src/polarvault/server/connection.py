"""Connections: libpq (through psycopg) logs in, so every authentication method, TLS, service files, multiple hosts
and the PG* environment variables behave exactly as in PostgreSQL's own clients.

What happens on a connection after login belongs to `transport` (bulk data) and `replication` (commands).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import psycopg
from psycopg import pq

from polarvault.errors import ConnectionLost, RemoteProtocolError, ServerError, UsageError
from polarvault.model import limits, versions
from polarvault.model.names import shown_text
from polarvault.server.conninfo import ResolvedOption, default_options, parse_conninfo, resolved_options
from polarvault.server.login import LoginFailed, log_in
from polarvault.server.login_hints import connection_failed
from polarvault.server.readable import wait_readable
from polarvault.server.session_settings import (
    later_settings,
    later_statement,
    replication_options,
    startup_options,
)
from polarvault.wire.messages import ResultSet

APPLICATION_NAME = "polarvault"
_CANCEL_TIMEOUT_S = 3.0


class PasswordPolicy(Enum):
    """When to ask for a password: when libpq needs one, never (-w), or at once (-W)."""

    WHEN_NEEDED = "when needed"
    NEVER = "never"
    FORCE = "force"


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How to reach the server; everything not given here comes from libpq's environment and defaults."""

    conninfo: str | None = None
    host: str | None = None
    port: str | None = None
    user: str | None = None
    password_policy: PasswordPolicy = PasswordPolicy.WHEN_NEEDED
    # What the server calls us unless the user has named us. The drop-in commands go by the name of the program that
    # they replace: synchronous_standby_names and monitoring may know it.
    application_name: str = APPLICATION_NAME
    # Asks a person for the password; kept so that the second and third connection do not ask again.
    prompt: Callable[[str], str] | None = field(default=None, repr=False, compare=False)

    def parameters(self) -> dict[str, str]:
        """Return libpq keywords from -d, overridden by -h, -p and -U as pg_basebackup does; none is empty."""
        given = (("host", self.host), ("port", self.port), ("user", self.user))
        return parse_conninfo(self.conninfo or "") | {name: value for name, value in given if value}


class Connector:
    """Open replication and SQL connections to one server; remembers a typed password."""

    def __init__(self, settings: ConnectionSettings, *, on_connected: Callable[[], None] | None = None) -> None:
        self._settings = settings
        # Called once, when a server has let us in for the first time.
        self._on_connected = on_connected
        self._parameters = settings.parameters()
        self._password: str | None = None

    @property
    def given_dbname(self) -> str | None:
        """The database named in the connection string, if any."""
        return self._parameters.get("dbname")

    @property
    def standby_dbname(self) -> str | None:
        """The database that pg_basebackup 17 and later write with -R, which slot synchronisation connects to.

        That of the connection string, or of the environment and the service that it names; not that of a service named
        in the connection string, which pg_basebackup does not look into either.
        """
        return self.given_dbname or default_options().get("dbname")

    @property
    def options(self) -> dict[str, ResolvedOption]:
        """Every option that replication connections have, as they were given: lists of hosts, names, no addresses."""
        return resolved_options(self._parameters)

    @property
    def given(self) -> frozenset[str]:
        """The keywords that the connection string and the options name."""
        return frozenset(self._parameters)

    @property
    def user(self) -> str | None:
        """The role that logs in: given, of the service file, of the environment, or the operating system's name."""
        found = self.options.get("user")
        return found.value if found else None

    @property
    def password(self) -> str | None:
        """The password that somebody has typed, if one was needed."""
        return self._password

    def replication(self) -> Connection:
        """Open a physical replication connection."""
        given = self.options.get("options")
        options = replication_options(given.value if given else None)
        # libpq looks up .pgpass with this dbname; the server ignores it for physical replication.
        wanted = {**self._parameters, "dbname": "replication", "replication": "true", "options": options}
        connection = self._connect(wanted)
        if versions.of_server(connection.server_version_num).reports_hot_standby or not _is_read_only(connection):
            return connection
        # What tells a standby of 13 is that it is read-only, which a default must not hide. Nothing can be set later.
        connection.close()
        return self._connect(
            {**wanted, "options": startup_options({"default_transaction_read_only": "off"}, before=options)}
        )

    def sql(self, dbname: str | None = None) -> Connection:
        """Open an ordinary SQL connection, to the database of the connection string or postgres.

        The session has the settings of `session_settings`, whatever the defaults of server, database and role are.
        """
        chosen = dbname or self.given_dbname or "postgres"
        given = self.options.get("options")
        parameters = {
            **self._parameters, "dbname": chosen, "options": startup_options(before=given.value if given else None)
        }  # fmt: skip
        connection = self._connect(parameters)
        # A lost connection has no version.
        version_num = connection.server_version_num
        if (statement := later_statement(version_num)) is None:
            return connection
        try:
            connection.query(statement)
            is_ended = False
        except ServerError as problem:
            # Settings only: a server that refuses one of them still answers.
            is_ended = problem.severity == "FATAL"
        except ConnectionLost:
            is_ended = True
        if is_ended:
            # One of them, a time-out of a millisecond, has ended the session before. Sent with the login they count at
            # once, but a server that does not know one refuses the login, so that its version has to be known.
            later = later_settings(version_num)
            connection.close()
            connection = self._connect(parameters | {"options": startup_options(later, before=parameters["options"])})
        return connection

    def without_prompt(self) -> Connector:
        """Return a connector that uses the password typed so far, but asks nobody: for threads and services."""
        silent = Connector(replace(self._settings, password_policy=PasswordPolicy.NEVER))
        silent._password = self._password
        return silent

    def _connect(self, parameters: Mapping[str, str]) -> Connection:
        wanted = dict(parameters)
        settings = self._settings
        wanted.setdefault("fallback_application_name", settings.application_name)
        if settings.password_policy is PasswordPolicy.FORCE and self._password is None:
            self._password = self._ask("Password: ")
        while True:
            if self._password is not None:
                wanted["password"] = self._password
            try:
                opened = Connection(psycopg.Connection(log_in(wanted)))
                on_connected, self._on_connected = self._on_connected, None
                if on_connected is not None:
                    on_connected()
                return opened
            except LoginFailed as problem:
                may_ask = settings.password_policy is not PasswordPolicy.NEVER and settings.prompt is not None
                if problem.needs_password and may_ask and self._password is None:
                    self._password = self._ask("Password: ")
                    continue
                raise connection_failed(problem.words, wanted) from None

    def _ask(self, text: str) -> str:
        if self._settings.prompt is None:
            raise UsageError("a password is needed but there is no terminal to ask on", hint="use ~/.pgpass")
        return self._settings.prompt(text)


class Connection:
    """One logged-in connection; owns the libpq object."""

    def __init__(self, opened: psycopg.Connection[tuple[object, ...]]) -> None:
        self._psycopg = opened
        self.pgconn = opened.pgconn
        # psycopg works non-blocking; our transports block or poll on their own terms.
        self.pgconn.nonblocking = 0
        # How long `query` waits for an answer; None: as long as it takes.
        self.answer_timeout_s: float | None = None

    @property
    def server_version_num(self) -> int:
        """The version as in server_version_num: 150008."""
        return self.pgconn.server_version

    @property
    def has_several_hosts(self) -> bool:
        """Tell whether another connection might reach another server: the connection string names several."""
        named = {option.keyword: option.val for option in self.pgconn.info}
        return any(b"," in (named.get(word) or b"") for word in (b"host", b"hostaddr"))

    @property
    def is_encrypted(self) -> bool:
        """Tell whether bytes on the socket are TLS or GSS encrypted, so that only libpq can read them."""
        return bool(self.pgconn.ssl_in_use) or _gss_encrypted(self.pgconn)

    def parameter(self, name: str) -> str | None:
        """Return a ParameterStatus value, such as in_hot_standby."""
        value = self.pgconn.parameter_status(name.encode())
        return value.decode("utf-8", "replace") if value is not None else None

    def query(self, sql: str) -> ResultSet:
        """Run one statement and return its rows; raise ServerError or ConnectionLost."""
        result = self.run(sql)
        # The connection is free for the next statement only when there are no more results; one that was lost has
        # said so in the first.
        with contextlib.suppress(ConnectionLost):
            while next_result(self.pgconn, self.answer_timeout_s) is not None:
                pass
        return result_set(self.pgconn, result)

    def run(self, sql: str) -> pq.abc.PGresult:
        """Run one statement and return its first result, whatever its kind."""
        try:
            self.pgconn.send_query(sql.encode())
        except psycopg.Error:
            raise connection_lost(self.pgconn) from None
        result = next_result(self.pgconn, self.answer_timeout_s)
        if result is None:
            raise connection_lost(self.pgconn)
        return result

    def cancel(self) -> None:
        """Ask the server to give up what this connection is doing.

        Without it the WAL sender of an abandoned backup stays, as long as it waits for a checkpoint, and keeps one of
        the few that max_wal_senders allows (facts 5.3).
        """
        # A courtesy to the server: the failure that made us give up is the one to report.
        with contextlib.suppress(psycopg.Error, OSError):
            self._psycopg.cancel_safe(timeout=_CANCEL_TIMEOUT_S)

    def close(self) -> None:
        """Close; safe to call twice."""
        self._psycopg.close()


def _is_read_only(connection: Connection) -> bool:
    """Tell whether transactions are read-only because somebody has set it so."""
    try:
        return connection.query("SHOW default_transaction_read_only").value(0, 0) == "on"
    except ServerError:
        return False


def _gss_encrypted(pgconn: pq.abc.PGconn) -> bool:
    """Ask the loaded libpq whether GSS encryption is in use, which psycopg does not expose."""
    if pgconn.host.startswith(b"/") or not pgconn.host:
        return False
    try:
        with open("/proc/self/maps") as maps:
            libraries = {line.split()[-1] for line in maps if "/libpq" in line}
    except OSError:
        # A chroot or container without /proc: what may be encrypted is left to libpq, which is right in either case.
        return any(option.keyword == b"gssencmode" and option.val != b"disable" for option in pgconn.info)
    for library in libraries:
        in_use = ctypes.CDLL(library).PQgssEncInUse
        in_use.argtypes = [ctypes.c_void_p]
        if in_use(getattr(pgconn, "pgconn_ptr", None)):
            return True
    # Without the library to ask, a ticket cache is the sign that encryption may have been negotiated.
    return not libraries and "KRB5CCNAME" in os.environ


def next_result(pgconn: pq.abc.PGconn, timeout_s: float | None = None) -> pq.abc.PGresult | None:
    """Return the next result, or None when there are no more; raise ConnectionLost after timeout_s without a byte.

    psycopg's own blocking calls keep the GIL, so that neither the other threads nor a signal would get a turn while the
    server thinks; this waits outside of libpq.
    """
    received = 0
    try:
        while pgconn.is_busy():
            if not wait_readable(pgconn.socket, timeout_s):
                # The kernel would wait for hours: nothing is under way that could be refused.
                raise ConnectionLost(
                    f"lost the connection to the server: nothing has come from it for {timeout_s:g} s",
                    hint="look for what drops packets between here and the server: a firewall, a VPN, a proxy",
                )
            received = count_received(pgconn, received)
            pgconn.consume_input()
        return pgconn.get_result()
    except (psycopg.Error, OSError, ValueError):
        # The socket is gone: libpq's number for it is -1 then.
        raise connection_lost(pgconn) from None


def count_received(pgconn: pq.abc.PGconn, so_far: int) -> int:
    """Add what waits in the socket to what libpq holds already; raise RemoteProtocolError beyond the limit.

    libpq gathers a result, a message and the notices before it as a whole, however long they are.
    """
    waiting = int.from_bytes(fcntl.ioctl(pgconn.socket, termios.FIONREAD, bytes(4)), sys.byteorder)
    if so_far + waiting > limits.LIBPQ_BYTES:
        raise RemoteProtocolError(f"the server's answer does not end: {so_far + waiting} bytes so far")
    return so_far + waiting


def result_set(pgconn: pq.abc.PGconn, result: pq.abc.PGresult) -> ResultSet:
    """Convert a libpq result into rows of text; raise for an error result."""
    if result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY):
        columns = [(result.fname(column) or b"").decode("utf-8", "replace") for column in range(result.nfields)]
        rows = []
        for row in range(result.ntuples):
            values = (result.get_value(row, column) for column in range(result.nfields))
            rows.append(tuple(None if value is None else value.decode("utf-8", "surrogateescape") for value in values))
        return ResultSet(columns, rows)
    raise server_error(pgconn, result)


def server_error(pgconn: pq.abc.PGconn, result: pq.abc.PGresult) -> ServerError | ConnectionLost:
    """Convert a libpq error result; a lost connection has its own type."""
    return _described(result, "ERROR") or connection_lost(pgconn)


def hear_notices(pgconn: pq.abc.PGconn, on_notice: Callable[[ServerError], None]) -> None:
    """Have what the server remarks on this connection passed on."""
    pgconn.notice_handler = lambda result: on_notice(_described(result, "WARNING") or ServerError(""))


def _described(result: pq.abc.PGresult, severity: str) -> ServerError | None:
    def text(field_code: pq.DiagnosticField) -> str | None:
        value = result.error_field(field_code)
        return shown_text(value.decode("utf-8", "replace")) if value else None

    primary = text(pq.DiagnosticField.MESSAGE_PRIMARY)
    if primary is None:
        return None
    return ServerError(
        primary,
        sqlstate=text(pq.DiagnosticField.SQLSTATE) or "",
        severity=text(pq.DiagnosticField.SEVERITY_NONLOCALIZED) or text(pq.DiagnosticField.SEVERITY) or severity,
        detail=text(pq.DiagnosticField.MESSAGE_DETAIL),
        hint=text(pq.DiagnosticField.MESSAGE_HINT),
        routine=text(pq.DiagnosticField.SOURCE_FUNCTION) or "",
    )


def connection_lost(pgconn: pq.abc.PGconn) -> ConnectionLost:
    """Describe a broken connection with libpq's words."""
    words = " ".join(shown_text(pgconn.error_message.decode("utf-8", "replace")).split())
    words = words or "the connection was closed"
    return ConnectionLost(
        f"lost the connection to the server: {words}",
        hint="look into the server's log for the time of the loss, then run the command again",
    )


def is_on_this_machine(connection: Connection) -> bool:
    """Tell whether the server is here: a local socket, or both ends have one address, be it the loopback or not."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as ours:
        return ours.family == socket.AF_UNIX or bool(ours.getsockname()[0] == ours.getpeername()[0])
