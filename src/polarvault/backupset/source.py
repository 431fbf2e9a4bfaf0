"""Find the backup to restore: plain directory, PolarDB's two halves, tar files. Refuses what cannot be restored."""

from __future__ import annotations

import os
from dataclasses import dataclass

from polarvault.backupset.listing import MANIFEST
from polarvault.backupset.model import DESCRIPTION_NAME, Area, Form, Part, compression_of
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.backupset.reading.foreign import HEAD_BYTES, refuse_foreign, refuse_foreign_names
from polarvault.backupset.recognise import Sighting, list_names, look_at, tar_parts
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import BackupUnusable, IntegrityError, UsageError
from polarvault.storage.files import open_regular, storage_failed


def find_backup(
    path: str, *, shared_from: str | None = None, force: bool = False, local_only: bool = False
) -> BackupOnDisk:
    """Recognise the backup at a path; raise BackupUnusable with the next step when it is none or only half of one.

    local_only: only the local half of a PolarDB backup is wanted, and the other half need not be there.
    """
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise BackupUnusable(f'backup "{path}" does not exist', hint="check the path: ls -ld " + path)
    if shared_from is not None and not os.path.isdir(shared_from):
        raise UsageError(f'--shared-from: "{shared_from}" is not a directory')
    if not os.path.isdir(path):
        return BackupOnDisk(path, Form.TAR_FILE, (Part(Area.LOCAL, path, is_tar=True, compression=_sniff(path)),))
    seen = look_at(path)
    _refuse_incomplete(path, seen.names, force=force)
    shared = None if local_only else _shared_half(seen, shared_from)
    if seen.is_tar:
        parts = list(seen.tars)
        if shared is not None:
            parts += tar_parts(shared, list_names(shared))
        _refuse_half(path, parts)
        if local_only:
            parts = [part for part in parts if part.area is Area.LOCAL]
        return BackupOnDisk(path, Form.TAR_DIRECTORY, tuple(parts), seen.description)
    if "PG_VERSION" not in seen.names:
        raise _not_a_backup(seen)
    parts = [Part(Area.LOCAL, path)]
    if shared is not None:
        _refuse_incomplete(shared, list_names(shared), force=force)
        parts.append(Part(Area.SHARED, shared))
    return BackupOnDisk(path, Form.PLAIN, tuple(parts), seen.description)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Backups by their paths. Implements `backup.Shelf`."""

    def find(
        self, word: str, *, shared_from: str | None = None, force: bool = False, local_only: bool = False
    ) -> BackupOnDisk:
        """Return the backup at a path."""
        return find_backup(word, shared_from=shared_from, force=force, local_only=local_only)

    def concerned(self, problem: IntegrityError, word: str) -> None:
        """Know nothing: each stands for itself."""

    def several(self, word: str) -> list[str]:
        """Return the paths of the backups directly below a directory; none when it is a backup itself."""
        if not os.path.isdir(word) or looks_like_backup(word):
            return []
        paths = (os.path.join(word, name) for name in sorted(os.listdir(word)))
        return [path for path in paths if os.path.isdir(path) and looks_like_backup(path)]


def looks_like_backup(directory: str) -> bool:
    """Tell whether a directory holds a backup, or what is left of one."""
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    marks = {"PG_VERSION", MANIFEST, MANIFEST + ".tmp", MARKER_NAME}
    return bool(marks.intersection(names)) or any(name.startswith("base.tar") for name in names)


def _shared_half(seen: Sighting, shared_from: str | None) -> str | None:
    """Return the directory of the shared half; raise BackupUnusable when it is not where the description says."""
    if shared_from is not None:
        return os.path.abspath(shared_from)
    whole = next((one for one in seen.shared if one.looks_whole), None)
    if whole is not None:
        return whole.path
    named = next((one for one in seen.shared if one.by_description), None)
    if named is None:
        return None
    raise BackupUnusable(
        f'the shared half of the backup is not at "{named.path}", where {DESCRIPTION_NAME} says it is',
        hint="name its new place: --shared-from DIRECTORY",
    )


def _refuse_incomplete(path: str, names: frozenset[str], *, force: bool) -> None:
    if MARKER_NAME in names and not force:
        raise BackupUnusable(
            f'"{path}" holds {MARKER_NAME}: the backup is still being made, or was cut off before its end',
            hint="see whether it is still being made: ps -ef | grep basebackup; else use another backup, or accept "
            "that files may be missing or damaged: --force",
        )
    if "backup_manifest.tmp" in names and "backup_manifest" not in names and not force:
        raise BackupUnusable(
            f'"{path}" holds backup_manifest.tmp but no backup_manifest: the backup was interrupted or found bad pages',
            hint="use another backup, or accept that files may be missing or damaged: --force",
        )
    if "postmaster.pid" in names:
        raise BackupUnusable(
            f'"{path}" holds postmaster.pid: it is the data directory of a server, not a base backup',
            hint=f"take a backup of it first: polarvault basebackup -D DIRECTORY  (see {path}/postmaster.pid)",
        )


def _refuse_half(path: str, parts: list[Part]) -> None:
    areas = [part.area for part in parts]
    for area in (Area.LOCAL, Area.SHARED, Area.WAL):
        if areas.count(area) > 1:
            found = ", ".join(part.path for part in parts if part.area is area)
            raise BackupUnusable(
                f'"{path}" holds the {area.value} tar more than once: {found}', hint="keep one of them"
            )


def _not_a_backup(seen: Sighting) -> BackupUnusable:
    path, names = seen.path, seen.names
    if {"global", "base"} <= names:
        return BackupUnusable(
            f'"{path}" has global and base but no PG_VERSION: it looks like the shared half of a PolarDB backup',
            hint=f"give the local half, and this one as --shared-from {path}",
        )
    refuse_foreign_names(path, names)
    return BackupUnusable(
        f'"{path}" is not a backup: it holds neither PG_VERSION nor base.tar',
        hint="give the directory that -D of the backup command named, or a tar file",
    )


def _sniff(path: str) -> str | None:
    try:
        with open_regular(path) as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    refuse_foreign(path, head)
    return compression_of(head)
