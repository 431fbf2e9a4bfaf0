"""Settle a plan with what the primary answers: checks, complete connection string, WAL that is still there.

Reads from the primary only; what is made there (the slot) belongs to held_slot.
"""

from __future__ import annotations

from dataclasses import replace

from polarvault.errors import BackupUnusable, ServerRefused
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Role
from polarvault.model.lsn import Lsn
from polarvault.recovery.chain import BackupSpan
from polarvault.recovery.held_wal import end_of_held_wal
from polarvault.recovery.span import load_backup_span
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.plan import with_settings
from polarvault.restore.standby.follow_checks import application_name, check_follows, last_held_segment, supplies_wal
from polarvault.restore.standby.primary import Primary, ask_primary, why_wal_is_missing
from polarvault.restore.standby.replica import check_replica, settle_replica


def settle_with_primary(plan: RestorePlan, host: Host, account: Account) -> RestorePlan:
    """Ask the primary that the request names, if any; raise for whatever would keep the server from following it."""
    given = plan.request.primary_conninfo
    if given is None:
        return plan
    primary = ask_primary(given, application_name=application_name(plan.request), user=account.name)
    is_replica = plan.request.role is Role.REPLICA
    if is_replica:
        warnings = check_replica(plan, primary, host)
    else:
        warnings = check_follows(plan, primary, _span(plan))
        warnings += _check_wal(plan, primary)
    plan = replace(
        plan,
        request=replace(plan.request, primary_conninfo=primary.conninfo),
        primary=primary,
        follow_warnings=tuple(warnings),
    )
    return settle_replica(plan, host, account) if is_replica else with_settings(plan, host, account)


def _span(plan: RestorePlan) -> BackupSpan | None:
    try:
        return load_backup_span(plan.source, plan.inventory, plan.label, plan.request.recovery.wal_directories)
    except BackupUnusable:
        if plan.inventory.control is not None:
            raise
        # A compressed tar was not read to its end, and what is known before has to do.
        return None


def _check_wal(plan: RestorePlan, primary: Primary) -> list[str]:
    segment = last_held_segment(plan, primary.identity.segment_size_bytes)
    if segment is None:
        return []
    lsn = segment.start
    refusal = _refusal(plan, primary, lsn)
    if refusal is None:
        return []
    end = end_of_held_wal(plan.source, plan.inventory, segment) if segment.file_name in plan.inventory.wal else lsn
    if end is None:
        return [f"the primary no longer has the WAL from {lsn} ({refusal}), which may be in the backup up to its end"]
    if end >= segment.end:
        # Full, or closed by a switch as pg_basebackup's last one is: the standby goes on with the next segment.
        lsn, refusal = segment.end, _refusal(plan, primary, segment.end)
        if refusal is None:
            return []
    if supplies_wal(plan.request):
        return [f"the primary no longer has the WAL from {lsn} ({refusal}): the WAL archive has to supply it"]
    raise ServerRefused(
        f"the primary no longer has the WAL that follows the backup, from {lsn}: {refusal}; nothing was written",
        hint="take a new backup, or name a directory that has the WAL: --wal DIR",
    )


def _refusal(plan: RestorePlan, primary: Primary, lsn: Lsn) -> str | None:
    # At the end of its WAL the primary sends nothing, whatever we ask.
    if lsn >= primary.identity.flush_lsn:
        return None
    return why_wal_is_missing(primary.conninfo, lsn, _timeline(plan, primary, lsn))


def _timeline(plan: RestorePlan, primary: Primary, lsn: Lsn) -> int:
    if primary.history is not None:
        return primary.history.timeline_of(lsn)
    return plan.label.timeline_id if plan.label else primary.identity.timeline_id
