"""Whether a backup can follow a primary: the same cluster, version and history, a usable slot, WAL that is there. Pure.

A standby that is refused here would start, retry every five seconds and never stream; its log alone would say why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from polarvault.errors import ServerRefused, UsageError
from polarvault.instance.model import Role
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.restore.model import RestorePlan, RestoreRequest

if TYPE_CHECKING:
    from polarvault.recovery.chain import BackupSpan
    from polarvault.restore.standby.primary import Primary, SlotState

_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}\Z")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


def check_follow_options(request: RestoreRequest) -> None:
    """Raise UsageError for options that do not fit the role or each other."""
    if request.role is Role.PRIMARY:
        for option, value in (
            ("--primary-conninfo", request.primary_conninfo),
            ("--slot", request.slot),
            ("--create-slot", request.create_slot),
        ):
            if value:
                raise UsageError(f"{option} is for a standby", hint="add --as standby")
    if request.slot is not None and _SLOT_NAME.match(request.slot) is None:
        raise UsageError(
            f"--slot {request.slot!r}: a slot's name has up to 63 small letters, digits and underscores",
            hint="for example: --slot standby2",
        )
    if request.create_slot and not request.slot:
        raise UsageError("--create-slot needs a name", hint="add --slot NAME")
    if request.create_slot and not request.primary_conninfo:
        raise UsageError("--create-slot needs the primary to make the slot on", hint="add --primary-conninfo CONNSTR")


def application_name(request: RestoreRequest) -> str:
    """Return the name under which the standby shows in the primary's pg_stat_replication."""
    return request.slot or _NOT_A_NAME.sub("_", os.path.basename(request.target)) or "standby"


def last_held_segment(plan: RestorePlan, segment_size_bytes: int) -> WalSegment | None:
    """Return the last segment that recovery reads from the backup, or the first that it lacks; None when unknown.

    Recovery reads what lies in pg_wal without a gap, and streams from the start of the segment where that ends.
    """
    if plan.label is not None:
        segment = WalSegment.parse(plan.label.start_segment, segment_size_bytes)
    elif plan.inventory.control is not None:
        control = plan.inventory.control
        segment = WalSegment.holding(control.redo_lsn, control.timeline_id, segment_size_bytes)
    else:
        return None
    while segment.next().file_name in plan.inventory.wal:
        segment = segment.next()
    return segment


def check_follows(plan: RestorePlan, primary: Primary, span: BackupSpan | None = None) -> list[str]:
    """Raise ServerRefused when the backup could never follow the primary; return warnings.

    span: the WAL that the backup needs, where that is known.
    """
    _check_kind(plan, primary)
    check_system_identifier(primary, _system_identifier(plan))
    _check_timeline(plan, primary, span)
    return [*_check_slot(plan, primary), *_password_warnings(primary)]


def _check_kind(plan: RestorePlan, primary: Primary) -> None:
    identity = primary.identity
    if identity.version_num // 10000 != plan.major_version:
        raise _refused(
            f"the backup is of version {plan.major_version}, the primary is {identity.product}",
            "physical replication needs the same major version; give the primary that the backup was taken from",
        )
    if plan.is_polardb != bool(identity.polar_version):
        product = "PolarDB" if plan.is_polardb else "PostgreSQL"
        raise _refused(
            f"the backup is of {product}, the primary is {identity.product}",
            "give the primary that the backup was taken from",
        )


def _system_identifier(plan: RestorePlan) -> str | None:
    if plan.inventory.control is not None:
        return str(plan.inventory.control.system_identifier)
    claimed = plan.source.description.get("system_identifier")
    return None if claimed is None else str(claimed)


def supplies_wal(request: RestoreRequest) -> bool:
    """Tell whether WAL can come from elsewhere than the backup and the primary."""
    return bool(request.recovery.wal_directories) or any(name == "restore_command" for name, _ in request.settings)


def check_system_identifier(primary: Primary, expected: str | None, *, outcome: str = "nothing was written") -> None:
    """Raise ServerRefused when the primary belongs to another cluster; outcome says what became of the restore."""
    found = primary.identity.system_identifier
    if expected is not None and expected != found:
        raise _refused(
            f"the primary belongs to another cluster: its system identifier is {found}, the backup's {expected}",
            "give the primary that the backup was taken from, or a backup of this one",
            outcome,
        )


def _check_timeline(plan: RestorePlan, primary: Primary, span: BackupSpan | None) -> None:
    if span is not None:
        # The backup is behind the primary's history only if its last byte is: the end counts, not the start.
        timeline, end = span.end_timeline_id, max(span.start_lsn, span.end_lsn or _end_of_backup(plan) or Lsn(0))
    elif plan.label is not None:
        timeline, end = plan.label.timeline_id, max(plan.label.start_lsn, _end_of_backup(plan) or Lsn(0))
    else:
        return
    theirs = primary.identity.timeline_id
    if theirs < timeline:
        raise _refused(
            f"the primary is on timeline {theirs}, the backup on timeline {timeline}: a promotion left it behind",
            "give the primary of the newer timeline",
        )
    if primary.history is not None and not primary.history.contains_up_to(timeline, end):
        own = primary.history.range_of(timeline)
        split = f"left timeline {timeline} at {own.end}" if own else f"does not contain timeline {timeline}"
        raise _refused(
            f"the primary's history {split}, but the backup reaches to {end} on timeline {timeline}",
            f"take a new backup of the primary (it is on timeline {theirs}), or give one from before the switch",
        )
    # A standby may lag behind the backup and catch up; a primary that is behind it is another history.
    if theirs == timeline and not primary.identity.in_recovery and primary.identity.flush_lsn < end:
        raise _refused(
            f"the primary is at {primary.identity.flush_lsn}, before the backup's end at {end}: it was itself restored "
            "to an earlier moment",
            "take a new backup of this primary",
        )


def _end_of_backup(plan: RestorePlan) -> Lsn | None:
    recorded = plan.source.description.get("stop_lsn")
    try:
        return Lsn.parse(recorded) if isinstance(recorded, str) else None
    except ValueError:
        return None


def _check_slot(plan: RestorePlan, primary: Primary) -> list[str]:
    name = plan.request.slot
    if name is None:
        return [
            "without a slot the primary may remove WAL that this server still needs, while it is down or slow: "
            "add --slot NAME --create-slot"
        ]
    if primary.slots is None:
        if plan.request.create_slot:
            return []
        return [f'slot "{name}" could not be looked at: the primary refuses SQL connections to this user']
    slot = primary.slot(name)
    if plan.request.create_slot:
        if slot is not None:
            raise _refused(
                f'slot "{name}" exists on the primary already',
                "choose another name; or, if it was made for this standby, use it as it is, without --create-slot",
            )
        return []
    if slot is None:
        present = ", ".join(found.name for found in primary.slots if found.kind == "physical") or "none"
        raise _refused(
            f'the primary has no slot "{name}" (its physical slots: {present})', "let it be made: --create-slot"
        )
    return _check_usable(plan, primary, slot)


def _check_usable(plan: RestorePlan, primary: Primary, slot: SlotState) -> list[str]:
    remake = f"SELECT pg_drop_replication_slot('{slot.name}'), then run this again with --create-slot"
    if slot.kind != "physical":
        raise _refused(f'slot "{slot.name}" is a {slot.kind} slot; a standby needs a physical one', "name another slot")
    if slot.active_pid is not None:
        raise _refused(
            f'slot "{slot.name}" is in use by another server (process {slot.active_pid} on the primary)',
            "name another slot, or let one be made: --slot NAME --create-slot",
        )
    if slot.wal_status == "lost":
        raise _refused(f'slot "{slot.name}" is lost: the primary has removed WAL that it should have held', remake)
    needed = last_held_segment(plan, primary.identity.segment_size_bytes)
    if plan.request.role is Role.STANDBY and needed is not None:
        if slot.restart_lsn is None:
            return [f'slot "{slot.name}" holds no WAL until the standby has connected for the first time']
        # The slot holds whole segments: what counts is the segment of its restart_lsn.
        held = WalSegment.holding(slot.restart_lsn, 1, primary.identity.segment_size_bytes).start
        if held > needed.end:
            return [f'slot "{slot.name}" holds WAL from {held} only, and the standby may need it from {needed.start}']
    return []


def _password_warnings(primary: Primary) -> list[str]:
    if not primary.password_from_elsewhere:
        return []
    return [
        "the password came from PGPASSWORD or ~/.pgpass of the user who runs this command; the restored server reads "
        "neither unless it runs as the same user: put password or passfile into --primary-conninfo"
    ]


def hot_standby_shortfalls(configured: Mapping[str, str], primary: Mapping[str, str]) -> dict[str, str]:
    """Return the settings, with the primary's value, that are lower here than on the primary; both by name."""
    return {
        name: value
        for name, value in primary.items()
        if name in configured and _number(value) > _number(configured[name])
    }


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _refused(message: str, hint: str, outcome: str = "nothing was written") -> ServerRefused:
    return ServerRefused(f"{message}; {outcome}", hint=hint)
