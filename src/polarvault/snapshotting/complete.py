"""Make a plain backup of what a provider has made: its label, its WAL, links that lead into it.

What is done here is done in our own copy, never in the source. On return it is durable.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from polarvault.backupset.model import CONTROL_NAME, DESCRIPTION_NAME
from polarvault.pgconf.configuration import MAIN_FILE
from polarvault.snapshots.errors import SnapshotFailed
from polarvault.storage.files import fsync_paths, fsync_tree, storage_failed, write_durably
from polarvault.wal.names import is_segment_name

# Of a running server, or of an earlier backup; recovery would believe them (manual, 26.3.3.2).
_OF_A_SERVER = (
    "postmaster.pid", "postmaster.opts", "tablespace_map", "backup_label.old", "recovery.signal", "standby.signal",
    "replica.signal", "polar_replica_booted", "backup_manifest", "current_logfiles",
)  # fmt: skip
# Contents that a base backup leaves out as well (server: backup/basebackup.c, excludeDirContents).
_EMPTIED = ("pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")


@dataclass(frozen=True, slots=True)
class Directories:
    """The directories of a copy. shared: PolarDB's; tablespaces: by oid; wal: its pg_wal, where that lies elsewhere."""

    local: str
    shared: str | None
    tablespaces: Mapping[str, str]
    wal: str | None = None

    @property
    def data(self) -> str:
        """The directory with pg_control and pg_wal."""
        return self.shared or self.local

    @property
    def pg_wal(self) -> str:
        """Where its WAL is."""
        return self.wal or os.path.join(self.data, "pg_wal")


def complete(
    directories: Directories, *, label: bytes | None, control: bytes | None, wal: str | None,
    description: dict[str, object], first_segment: str = "", last_segment: str | None = None,
) -> None:  # fmt: skip
    """Complete a copy. label None: of a server that was shut down.

    control: what pg_control is to be, None for what it is. wal: a directory whose files make up pg_wal; None leaves in
    it what is there from first_segment on, up to last_segment if that is known. Raises StorageFailed, SnapshotFailed.
    """
    local = directories.local
    if not os.path.exists(os.path.join(local, MAIN_FILE)) or not os.path.exists(
        os.path.join(directories.data, CONTROL_NAME)
    ):
        raise SnapshotFailed(
            f'the copy in "{local}" lacks {MAIN_FILE} or {CONTROL_NAME}: something of the source lies elsewhere',
            hint="see where the server's files are: SHOW data_directory; SHOW config_file",
        )
    try:
        for root in {local, directories.data}:
            for name in _OF_A_SERVER:
                if os.path.lexists(path := os.path.join(root, name)):
                    os.unlink(path)
            for name in _EMPTIED:
                _empty(os.path.join(root, name))
        pg_wal = os.path.join(directories.data, "pg_wal")
        if wal is not None:
            _put_wal(wal, pg_wal)
        _leave_wal(pg_wal, first_segment, last_segment)
        _lead_links(os.path.join(local, "pg_tblspc"), directories.tablespaces)
        owner = os.stat(os.path.join(local, "PG_VERSION"))
        written = {os.path.join(local, DESCRIPTION_NAME): _description(directories, description)}
        if control is not None:
            written[os.path.join(directories.data, CONTROL_NAME)] = control
        # With it recovery goes to where the server said that the backup ends.
        if label is not None:
            written[os.path.join(local, "backup_label")] = label
        for path, content in written.items():
            write_durably(path, content, mode=owner.st_mode & 0o777, sync=False)
            if os.geteuid() == 0:
                os.chown(path, owner.st_uid, owner.st_gid)
        # All at once: the copy counts from the moment on at which its mark says that it is whole.
        fsync_paths([*written, *{os.path.dirname(path) for path in written}, directories.data])
        fsync_tree(os.path.join(directories.data, "pg_wal"))
    except OSError as problem:
        raise storage_failed(problem, "complete", local) from problem


def _description(directories: Directories, description: dict[str, object]) -> bytes:
    shared = None if directories.shared is None else os.path.relpath(directories.shared, directories.local)
    return (json.dumps({**description, "shared_half": shared}, indent=1) + "\n").encode()


def _put_wal(wal: str, target: str) -> None:
    """Let the WAL of the backup, and nothing else, be in pg_wal; a link to elsewhere becomes a directory."""
    owner = os.stat(os.path.dirname(target))
    mode = owner.st_mode & 0o777
    if os.path.islink(target):
        os.unlink(target)
    elif os.path.isdir(target):
        shutil.rmtree(target)
    os.mkdir(target, mode)
    os.mkdir(os.path.join(target, "archive_status"), mode)
    for name in os.listdir(wal):
        source, path = os.path.join(wal, name), os.path.join(target, name)
        if os.path.isdir(source):
            continue
        try:
            os.rename(source, path)
        except OSError:
            # A clone is a file system of its own.
            shutil.copyfile(source, path)
        os.chmod(path, 0o600)
    if os.geteuid() == 0:
        for path in (target, *(os.path.join(target, name) for name in os.listdir(target))):
            os.chown(path, owner.st_uid, owner.st_gid)


def _leave_wal(directory: str, first_segment: str, last_segment: str | None) -> None:
    """Remove segments from before and behind these, whatever their timeline, and what was noted for the archive."""
    _empty(os.path.join(directory, "archive_status"))
    for name in os.listdir(directory):
        # Behind the end lie segments that the server means to use again.
        is_behind = last_segment is not None and name[8:] > last_segment[8:]
        if is_segment_name(name) and (name[8:] < first_segment[8:] or is_behind):
            os.unlink(os.path.join(directory, name))


def _lead_links(directory: str, tablespaces: Mapping[str, str]) -> None:
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        if not os.path.islink(path):
            continue
        if name not in tablespaces:
            raise SnapshotFailed(
                f'tablespace {name} at "{os.readlink(path)}" was made while the snapshot was taken, and is not in it',
                hint="take it again",
            )
        os.unlink(path)
        os.symlink(tablespaces[name], path)


def _empty(directory: str) -> None:
    if not os.path.isdir(directory) or os.path.islink(directory):
        return
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
