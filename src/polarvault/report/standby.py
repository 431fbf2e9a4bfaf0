"""How a standby follows its primary, for people and for programs: the plan's part, progress, lag at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from polarvault.report.units import format_bytes
from polarvault.restore.model import RestorePlan

if TYPE_CHECKING:
    from polarvault.restore.run import RestoreResult
    from polarvault.restore.standby.follow import FollowState
    from polarvault.restore.standby.primary import SlotState

_PRINT_EVERY_S = 2.0


def show_first_segment(say: Callable[[str], None], done: int, whole: int) -> None:
    """Say why a server on PFS does not take writes yet."""
    say(
        "polarvault: before it opens for writing, the server makes a WAL segment, 8 kB at a time: "
        f"{format_bytes(done)} of {format_bytes(whole)}"
    )


class FollowPrinter:
    """Print where the standby is when its state changes, and every two seconds while it catches up."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last: str | None = None
        self._next_s = 0.0

    def __call__(self, state: FollowState) -> None:
        """Show one state."""
        kind = "caught up" if state.caught_up else state.status or "no WAL receiver"
        if kind == self._last and time.monotonic() < self._next_s:
            return
        self._last, self._next_s = kind, time.monotonic() + _PRINT_EVERY_S
        source = f" from {state.sender}" if state.sender else ""
        behind = "" if state.lag_bytes is None else f", {format_bytes(state.lag_bytes)} behind"
        self._write(f"polarvault: {kind}{source}: replayed {state.replay_lsn or 'nothing yet'}{behind}")


def primary_text(plan: RestorePlan) -> Iterator[str]:
    """Yield the lines of the plan about the primary."""
    primary = plan.primary
    if primary is None:
        return
    identity = primary.identity
    yield f"  follows           {identity.product}, timeline {identity.timeline_id}, at {identity.flush_lsn}"
    if plan.request.slot:
        made = "to be made on the primary" if plan.request.create_slot else "on the primary"
        yield f"  slot              {plan.request.slot}, {made}"


def primary_json(plan: RestorePlan) -> dict[str, Any] | None:
    """Return the plan's part about the primary."""
    primary = plan.primary
    if primary is None:
        return None
    return {
        "product": primary.identity.product,
        "system_identifier": primary.identity.system_identifier,
        "timeline": primary.identity.timeline_id,
        "lsn": str(primary.identity.flush_lsn),
        "slot": plan.request.slot,
        "create_slot": plan.request.create_slot,
    }


def follow_text(result: RestoreResult) -> Iterator[str]:
    """Yield how a started standby follows."""
    report = result.follow
    if report is None:
        return
    state = report.state
    yield f"  WAL receiver      {state.status or 'none'}" + (f" from {state.sender}" if state.sender else "")
    yield f"  received          {state.receive_lsn or 'unknown'}"
    yield f"  replayed          {state.replay_lsn or 'unknown'}"
    yield f"  primary is at     {state.primary_lsn or 'unknown'}"
    yield f"  lag               {_lag(state)}"
    if result.plan.request.slot:
        yield f"  slot              {_slot(report.slot, result.plan.request.slot)}"
    if report.databases is not None:
        yield f"  same databases    {report.databases}, as on the primary"
    if not state.caught_up:
        yield "not caught up yet; watch it with: SELECT pg_last_wal_replay_lsn(), * FROM pg_stat_wal_receiver"
    if result.plan.layout.live_datadir is not None:
        yield (
            "when this replica is given up, drop its slot on the primary, which it would hold up otherwise: "
            f"SELECT pg_drop_replication_slot('{result.plan.request.slot}')"
        )


def _lag(state: FollowState) -> str:
    if state.lag_bytes is None:
        return "unknown"
    if state.lag_bytes == 0:
        return "0 bytes, 0 s"
    since = "" if state.lag_s is None else f"; the last transaction replayed is {state.lag_s:.1f} s old"
    return format_bytes(state.lag_bytes) + since


def _slot(slot: SlotState | None, name: str | None) -> str:
    if slot is None:
        return f"{name}, which could not be looked at"
    use = "active" if slot.active_pid is not None else "idle"
    if slot.wal_status is None:
        use = "activity not shown to this user"
    status = f", WAL {slot.wal_status}" if slot.wal_status else ""
    return f"{slot.name}, {use}, restart_lsn {slot.restart_lsn or 'none'}{status}"


def follow_json(result: RestoreResult) -> dict[str, Any] | None:
    """Return how a started standby follows."""
    report = result.follow
    if report is None:
        return None
    state, slot = report.state, report.slot
    return {
        "status": state.status,
        "sender": state.sender,
        "received_lsn": str(state.receive_lsn) if state.receive_lsn else None,
        "replayed_lsn": str(state.replay_lsn) if state.replay_lsn else None,
        "primary_lsn": str(state.primary_lsn) if state.primary_lsn else None,
        "lag_bytes": state.lag_bytes,
        "lag_s": state.lag_s,
        "caught_up": state.caught_up,
        "slot": None
        if slot is None
        else {
            "name": slot.name,
            "active": slot.active_pid is not None,
            "restart_lsn": str(slot.restart_lsn) if slot.restart_lsn else None,
            "wal_status": slot.wal_status,
        },
        "databases": report.databases,
    }
