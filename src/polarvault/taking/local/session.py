"""The SQL session that holds a backup: pg_backup_start, pg_backup_stop, and whether the server is still the same.

A backup belongs to its session (manual, "Making a Base Backup Using the Low Level API"): the server gives it up when
the session ends, and says so nowhere else. So the session is asked every two seconds, and what it answers is compared
with what it said at the beginning: a server that was restarted or promoted makes no backup of one timeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from polarvault.errors import BackupIncomplete, ConnectionLost, PolarvaultError, RemoteProtocolError, ServerError
from polarvault.model import versions
from polarvault.model.limits import SMALL_FILE_BYTES
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import parse_backup_label
from polarvault.server.connection import Connection, connection_lost, next_result, result_set
from polarvault.server.identity import ServerIdentity
from polarvault.server.readable import wait_readable
from polarvault.wire.messages import ResultSet

_BETWEEN_LOOKS_S = 2.0
_STATE = (
    "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_postmaster_start_time(), "
    "(SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())"
)
# On a standby the backup ends where replay has to get to, on the timeline that it replays (do_pg_backup_stop).
_REPLAYED_TIMELINE = "SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()"
_AGAIN = "the files that were copied are not a backup; run the command again"


@dataclass(frozen=True, slots=True)
class Stopped:
    """What pg_backup_stop returned: where the backup ends, and the two files that belong into it."""

    stop_lsn: Lsn
    label: bytes
    tablespace_map: bytes


class BackupSession:
    """One backup on one SQL session. waits: pg_backup_stop returns only when the WAL has been archived."""

    def __init__(self, sql: Connection, identity: ServerIdentity, *, label: str, fast: bool, waits: bool) -> None:
        self._sql = sql
        self._identity = identity
        self._label = label
        self._fast = fast
        self._waits = waits
        self._is_old = versions.of_server(identity.version_num).has_exclusive_backups
        self._state: tuple[str | None, ...] = ()
        self._looked = 0.0
        self.timeline_id = 0

    @property
    def backend_pid(self) -> int:
        """The server's process for this session."""
        return self._sql.pgconn.backend_pid

    def start(self, while_waiting: Callable[[], None]) -> Lsn:
        """Begin the backup and wait for its checkpoint; while_waiting runs about once a second."""
        fast = "true" if self._fast else "false"
        label = _literal(self._label)
        call = f"pg_start_backup({label}, {fast}, false)" if self._is_old else f"pg_backup_start({label}, {fast})"
        start = self._ask(f"SELECT pg_catalog.{call}", while_waiting).lsn(0, 0, "the start of the backup")
        state = self._query(_STATE)
        self._state, self._looked = state.rows[0], time.monotonic()
        self.timeline_id = state.timeline(0, 2, "the timeline of the backup's start")
        return start

    def check(self) -> None:
        """Raise BackupIncomplete if the session or the server is not what it was; asks at most every two seconds."""
        now = time.monotonic()
        if now - self._looked < _BETWEEN_LOOKS_S:
            return
        self._looked = now
        self._compare()

    def stop(self, start: Lsn, while_waiting: Callable[[], None]) -> Stopped:
        """End the backup; raise BackupIncomplete if the server has changed meanwhile."""
        self._compare()
        waits = "true" if self._waits else "false"
        call = f"pg_stop_backup(false, {waits})" if self._is_old else f"pg_backup_stop({waits})"
        found = self._ask(f"SELECT lsn, labelfile, spcmapfile FROM pg_catalog.{call}", while_waiting)
        self._compare()
        stop = found.lsn(0, 0, "the end of the backup")
        label, tablespace_map = (
            (text or "").encode("utf-8", "surrogateescape") for text in (found.rows[0][1], found.rows[0][2])
        )
        if len(label) + len(tablespace_map) > SMALL_FILE_BYTES:
            raise RemoteProtocolError("the server's backup_label or tablespace_map does not end")
        parsed = parse_backup_label(label, "the backup_label that the server returned")
        if parsed.start_lsn != start or stop < start:
            raise RemoteProtocolError(
                f"the server says that the backup goes from {parsed.start_lsn} to {stop}, and it began at {start}"
            )
        timeline_id = parsed.timeline_id
        if self._identity.in_recovery:
            replayed = self._query(_REPLAYED_TIMELINE).timeline(0, 0, "the timeline that it replays")
            if replayed != timeline_id:
                raise _changed(f"it went on to timeline {replayed} while the backup was taken, from {timeline_id}")
        self.timeline_id = timeline_id
        return Stopped(stop, label, tablespace_map)

    def cancel(self) -> None:
        """Ask the server to give up what it is doing; the backup ends with the session."""
        self._sql.cancel()

    def close(self) -> None:
        """End the session, and with it a backup that was not stopped."""
        self._sql.close()

    def _compare(self) -> None:
        state = self._query(_STATE).rows[0]
        recovery, started, timeline = self._state
        if state[1] != started:
            raise _changed("it was restarted while the backup was taken")
        if state[0] != recovery:
            raise _changed("it was promoted while the backup was taken")
        if state[2] != timeline:
            raise _changed(f"it went on to timeline {state[2]} while the backup was taken, from {timeline}")

    def _query(self, statement: str) -> ResultSet:
        return self._ask(statement, lambda: None)

    def _ask(self, statement: str, while_waiting: Callable[[], None]) -> ResultSet:
        """Run a statement; while_waiting is called about once a second, and may raise."""
        pgconn = self._sql.pgconn
        try:
            pgconn.send_query(statement.encode("utf-8", "surrogateescape"))
            while pgconn.is_busy():
                if wait_readable(pgconn.socket, 1.0):
                    pgconn.consume_input()
                else:
                    while_waiting()
            result = next_result(pgconn)
            if result is None:
                raise connection_lost(pgconn)
            found = result_set(pgconn, result)
            while next_result(pgconn) is not None:
                pass
        except (psycopg.Error, OSError, ValueError):
            raise _lost(connection_lost(pgconn)) from None
        except ConnectionLost as problem:
            raise _lost(problem) from None
        except ServerError as problem:
            if problem.severity == "FATAL":
                raise _lost(problem) from None
            raise
        return found


def _lost(problem: PolarvaultError) -> BackupIncomplete:
    return BackupIncomplete(
        f"the session that held the backup on the server has ended, and the backup with it: {problem.message}",
        hint="look into the server's log for the reason (a restart, a time-out, pg_terminate_backend); " + _AGAIN,
    )


def _changed(what: str) -> BackupIncomplete:
    return BackupIncomplete(f"the server is not what it was when the backup began: {what}", hint=_AGAIN)


def _literal(text: str) -> str:
    """Quote a text for SQL; sessions of ours have standard_conforming_strings on."""
    return "'" + text.replace("'", "''") + "'"
