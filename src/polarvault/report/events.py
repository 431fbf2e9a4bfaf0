"""`--progress json`: what happens while a command runs, one JSON object a line on standard error.

docs/json.md lists the events. What a command has done in the end is another thing: the object of --json.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from polarvault.report.findings import finding_json
from polarvault.report.json_document import SCHEMA_VERSION, error_json, iso

if TYPE_CHECKING:
    from polarvault.drill.model import Part
    from polarvault.errors import PolarvaultError, ServerError
    from polarvault.model.finding import Finding
    from polarvault.recovery.watch import ReplayState
    from polarvault.restore.standby.follow import FollowState
    from polarvault.taking.reporter import BackupProgress
    from polarvault.walarchive.receive.state import ReceiverState

_BETWEEN_S = 1.0
_STDERR = 2
_MOST_NOTICES = 1000
# A receiver runs for months.
_KEPT_WARNINGS = 100


def _write_line(line: bytes) -> None:
    # In one call: lines of several threads must not mix.
    os.write(_STDERR, line)


class EventWriter:
    """Writes events. write: takes a line with its end; clock: seconds that never go back."""

    def __init__(
        self, command: str, *, write: Callable[[bytes], object] = _write_line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._command = command
        self._write = write
        self._clock = clock
        self._last: dict[str, float] = {}

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event."""
        common = {"schema": SCHEMA_VERSION, "command": self._command, "event": event, "time": iso(datetime.now(UTC))}
        self._write(json.dumps(common | fields).encode("ascii") + b"\n")

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None, **more: Any) -> None:
        """Write how far a phase is, at most once a second; its end always."""
        now, is_end = self._clock(), total_bytes is not None and 0 < total_bytes <= done_bytes
        if not is_end and now - self._last.get(phase, float("-inf")) < _BETWEEN_S:
            return
        self._last[phase] = now
        self.emit("progress", phase=phase, done_bytes=done_bytes, total_bytes=total_bytes or None, **more)

    def error(self, error: Mapping[str, str | None]) -> None:
        """Write what has ended the command, or a connection."""
        self.emit("error", error=dict(error))

    def notice(self, notice: ServerError) -> None:
        """Write what the server says."""
        self.emit(
            "notice", severity=notice.severity, message=notice.message, detail=notice.detail, hint=notice.hint,
            sqlstate=notice.sqlstate or None,
        )  # fmt: skip

    def replayed(self, state: ReplayState) -> None:
        """Write how far recovery is."""
        if state.lsn is None:
            return
        first = state.start_lsn if state.start_lsn is not None else state.lsn
        self.progress(
            "recovery", max(0, state.lsn - first),
            None if state.end_lsn is None else max(0, state.end_lsn - first),
            lsn=str(state.lsn), end_lsn=None if state.end_lsn is None else str(state.end_lsn),
            transaction_time=iso(state.time),
        )  # fmt: skip

    def followed(self, state: FollowState) -> None:
        """Write where a standby is."""
        lsn = state.replay_lsn
        now = self._clock()
        if not state.caught_up and now - self._last.get("follow", float("-inf")) < _BETWEEN_S:
            return
        self._last["follow"] = now
        self.emit(
            "follow", state=state.status, lsn=None if lsn is None else str(lsn), lag_bytes=state.lag_bytes,
            caught_up=state.caught_up,
        )  # fmt: skip


class CopyEvents:
    """Takes the place of a bar: called with the bytes of each step, from several threads."""

    def __init__(self, events: EventWriter, phase: str, total_bytes: int | None) -> None:
        self._events = events
        self._phase = phase
        self._total = total_bytes
        self._done = 0

    def __call__(self, size: int) -> None:
        """Take a step; one that is lost between threads does no harm."""
        self._done += size
        self._events.progress(self._phase, self._done, self._total)

    def stop(self) -> None:
        """There is no bar to take away."""


class BackupEvents:
    """Implements `basebackup.reporter.BackupReporter`."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._notices: set[tuple[str | None, ...]] = set()
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def step(self, text: str) -> None:
        """Write a step."""
        self._events.emit("step", message=text)

    def note(self, text: str) -> None:
        """Write what the user should know."""
        self.notes.append(text)
        self._events.emit("note", message=text)

    def notice(self, notice: ServerError) -> None:
        """Write what the server says, once."""
        said = (f"{notice.severity}:  {notice.message}", notice.detail, notice.hint)
        if said in self._notices or len(self._notices) >= _MOST_NOTICES:
            return
        self._notices.add(said)
        (self.warnings if notice.severity == "WARNING" else self.notes).append(said[0])
        self._events.notice(notice)

    def warning(self, text: str) -> None:
        """Write what is wrong."""
        self.warnings.append(text)
        self._events.emit("warning", message=text)

    def progress(self, progress: BackupProgress, *, final: bool = False) -> None:
        """Write how far the backup is."""
        # The estimate may be short of what is sent; at the end it is what was sent.
        total = progress.done_bytes if final else max(progress.total_bytes, progress.done_bytes + 1)
        self._events.progress(
            "backup", progress.done_bytes, total if final or progress.total_bytes else None, file=progress.current,
            tablespace=progress.archive_number, tablespaces=progress.archive_count,
        )  # fmt: skip


class VerifyEvents:
    """Implements `verify.run.Reporter`."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events

    def finding(self, finding: Finding) -> None:
        """Write what is not as it should be."""
        if not finding.is_ok:
            self._events.emit("finding", finding=finding_json(finding))

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Write how much was read."""
        self._events.progress("verify", done_bytes, total_bytes)


class DrillEvents:
    """Implements `drill.reporter.DrillReporter`."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events

    def begins(self, part: Part, what: str) -> None:
        """Write that a part begins."""
        self._events.emit("part", part=part.value, message=what)

    def warn(self, message: str) -> None:
        """Write what does not stop the drill."""
        self._events.emit("warning", message=message)

    def scanned(self, done: int, total: int) -> None:
        """Write how much WAL was read for the plan."""
        self._events.progress("plan", done, total)

    def copied(self, done: int, total: int) -> None:
        """Write how much of the backup was laid out."""
        self._events.progress("copy", done, total)

    def replayed(self, state: ReplayState) -> None:
        """Write how far recovery is."""
        self._events.replayed(state)


class ReceiveEvents:
    """Implements `walarchive.receive.session.ReceiveReporter`."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._clock = time.monotonic
        self._shown = float("-inf")
        self._state: str | None = None
        self.warnings: deque[str] = deque(maxlen=_KEPT_WARNINGS)
        self.last_state: ReceiverState | None = None

    def step(self, text: str, **facts: Any) -> None:
        """Write a step: a segment that is finished, a timeline that begins, where streaming starts and stops."""
        self._events.emit(str(facts.pop("event", "step")), message=text, **facts)

    def note(self, text: str) -> None:
        """Write what the user should know."""
        self._events.emit("note", message=text)

    def notice(self, notice: ServerError) -> None:
        """Write what the server says."""
        self._events.notice(notice)

    def warning(self, text: str) -> None:
        """Write what needs attention."""
        self.warnings.append(text)
        self._events.emit("warning", message=text)

    def problem(self, problem: PolarvaultError) -> None:
        """Write what ended a connection."""
        self._events.error(error_json(problem))

    def status(self, state: ReceiverState) -> None:
        """Write the state, every ten seconds and when it changes."""
        before, self.last_state = self._state, state
        now = self._clock()
        if state.state == before and now - self._shown < 10 * _BETWEEN_S:
            return
        self._state, self._shown = state.state, now
        self._events.emit(
            "status", state=state.state, timeline=state.timeline_id or None, received_lsn=str(state.received),
            flushed_lsn=str(state.flushed), lag_bytes=state.lag_bytes if state.state == "streaming" else None,
        )  # fmt: skip

    def close(self) -> None:
        """There is no line to be ended."""
