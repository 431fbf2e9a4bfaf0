"""A running receiver in words: pg_receivewal's lines with --verbose, a status line on a terminal, errors with hints."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from polarvault.errors import PolarvaultError, ServerError
from polarvault.model.lsn import Lsn
from polarvault.report.findings import findings_json
from polarvault.report.json_document import iso
from polarvault.walarchive.receive.state import ReceiverState

if TYPE_CHECKING:
    from polarvault.walarchive.judgement import ReceiverStatus

_BETWEEN_LINES_S = 10.0
# A receiver runs for months.
_KEPT_WARNINGS = 100


class TextReporter:
    """Implements `walarchive.receive.session.ReceiveReporter`; everything goes to standard error."""

    def __init__(self, *, verbose: bool, status_line: bool = True) -> None:
        self._verbose = verbose
        self._terminal = status_line and sys.stderr.isatty()
        self.warnings: deque[str] = deque(maxlen=_KEPT_WARNINGS)
        self.last_state: ReceiverState | None = None
        self._line_open = False
        self._last_line = time.monotonic()

    def step(self, text: str, **_: Any) -> None:
        """Tell a step, with --verbose."""
        if self._verbose:
            self._say(text)

    def note(self, text: str) -> None:
        """Tell something that the user should know."""
        self._say(text)

    def notice(self, notice: ServerError) -> None:
        """Tell what the server says, as pg_receivewal does: people look for WARNING in logs."""
        self._print(f"{notice.severity}:  {notice.message}")
        for kind, text in (("DETAIL", notice.detail), ("HINT", notice.hint)):
            if text:
                self._print(f"{kind}:  {text}")

    def warning(self, text: str) -> None:
        """Tell what needs attention."""
        self.warnings.append(text)
        self._say(f"warning: {text}")

    def problem(self, problem: PolarvaultError) -> None:
        """Tell what ended a session."""
        self._say(f"error: {problem.message}")
        for kind, text in (("detail", problem.detail), ("hint", problem.hint)):
            if text:
                self._say(f"{kind}: {text}")

    def status(self, state: ReceiverState) -> None:
        """Show the state: on a terminal as one line that is written over, with --verbose now and then as a new one."""
        self.last_state = state
        if self._terminal:
            print(f"\r\x1b[K{status_line(state)}", end="", file=sys.stderr, flush=True)
            self._line_open = True
        elif self._verbose and time.monotonic() - self._last_line >= _BETWEEN_LINES_S:
            self._last_line = time.monotonic()
            self._say(status_line(state))

    def close(self) -> None:
        """End the status line."""
        if self._line_open:
            print(file=sys.stderr)
            self._line_open = False

    def _say(self, text: str) -> None:
        self._print(f"polarvault: {text}")

    def _print(self, line: str) -> None:
        if self._line_open:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._line_open = False
        print(line, file=sys.stderr, flush=True)


def status_line(state: ReceiverState) -> str:
    """Return the state in one line."""
    slot = f", slot {state.slot}" if state.slot else ""
    # What the server has written since it was heard last is not known.
    lag = "unknown"
    if state.state == "streaming" and state.server_end:
        lag = f"{state.lag_bytes / (1 << 20):.1f} MB, {state.lag_s(time.time()):.0f} s"
    return (
        f"{state.state}: timeline {state.timeline_id}, received {state.received}, flushed {state.flushed}, "
        f"server {state.server_end}, lag {lag}{slot}"
    )


def received_json(state: ReceiverState | None) -> dict[str, Any]:
    """Return what a receiver that has ended has received; None where it has not come so far."""

    def lsn(position: Lsn | None) -> str | None:
        return str(position) if position else None

    return {
        "server": state.server if state else None,
        "timeline": (state.timeline_id or None) if state else None,
        "received_lsn": lsn(state.received if state else None),
        "flushed_lsn": lsn(state.flushed if state else None),
        "connections": state.connections if state else 0,
    }


def uploaded_json(slices: int) -> dict[str, Any]:
    """Return what `wal stream --flush-spool` has done."""
    return {"uploaded": slices}


def status_json(status: ReceiverStatus) -> dict[str, Any]:
    """Return what `--status` prints."""

    def lsn(position: Lsn | None) -> str | None:
        return str(position) if position else None

    slot, error = status.slot_state, status.last_error
    return {
        "status": status.severity.value,
        "directory": status.directory,
        "running": status.running,
        "process_id": status.process_id,
        "state": status.state,
        "state_since": iso(status.since),
        "server": status.server,
        "timeline": status.timeline_id,
        "received_lsn": lsn(status.received),
        "flushed_lsn": lsn(status.flushed),
        "server_lsn": lsn(status.server_end),
        "server_heard_at": iso(status.heard_at),
        "lag_bytes": status.lag_bytes,
        "lag_seconds": None if status.lag_s is None else round(status.lag_s, 3),
        "lag_since": iso(status.lag_since),
        "upload": None
        if status.upload is None
        else {
            "waiting_bytes": status.upload.waiting_bytes,
            "most_bytes": status.upload.most_bytes,
            "away_since": iso(status.upload.away_since),
            "message": status.upload.message,
        },
        "slot": status.slot,
        "slot_state": None
        if slot is None
        else {
            "wal_status": slot.get("wal_status"),
            "safe_wal_bytes": slot.get("safe_wal_bytes"),
            "restart_lsn": slot.get("restart_lsn"),
            "looked_at": _moment(slot.get("looked_at")),
        },
        "connections": status.connections,
        "last_error": error["message"] if error else None,
        "last_error_id": error["id"] if error else None,
        "last_error_at": iso(error["at"]) if error else None,
        "started_at": iso(status.started_at),
        "updated_at": iso(status.updated_at),
        "age_s": round(status.age_s, 3),
        "is_old": status.is_old,
        "findings": findings_json(status.findings),
    }


def status_text(status: ReceiverStatus) -> list[str]:
    """Return the same for people."""
    lag = "unknown"
    if status.lag_s is not None:
        size = "" if status.lag_bytes is None else f"{status.lag_bytes / (1 << 20):.1f} MB, "
        lag = f"{size}{status.lag_s:.0f} s"
    process = f", process {status.process_id}" if status.running else ""
    found = [
        f"{status.state}{process}: timeline {status.timeline_id or '-'}, received {status.received or '-'}, "
        f"durable {status.flushed or '-'}, server {status.server_end or '-'}, lag {lag}"
    ]
    if status.server is not None:
        found.append(f"server: {status.server}" + (f", slot {status.slot}" if status.slot else ", no slot"))
    if status.upload is not None and status.upload.waiting_bytes:
        found.append(f"waiting for the repository: {status.upload.waiting_bytes / (1 << 20):.1f} MB")
    for one in status.findings:
        found += [f"{one.severity.value}: {one.message}", f"  {one.advice}"]
    return found


def _moment(found: object) -> str | None:
    return iso(float(found)) if isinstance(found, int | float) else None
