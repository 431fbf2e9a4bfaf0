"""Do the label, pg_control and the manifests come from one backup? Pure.

The halves of a PolarDB backup lie in two directories, and copies of single files get mixed up, too. Recovery finds
nothing wrong with it: it begins where the label says and replays what WAL there is. What comes of files that are older
than the label lacks the changes in between, without a word.
"""

from __future__ import annotations

from polarvault.backupset import label_rules
from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Inventory
from polarvault.errors import BackupUnusable
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.pgfiles.control import ControlFile


def check_one_backup(source: Backup, inventory: Inventory, label: BackupLabel | None) -> None:
    """Raise BackupUnusable when two of them contradict each other."""
    if label is None:
        return
    for span in inventory.spans:
        if not label_rules.begins_at(label, span.start_lsn):
            raise _two_backups(
                source, inventory,
                f"its backup_label begins at {label.start_lsn}, {span.path} is of a backup that began at "
                f"{span.start_lsn}",
            )  # fmt: skip
    if inventory.control is not None:
        _check_control(source, inventory, inventory.control, label)


def _check_control(source: Backup, inventory: Inventory, control: ControlFile, label: BackupLabel) -> None:
    if label_rules.control_is_older(label, control):
        message = f"pg_control's checkpoint at {control.checkpoint_lsn} is older than the label's"
        raise _two_backups(source, inventory, f"{message} at {label.checkpoint_lsn}")
    end = next((span.end_lsn for span in inventory.spans), None)
    if label_rules.control_is_from_after(end, control):
        message = f"pg_control's checkpoint at {control.checkpoint_lsn} is from after the backup's end"
        raise _two_backups(source, inventory, f"{message} at {end}")


def _two_backups(source: Backup, inventory: Inventory, why: str) -> BackupUnusable:
    what = "the halves" if inventory.has_shared_half else "the files"
    hint = "see what fits and what does not: polarvault verifybackup " + source.path
    if inventory.has_shared_half:
        hint = "name the shared half of this very backup: --shared-from DIRECTORY; or use another backup"
    return BackupUnusable(f'{what} of "{source.path}" are of two different backups: {why}', hint=hint)
