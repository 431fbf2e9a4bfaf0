"""Recognise a backup: plain directory, PolarDB's two halves, tar files. Decides from listings; opens almost nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from polarvault.backupset.foreign import HEAD_BYTES, refuse_foreign, refuse_foreign_names
from polarvault.backupset.model import DESCRIPTION_NAME, SHARED_PREFIX, Area, Form, Part, compression_of
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import BackupUnusable, UsageError
from polarvault.storage.files import open_regular, storage_failed

# pg_verifybackup takes .tgz, too.
_TAR_NAME = re.compile(r"(base|data|pg_wal|[0-9]+)\.(?:tar(?:\.(gz|lz4|zst))?|(tgz))\Z")


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
    names = _list(path)
    _refuse_incomplete(path, names, force=force)
    description = load_description(path)
    shared = None if local_only else _shared_half(path, names, description, shared_from)
    if any(match and match[1] == "base" for match in map(_TAR_NAME.match, names)):
        parts = tar_parts(path, names)
        if shared is not None:
            parts += tar_parts(shared, _list(shared))
        _refuse_half(path, parts)
        if local_only:
            parts = [part for part in parts if part.area is Area.LOCAL]
        return BackupOnDisk(path, Form.TAR_DIRECTORY, tuple(parts), description)
    if "PG_VERSION" not in names:
        raise _not_a_backup(path, names)
    parts = [Part(Area.LOCAL, path)]
    if shared is not None:
        _refuse_incomplete(shared, _list(shared), force=force)
        parts.append(Part(Area.SHARED, shared))
    return BackupOnDisk(path, Form.PLAIN, tuple(parts), description)


def tar_parts(directory: str, names: set[str]) -> list[Part]:
    """Turn the names of a directory into the tar files of a backup."""
    parts = []
    for name in sorted(names):
        if (match := _TAR_NAME.match(name)) is None:
            continue
        stem, compression = match[1], "gz" if match[3] else match[2]
        area = {"base": Area.LOCAL, "data": Area.SHARED, "pg_wal": Area.WAL}.get(stem, Area.TABLESPACE)
        oid = int(stem) if area is Area.TABLESPACE else 0
        parts.append(Part(area, os.path.join(directory, name), True, compression, oid))
    return parts


def load_description(directory: str) -> Mapping[str, object]:
    """Read polarvault_backup.json; it is optional, and one that cannot be read is as good as none."""
    try:
        with open_regular(os.path.join(directory, DESCRIPTION_NAME)) as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _shared_half(path: str, names: set[str], description: Mapping[str, object], shared_from: str | None) -> str | None:
    """Return the directory of the shared half; what is on disk counts, the description is only a pointer."""
    if shared_from is not None:
        return os.path.abspath(shared_from)
    nested = os.path.join(path, SHARED_PREFIX)
    if SHARED_PREFIX in names and _looks_shared(nested):
        return nested
    recorded = description.get("shared_half")
    if not isinstance(recorded, str) or not recorded:
        return None
    candidates = [os.path.normpath(os.path.join(path, recorded))]
    # A backup that was moved as a whole keeps its halves side by side.
    candidates.append(os.path.join(os.path.dirname(path), os.path.basename(recorded.rstrip("/"))))
    for candidate in candidates:
        if _looks_shared(candidate):
            return candidate
    raise BackupUnusable(
        f'the shared half of the backup is not at "{candidates[0]}", where {DESCRIPTION_NAME} says it is',
        hint="name its new place: --shared-from DIRECTORY",
    )


def _looks_shared(directory: str) -> bool:
    if not os.path.isdir(directory):
        return False
    names = _list(directory)
    return {"global", "pg_wal"} <= names or bool(tar_parts(directory, names))


def _refuse_incomplete(path: str, names: set[str], *, force: bool) -> None:
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


def _not_a_backup(path: str, names: set[str]) -> BackupUnusable:
    if "global" in names and "base" in names:
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


def _list(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError as problem:
        raise storage_failed(problem, "read directory", directory) from problem
