"""The WAL that a backup needs to be consistent, read before pg_control is written; no manifest lists it."""

from __future__ import annotations

from polarvault.errors import BackupUnusable, IntegrityError
from polarvault.recovery.wal.own_wal import find_damage
from polarvault.recovery.wal.span import load_backup_span
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.storage.files import storage_failed
from polarvault.storage.trees.model import Tree
from polarvault.storage.trees.small_files import is_directory
from polarvault.walfiles.search_list import SearchList


def is_supplied_elsewhere(request: RestoreRequest) -> bool:
    """Tell whether the server gets WAL from elsewhere first, so that what the backup holds need not be right."""
    has_command = any(name == "restore_command" for name, _ in request.settings)
    return has_command or request.recovery.has_places or request.primary_conninfo is not None


def check_own_wal(plan: RestorePlan, data: Tree) -> list[str]:
    """Raise IntegrityError for damaged WAL between start and end of the backup; return a warning if it is accepted."""
    control, request = plan.inventory.control, plan.request
    if (
        control is None
        or not request.verify_checksums
        or is_supplied_elsewhere(request)
        or not is_directory(data, "pg_wal")
    ):
        return []
    span = load_backup_span(plan.source, plan.inventory, plan.label, SearchList(()))
    try:
        damage = find_damage(data, span, control.system_identifier, directory="pg_wal")
    except ValueError as problem:
        raise BackupUnusable(
            f'backup_label of "{plan.source.path}" names a start where no record can begin: {span.start_lsn}',
            hint="use another backup, or put back the backup_label that belongs to this one",
        ) from problem
    except OSError as problem:
        raise storage_failed(problem, "read", data.path("pg_wal")) from problem
    if damage is None:
        return []
    what = f"WAL segment {damage.segment.file_name} {{}} is damaged: {damage}"
    if request.force or request.reports_damage:
        return [what.format("of the backup")]
    raise IntegrityError(
        what.format(f'of "{plan.source.path}"') + "; what was restored so far has been removed",
        hint="name a directory that holds a good copy: --wal DIR; or restore it as it is: --force",
    )
