"""What is known about the backup of a drill: from the plan, or, where none could be made, from the backup itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from polarvault.backupset.model import Form
from polarvault.backupset.source import find_backup
from polarvault.drill.model import BackupFacts, DrillRequest
from polarvault.errors import PolarvaultError
from polarvault.pgfiles.backup_label import parse_backup_label
from polarvault.restore.plan.backup import major_version

if TYPE_CHECKING:
    from polarvault.restore.model import RestorePlan


def facts_of(plan: RestorePlan) -> BackupFacts:
    """Return what is known about the backup of a plan."""
    label, control, inventory = plan.label, plan.inventory.control, plan.inventory
    span = plan.recovery.span if plan.recovery else None
    seen = plan.recovery.reachable if plan.recovery else None
    stop = seen.earliest_lsn if seen else span.end_lsn if span else None
    start = label.start_lsn if label else span.start_lsn if span else None
    timeline = label.timeline_id if label else control.timeline_id if control else None
    claimed = plan.source.description.get("system_identifier")
    return BackupFacts(
        path=plan.source.path,
        form=plan.source.form.value,
        label=label.label if label else None,
        start_lsn=str(start) if start is not None else None,
        stop_lsn=str(stop) if stop is not None else None,
        start_time=span.start_time if span else None,
        stop_time=seen.earliest_time if seen else None,
        timeline_id=timeline,
        size_bytes=inventory.total_bytes,
        file_count=inventory.file_count,
        system_identifier=str(control.system_identifier) if control else str(claimed) if claimed else None,
        major_version=plan.major_version,
        is_polardb=plan.is_polardb,
        has_data_checksums=control.has_data_checksums if control else None,
        block_size_bytes=control.block_size if control else 8192,
    )


def facts_without_plan(request: DrillRequest) -> BackupFacts | None:
    """Return what a plain backup says of itself that could not be planned; None for one that says nothing."""
    if "/" not in request.backup or not os.path.isdir(request.backup):
        return None
    try:
        source = find_backup(request.backup, shared_from=request.shared_from, force=request.force)
        # Reading compressed tar files a second time is not worth it.
        if source.form is not Form.PLAIN:
            return None
        inventory = source.look_through()
        content = inventory.file("backup_label")
        label = parse_backup_label(content) if content else None
        major = major_version(inventory, source)
    except (PolarvaultError, OSError):
        return None
    control = inventory.control
    return BackupFacts(
        path=source.path,
        form=source.form.value,
        label=label.label if label else None,
        start_lsn=str(label.start_lsn) if label else None,
        stop_lsn=None,
        start_time=None,
        stop_time=None,
        timeline_id=label.timeline_id if label else control.timeline_id if control else None,
        size_bytes=inventory.total_bytes,
        file_count=inventory.file_count,
        system_identifier=str(control.system_identifier) if control else None,
        major_version=major,
        is_polardb=inventory.has_shared_half,
        has_data_checksums=control.has_data_checksums if control else None,
        block_size_bytes=control.block_size if control else 8192,
    )
