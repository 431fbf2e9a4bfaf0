"""Start a standby or replica, wait until it streams and has caught up, and say how far behind it is.

Caught up means: what the primary had written when it was asked the time before has been replayed here. On a primary
that goes on writing no standby is ever exactly level, so this is "behind by less than one question".
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from polarvault.errors import PolarvaultError, StartFailed
from polarvault.instance.lock_file import read_lock_file, server_address
from polarvault.instance.log_files import read_log
from polarvault.instance.model import Account, Binaries
from polarvault.instance.session import connect_server
from polarvault.instance.start import (
    StartedServer,
    ask_server,
    describe_from_files,
    is_gone,
    launch,
    log_end,
    log_files,
    log_root,
    newest_log,
)
from polarvault.instance.walreceiver_log import Diagnosis, diagnose
from polarvault.model.lsn import Lsn
from polarvault.restore.model import RestorePlan
from polarvault.restore.standby.follow_checks import supplies_wal
from polarvault.restore.standby.primary import SlotState, ask_slot, ask_slots, connector_to
from polarvault.server.connection import Connection

# How long pg_ctl may wait for the first connection; after that the log is looked at, which tells why it takes long.
_LAUNCH_WAIT_S = 5.0
_POLL_S = 0.5
_LOG_BYTES = 1 << 20
_STATE_QUERY = (
    "SELECT r.status, r.sender_host, r.sender_port, r.latest_end_lsn, pg_last_wal_receive_lsn(),"
    " pg_last_wal_replay_lsn(), extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"
    " FROM (SELECT 1) one LEFT JOIN pg_stat_wal_receiver r ON true"
)
_DATABASES_QUERY = "SELECT string_agg(oid || ' ' || datname, ', ' ORDER BY oid) FROM pg_database"


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowState:
    """Where a standby is; status is the WAL receiver's, None while there is none."""

    status: str | None
    sender: str | None
    receive_lsn: Lsn | None
    replay_lsn: Lsn | None
    primary_lsn: Lsn | None
    since_last_transaction_s: float | None
    caught_up: bool = False

    @property
    def is_streaming(self) -> bool:
        """Tell whether WAL comes over the connection."""
        return self.status == "streaming"

    @property
    def lag_bytes(self) -> int | None:
        """How much of what the primary has written is not replayed here."""
        if self.primary_lsn is None or self.replay_lsn is None:
            return None
        return max(0, self.primary_lsn - self.replay_lsn)

    @property
    def lag_s(self) -> float | None:
        """How old the last replayed transaction is; zero when nothing is missing. Clocks of two machines may differ."""
        return 0.0 if self.lag_bytes == 0 else self.since_last_transaction_s


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowReport:
    """How a started standby follows; databases is how many both sides show alike, None where that was not asked."""

    state: FollowState
    slot: SlotState | None
    databases: int | None = None


Show = Callable[[FollowState], None]


def start_following(
    plan: RestorePlan, binaries: Binaries, account: Account, show: Show
) -> tuple[StartedServer, FollowReport | None]:
    """Start the server and wait until it has caught up, at most `--timeout`; raise StartFailed when it cannot stream.

    The report is None when the server did not let us log in to ask.
    """
    deadline = time.monotonic() + plan.request.timeout_s
    log = _NewLog(plan)
    log_path, _ = launch(plan.instance, binaries, account, wait_s=min(_LAUNCH_WAIT_S, plan.request.timeout_s))
    host, port = server_address(plan.layout.local)
    try:
        state = _Watch(plan, account, log, show).until_caught_up(host, port, deadline)
        server = ask_server(plan.instance, account, host, port, log_path)
    except psycopg.Error as refused:
        if is_gone(plan.instance):
            raise _stopped(plan, log_path) from refused
        return describe_from_files(plan.instance, host, port, log_path, str(refused).strip()), None
    return server, _report(plan, account, server, state)


class _NewLog:
    """What the server's log files have got since this object was made."""

    def __init__(self, plan: RestorePlan) -> None:
        self._plan = plan
        # The backup may have brought the source's own log files along.
        self._sizes = {path: os.lstat(path).st_size for path in log_files(plan.instance)}

    def text(self) -> str:
        """Return the new lines, at most the last megabyte of each file."""
        found = []
        for path in log_files(self._plan.instance):
            with suppress(OSError):
                root = log_root(self._plan.instance, path)
                content = read_log(root, path, start=self._sizes.get(path, 0), most_bytes=_LOG_BYTES)
                found.append(content.decode("utf-8", "replace"))
        return "\n".join(found)


class _Watch:
    """The loop that asks standby and primary in turn."""

    def __init__(self, plan: RestorePlan, account: Account, log: _NewLog, show: Show) -> None:
        self._plan = plan
        self._account = account
        self._log = log
        self._show = show
        self._primary: Connection | None = None
        self._primary_lsn: Lsn | None = None

    def until_caught_up(self, host: str, port: int, deadline: float) -> FollowState:
        """Return the last state, caught up or not; raise StartFailed when no WAL streams and none will."""
        try:
            while True:
                state = self._look(host, port)
                if state is not None:
                    self._show(state)
                    if state.caught_up:
                        return state
                streams = state is not None and state.is_streaming
                late = time.monotonic() > deadline
                if not streams:
                    self._raise_if_hopeless(late=late)
                if late and state is not None:
                    return state
                # Neither server tells when replay has moved; there is nothing to wait on but the next answer.
                time.sleep(_POLL_S)
        finally:
            if self._primary is not None:
                self._primary.close()

    def _look(self, host: str, port: int) -> FollowState | None:
        """Ask once; None while the standby does not take connections yet."""
        try:
            with connect_server(self._plan.instance, self._account, host, port) as connection:
                row = connection.execute(_STATE_QUERY.encode()).fetchone()
        except psycopg.OperationalError:
            lock = read_lock_file(self._plan.layout.local)
            is_ready = lock is not None and lock.status is not None and lock.status.takes_connections
            if is_gone(self._plan.instance) or is_ready:
                raise
            return None
        assert row is not None
        # The primary second: what it writes in between counts as lag, never as negative lag.
        before, self._primary_lsn = self._primary_lsn, self._ask_primary()
        state = _state(row, self._primary_lsn)
        level = before is not None and state.replay_lsn is not None and state.replay_lsn >= before
        return replace(state, caught_up=state.is_streaming and level)

    def _ask_primary(self) -> Lsn | None:
        assert self._plan.primary is not None
        try:
            if self._primary is None:
                self._primary = connector_to(self._plan.primary.conninfo).replication()
            return Lsn.parse(self._primary.query("IDENTIFY_SYSTEM").value(0, 2))
        except PolarvaultError:
            # No WAL sender is free, or the primary restarts: the standby's own word has to do until the next time.
            if self._primary is not None:
                self._primary.close()
                self._primary = None
            return None

    def _raise_if_hopeless(self, *, late: bool) -> None:
        found = diagnose(self._log.text())
        archive = supplies_wal(self._plan.request)
        # With an archive the standby takes turns: what the primary has removed may come from there.
        in_vain = found is not None and found.permanent and not (archive and "already been removed" in found.reason)
        if in_vain or late:
            raise self._not_streaming(found)

    def _not_streaming(self, found: Diagnosis | None) -> StartFailed:
        local, instance = self._plan.layout.local, self._plan.instance
        reason = found.reason if found else f"nothing came within {self._plan.request.timeout_s:g} s"
        hint = f"{found.hint}. " if found else ""
        return StartFailed(
            f'the {self._plan.request.role.value} in "{local}" does not stream: {reason}',
            hint=f"{hint}It keeps running and tries again every few seconds; its log: {newest_log(instance, '')}",
            detail=None if found else log_end(instance, ""),
        )


def _state(row: tuple[Any, ...], primary_lsn: Lsn | None) -> FollowState:
    status, sender_host, sender_port, latest_end, received, replayed, since = row
    return FollowState(
        status=status,
        sender=f"{sender_host}:{sender_port}" if sender_host else None,
        receive_lsn=Lsn.parse(received) if received else None,
        replay_lsn=Lsn.parse(replayed) if replayed else None,
        primary_lsn=primary_lsn or (Lsn.parse(latest_end) if latest_end else None),
        since_last_transaction_s=since,
    )


def _stopped(plan: RestorePlan, log_path: str) -> StartFailed:
    return StartFailed(
        f'the restored server in "{plan.layout.local}" stopped again',
        hint=f"the restored files are left in place; the whole log: {newest_log(plan.instance, log_path)}",
        detail=log_end(plan.instance, log_path),
    )


def _report(plan: RestorePlan, account: Account, server: StartedServer, state: FollowState) -> FollowReport:
    assert plan.primary is not None
    slot, databases = None, None
    # What is missing in the report is missing; the server follows, which is what counts.
    with suppress(PolarvaultError):
        slot = _slot(plan)
    if plan.layout.live_datadir is not None:
        with suppress(PolarvaultError, psycopg.Error):
            databases = _common_databases(plan, account, server)
    return FollowReport(state=state, slot=slot, databases=databases)


def _slot(plan: RestorePlan) -> SlotState | None:
    assert plan.primary is not None
    name = plan.request.slot
    if name is None:
        return None
    connector = connector_to(plan.primary.conninfo)
    slots = ask_slots(connector)
    if slots is not None:
        return next((slot for slot in slots if slot.name == name), None)
    connection = connector.replication()
    try:
        return ask_slot(connection, name)
    finally:
        connection.close()


def _common_databases(plan: RestorePlan, account: Account, server: StartedServer) -> int:
    assert plan.primary is not None
    connection = connector_to(plan.primary.conninfo).sql()
    try:
        theirs = connection.query(_DATABASES_QUERY).value(0, 0)
    finally:
        connection.close()
    with connect_server(plan.instance, account, server.host, server.port) as own:
        row = own.execute(_DATABASES_QUERY.encode()).fetchone()
    ours = row[0] if row else ""
    if ours != theirs:
        raise StartFailed(
            f"the replica shows other databases than the primary: {ours} here, {theirs} there",
            hint=f"stop it and look at polar_datadir: pg_ctl -D {shlex.quote(plan.layout.local)} stop",
        )
    return len(theirs.split(", "))
