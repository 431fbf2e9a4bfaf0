"""Start a server that recovers to a target, watch its replay, and say where it stopped.

What the server says of itself comes first: SQL once it lets us in, then the history file of its new timeline. Before
it is consistent, or if it never lets us in, the title of its startup process names the segment being replayed, and the
log tells the rest; a log in another language than English then tells less.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from polarvault.errors import IntegrityError, StartFailed, StorageFailed
from polarvault.instance.data_files import read_control, read_wal_file
from polarvault.instance.lock_file import read_lock_file, server_address
from polarvault.instance.model import Account, Binaries, Instance
from polarvault.instance.session import ask_value, connect_server
from polarvault.instance.start import (
    StartedServer,
    ask_server,
    check_timeline,
    describe_from_files,
    is_gone,
    launch,
    not_ready,
)
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.control import ClusterState, parse_control
from polarvault.recovery.log import RecoveryLog
from polarvault.recovery.reachability import RecoveryPlan
from polarvault.recovery.target import TargetAction
from polarvault.wal.history import TimelineHistory
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, SHORT_HEADER_BYTES

if TYPE_CHECKING:
    import psycopg

_POLL_S = 0.2
# pg_ctl only has to see that the server lives; from then on it is watched here.
_LAUNCH_WAIT_S = 1.0
_TITLE_SEGMENT = re.compile(rb"recovering ([0-9A-F]{24})")


@dataclass(frozen=True, slots=True)
class ReplayState:
    """How far replay has come: LSN up to which WAL is applied, time of the last transaction, where known."""

    lsn: Lsn | None
    time: datetime | None
    start_lsn: Lsn | None
    end_lsn: Lsn | None


@dataclass(frozen=True, slots=True)
class RecoveryOutcome:
    """How a recovery ended. ended: paused, promoted or shut down; reason: the server's own words, where it left any.

    lsn: up to which WAL is applied; time: of the last transaction that is.
    """

    ended: TargetAction
    lsn: Lsn | None
    time: datetime | None
    reason: str | None
    timeline_id: int | None


Watch = Callable[[ReplayState], None]


@dataclass(frozen=True, slots=True)
class _Observed:
    in_recovery: bool
    paused: bool
    lsn: Lsn | None
    time: datetime | None


def start_and_recover(
    instance: Instance, plan: RecoveryPlan, binaries: Binaries, account: Account, watch: Watch
) -> tuple[StartedServer | None, RecoveryOutcome]:
    """Start the server, wait until recovery has ended as its target says, and return both; watch is called meanwhile.

    The server is None when the target's action was to shut down. Raises StartFailed, files left in place, with the end
    of the log when recovery failed, and when it took longer than the request's timeout.
    """
    deadline = time.monotonic() + instance.timeout_s
    log = RecoveryLog(instance)
    log_path = ""
    before = read_control(instance)
    try:
        log_path, _ = launch(instance, binaries, account, wait_s=_LAUNCH_WAIT_S)
        watcher = _Watcher(instance, plan, account, log, log_path)
        while True:
            if is_gone(instance):
                return None, _shut_down(instance, plan, log, before)
            ended = watcher.look(watch)
            if ended is not None:
                return ended
            if time.monotonic() > deadline:
                raise not_ready(instance, log_path)
            # Replay takes as long as it takes; there is nothing to wait on but the next answer.
            time.sleep(_POLL_S)
    except StartFailed as problem:
        # A quick recovery can be over before pg_ctl has looked for the first time.
        if log_path or not is_gone(instance) or not _has_shut_down(instance, plan, log, before):
            raise _explained(problem, log) from problem
        return None, _shut_down(instance, plan, log, before)


class _Watcher:
    """Looks at the server again and again; keeps a connection as long as it lasts."""

    def __init__(
        self, instance: Instance, plan: RecoveryPlan, account: Account, log: RecoveryLog, log_path: str
    ) -> None:
        self._instance = instance
        self._plan = plan
        self._account = account
        self._log = log
        self._log_path = log_path
        self._connection: psycopg.Connection[Any] | None = None
        self._last: _Observed | None = None

    def look(self, watch: Watch) -> tuple[StartedServer, RecoveryOutcome] | None:
        """Return server and outcome when recovery has ended with a running server; otherwise report and return None."""
        plan = self._plan
        seen = self._observe() or self._observe_from_outside()
        if seen is None:
            return None
        self._last = seen
        span = plan.span
        watch(ReplayState(seen.lsn, seen.time, span.start_lsn if span else None, plan.end_lsn))
        if seen.in_recovery and not seen.paused:
            return None
        return self._finished(seen)

    def _observe(self) -> _Observed | None:
        """Ask by SQL; None while the server does not let us in."""
        import psycopg

        try:
            if self._connection is None:
                host, port = server_address(self._instance.data_directory)
                self._connection = connect_server(self._instance, self._account, host, port)
            return _ask_replay(self._connection)
        except (psycopg.Error, StartFailed):
            # Starting up, not consistent yet, shutting down, or a pg_hba.conf that keeps us out.
            self.close()
            return None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _observe_from_outside(self) -> _Observed | None:
        lsn = replayed_segment_start(self._instance)
        in_recovery = os.path.exists(self._instance.signal_path) or not _is_in_production(self._instance)
        if lsn is None and in_recovery and not self._log.paused:
            return None
        if self._log.paused or not in_recovery:
            return _Observed(in_recovery, self._log.paused, *_stop_in_log(self._plan, self._log))
        return _Observed(in_recovery, False, lsn, None)

    def _finished(self, seen: _Observed) -> tuple[StartedServer, RecoveryOutcome]:
        import psycopg

        self.close()
        host, port = server_address(self._instance.data_directory)
        try:
            server = ask_server(self._instance, self._account, host, port, self._log_path)
        except psycopg.Error as refused:
            server = describe_from_files(self._instance, host, port, self._log_path, str(refused).strip())
        if seen.in_recovery:
            stopped = self._log.stopped
            self._check_reached(seen, stopped is not None)
            outcome = RecoveryOutcome(
                TargetAction.PAUSE, seen.lsn, seen.time, stopped.text if stopped else None, server.timeline_id
            )
            return server, outcome
        check_timeline(self._instance, server)
        lsn, reason = end_of_recovery(self._instance, server.timeline_id)
        lsn = lsn or seen.lsn
        time = seen.time or self._log.last_time or _planned_time(self._plan, lsn)
        return server, RecoveryOutcome(TargetAction.PROMOTE, lsn, time, reason, server.timeline_id)

    def _check_reached(self, seen: _Observed, has_stopped: bool) -> None:
        """Raise StartFailed for a pause on the way: hot standby that lacks settings pauses too (14 and later)."""
        plan = self._plan
        end = plan.end_lsn
        if has_stopped or end is None or seen.lsn is None or has_reached(seen.lsn, end):
            return
        raise StartFailed(
            f'the restored server in "{self._instance.data_directory}" paused at LSN {seen.lsn}, before its target at '
            f"{end}",
            hint=f"{self._log.path} says why; remove the cause and restart the server: it goes on to the target",
            detail=self._log.end,
        )


def _is_in_production(instance: Instance) -> bool:
    """Tell whether recovery is over; servers before 14 remove the signal file before the new timeline has a history."""
    return parse_control(read_control(instance)).state is ClusterState.IN_PRODUCTION


def _ask_replay(connection: psycopg.Connection[Any]) -> _Observed:
    in_recovery = bool(ask_value(connection, "SELECT pg_is_in_recovery()"))
    # Both stay at their last value after recovery (manual, 9.28.4).
    lsn = ask_value(connection, "SELECT pg_last_wal_replay_lsn()")
    time = ask_value(connection, "SELECT pg_last_xact_replay_timestamp()")
    paused = False
    if in_recovery:
        # "pause requested" is not there yet; 13 knows only the request, which at a target is the pause itself.
        query = (
            "SELECT pg_get_wal_replay_pause_state() = 'paused'"
            if versions.of_server(connection.info.server_version).has_pause_state
            else "SELECT pg_is_wal_replay_paused()"
        )
        paused = bool(ask_value(connection, query))
        if paused:
            # Asked again: before the pause replay may have gone on between the two questions.
            lsn = ask_value(connection, "SELECT pg_last_wal_replay_lsn()")
            time = ask_value(connection, "SELECT pg_last_xact_replay_timestamp()")
    return _Observed(in_recovery, paused, Lsn.parse(lsn) if lsn else None, time)


def _has_shut_down(instance: Instance, plan: RecoveryPlan, log: RecoveryLog, before: bytes) -> bool:
    """Tell whether a server that is gone has shut down at its target; before: pg_control as it was at the start.

    A pause becomes a shutdown where hot standby is off (manual, 20.5.6). What counts is pg_control: the log may go
    elsewhere, or speak another language. Its minimum recovery point is written when the server shuts down.
    """
    content = read_control(instance)
    control = parse_control(content)
    if plan.action is TargetAction.PROMOTE or control.state is not ClusterState.SHUT_DOWN_IN_RECOVERY:
        return False
    # A copy of a standby that was shut down says the same before it is started.
    if content == before:
        return False
    return plan.end_lsn is None or has_reached(control.minimum_recovery_lsn, plan.end_lsn) or log.stopped is not None


def has_reached(lsn: Lsn, end: Lsn) -> bool:
    """Tell whether replay has come to where a record begins or ends; a page's header may lie between the two."""
    in_page = end % PAGE_BYTES
    return lsn >= (end - in_page if in_page in (SHORT_HEADER_BYTES, LONG_HEADER_BYTES) else end)


def _shut_down(instance: Instance, plan: RecoveryPlan, log: RecoveryLog, before: bytes) -> RecoveryOutcome:
    """Return the outcome of a server that is not there any more: fine if it was to shut down at its target."""
    control = parse_control(read_control(instance))
    if not _has_shut_down(instance, plan, log, before):
        at = f", at LSN {control.minimum_recovery_lsn}" if control.state is ClusterState.SHUT_DOWN_IN_RECOVERY else ""
        raise StartFailed(
            f'the restored server in "{instance.data_directory}" stopped before recovery had ended{at}',
            hint=f"the restored files are left in place; the whole log: {log.path}",
            detail=log.end,
        )
    stopped, last = log.stopped, plan.last_transaction
    time = log.last_time or (last.time if last else None)
    lsn = plan.end_lsn or (stopped.lsn if stopped else None) or control.minimum_recovery_lsn
    return RecoveryOutcome(TargetAction.SHUTDOWN, lsn, time, stopped.text if stopped else None, control.timeline_id)


def _stop_in_log(plan: RecoveryPlan, log: RecoveryLog) -> tuple[Lsn | None, datetime | None]:
    """Return LSN and time at which a server stopped that cannot be asked.

    The log says that it stopped at its target, and rarely more; the plan knows which record that is.
    """
    stopped, last = log.stopped, plan.last_transaction
    if stopped is None:
        return None, log.last_time
    return plan.end_lsn or stopped.lsn, log.last_time or (last.time if last else None)


def _planned_time(plan: RecoveryPlan, lsn: Lsn | None) -> datetime | None:
    """Return the time of the last transaction of the plan, for a server that has come as far as that."""
    last, end = plan.last_transaction, plan.end_lsn
    return last.time if last is not None and lsn is not None and end is not None and has_reached(lsn, end) else None


def _explained(problem: StartFailed, log: RecoveryLog) -> StartFailed:
    """Put the server's FATAL line into the message; the end of the log stays the detail."""
    fatal = log.fatal
    if fatal is None or fatal in problem.message:
        return problem
    return StartFailed(f"{problem.message}: {fatal}", hint=problem.hint, detail=problem.detail)


def end_of_recovery(instance: Instance, timeline_id: int) -> tuple[Lsn | None, str | None]:
    """Return where the new timeline begins and the server's reason for it, from its history file."""
    try:
        history = TimelineHistory.parse(read_wal_file(instance, f"{timeline_id:08X}.history"), timeline_id)
    except (OSError, IntegrityError, StorageFailed):
        return None, None
    last = history.entries[-1]
    return last.switch_lsn, last.reason or None


def replayed_segment_start(instance: Instance) -> Lsn | None:
    """Return the start of the segment that the startup process says it replays; None if there is no such process."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return None
    lock = read_lock_file(instance.data_directory)
    if lock is None or lock.pid is None:
        return None
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stream:
                parent = int(stream.read().rpartition(")")[2].split()[1])
            if parent != lock.pid:
                continue
            with open(f"/proc/{name}/cmdline", "rb") as raw:
                match = _TITLE_SEGMENT.search(raw.read())
        except (OSError, ValueError, IndexError):
            continue  # It ended while we looked.
        if match is not None and instance.segment_size_bytes is not None:
            return WalSegment.parse(match[1].decode(), instance.segment_size_bytes).start
    return None
