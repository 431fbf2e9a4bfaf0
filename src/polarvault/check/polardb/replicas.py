"""Whether a replica, or the slot of one that is gone, would make a backup hang (facts 5.3).

The checkpoint that a backup begins with waits until every replica with a slot has applied what is to be written. A
replica that is stopped or stuck makes it, and so BASE_BACKUP, CHECKPOINT and a clean shutdown, wait for ever, without a
word to the client. Measured on PolarDB 15.8: with full_page_writes off and polar_enable_incremental_checkpoint on a
backup does not wait, but CHECKPOINT and a clean shutdown do, and once one of them does, so does a backup.

The server notes in a slot, only in memory, what kind of node last used it: slots of standbys, receivers and backup
tools are never REPLICA and never wait for anybody. After a restart the kind is UNKNOWN until the node is back, while
the applied LSN may have been kept; polar_oldest_apply_lsn() is 0/0 when there is none. A failover leaves the promoted
node's own slot behind in that way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from polarvault.check.polardb.monitor import INSTALL, monitor_schema
from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.lsn import Lsn
from polarvault.model.units import format_bytes
from polarvault.polardb.settings import is_true

_CHECK = "polardb-replicas"
_REPLICA = "REPLICA"
# A replica reports what it has applied about once a second; a busy machine may take longer. Used up only by one that
# does not move.
_PATIENCE_S = 8.0
_BETWEEN_LOOKS_S = 0.2
# A spread checkpoint takes minutes; who waits for less than this need not be mentioned.
_LONG_WAIT_S = 30
_EMERGENCY = "ALTER SYSTEM SET polar_ignore_ro_latency = on; SELECT pg_reload_conf();"


class Progress(Enum):
    """How replicas did while we watched: at the LSN of our first look, on the way, or where they were."""

    LEVEL = "level"
    MOVING = "moving"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What the slowest replica has applied; oldest is 0/0 when no slot has an applied LSN."""

    oldest: Lsn
    behind_bytes: int
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSlot:
    """A lasting physical slot; node_type is REPLICA, STANDBY or UNKNOWN, None without polar_monitor.

    applied: what the connected node has applied; None where none is connected, or for those without pg_monitor.
    """

    name: str
    active: bool
    node_type: str | None
    applied: Lsn | None = None

    @property
    def is_dead_replica(self) -> bool:
        """Tell whether a replica used it that is not there now."""
        return not self.active and self.node_type == _REPLICA

    @property
    def may_be_dead_replica(self) -> bool:
        """Tell whether nobody knows what the idle slot is for."""
        return not self.active and self.node_type in (None, "UNKNOWN")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """Everything about replicas that can hold a backup up.

    applied: None where it cannot be asked. backup_waits: false where the checkpoint of a backup is incremental.
    waiting: server processes that have waited long for a checkpoint. possible: false where replicas are switched off.
    """

    slots: Sequence[ReplicaSlot]
    has_monitor: bool
    applied: Applied | None
    backup_waits: bool
    ignores_latency: bool
    possible: bool
    waiting: Sequence[str] = ()


def check_replicas(session: CheckSession) -> list[Finding]:
    """Return the findings about replicas of this primary or standby."""
    facts = read_replicas(session)
    return [] if facts is None else judge_replicas(facts)


def read_replicas(session: CheckSession) -> ReplicaFacts | None:
    """Ask for slots and for what has been applied; None where SQL is refused."""
    schema = monitor_schema(session)
    slots = _read_slots(session, schema)
    if slots is None:
        return None
    applied = None
    if schema and not session.in_recovery:
        connected = any(slot.active and slot.node_type == _REPLICA for slot in slots)
        # Where a dead replica is known already, watching the others would only cost time.
        dead = any(slot.is_dead_replica for slot in slots)
        applied = _watch(session, schema, may_move=connected and not dead)
        # Again, to compare what the connected ones have applied with where the slowest has stopped.
        slots = _read_slots(session, schema) or slots
    full_page_writes = session.setting("full_page_writes") != "off"
    incremental = session.setting("polar_enable_incremental_checkpoint") != "off"
    return ReplicaFacts(
        slots=slots,
        has_monitor=schema is not None,
        applied=applied,
        backup_waits=full_page_writes or not incremental,
        ignores_latency=is_true(session.setting("polar_ignore_ro_latency")),
        possible=session.size_setting("polar_logindex_mem_size") != 0,
        waiting=_read_waiting(session),
    )


def _read_slots(session: CheckSession, schema: str | None) -> list[ReplicaSlot] | None:
    """Ask for lasting physical slots; None where SQL is refused."""
    node_type = f"{schema}.polar_get_slot_node_type(s.slot_name)" if schema else "NULL"
    rows = session.rows(
        f"SELECT s.slot_name, s.active, {node_type} AS node_type, r.replay_lsn AS applied"
        " FROM pg_catalog.pg_replication_slots AS s"
        " LEFT JOIN pg_catalog.pg_stat_replication AS r ON r.pid = s.active_pid"
        " WHERE s.slot_type = 'physical' AND NOT s.temporary ORDER BY s.slot_name",
        what="physical replication slots",
    )
    if rows is None:
        return None
    return [
        ReplicaSlot(
            name=row["slot_name"] or "",
            active=row["active"] == "t",
            node_type=row["node_type"],
            applied=Lsn.parse(row["applied"]) if row["applied"] else None,
        )
        for row in rows
    ]


def _watch(session: CheckSession, schema: str, *, may_move: bool) -> Applied | None:
    """See whether replicas get to where the primary is now; return as soon as they have.

    may_move: whether there is a replica at all that could move; without one an applied LSN is of an idle slot.
    """
    query = f"SELECT {schema}.polar_oldest_apply_lsn() AS oldest, pg_catalog.pg_current_wal_lsn() AS current"
    deadline = time.monotonic() + _PATIENCE_S
    first = wanted = None
    while True:
        row = session.row(query, what="what replicas have applied")
        if row is None or row["oldest"] is None or row["current"] is None:
            return None
        oldest, current = Lsn.parse(row["oldest"]), Lsn.parse(row["current"])
        if first is None or wanted is None:
            first, wanted = oldest, current
        behind = max(current - oldest, 0)
        if oldest == 0 or (may_move and oldest >= wanted):
            return Applied(oldest=oldest, behind_bytes=behind, progress=Progress.LEVEL)
        if not may_move or time.monotonic() >= deadline:
            progress = Progress.MOVING if oldest > first else Progress.STUCK
            return Applied(oldest=oldest, behind_bytes=behind, progress=progress)
        # There is nothing to wait on: the server tells only those who ask.
        time.sleep(_BETWEEN_LOOKS_S)


def _read_waiting(session: CheckSession) -> list[str]:
    """Return who has waited long for a checkpoint; ordinary roles see only their own processes."""
    rows = session.rows(
        "SELECT pid, coalesce(nullif(application_name, ''), backend_type) AS name,"
        " extract(epoch FROM pg_catalog.clock_timestamp() - query_start)::bigint AS seconds"
        " FROM pg_catalog.pg_stat_activity WHERE wait_event IN ('CheckpointStart', 'CheckpointDone')"
        f" AND query_start < pg_catalog.clock_timestamp() - interval '{_LONG_WAIT_S} s' ORDER BY query_start"
    )
    return [f"{row['name']} (pid {row['pid']}, {row['seconds']} s)" for row in rows or []]


def judge_replicas(facts: ReplicaFacts) -> list[Finding]:
    """Return the findings about replicas that hold a backup up, could, or do not."""
    findings = []
    if facts.ignores_latency:
        findings.append(_ignores_latency())
    dead = [slot for slot in facts.slots if slot.is_dead_replica]
    if dead:
        return findings + [_dead(slot, facts) for slot in dead]
    if facts.applied is not None and facts.applied.progress is not Progress.LEVEL:
        return [*findings, _behind(facts, facts.applied)]
    suspects = [slot for slot in facts.slots if slot.may_be_dead_replica]
    if facts.applied is None and suspects and facts.possible and not facts.has_monitor:
        return [*findings, _cannot_tell(suspects, facts)]
    return [*findings, _fine(facts)]


def _dead(slot: ReplicaSlot, facts: ReplicaFacts) -> Finding:
    behind = f", which stands at {facts.applied.oldest}" if facts.applied and facts.applied.oldest else ""
    return _held_up(
        facts,
        slot.name,
        f'slot "{slot.name}" is of a read-only node (replica) that is not connected{behind}',
        f"start the read-only node; or, if it is gone for good:\nSELECT pg_drop_replication_slot('{slot.name}');",
    )


def _behind(facts: ReplicaFacts, applied: Applied) -> Finding:
    connected = [slot for slot in facts.slots if slot.active and slot.node_type == _REPLICA]
    behind = f"{format_bytes(applied.behind_bytes)} behind (applied up to {applied.oldest})"
    if applied.progress is Progress.MOVING:
        return warning(
            _CHECK,
            _names(connected) or "read-only nodes",
            f"the slowest read-only node is {behind} and catches up",
            meaning="the checkpoint that a backup begins with waits for it",
            advice="wait, or find out what is slow there: "
            "SELECT application_name, replay_lsn, replay_lag FROM pg_stat_replication;",
        )
    # Those that stand where the slowest stands; where this role is not told, any of them may be it.
    stuck = [slot for slot in connected if slot.applied is None or slot.applied <= applied.oldest]
    told = any(slot.applied is not None for slot in stuck)
    idle = [] if told else [slot for slot in facts.slots if slot.may_be_dead_replica]
    suspects = [*stuck, *idle]
    advice = []
    if stuck:
        advice.append(
            f"on the read-only node of {_names(stuck)}: SELECT pg_get_wal_replay_pause_state();\n"
            "if it is paused: SELECT pg_wal_replay_resume(); otherwise restart the node"
        )
    if idle:
        drops = "\n".join(f"SELECT pg_drop_replication_slot('{slot.name}');" for slot in idle)
        advice.append(
            f"start the read-only node of an idle slot; or, if it is gone for good or has become this primary:\n{drops}"
        )
    which = "slot" if len(suspects) == 1 else "one of the slots"
    kind = "that is connected" if not idle else "that is not connected" if not stuck else ""
    return _held_up(
        facts,
        _names(suspects) or "read-only nodes",
        " ".join(f"a read-only node (replica) {kind} applies nothing, {behind}; {which} {_names(suspects)}".split()),
        "\n".join(advice),
    )


def _held_up(facts: ReplicaFacts, subject: str, message: str, advice: str) -> Finding:
    """A replica stands still: what that means depends on the kind of checkpoint."""
    waiting = f"; already waiting: {', '.join(facts.waiting)}" if facts.waiting else ""
    if facts.ignores_latency:
        return warning(
            _CHECK,
            subject,
            f"{message}{waiting}",
            meaning="backups hang again as soon as polar_ignore_ro_latency is off",
            advice=advice,
        )
    if facts.backup_waits or facts.waiting:
        return problem(
            _CHECK,
            subject,
            f"{message}: a backup will hang{waiting}",
            meaning="the checkpoint that a backup begins with waits until that node has applied the WAL, for ever if "
            "it does not come back; so do CHECKPOINT, DDL and a clean shutdown, and nobody is told why",
            advice=f"{advice}\nin an emergency (pages on read-only nodes may be wrong then): {_EMERGENCY}",
        )
    return warning(
        _CHECK,
        subject,
        f"{message}; backups do not wait for it while full_page_writes is off",
        meaning="a backup starts at an old LSN and needs more WAL; CHECKPOINT and a clean shutdown wait for that node "
        "for ever, and once one of them does, so does a backup",
        advice=advice,
    )


def _cannot_tell(suspects: Sequence[ReplicaSlot], facts: ReplicaFacts) -> Finding:
    names = _names(suspects)
    waiting = f"; already waiting for a checkpoint: {', '.join(facts.waiting)}" if facts.waiting else ""
    return warning(
        _CHECK,
        names,
        f"idle slots whose use cannot be told: {names}{waiting}",
        meaning="a slot of a read-only node that is stopped makes the checkpoint of a backup wait for ever; slots of "
        "standbys and receivers do not",
        advice=f"in the database that you connect to: {INSTALL}\nthen check again; or drop what nobody needs: "
        f"SELECT pg_drop_replication_slot('{suspects[0].name}');",
    )


def _ignores_latency() -> Finding:
    return warning(
        "polardb-ignore-ro-latency",
        "polar_ignore_ro_latency",
        "polar_ignore_ro_latency is on",
        meaning="backups do not wait for read-only nodes, but those may read pages from their future",
        advice="when the emergency is over: ALTER SYSTEM RESET polar_ignore_ro_latency; SELECT pg_reload_conf();",
    )


def _fine(facts: ReplicaFacts) -> Finding:
    connected = [slot for slot in facts.slots if slot.active and slot.node_type == _REPLICA]
    if not connected:
        known = (
            "no read-only node has a slot here" if facts.has_monitor else "no idle slot could be of a read-only node"
        )
        return ok(_CHECK, "read-only nodes", f"{known}: nothing holds up the checkpoint of a backup")
    behind = ""
    if facts.applied is not None and facts.applied.oldest:
        behind = f", {format_bytes(facts.applied.behind_bytes)} behind"
    return ok(
        _CHECK,
        "read-only nodes",
        f"read-only nodes keep up ({_names(connected)}{behind}): they do not hold up the checkpoint of a backup",
    )


def _names(slots: Sequence[ReplicaSlot]) -> str:
    return ", ".join(f'"{slot.name}"' for slot in slots)
