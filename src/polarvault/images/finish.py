"""Make a plain backup of a copy whose server was stopped in recovery: its source's settings, a label, its own WAL."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import datetime

from polarvault.backupset.model import Area
from polarvault.errors import BackupUnusable, StartFailed
from polarvault.images.area import ImagePlace
from polarvault.instance.account import working_as_account
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import standby_label
from polarvault.pgfiles.control import ClusterState, ControlFile, parse_control
from polarvault.restore.model import RestorePlan
from polarvault.snapshotting.complete import Directories, complete
from polarvault.snapshotting.own_wal import wal_end
from polarvault.storage.files import fsync_tree, storage_failed, write_durably


def finish_image(plan: RestorePlan, place: ImagePlace, label: str, now: datetime) -> ControlFile:
    """Complete an image whose server has stopped; return its pg_control. On return everything is durable.

    Raises StartFailed for one that is not consistent, BackupUnusable for one that lacks WAL, StorageFailed.
    """
    layout = plan.layout
    with working_as_account(plan.account):
        try:
            with open(layout.control_path, "rb") as stream:
                control = parse_control(stream.read(), layout.control_path)
            _check(control, layout.control_path)
            _put_settings_back(plan)
        except OSError as problem:
            raise storage_failed(problem, "complete", layout.local) from problem
        directories = Directories(
            layout.local, layout.shared, {str(oid): path for oid, path in layout.tablespaces.items()}
        )
        end = Lsn(max(control.minimum_recovery_lsn, control.checkpoint_lsn))
        if (has := wal_end(directories.pg_wal, control)) < control.minimum_recovery_lsn:
            raise BackupUnusable(
                f"the WAL in the image ends at {has}, and its data need it up to {control.minimum_recovery_lsn}",
                hint="the image before it is as it was; see the log of the server, and report it",
            )
        size = control.wal_segment_size
        complete(
            directories,
            label=standby_label(control, now, label), control=None, wal=None,
            description={
                "format": 1, "label": label, "server_version": str(plan.major_version),
                "system_identifier": str(control.system_identifier), "polardb": plan.is_polardb,
                "wal_segment_size": size, "start_lsn": str(control.redo_lsn), "stop_lsn": str(end),
                "timeline": control.timeline_id, "image": place.id,
            },
            first_segment=WalSegment.holding(control.redo_lsn, control.timeline_id, size).file_name,
            last_segment=WalSegment.holding(end, control.timeline_id, size).file_name,
        )  # fmt: skip
        for path in (place.hba_file, place.ident_file):
            with suppress(FileNotFoundError):
                os.unlink(path)
    # The source's settings may have said fsync = off.
    fsync_tree(place.run)
    shutil.rmtree(place.socket_directory, ignore_errors=True)
    return control


def _check(control: ControlFile, path: str) -> None:
    if control.state is not ClusterState.SHUT_DOWN_IN_RECOVERY or control.backup_start_lsn:
        state = control.state.name.lower().replace("_", " ")
        raise StartFailed(
            f'"{path}" says {state}' + (", before the end of its backup" if control.backup_start_lsn else "")
            + ": the copy is no image",
            hint="the image before it is as it was; try again",
        )  # fmt: skip


def _put_settings_back(plan: RestorePlan) -> None:
    """Give every file that was written for the confined start the content that the backup has."""
    for path in plan.files:
        area, root = Area.LOCAL, plan.layout.local
        if plan.layout.shared is not None and path.startswith(plan.layout.shared + os.sep):
            area, root = Area.SHARED, plan.layout.shared
        original = plan.inventory.file(os.path.relpath(path, root), area)
        if original is None:
            with suppress(FileNotFoundError):
                os.unlink(path)
        else:
            write_durably(path, original, mode=os.stat(path).st_mode & 0o777, sync=False)
