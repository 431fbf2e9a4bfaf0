"""Lay a copy out in its place, and start one that is never promoted: a standby that follows nobody."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg

from polarvault.clones.cutting import cut_off
from polarvault.drill.place.confined import ConfinedThing
from polarvault.drill.place.isolation import HBA
from polarvault.errors import StartFailed
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.instance.model import Instance, Role
from polarvault.instance.session import ask_value, connect_server
from polarvault.instance.start import StartedServer, log_end, not_ready, start_server
from polarvault.model.lsn import Lsn
from polarvault.recovery.target import TargetKind
from polarvault.recovery.watch import RecoveryOutcome, Watch, start_and_recover
from polarvault.restore.model import RestorePlan
from polarvault.restore.run import write_files
from polarvault.storage.files import write_durably

_POLL_S = 0.1
_IDLE_LOOKS = 10
_WAITS_FOR_WAL = """
    SELECT coalesce(bool_or(wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')), false)
      FROM pg_stat_activity WHERE backend_type = 'startup'
"""


def standby_signal(plan: RestorePlan) -> str:
    """Return the file that makes the copy a standby; it takes the place of the plan's own signal file."""
    return os.path.join(plan.layout.local, Role.STANDBY.signal_file)


def lay_out_confined(
    plan: RestorePlan, place: ConfinedThing[Any], host: Host, progress: Callable[[int], None]
) -> tuple[RestorePlan, list[str]]:
    """Lay a copy out, with its own files for who may log in, and cut every way to its source; return warnings."""
    with working_as_account(plan.account):
        os.mkdir(place.socket_directory, 0o700)
        for path, content in ((place.hba_file, HBA), (place.ident_file, b"")):
            write_durably(path, content, sync=False)
    plan, warnings = write_files(plan, host, progress)
    with working_as_account(plan.account):
        cut_off(place.run, plan.layout.local, plan.layout.shared)
    return plan, warnings


def start_as_standby(plan: RestorePlan, watch: Watch) -> tuple[Instance, StartedServer, RecoveryOutcome | None]:
    """Start the server and wait until it has got to its target, where it pauses, or to the end of the WAL.

    The outcome is None at the end of the WAL, where it goes on waiting. Raises StartFailed.
    """
    assert plan.binaries is not None
    assert plan.recovery is not None
    instance = replace(plan.instance, role=Role.STANDBY, signal_path=standby_signal(plan))
    if plan.recovery.target.kind is TargetKind.LATEST:
        server = start_server(instance, plan.binaries, plan.account)
        wait_for_the_end(instance, plan, server)
        return instance, server, None
    started, outcome = start_and_recover(instance, plan.recovery, plan.binaries, plan.account, watch)
    if started is None:
        raise StartFailed("the copy's server shut down at its target")
    return instance, started, outcome


def wait_for_the_end(instance: Instance, plan: RestorePlan, server: StartedServer) -> None:
    """Wait until a server that goes on waiting for WAL has replayed what there is; raise StartFailed."""
    end = plan.recovery.end_lsn if plan.recovery else None
    try:
        with connect_server(instance, plan.account, server.host, server.port) as connection:
            _wait(connection, end, instance, server)
    except psycopg.Error as problem:
        raise StartFailed(
            f'the server in "{instance.data_directory}" ended before it had replayed the WAL',
            hint="remove the cause that the end of its log names, and try again",
            detail=log_end(instance, server.log_path),
        ) from problem


def _wait(connection: psycopg.Connection[Any], end: Lsn | None, instance: Instance, server: StartedServer) -> None:
    deadline = time.monotonic() + instance.timeout_s
    idle = 0
    while True:
        lsn = Lsn.parse(str(ask_value(connection, "SELECT pg_last_wal_replay_lsn()")))
        # An end that is not known, or a record less of it: it waits for WAL again and again.
        waits = ask_value(connection, _WAITS_FOR_WAL)
        idle = idle + 1 if waits else 0
        if (end is not None and lsn >= end) or idle >= _IDLE_LOOKS:
            return
        if time.monotonic() > deadline:
            raise not_ready(instance, server.log_path)
        # Replay takes as long as it takes; there is nothing to wait on but the next answer.
        time.sleep(_POLL_S)
