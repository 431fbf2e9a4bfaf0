"""What kind of backup is this, and can a server be made of it at all? Pure: an inventory goes in, facts come out."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.backupset.backup import Backup, verify_command
from polarvault.backupset.label_rules import server_refuses_standby
from polarvault.backupset.model import SHARED_LABEL_NAME, Area, Inventory
from polarvault.backupset.one_backup import check_one_backup
from polarvault.errors import BackupUnusable, UsageError
from polarvault.model import versions
from polarvault.model.segment import WalSegment
from polarvault.pgconf.configuration import Configuration, MemoryReader
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ClusterState
from polarvault.polardb.settings import DATADIR, SHARED_STORAGE_MODE, uses_shared_storage
from polarvault.restore.facts import BackupFacts
from polarvault.restore.model import Link, RestoreRequest


def judge_backup(
    request: RestoreRequest, source: Backup, inventory: Inventory, chain: Sequence[Link] = ()
) -> BackupFacts:
    """Return what the backup is; raise BackupUnusable with the next step for one that no server can be made of."""
    major = major_version(inventory, source)
    label = _label(inventory, source, chained=bool(chain))
    check_one_backup(source, inventory, label)
    is_polardb, had_shared_half = _polardb(request, source, inventory)
    if request.host_id is not None and not is_polardb:
        raise UsageError("--hostid is a setting of PolarDB, and the backup is of PostgreSQL", hint="leave it out")
    return BackupFacts(
        source=source, inventory=inventory, label=label, major_version=major, is_polardb=is_polardb,
        had_shared_half=had_shared_half, chain=tuple(chain),
    )  # fmt: skip


def local_settings(inventory: Inventory) -> Configuration:
    """Return the configuration of the local half alone, without what lies outside of it."""
    files = {"/" + name: content for (area, name), content in inventory.files.items() if area is Area.LOCAL}
    return Configuration("/", MemoryReader(files))


def major_version(inventory: Inventory, source: Backup) -> int:
    """Return the backup's major version; raise BackupUnusable when it is unknown or not supported."""
    content = inventory.file("PG_VERSION")
    text = (content or b"").decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise BackupUnusable(
            f'"{source.path}" holds no PG_VERSION' if content is None else f"PG_VERSION says {text!r}",
            hint="the backup is incomplete, or is not a base backup of PostgreSQL 13 or later",
        )
    if int(text) < versions.OLDEST.major:
        raise BackupUnusable(f"the backup is of PostgreSQL {text}; {versions.KNOWN_VERSIONS} can be restored")
    return int(text)


def _label(inventory: Inventory, source: Backup, *, chained: bool) -> BackupLabel | None:
    control = inventory.control
    if not inventory.has_control:
        shared = next((part.path for part in source.parts if part.area is Area.SHARED), None)
        hint = "the backup is incomplete; for PolarDB, name the shared half: --shared-from DIRECTORY"
        if shared is not None:
            hint = f"the shared half is incomplete; see what else is missing: {verify_command(source.path)}"
        raise BackupUnusable(f'"{shared or source.path}" holds no global/pg_control', hint=hint)
    content = inventory.file("backup_label")
    if content is None:
        # Only a copy of a server that was shut down is complete without it (manual, 26.3.4).
        if control is not None and control.state.is_clean:
            return None
        raise BackupUnusable(
            f'"{source.path}" holds no backup_label: recovery would silently start from the wrong checkpoint',
            hint="use another backup, or put back the backup_label that belongs to this one",
        )
    label = parse_backup_label(content)
    if label.incremental_from_lsn is not None and not chained:
        raise BackupUnusable(
            f'"{source.path}" is an incremental backup',
            hint="combine it first: pg_combinebackup FULL INCR -o DIRECTORY",
        )
    is_read_only_node = (Area.LOCAL, "replica.signal") in inventory.names
    is_refused = control is not None and server_refuses_standby(label, control)
    if is_read_only_node or (is_refused and control is not None and control.state is ClusterState.IN_PRODUCTION):
        raise BackupUnusable(
            f'"{source.path}" was taken from a PolarDB read-only node: its label does not fit its pg_control, '
            "and the server refuses it",
            hint="take the backup from the primary or a standby",
        )
    if is_refused:
        raise BackupUnusable(
            f'"{source.path}" has the label of a standby and the pg_control of a server that was none; '
            "the server refuses it",
            hint=f"see what fits and what does not: {verify_command(source.path)}",
        )
    return label


def _polardb(request: RestoreRequest, source: Backup, inventory: Inventory) -> tuple[bool, bool]:
    """Tell whether the backup is PolarDB's, and whether it has a shared half, possibly merged already."""
    value = local_settings(inventory).value
    is_polardb = (
        inventory.has_shared_half
        or bool(source.description.get("polardb"))
        or (Area.LOCAL, "polar_settings.conf") in inventory.names
        or value(SHARED_STORAGE_MODE) is not None
    )
    if inventory.has_shared_half or not uses_shared_storage(value):
        return is_polardb, inventory.has_shared_half
    has_data = (Area.LOCAL, "global/pg_control") in inventory.files
    if not has_data:
        raise BackupUnusable(
            f'"{source.path}" is only the local half of a PolarDB backup: '
            f"{DATADIR} was {value(DATADIR)!r}, and the shared half is not here",
            hint="name the directory that --polardata named when the backup was taken: --shared-from DIRECTORY",
        )
    if not request.merge:
        raise BackupUnusable(
            f'"{source.path}" holds both halves of a PolarDB backup in one name space, '
            "so that the halves can no longer be told apart",
            hint="restore it into one directory, as an instance without shared storage: --merge",
        )
    return True, True


def missing_wal(inventory: Inventory, label: BackupLabel) -> str | None:
    """Return the name of the first WAL segment that the backup needs to be consistent and does not hold.

    The manifest tells where the backup ended, if there is one; otherwise only where recovery starts is known.
    """
    if label.start_segment not in inventory.wal:
        return label.start_segment
    ends = [span.end_lsn for span in inventory.spans if span.end_timeline_id == label.timeline_id]
    if inventory.control is None or not ends:
        return None
    segment = WalSegment.holding(label.start_lsn, label.timeline_id, inventory.control.wal_segment_size)
    # The end is from a file as well: the loop is bounded by the segments that are there.
    while segment.start < max(ends):
        if segment.file_name not in inventory.wal:
            return segment.file_name
        segment = segment.next()
    return None


def half_warnings(inventory: Inventory) -> list[str]:
    """Compare the label with its copy in the shared half; a concurrent backup can have replaced that copy."""
    content = inventory.file(SHARED_LABEL_NAME, Area.SHARED)
    label = inventory.file("backup_label")
    if not content or label is None or content.splitlines()[0] == label.splitlines()[0]:
        return []
    return [
        "the halves may be of two different backups: the label in the shared half names another start "
        f"({content.splitlines()[0].decode('ascii', 'replace')})"
    ]
