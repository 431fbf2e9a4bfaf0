"""Start a restored server, wait until it answers, and say what it is."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polarvault.errors import PolarvaultError, StartFailed
from polarvault.instance.data_files import read_control, wal_names
from polarvault.instance.lock_file import is_running, read_lock_file, server_address
from polarvault.instance.log_files import last_lines_of, log_size, read_log
from polarvault.instance.model import Account, Binaries, Instance, Role
from polarvault.instance.programs import run_program
from polarvault.instance.session import ask_value, connect_server
from polarvault.pgfiles.control import parse_control
from polarvault.wal.names import is_history_name

if TYPE_CHECKING:
    import psycopg

LOG_NAME = "polarvault-start.log"
_LOG_LINES = 15
_LOG_BYTES = 20_000
_POLL_S = 0.2
# pg_ctlcluster waits for pg_ctl (60 s), then as long again for the socket and for a session.
_DEBIAN_WAIT_S = 180.0
# How long a server may take to its first file or its first word, on a machine that has no time for it.
_FIRST_SIGN_S = 30.0
# The extension polar_monitor exists for each database, in any schema; its name comes quoted.
_MONITOR_SCHEMA = "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'polar_monitor'"


@dataclass(frozen=True, slots=True)
class StartedServer:
    """What the running server says; None where it would not let us log in."""

    host: str
    port: int
    version: str | None
    in_recovery: bool | None
    node_type: str | None
    lsn: str | None
    timeline_id: int
    log_path: str
    note: str | None = None


def start_server(instance: Instance, binaries: Binaries, account: Account) -> StartedServer:
    """Start the server and wait for its role; raise StartFailed with the end of its log, files left in place."""
    local, timeout_s = instance.data_directory, instance.timeout_s
    deadline = time.monotonic() + timeout_s
    log_path, ready = launch(instance, binaries, account, wait_s=timeout_s)
    if not ready:
        raise not_ready(instance, log_path)
    host, port = server_address(local)
    return _wait_for_role(instance, account, host, port, log_path, deadline)


def launch(instance: Instance, binaries: Binaries, account: Account, *, wait_s: float) -> tuple[str, bool]:
    """Start the server; return its log and whether it took connections within wait_s. Raise StartFailed if it ended."""
    local = instance.data_directory
    log_path = os.path.join(local, LOG_NAME)
    # A fraction of a second would round to no wait at all, which pg_ctl takes for its own default.
    seconds = max(1, int(wait_s))
    arguments = [binaries.program("pg_ctl"), "-D", local, "-l", log_path, "-w", "-t", str(seconds), "start"]
    arguments = [*instance.start_through, *arguments]
    limit_s, keeps_user = wait_s + 60, bool(instance.start_through)
    if instance.debian is not None:
        # It waits in its own way, and as root hands over to systemd where that is in charge.
        arguments, log_path = instance.debian.command("start"), instance.debian.log_path
        limit_s, keeps_user = max(wait_s, _DEBIAN_WAIT_S) + 60, True
    began = time.monotonic()
    try:
        outcome = run_program(arguments, account, timeout_s=limit_s, keeps_user=keeps_user)
    except FileNotFoundError as problem:
        raise StartFailed(
            f'{arguments[0]} was not found, which starts the cluster {instance.debian} of "{local}"',
            hint="install postgresql-common, or start the server in your own way; the restored files are left in place",
        ) from problem
    except subprocess.TimeoutExpired:
        raise not_ready(instance, log_path) from None
    if outcome.returncode != 0 and time.monotonic() - began >= seconds:
        _wait_for_first_sign(instance, log_path)
    if outcome.returncode != 0 and is_gone(instance):
        raise StartFailed(
            f'the restored server in "{local}" did not start',
            hint=f"the restored files are left in place; the whole log: {newest_log(instance, log_path)}",
            detail=log_end(instance, log_path),
        )
    return log_path, outcome.returncode == 0


def _wait_for_first_sign(instance: Instance, log_path: str) -> None:
    """Wait for postmaster.pid or a line in the log, after pg_ctl has waited in vain: is it gone, or has it not come?

    A server that fails says why; one that runs has written the file before its first line (server: postmaster.c).
    """
    deadline = time.monotonic() + _FIRST_SIGN_S
    while is_gone(instance) and time.monotonic() < deadline:
        if os.path.exists(log_path) and os.path.getsize(log_path):
            return
        # There is nothing to wait on but the next look.
        time.sleep(_POLL_S)


def is_gone(instance: Instance) -> bool:
    """Tell whether no server runs on the restored directory any more."""
    return not is_running(instance.data_directory)


def _wait_for_role(
    instance: Instance, account: Account, host: str, port: int, log_path: str, deadline: float
) -> StartedServer:
    import psycopg

    while True:
        try:
            server = ask_server(instance, account, host, port, log_path)
            if instance.role is not Role.PRIMARY or not server.in_recovery:
                check_timeline(instance, server)
                return server
        except psycopg.Error as refused:
            if is_gone(instance):
                raise StartFailed(
                    f'the restored server in "{instance.data_directory}" stopped again',
                    hint=f"the restored files are left in place; the whole log: {newest_log(instance, log_path)}",
                    detail=log_end(instance, log_path),
                ) from refused
            lock = read_lock_file(instance.data_directory)
            # What refuses us while it takes connections is pg_hba.conf, a password, or damage in its catalogs.
            if lock is not None and lock.status is not None and lock.status.takes_connections:
                return describe_from_files(instance, host, port, log_path, str(refused).strip())
        if time.monotonic() > deadline:
            raise not_ready(instance, log_path)
        # Recovery takes as long as it takes; there is nothing to wait on but the next answer.
        time.sleep(_POLL_S)


def ask_server(instance: Instance, account: Account, host: str, port: int, log_path: str) -> StartedServer:
    """Log in and ask what the server is; raise psycopg.Error while it does not let us in or cannot answer."""
    with connect_server(instance, account, host, port) as connection:
        in_recovery = bool(ask_value(connection, "SELECT pg_is_in_recovery()"))
        if in_recovery:
            lsn = ask_value(connection, "SELECT pg_last_wal_replay_lsn()")
            timeline = int(ask_value(connection, "SELECT timeline_id FROM pg_control_checkpoint()"))
        else:
            lsn = ask_value(connection, "SELECT pg_current_wal_lsn()")
            # The name of the segment being written carries the timeline; pg_control may lag behind it.
            timeline = int(ask_value(connection, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"), 16)
        version = ask_value(connection, "SELECT version()")
        node_type = _node_type(connection, instance, in_recovery=in_recovery)
    return StartedServer(
        host, port, str(version).split(" on ")[0], in_recovery, node_type, str(lsn), timeline, log_path
    )


def _node_type(connection: psycopg.Connection[Any], instance: Instance, *, in_recovery: bool) -> str:
    schema = ask_value(connection, _MONITOR_SCHEMA) if instance.is_polardb else None
    if schema is not None:
        return str(ask_value(connection, f"SELECT {schema}.polar_node_type()"))
    # Without the extension polar_monitor no SQL tells a replica from a standby; its signal file does.
    if instance.role is Role.REPLICA and in_recovery and os.path.exists(instance.signal_path):
        return "replica"
    return "standby" if in_recovery else "primary"


def check_timeline(instance: Instance, server: StartedServer) -> None:
    """Raise StartFailed when a primary goes on on its source's timeline."""
    if instance.role is Role.PRIMARY and server.timeline_id <= instance.source_timeline_id:
        raise StartFailed(
            f"the restored server writes timeline {server.timeline_id}, the source's own",
            hint=f"stop it before it archives anything: pg_ctl -D {shlex.quote(instance.data_directory)} stop",
        )


@contextmanager
def naming_the_server(instance: Instance) -> Iterator[None]:
    """Let no failure behind a start hide that the server runs: name it, and how it is stopped, as StartFailed."""
    import psycopg

    try:
        yield
    except StartFailed:
        raise
    except (PolarvaultError, psycopg.Error, OSError, ValueError) as problem:
        if is_gone(instance):
            raise
        message = problem.message if isinstance(problem, PolarvaultError) else " ".join(str(problem).split())
        raise StartFailed(
            f'the restored server in "{instance.data_directory}" was started, and is running, but what it is could '
            f"not be found out: {message}",
            hint=f"look into its log, or stop it: pg_ctl -D {shlex.quote(instance.data_directory)} stop",
        ) from problem


def describe_from_files(instance: Instance, host: str, port: int, log_path: str, why: str) -> StartedServer:
    """Say what the files tell of a server that does not let us log in."""
    control = parse_control(read_control(instance))
    # A signal file goes away when recovery ends.
    in_recovery = os.path.exists(instance.signal_path)
    timeline_id = control.timeline_id
    if not in_recovery:
        # pg_control's follows with the next checkpoint; the history file is there before it says "in production".
        timeline_id = max([timeline_id, *_histories(instance)])
    note = f"the server is up, but did not let us log in to ask more: {why}"
    return StartedServer(host, port, None, in_recovery, None, str(control.checkpoint_lsn), timeline_id, log_path, note)


def _histories(instance: Instance) -> list[int]:
    """Return the timelines of which the server has a history file."""
    return [int(name[:8], 16) for name in wal_names(instance) if is_history_name(name)]


def not_ready(instance: Instance, log_path: str) -> StartFailed:
    """Return the error for a server that takes longer than the request allows."""
    return StartFailed(
        f'the restored server in "{instance.data_directory}" was not ready after {instance.timeout_s:g} s',
        hint="it is still running and may still be in recovery: watch its log "
        f"({newest_log(instance, log_path)}), or give --timeout a larger number next time",
        detail=log_end(instance, log_path),
    )


def log_files(instance: Instance) -> list[str]:
    """Return every file that may be the server's log: with logging_collector on it is not pg_ctl's."""
    candidates = [os.path.join(instance.data_directory, LOG_NAME)]
    if instance.debian is not None:
        candidates.append(instance.debian.log_path)
    directory = os.path.join(instance.data_directory, "log")
    if os.path.isdir(directory):
        candidates += [os.path.join(directory, name) for name in os.listdir(directory)]
    return [path for path in candidates if log_size(log_root(instance, path), path) is not None]


def log_root(instance: Instance, path: str) -> str:
    """Return the directory below which a log is opened, links on the way refused."""
    inside = path.startswith(instance.data_directory + os.sep)
    return instance.data_directory if inside else os.path.dirname(path)


def newest_log(instance: Instance, log_path: str) -> str:
    """Return the log that was written to last."""
    written = [path for path in log_files(instance) if log_size(log_root(instance, path), path)]
    return max(written, key=lambda path: os.lstat(path).st_mtime, default=log_path)


def log_end(instance: Instance, log_path: str) -> str:
    """Return the last lines of the newest log, or why it cannot be read."""
    try:
        path = newest_log(instance, log_path)
        return last_lines_of(read_log(log_root(instance, path), path, most_bytes=_LOG_BYTES), _LOG_LINES)
    except OSError as problem:
        return f"the log could not be read: {problem.strerror}"
