"""Replication slots: those that hold WAL back for nobody, and those whose WAL is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """A slot; held_bytes is the WAL from its restart_lsn to now, None for a slot that holds none.

    wal_status is the server's word: reserved, extended, unreserved, lost. safe_bytes: how much more WAL may be written
    before the slot can be lost, None without a limit. reason and since come from PostgreSQL 17.
    """

    name: str
    kind: str
    active: bool
    synced: bool
    wal_status: str | None
    restart_lsn: str | None
    held_bytes: int | None
    safe_bytes: int | None = None
    reason: str | None = None
    since: str | None = None

    @property
    def loses_wal(self) -> bool:
        """Tell whether the next checkpoint removes WAL that the slot needs.

        Up to max_wal_size the server goes on calling such a slot reserved, and loses it all the same.
        """
        return self.wal_status == "unreserved" or (self.safe_bytes is not None and self.safe_bytes <= 0)


def check_slots(session: CheckSession) -> list[Finding]:
    """Return the findings about slots."""
    slots = read_slots(session)
    if slots is None:
        return []
    limit = session.size_setting("max_slot_wal_keep_size")
    return judge_slots(slots, limit_bytes=None if limit is None or limit < 0 else limit)


def read_slots(session: CheckSession) -> list[SlotFacts] | None:
    """Ask for every slot that outlives its connection; None where SQL is refused."""
    rows = session.rows(
        # All columns: which there are depends on the version. A standby has replayed up to where a primary writes.
        "SELECT s.*, pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn) AS held"
        " FROM pg_catalog.pg_replication_slots AS s WHERE NOT s.temporary ORDER BY s.slot_name",
        what="replication slots",
    )
    if rows is None:
        return None
    return [
        SlotFacts(
            name=row["slot_name"] or "",
            kind=row["slot_type"] or "",
            active=row["active"] == "t",
            synced=row.get("synced") == "t",
            wal_status=row.get("wal_status"),
            restart_lsn=row["restart_lsn"],
            held_bytes=max(int(row["held"]), 0) if row["held"] is not None else None,
            safe_bytes=int(safe) if (safe := row.get("safe_wal_size")) is not None else None,
            # 16 has no reason, but the one that a slot can be invalid for besides its WAL.
            reason=row.get("invalidation_reason")
            or ("conflicts with recovery" if row.get("conflicting") == "t" else None),
            since=row.get("inactive_since"),
        )
        for row in rows
    ]


def judge_slots(slots: Sequence[SlotFacts], *, limit_bytes: int | None) -> list[Finding]:
    """Return a finding for each slot in trouble, and one for all others.

    limit_bytes: max_slot_wal_keep_size, None when there is no limit.
    """
    findings = []
    sound = []
    for slot in slots:
        found = _judge(slot, limit_bytes)
        if found is None:
            sound.append(slot)
        else:
            findings.append(found)
    return [_summary(sound), *findings] if sound or not findings else findings


def _judge(slot: SlotFacts, limit_bytes: int | None) -> Finding | None:
    # Only the name's owner knows whether anybody still waits behind the slot, so the drop is never the first advice.
    drop = f"SELECT pg_drop_replication_slot('{slot.name}');"
    if slot.wal_status == "lost" or slot.reason:
        reason = f" ({slot.reason})" if slot.reason else ""
        return problem(
            "slot-lost",
            slot.name,
            f'{slot.kind} slot "{slot.name}" is lost: the server does not hold its WAL any more{reason}',
            meaning="the standby or receiver behind it cannot go on; a WAL directory that it filled has a gap, beyond "
            "which no older backup can be recovered",
            advice=f"take a new base backup, or rebuild the standby behind the slot; then:\n{drop}",
        )
    if slot.active or slot.synced:
        if not slot.loses_wal:
            return None
        return problem(
            "slot-behind",
            slot.name,
            f'{slot.kind} slot "{slot.name}" is {_held(slot)} behind and loses its WAL at the next checkpoint',
            meaning="what reads from the slot is too slow for max_slot_wal_keep_size",
            advice="ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();",
        )
    if slot.restart_lsn is None:
        return None
    since = f" since {slot.since[:19]} UTC" if slot.since else ""
    soon = "; it loses this WAL at the next checkpoint" if slot.loses_wal else ""
    finding = problem if slot.loses_wal else warning
    return finding(
        "slot-inactive",
        slot.name,
        f'{slot.kind} slot "{slot.name}" is inactive{since} and holds back {_held(slot)} of WAL '
        f"(from {slot.restart_lsn}){soon}",
        meaning=_inactive_meaning(limit_bytes),
        advice=f"start what reads from it, or, if that is gone for good:\n{drop}",
    )


def _inactive_meaning(limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return "WAL piles up in pg_wal until the slot moves on or the disk is full; then the server stops"
    return f"WAL piles up to {format_bytes(limit_bytes)} (max_slot_wal_keep_size); then the slot's reader is cut off"


def _held(slot: SlotFacts) -> str:
    return format_bytes(slot.held_bytes or 0)


def _summary(slots: Sequence[SlotFacts]) -> Finding:
    if not slots:
        return ok("slots", "replication slots", "there are no replication slots")
    active = [slot for slot in slots if slot.active]
    most = max((slot.held_bytes or 0 for slot in active), default=0)
    held = f"; the slowest is {format_bytes(most)} behind" if active else ""
    unused = f", {len(slots) - len(active)} that hold no WAL" if len(active) < len(slots) else ""
    return ok("slots", "replication slots", f"{len(active)} active{unused}{held}")
