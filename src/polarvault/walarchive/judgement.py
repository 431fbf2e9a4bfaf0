"""Judge what a receiver tells of itself: is it still true, and does WAL arrive?

The status file is the receiver's own word, and a receiver that is stopped, hangs or was killed leaves its last good one
behind. So the lock, the process table and the age of the file are looked at before it is believed; and the lag is only
known while the server is heard.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.storage.processes import Moment, Process, look_at_process, present_moment
from polarvault.walarchive.receive.watch import SlotState
from polarvault.walarchive.store.status_file import lock_owner, read_status

# A receiver writes its status once a second while it streams, and one that waits to connect again after each attempt.
_OLD_AFTER_S, _OLD_WHILE_WAITING_S = 10.0, 60.0
# Shorter interruptions are everyday life.
_SHORT_S = 30.0
# WAL is synced every ten seconds.
_SLOW_DISK_S = 60.0
# So much of what may wait for the repository, and somebody has to act.
_NEARLY = 0.5
_STREAMING, _STOPPED = "streaming", "stopped"
_NO_SILENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class UploadState:
    """What waits for the repositories of `wal stream`; away_since: seconds since 1970, None while they answer."""

    waiting_bytes: int
    most_bytes: int
    away_since: float | None
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverStatus:
    """What is known of a receiver. Times are seconds since 1970; None is what is not known.

    state: streaming, silent (connected, but the server says nothing), suspended (stopped by a signal), hung (the
    process lives, its status is old), connecting, disconnected, disk full, no room (nothing more may wait), stopped.
    since: when streaming began or ended. lag_bytes: WAL that the server has and that is not durable here. lag_s: how
    old the oldest of it may be, lag_since: from when it is; while the server is not heard they grow, because nobody
    knows what it has written.
    """

    directory: str
    running: bool
    state: str
    since: float | None
    process_id: int | None
    server: str | None
    slot: str | None
    slot_state: dict[str, Any] | None
    timeline_id: int | None
    received: Lsn | None
    flushed: Lsn | None
    server_end: Lsn | None
    lag_bytes: int | None
    lag_s: float | None
    lag_since: float | None
    connections: int
    last_error: dict[str, Any] | None
    heard_at: float | None
    started_at: float | None
    updated_at: float | None
    age_s: float
    is_old: bool
    upload: UploadState | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def severity(self) -> Severity:
        """The worst that was found."""
        found = {finding.severity for finding in self.findings}
        return next((one for one in (Severity.PROBLEM, Severity.WARNING) if one in found), Severity.OK)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was looked at beside the status file: who holds the lock, the process that wrote the file, the time."""

    locked: bool
    lock_pid: int | None
    process: Process | None
    moment: Moment
    now: float


def look_at_receiver(directory: str, *, now: float, command: str | None = None) -> ReceiverStatus:
    """Read and judge the status of a directory's receiver; raise StorageFailed or UsageError if there is none.

    now: seconds since 1970. command: what starts such a receiver.
    """
    # The lock first: a receiver that begins in between takes the lock before it writes its status.
    locked, lock_pid = lock_owner(directory)
    found = read_status(directory, command)
    pid = _whole(found, "process_id")
    process = None if pid is None else look_at_process(pid)
    return judge(found, directory, Surroundings(locked, lock_pid, process, present_moment(), now))


def judge(found: dict[str, Any], directory: str, around: Surroundings) -> ReceiverStatus:
    """Judge a status file; what is missing in it or is no number counts as not known."""
    age_s = _age_s(found, around)
    process = around.process if _is_writer(found, around) else None
    running = around.locked or process is not None
    updated_at = _number(found, "updated_at")
    silence_s = age_s + max(0.0, (updated_at or 0.0) - (_number(found, "server_heard_at") or 0.0))
    written = str(found["state"])
    is_new = running and around.lock_pid not in (None, _whole(found, "process_id"))
    state = _state(
        written, running=running, is_new=is_new, process=process, age_s=age_s,
        is_silent=silence_s > (_number(found, "news_within_s") or _NO_SILENCE_S),
    )  # fmt: skip
    status = ReceiverStatus(
        directory=directory,
        running=running,
        state=state,
        since=_since(found, state, written),
        process_id=around.lock_pid if is_new else _whole(found, "process_id"),
        server=_text(found, "server"),
        slot=_text(found, "slot"),
        slot_state=found["slot_state"] if isinstance(found.get("slot_state"), dict) else None,
        timeline_id=_whole(found, "timeline"),
        received=_lsn(found, "received_lsn"),
        flushed=_lsn(found, "flushed_lsn"),
        server_end=_lsn(found, "server_lsn"),
        lag_bytes=None,
        lag_s=None,
        lag_since=None,
        connections=_whole(found, "connections") or 0,
        last_error=_last_error(found),
        heard_at=_number(found, "server_heard_at"),
        started_at=_number(found, "started_at"),
        updated_at=updated_at,
        age_s=age_s,
        upload=_upload(found),
        is_old=age_s > (_OLD_AFTER_S if written == _STREAMING else _OLD_WHILE_WAITING_S),
    )
    status = _with_lag(status, found, around.now)
    return replace(status, findings=tuple(_findings(status, found, process, around)))


def _age_s(found: dict[str, Any], around: Surroundings) -> float:
    """Return how old the file is, by a clock that nobody sets where that is possible."""
    uptime_s = _number(found, "updated_uptime_s")
    if uptime_s is not None and around.moment.boot_id and found.get("boot_id") == around.moment.boot_id:
        return max(0.0, around.moment.uptime_s - uptime_s)
    return max(0.0, around.now - (_number(found, "updated_at") or 0.0))


def _is_writer(found: dict[str, Any], around: Surroundings) -> bool:
    """Tell whether the process is the one that wrote the file, and not one that has got its number since."""
    if around.process is None or around.process.started != found.get("process_started"):
        return False
    return not around.moment.boot_id or found.get("boot_id") == around.moment.boot_id


def _state(written: str, *, running: bool, is_new: bool, process: Process | None, age_s: float, is_silent: bool) -> str:
    if not running:
        return _STOPPED
    if is_new:
        # Somebody else has the lock, and has not written a word yet.
        return "connecting"
    if process is not None and process.is_stopped:
        return "suspended"
    if written == _STREAMING and age_s > _OLD_AFTER_S:
        return "hung"
    if written == _STREAMING and is_silent:
        return "silent"
    # The lock is held until the very end.
    return written


def _since(found: dict[str, Any], state: str, written: str) -> float | None:
    if state == "silent":
        return _number(found, "server_heard_at")
    if state in ("suspended", "hung") or (state == _STOPPED and written != _STOPPED):
        # It may have gone on for a moment, not longer than until its next status.
        return _number(found, "updated_at")
    return _number(found, "state_since")


def _with_lag(status: ReceiverStatus, found: dict[str, Any], now: float) -> ReceiverStatus:
    behind_since = _number(found, "behind_since")
    if status.state == _STREAMING:
        if status.server_end is None or status.flushed is None:
            return status
        behind = max(0, status.server_end - status.flushed)
        if not behind or behind_since is None:
            return replace(status, lag_bytes=behind, lag_s=0.0)
        return replace(status, lag_bytes=behind, lag_s=max(0.0, now - behind_since), lag_since=behind_since)
    since = behind_since or status.heard_at or status.started_at
    return status if since is None else replace(status, lag_s=max(0.0, now - since), lag_since=since)


# What is wrong with it


def _findings(
    status: ReceiverStatus, found: dict[str, Any], process: Process | None, around: Surroundings
) -> Iterator[Finding]:
    slow = _disk_finding(status, found)
    if slow is not None:
        yield slow
    went = _finding_of_state(status, found, process, around)
    if went is not None:
        yield went
    upload = _upload_finding(status)
    if upload is not None:
        yield upload
    slot = _slot_finding(status)
    if slot is not None:
        yield slot


def _finding_of_state(
    status: ReceiverStatus, found: dict[str, Any], process: Process | None, around: Surroundings
) -> Finding | None:
    error = f": {status.last_error['message']}" if status.last_error else ""
    pid, age = status.process_id, f"{status.age_s:.0f} s"
    again = _text(found, "command") or f"polarvault receivewal -D {shlex.quote(status.directory)} ..."
    match status.state:
        case "streaming":
            return None
        case "stopped" if found["state"] == _STOPPED:
            return _problem(
                status, "receiver-running", f"no receiver runs; the last one ended {age} ago" + error,
                _hint(status) or f"start it again: {again}",
            )  # fmt: skip
        case "stopped":
            restarted = around.moment.boot_id and found.get("boot_id") not in (None, around.moment.boot_id)
            why = "the machine was started again" if restarted else "it was killed"
            return _problem(
                status, "receiver-running", f"no receiver runs; the last one said nothing at its end, {age} ago: {why}",
                f"start it again: {again}",
            )  # fmt: skip
        case "suspended":
            return _problem(
                status, "receiver-process", f"process {pid} was stopped by a signal about {age} ago and does nothing",
                f"let it go on: kill -CONT {pid}",
            )  # fmt: skip
        case "hung":
            waits = process is not None and process.waits_for_disk
            what = "waits for a disk or a network file system" if waits else "hangs"
            return _problem(
                status, "receiver-status", f"process {pid} lives, but its status is {age} old: it {what}",
                f'see the disk of "{status.directory}" and the kernel\'s log; if nothing helps: kill -9 {pid}, and '
                "start it again (nothing that was acknowledged is lost)",
            )  # fmt: skip
        case "silent":
            silence_s = around.now - (status.heard_at or around.now)
            return _problem(
                status, "server-heard", f"connected, but nothing has come from the server for {silence_s:.0f} s",
                "see the server and the network; the receiver asks it, and connects again when there is no answer",
                is_short=silence_s < 2 * _SHORT_S,
            )  # fmt: skip
        case "disk full":
            return _problem(
                status, "disk", "receiving is suspended until there is space for a segment" + error,
                f'make space on the disk of "{status.directory}"; receiving goes on by itself',
            )  # fmt: skip
        case "no room":
            return _problem(
                status, "room", "receiving is suspended: no more may wait for the repository than waits now" + error,
                "bring the repository back, or give the spool more; receiving goes on by itself",
            )  # fmt: skip
    waited_s = around.now - (status.since if status.since is not None else around.now)
    return _problem(
        status, "connection", f"not connected for {max(0.0, waited_s):.0f} s" + error,
        _hint(status) or "see the server and the network; it is tried again and again", is_short=waited_s < _SHORT_S,
    )  # fmt: skip


def _problem(status: ReceiverStatus, check: str, message: str, advice: str, *, is_short: bool = False) -> Finding:
    return Finding(
        severity=Severity.WARNING if is_short else Severity.PROBLEM,
        check=check,
        subject=status.directory,
        message=message,
        meaning="no WAL arrives: what the server writes meanwhile is nowhere else, and with a slot its disk fills up",
        advice=advice,
    )


def _disk_finding(status: ReceiverStatus, found: dict[str, Any]) -> Finding | None:
    """Find a disk that takes WAL and does not make it durable: the network part of the receiver is well meanwhile."""
    behind_since, flushed_at = _number(found, "behind_since"), _number(found, "flushed_at")
    if status.state != _STREAMING or status.received is None or behind_since is None:
        return None
    if status.received <= (status.flushed or 0) or (status.upload is not None and status.upload.away_since is not None):
        return None
    # Who catches up is behind for long, but gets on.
    waiting_s = (status.updated_at or 0.0) - max(behind_since, flushed_at or 0.0)
    if waiting_s <= _SLOW_DISK_S:
        return None
    return _problem(
        status, "disk", f"WAL is received, but for {waiting_s:.0f} s nothing has got onto the disk",
        f'see the disk of "{status.directory}" and the kernel\'s log',
    )  # fmt: skip


def _upload_finding(status: ReceiverStatus) -> Finding | None:
    """Find a repository that is away, or a spool that fills up."""
    found = status.upload
    if found is None or found.away_since is None or not status.running:
        return None
    away_s = max(0.0, (status.updated_at or 0.0) - found.away_since)
    share = found.waiting_bytes / max(1, found.most_bytes)
    return Finding(
        severity=Severity.WARNING if away_s < _SHORT_S or share < _NEARLY else Severity.PROBLEM,
        check="repository",
        subject=status.directory,
        message=f"the repository has taken no WAL for {away_s:.0f} s, and {found.waiting_bytes >> 20} MB wait, "
        f"{share:.0%} of what may: {found.message}",
        meaning="what waits is safe in a spool, if there is one; when no more may wait, no "
        "more is received, and with a slot the server's disk fills up",
        advice="bring the repository back; what waits is uploaded by itself",
    )


def _upload(found: dict[str, Any]) -> UploadState | None:
    upload = found.get("upload")
    if not isinstance(upload, dict):
        return None
    waiting, most = _whole(upload, "waiting_bytes") or 0, _whole(upload, "most_bytes") or 0
    return UploadState(waiting, most, _number(upload, "away_since"), _text(upload, "message"))


def _slot_finding(status: ReceiverStatus) -> Finding | None:
    known = status.slot_state
    if known is None or status.slot is None:
        return None
    safe, wal_status = _whole(known, "safe_wal_bytes"), _text(known, "wal_status")
    state = SlotState(wal_status, safe, _text(known, "restart_lsn"))
    message = state.warning(status.slot, _whole(known, "segment_bytes") or 16 << 20)
    if wal_status == "missing":
        message = f'there is no slot "{status.slot}" on the server any more'
    if message is None:
        return None
    is_over = wal_status in ("lost", "missing", "unreserved")
    return Finding(
        severity=Severity.PROBLEM if is_over else Severity.WARNING,
        check="slot",
        subject=status.slot,
        message=message,
        meaning="the server removes WAL that has not been received, or is about to",
        advice="see docs/receivewal.md, Status",
    )


def _hint(status: ReceiverStatus) -> str | None:
    return status.last_error.get("hint") if status.last_error else None


def _last_error(found: dict[str, Any]) -> dict[str, Any] | None:
    message = _text(found, "last_error")
    if message is None:
        return None
    return {
        "id": _text(found, "last_error_id"),
        "message": message,
        "hint": _text(found, "last_error_hint"),
        "at": _number(found, "last_error_at"),
    }


def _text(found: dict[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) else None


def _number(found: dict[str, Any], name: str) -> float | None:
    value = found.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(found: dict[str, Any], name: str) -> int | None:
    value = found.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _lsn(found: dict[str, Any], name: str) -> Lsn | None:
    """Return a position; 0/0 is none."""
    try:
        return Lsn.parse(_text(found, name) or "0/0") or None
    except ValueError:
        return None
