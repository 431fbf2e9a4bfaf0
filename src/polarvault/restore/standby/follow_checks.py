"""Whether a backup can follow a primary: the same cluster, version and history, a usable slot, WAL that is there. Pure.

A standby that is refused here would start, retry every five seconds and never stream; its log alone would say why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polarvault.errors import ServerRefused
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.restore.facts import BackupFacts, WithheldWal
from polarvault.restore.model import RestoreRequest

if TYPE_CHECKING:
    from polarvault.recovery.wal.chain import BackupSpan
    from polarvault.restore.standby.primary import Primary, SlotState


def last_held_segment(backup: BackupFacts, segment_size_bytes: int) -> WalSegment | None:
    """Return the last segment that recovery reads from the backup, or the first that it lacks; None when unknown.

    Recovery reads what lies in pg_wal without a gap, and streams from the start of the segment where that ends.
    """
    control = backup.inventory.control
    if backup.label is not None:
        segment = WalSegment.parse(backup.label.start_segment, segment_size_bytes)
    elif control is not None:
        segment = WalSegment.holding(control.redo_lsn, control.timeline_id, segment_size_bytes)
    else:
        return None
    while segment.next().file_name in backup.inventory.wal:
        segment = segment.next()
    return segment


def check_follows(
    request: RestoreRequest, backup: BackupFacts, primary: Primary, span: BackupSpan | None = None
) -> list[str]:
    """Raise ServerRefused when the backup could never follow the primary; return warnings.

    span: the WAL that the backup needs, where that is known.
    """
    _check_kind(backup, primary)
    check_system_identifier(primary, backup.system_identifier)
    _check_timeline(backup, primary, span)
    return [*_check_slot(request, backup, primary), *_password_warnings(primary)]


def _check_kind(backup: BackupFacts, primary: Primary) -> None:
    identity = primary.identity
    if identity.version_num // 10000 != backup.major_version:
        raise _refused(
            f"the backup is of version {backup.major_version}, the primary is {identity.product}",
            "physical replication needs the same major version; give the primary that the backup was taken from",
        )
    if backup.is_polardb != bool(identity.polar_version):
        product = "PolarDB" if backup.is_polardb else "PostgreSQL"
        raise _refused(
            f"the backup is of {product}, the primary is {identity.product}",
            "give the primary that the backup was taken from",
        )


def supplies_wal(request: RestoreRequest) -> bool:
    """Tell whether WAL can come from elsewhere than the backup and the primary."""
    return request.recovery.has_places or any(name == "restore_command" for name, _ in request.settings)


def check_system_identifier(primary: Primary, expected: str | None, *, outcome: str = "nothing was written") -> None:
    """Raise ServerRefused when the primary belongs to another cluster; outcome says what became of the restore."""
    found = primary.identity.system_identifier
    if expected is not None and expected != found:
        raise _refused(
            f"the primary belongs to another cluster: its system identifier is {found}, the backup's {expected}",
            "give the primary that the backup was taken from, or a backup of this one",
            outcome,
        )


def _check_timeline(backup: BackupFacts, primary: Primary, span: BackupSpan | None) -> None:
    if span is not None:
        # The backup is behind the primary's history only if its last byte is: the end counts, not the start.
        timeline, end = span.end_timeline_id, max(span.start_lsn, span.end_lsn or _end_of_backup(backup) or Lsn(0))
    elif backup.label is not None:
        timeline, end = backup.label.timeline_id, max(backup.label.start_lsn, _end_of_backup(backup) or Lsn(0))
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


def _end_of_backup(backup: BackupFacts) -> Lsn | None:
    recorded = backup.source.description.get("stop_lsn")
    try:
        return Lsn.parse(recorded) if isinstance(recorded, str) else None
    except ValueError:
        return None


def _check_slot(request: RestoreRequest, backup: BackupFacts, primary: Primary) -> list[str]:
    name = request.slot
    if name is None:
        return [
            "without a slot the primary may remove WAL that this server still needs, while it is down or slow: "
            "add --slot NAME --create-slot"
        ]
    if primary.slots is None:
        if request.create_slot:
            return []
        return [f'slot "{name}" could not be looked at: the primary refuses SQL connections to this user']
    slot = primary.slot(name)
    if request.create_slot:
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
    return _check_usable(backup, primary, slot)


def _check_usable(backup: BackupFacts, primary: Primary, slot: SlotState) -> list[str]:
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
    # A replica needs none: its backup has neither label nor pg_control here.
    needed = last_held_segment(backup, primary.identity.segment_size_bytes)
    if needed is not None:
        if slot.restart_lsn is None:
            return [f'slot "{slot.name}" holds no WAL until the standby has connected for the first time']
        # The slot holds whole segments: what counts is the segment of its restart_lsn.
        held = WalSegment.holding(slot.restart_lsn, 1, primary.identity.segment_size_bytes).start
        if held > needed.end:
            return [f'slot "{slot.name}" holds WAL from {held} only, and the standby may need it from {needed.start}']
    return []


def judge_withheld(request: RestoreRequest, withheld: WithheldWal | None) -> list[str]:
    """Raise ServerRefused when WAL that the standby needs can come from nowhere; return warnings."""
    if withheld is None:
        return []
    lsn, refusal = withheld.lsn, withheld.refusal
    if not withheld.is_certain:
        return [f"the primary no longer has the WAL from {lsn} ({refusal}), which may be in the backup up to its end"]
    if supplies_wal(request):
        return [f"the primary no longer has the WAL from {lsn} ({refusal}): the WAL archive has to supply it"]
    raise _refused(
        f"the primary no longer has the WAL that follows the backup, from {lsn}: {refusal}",
        "take a new backup, or name a directory that has the WAL: --wal DIR",
    )


def _password_warnings(primary: Primary) -> list[str]:
    if not primary.password_from_elsewhere:
        return []
    return [
        "the password came from PGPASSWORD or ~/.pgpass of the user who runs this command; the restored server reads "
        "neither unless it runs as the same user: put password or passfile into --primary-conninfo"
    ]


def _refused(message: str, hint: str, outcome: str = "nothing was written") -> ServerRefused:
    return ServerRefused(f"{message}; {outcome}", hint=hint)
