"""A recovery for people and for programs: the plan, replay while it goes on, where it stopped and what to type next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from polarvault.recovery.reachability import Reachable, RecoveryPlan, Window, describe_record, show_time
from polarvault.recovery.settings import target_setting
from polarvault.recovery.target import TargetAction, TargetKind
from polarvault.report.bars import Bar
from polarvault.report.json_document import iso
from polarvault.report.units import format_bytes

if TYPE_CHECKING:
    from polarvault.recovery.survey import ScanProgress
    from polarvault.recovery.watch import RecoveryOutcome, ReplayState
    from polarvault.restore.model import RestorePlan

_LINE_EVERY_S = 5.0
_SHOWN_POINTS = 10


def recovery_text(plan: RecoveryPlan) -> Iterator[str]:
    """Yield the lines of `--plan` about recovery."""
    yield f"recovery to {plan.target}, then {plan.action.value}"
    if plan.target.assumed_zone:
        yield f"  time zone         {plan.target.assumed_zone}, this machine's, is assumed"
    for path, why in plan.rejected:
        yield f"  newer backup      {path} does not do: {why}"
    if plan.span is None or plan.reachable is None:
        yield "  reachable         not known: the WAL archive behind restore_command cannot be looked into"
        return
    seen, zone = plan.reachable, plan.zone
    yield f"  backup            {plan.span.path}"
    yield f"  backup's WAL      {plan.span.start_lsn} to {seen.earliest_lsn}, timeline {plan.span.timeline_id}"
    if plan.wal_directories:
        yield f"  WAL directories   {', '.join(plan.wal_directories)}"
    own = f", {plan.segments_in_backup} of them only in the backup" if plan.segments_in_backup else ""
    yield f"  segments          {plan.segments} to replay{own}"
    others = f" (also there: {', '.join(map(str, seen.other_timelines))})" if seen.other_timelines else ""
    yield f"  timeline          {plan.timeline_id}{others}; the restored server begins a new one"
    for window in plan.windows[:-1]:
        yield f"  reachable from    {window.start_words(zone)}, with {window.backups[0]}"
        hole = f"; then {window.missing} is missing"
        yield f"  reachable to      LSN {window.latest_lsn}{_last_words(window, zone)}{hole}"
    yield f"  reachable from    {_earliest_words(plan, seen)}"
    latest = plan.windows[-1] if plan.windows else seen
    yield f"  reachable to      LSN {latest.latest_lsn}{_last_words(latest, zone)}"
    for point in seen.restore_points[-_SHOWN_POINTS:]:
        yield f"  restore point     {point.name!r} at {point.lsn}, {show_time(point.time, zone)}"
    yield f"  stops             {_stop_line(plan)}"
    if plan.last_transaction is not None:
        done = plan.last_transaction
        yield f"  last transaction  {done.xid} ({done.kind.value}) at {done.lsn}, {show_time(done.time, zone)}"


def _last_words(reached: Reachable | Window, zone: tzinfo | None) -> str:
    if reached.latest_time is None:
        return ""
    return f", last transaction {reached.latest_xid} at {show_time(reached.latest_time, zone)}"


def _earliest_words(plan: RecoveryPlan, seen: Reachable) -> str:
    """Say from where on something can be reached: of several backups, the oldest from which no hole parts the end."""
    if plan.windows:
        window = plan.windows[-1]
        words = window.start_words(plan.zone)
        return words if len(window.backups) == 1 and len(plan.windows) == 1 else f"{words}, with {window.backups[0]}"
    if seen.earliest_time:
        return f"LSN {seen.earliest_lsn}, {show_time(seen.earliest_time, plan.zone)}"
    began = f"; the backup began at {show_time(seen.backup_began, plan.zone)}" if seen.backup_began else ""
    return f"LSN {seen.earliest_lsn}{began}"


def _stop_line(plan: RecoveryPlan) -> str:
    stop = plan.stop
    if stop is None:
        return f"at the end of the WAL, LSN {plan.reachable.latest_lsn if plan.reachable else 'unknown'}"
    if plan.target.kind is TargetKind.IMMEDIATE:
        return f"at the end of the backup, LSN {stop.lsn}"
    return f"{'before' if stop.is_before else 'after'} {describe_record(stop, plan.zone)}"


def recovery_json(plan: RecoveryPlan | None) -> dict[str, Any] | None:
    """Return the plan of a recovery as `--json` prints it."""
    if plan is None:
        return None
    target, seen, stop, last = plan.target, plan.reachable, plan.stop, plan.last_transaction
    return {
        "target": target.kind.value,
        "value": target.value,
        "inclusive": target.inclusive,
        "assumed_zone": target.assumed_zone,
        "action": plan.action.value,
        "checked": plan.is_checked,
        "timeline": plan.timeline_id or None,
        "wal_directories": list(plan.wal_directories),
        "segments": plan.segments,
        "segments_in_backup": plan.segments_in_backup,
        "backup": {"path": plan.span.path, "start_lsn": str(plan.span.start_lsn)} if plan.span else None,
        "rejected_backups": [{"path": path, "why": why} for path, why in plan.rejected],
        "windows": [
            {
                "backups": list(window.backups),
                "earliest": {
                    "lsn": str(window.earliest_lsn),
                    "time": iso(window.earliest_time),
                    "backup_began": iso(window.backup_began),
                },
                "latest": {
                    "lsn": str(window.latest_lsn),
                    "time": iso(window.latest_time),
                    "xid": window.latest_xid or None,
                },
                "missing": window.missing,
            }
            for window in plan.windows
        ],
        "stop": None
        if stop is None
        else {
            "lsn": str(stop.lsn),
            "where": "before" if stop.is_before else "after",
            "end_lsn": str(stop.end_lsn) if stop.end_lsn is not None else None,
            "record": stop.kind.value if stop.kind else None,
            "xid": stop.xid or None,
            "time": iso(stop.time),
            "name": stop.name,
        },
        "last_transaction": None
        if last is None
        else {"xid": last.xid, "lsn": str(last.lsn), "time": iso(last.time), "kind": last.kind.value},
        "reachable": None
        if seen is None
        else {
            "earliest": {
                "lsn": str(seen.earliest_lsn) if seen.earliest_lsn else None,
                "time": iso(seen.earliest_time),
                "backup_began": iso(seen.backup_began),
            },
            "latest": {"lsn": str(seen.latest_lsn), "time": iso(seen.latest_time), "xid": seen.latest_xid or None},
            "timeline": seen.timeline_id,
            "other_timelines": list(seen.other_timelines),
            "restore_points": [
                {"name": point.name, "lsn": str(point.lsn), "time": iso(point.time)} for point in seen.restore_points
            ],
        },
    }


def outcome_text(
    plan: RestorePlan, outcome: RecoveryOutcome, connect: str | None, *, run_as: str | None
) -> Iterator[str]:
    """Yield where recovery stopped and what to type next.

    connect: the psql command that reaches the server. run_as: the user that runs it, if it is not the caller.
    """
    recovery = plan.recovery
    assert recovery is not None
    where = f"LSN {outcome.lsn or 'unknown'}"
    yield f"recovery stopped at {where}, last transaction at {show_time(outcome.time, recovery.zone)}"
    if outcome.reason:
        yield f"  the server says   {outcome.reason}"
    pg_ctl = plan.binaries.program("pg_ctl") if plan.binaries else "pg_ctl"
    directory = shlex.quote(plan.layout.local)
    name = target_setting(recovery.target.kind)
    log = shlex.quote(f"{plan.layout.local}/polarvault-start.log")

    def control(words: str) -> str:
        line = f"{pg_ctl} -D {directory} -l {log} -w {words}"
        return line if run_as is None else f"su {run_as} -c {shlex.quote(line)}"

    if outcome.ended is TargetAction.PROMOTE:
        yield f"the server is writable, on timeline {outcome.timeline_id}"
    elif outcome.ended is TargetAction.PAUSE:
        yield "the server is paused and read-only: look at the data, then"
        yield f"  to promote it     {connect} -c 'SELECT pg_wal_replay_resume()'"
        if name is not None and recovery.target.kind is not TargetKind.IMMEDIATE:
            yield "  to go on          " + control(f'restart -o "-c {name}=LATER"')
        elif name is not None:
            yield "  to go on          " + control('restart -o "-c recovery_target= -c recovery_target_time=LATER"')
    else:
        yield "the server is shut down, and shuts down again at each start until its action is another one"
        yield "  to promote it     " + control('start -o "-c recovery_target_action=promote"')
        yield "  to look at it     " + control('start -o "-c recovery_target_action=pause"')


def outcome_json(outcome: RecoveryOutcome | None) -> dict[str, Any] | None:
    """Return the outcome as `--json` prints it."""
    if outcome is None:
        return None
    return {
        "ended": {TargetAction.PAUSE: "paused", TargetAction.PROMOTE: "promoted"}.get(outcome.ended, "shut down"),
        "lsn": str(outcome.lsn) if outcome.lsn is not None else None,
        "time": iso(outcome.time),
        "reason": outcome.reason,
        "timeline": outcome.timeline_id,
    }


class ReplayPrinter:
    """Say how replay goes on: a bar on a terminal, elsewhere a line every few seconds.

    clock: seconds that never go back. say: writes one line. zone: for times; None is the machine's.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        zone: tzinfo | None = None,
        bar: Callable[[int, int, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._zone = zone
        self._bar = bar
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._said = float("-inf")

    def __call__(self, state: ReplayState) -> None:
        """Take the next state."""
        if state.lsn is None:
            return
        now = self._clock()
        if self._first is None or state.lsn < self._first[1]:
            self._first = now, state.lsn
        if self._bar is not None:
            start = state.start_lsn or self._first[1]
            words = self._words(state, now, short=True)
            self._bar(max(0, state.lsn - start), max(0, (state.end_lsn or state.lsn) - start), words)
        elif now - self._said >= _LINE_EVERY_S:
            self._said = now
            self._say(f"polarvault: {self._words(state, now)}")

    def _words(self, state: ReplayState, now: float, *, short: bool = False) -> str:
        """Say where replay is; short: what fits behind a bar on a line of 80 columns."""
        assert state.lsn is not None
        assert self._first is not None
        began, first = self._first
        text = str(state.lsn) if short else f"replayed up to LSN {state.lsn}"
        if state.end_lsn is not None:
            text += f" of {state.end_lsn}"
        if state.time is not None and not short:
            text += f", transactions up to {show_time(state.time, self._zone)}"
        elapsed, done = now - began, state.lsn - first
        if elapsed > 0 and done > 0:
            rate = done / elapsed
            text += f", {format_bytes(int(rate))}/s"
            if state.end_lsn is not None and state.end_lsn > state.lsn:
                text += (
                    f", {'' if short else 'about '}{timedelta(seconds=int((state.end_lsn - state.lsn) / rate))} left"
                )
        return text


@contextmanager
def replay_printer(say: Callable[[str], None], *, zone: tzinfo | None, is_terminal: bool) -> Iterator[ReplayPrinter]:
    """Show replay as a bar on a terminal, and as lines elsewhere."""
    if not is_terminal:
        yield ReplayPrinter(say, zone=zone)
        return
    with Bar("recovery") as bar:
        yield ReplayPrinter(say, zone=zone, bar=bar.show)


@contextmanager
def scan_printer(say: Callable[[str], None], *, is_terminal: bool) -> Iterator[ScanProgress]:
    """Show how WAL is read to find a target: a bar on a terminal, elsewhere a line when it takes long."""
    if not is_terminal:
        said = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= _LINE_EVERY_S:
                said = time.monotonic()
                say(f"polarvault: read {format_bytes(done)} of at most {format_bytes(total)} of WAL for the target")

        yield tell
        return
    with Bar("reading WAL") as bar:
        yield lambda done, total: bar.show(done, total, f"{format_bytes(done)} of at most {format_bytes(total)}")
