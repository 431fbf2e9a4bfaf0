"""The server that a standby or replica is to follow: asked before anything is written. Asking changes nothing there.

Everything but the state of slots is asked on a replication connection, the kind that the restored server will make, so
that an answer proves address, password, pg_hba.conf and the REPLICATION right at once. Slots need SQL, which
pg_hba.conf may refuse; what could not be asked is None.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg import pq

from polarvault.errors import ConnectionFailed, PolarvaultError, ServerError
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.server.connection import (
    Connection,
    ConnectionSettings,
    Connector,
    PasswordPolicy,
    connection_lost,
    next_result,
    server_error,
)
from polarvault.server.conninfo import format_conninfo
from polarvault.server.identity import ServerIdentity, read_identity, show
from polarvault.server.readable import wait_readable
from polarvault.wal.history import TimelineHistory
from polarvault.wire.commands import quote_identifier, start_replication_command

# Hot standby refuses to start, or pauses, when it has less of these than the primary (manual, 26.4.3).
HOT_STANDBY_MINIMUMS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
_POLAR_SETTINGS = ("polar_logindex_mem_size", "polar_hostid", "data_directory")
_CONNECT_TIMEOUT_S = 10
_FIRST_WAL_TIMEOUT_S = 10.0
# Set by the WAL receiver itself, or without meaning there.
_NOT_FOR_STANDBYS = ("replication", "fallback_application_name")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """A replication slot; active_pid is None for an idle one, wal_status None where SQL could not be asked."""

    name: str
    kind: str
    active_pid: int | None
    restart_lsn: Lsn | None
    wal_status: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """What the server to follow says of itself; conninfo is complete, as the standby gets it."""

    conninfo: str
    identity: ServerIdentity
    history: TimelineHistory | None
    settings: Mapping[str, str]
    slots: tuple[SlotState, ...] | None
    password_from_elsewhere: bool

    def slot(self, name: str) -> SlotState | None:
        """Return a slot of a name; None when there is none or slots could not be asked."""
        return next((slot for slot in self.slots or () if slot.name == name), None)


def connector_to(conninfo: str) -> Connector:
    """Return what opens connections as a server would: nobody can be asked for a password."""
    parameters = ConnectionSettings(conninfo).parameters()
    parameters = {name: value for name, value in parameters.items() if name not in _NOT_FOR_STANDBYS}
    parameters.setdefault("connect_timeout", str(_CONNECT_TIMEOUT_S))
    return Connector(ConnectionSettings(format_conninfo(parameters), password_policy=PasswordPolicy.NEVER))


def ask_primary(given: str, *, application_name: str, user: str) -> Primary:
    """Connect and ask; raise ConnectionFailed with the next step. `user` is who will run the restored server."""
    parameters = ConnectionSettings(given).parameters()
    connector = connector_to(given)
    connection = _connect(connector, user)
    try:
        identity = read_identity(connection)
        settings = {name: show(connection, name) for name in HOT_STANDBY_MINIMUMS}
        if identity.polar_version:
            settings |= {name: show(connection, name) for name in _POLAR_SETTINGS}
        has_secret = bool({"password", "passfile", "service"} & parameters.keys())
        return Primary(
            conninfo=_complete(parameters, connection, application_name),
            identity=identity,
            history=_history(connection, identity.timeline_id),
            settings={name: value for name, value in settings.items() if value is not None},
            slots=ask_slots(connector),
            password_from_elsewhere=bool(connection.pgconn.used_password) and not has_secret,
        )
    finally:
        connection.close()


def _connect(connector: Connector, user: str) -> Connection:
    try:
        return connector.replication()
    except ConnectionFailed as problem:
        hint = problem.hint
        if "Connection refused" in problem.message or "No such file" in problem.message:
            hint = (
                "start the primary, or correct --primary-conninfo; to restore without asking it use "
                "--set primary_conninfo=CONNSTR"
            )
        if "password" in problem.message:
            hint = (
                "put a password or passfile into --primary-conninfo, or a line with the database replication into "
                f"~/.pgpass of user {user}, who will run the restored server"
            )
        raise ConnectionFailed(
            f"the primary cannot be used: {problem.message}; nothing was written",
            hint=hint or "correct --primary-conninfo",
        ) from problem


def _complete(given: Mapping[str, str], connection: Connection, application_name: str) -> str:
    """Write down what the environment or a default decided for us: the server's environment is another one."""
    words = {name: value for name, value in given.items() if name not in _NOT_FOR_STANDBYS}
    pgconn = connection.pgconn
    if "service" not in words:
        if not {"host", "hostaddr"} & words.keys():
            words["host"] = pgconn.host.decode()
        words.setdefault("port", pgconn.port.decode())
        words.setdefault("user", pgconn.user.decode())
    words.setdefault("application_name", application_name)
    return format_conninfo(words)


def _history(connection: Connection, timeline_id: int) -> TimelineHistory | None:
    if timeline_id == 1:
        return TimelineHistory(1)
    try:
        content = connection.query(f"TIMELINE_HISTORY {timeline_id}").value(0, 1)
    except ServerError:
        # The file may have been removed; the server then finds out by itself.
        return None
    return TimelineHistory.parse(content.encode("utf-8", "surrogateescape"), timeline_id)


def ask_slots(connector: Connector) -> tuple[SlotState, ...] | None:
    """Return every replication slot, or None where SQL is refused."""
    try:
        connection = connector.sql()
    except PolarvaultError:
        return None
    try:
        rows = connection.query(
            "SELECT slot_name, slot_type, active_pid, restart_lsn, wal_status FROM pg_replication_slots ORDER BY 1"
        ).rows
    except PolarvaultError:
        return None
    finally:
        connection.close()
    return tuple(
        SlotState(
            name=str(name),
            kind=str(kind),
            active_pid=int(pid) if pid else None,
            restart_lsn=Lsn.parse(restart) if restart else None,
            wal_status=status,
        )
        for name, kind, pid, restart, status in rows
    )


def ask_slot(connection: Connection, name: str) -> SlotState | None:
    """Ask for one slot on a replication connection (PostgreSQL 15 and later); None when there is none or no answer."""
    if not versions.of_server(connection.server_version_num).takes_option_lists:
        return None
    try:
        rows = connection.query(f"READ_REPLICATION_SLOT {quote_identifier(name)}").rows
    except ServerError:
        return None
    if not rows or rows[0][0] is None:
        return None
    kind, restart = str(rows[0][0]), rows[0][1]
    return SlotState(
        name=name, kind=kind, active_pid=None, restart_lsn=Lsn.parse(restart) if restart else None, wal_status=None
    )


def why_wal_is_missing(conninfo: str, lsn: Lsn, timeline_id: int) -> str | None:
    """Ask the primary for WAL as the standby will, without a slot; return its refusal, or None when WAL comes.

    The server opens the segment only when it streams, so nothing but starting a stream tells whether it is there.
    """
    connection = connector_to(conninfo).replication()
    try:
        result = connection.run(start_replication_command(str(lsn), timeline_id, slot=None))
        if result.status != pq.ExecStatus.COPY_BOTH:
            return _words(server_error(connection.pgconn, result))
        return _first_refusal(connection)
    finally:
        connection.close()


def _first_refusal(connection: Connection) -> str | None:
    pgconn = connection.pgconn
    deadline = time.monotonic() + _FIRST_WAL_TIMEOUT_S
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            length, content = pgconn.get_copy_data(1)
            if length == 0:
                if wait_readable(pgconn.socket, remaining):
                    pgconn.consume_input()
                continue
        except psycopg.Error:
            raise connection_lost(pgconn) from None
        if length < 0:
            result = next_result(pgconn)
            return _words(server_error(pgconn, result)) if result is not None else None
        if bytes(content[:1]) == b"w":
            return None
    return None


def _words(error: PolarvaultError) -> str:
    return error.message
