"""Where the parts of a backup are: one half or two, plain or tar, which manifest describes which.

Of what `backupset.recognise` has seen, `backupset.source` refuses what cannot be restored: here a part that is missing
is something to report, beside everything else that is wrong.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from polarvault.backupset.model import SHARED_PREFIX, STANDARD_INPUT, Area, Form, Part
from polarvault.backupset.recognise import Sighting, list_names, look_at, tar_parts
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import BackupUnusable, UsageError
from polarvault.verify.request import VerifyRequest

MANIFEST = "backup_manifest"
# Where both tars lie in one directory, the shared half's manifest needs a name of its own.
SHARED_MANIFEST = "backup_manifest.shared"


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a backup, or a whole one (LOCAL): its directory, its tars (none: plain), its manifest.

    manifest_path: None when another half's manifest lists this one too. title: what its files' names in findings begin
    with, so that they say which half they mean.
    """

    area: Area
    directory: str
    manifest_path: str | None
    tars: tuple[Part, ...] = ()
    title: str = ""

    def name(self, path: str) -> str:
        """Return a file's name as findings show it."""
        return self.title + path


@dataclass(frozen=True, slots=True)
class BackupLayout:
    """The parts of a backup, local half first; wal_tars hold pg_wal apart from the data (tar format)."""

    path: str
    form: Form
    halves: tuple[Half, ...]
    wal_tars: tuple[Part, ...]
    description: Mapping[str, object]
    missing_half: str | None = None

    @property
    def is_tar(self) -> bool:
        """Tell whether the data lies in tar files."""
        return self.form is not Form.PLAIN

    @property
    def is_polardb(self) -> bool:
        """Tell whether the backup is one of PolarDB on shared storage, as far as its parts show."""
        shared = any(half.area is Area.SHARED for half in self.halves)
        return shared or self.missing_half is not None or self.description.get("polardb") is True

    @property
    def tars(self) -> list[Part]:
        """All tar files."""
        return [part for half in self.halves for part in half.tars] + list(self.wal_tars)


def find_layout(request: VerifyRequest) -> BackupLayout:
    """Look at what is there; raise BackupUnusable when it is no backup at all."""
    if request.backup == STANDARD_INPUT:
        return _one_tar(STANDARD_INPUT)
    path = os.path.abspath(request.backup)
    if not os.path.exists(path):
        raise BackupUnusable(
            f'could not open directory "{request.backup}": No such file or directory',
            hint=f"check the path: ls -ld {shlex.quote(path)}",
        )
    if not os.path.isdir(path):
        if request.format == "plain":
            raise BackupUnusable(
                f'"{request.backup}" is not a directory', hint="name the directory that -D of the backup command named"
            )
        return _one_tar(path)
    if request.shared_half is not None and not os.path.isdir(request.shared_half):
        raise UsageError(f'--polardata: "{request.shared_half}" is not a directory')
    seen = look_at(path)
    is_tar = request.format == "tar" if request.format else _is_tar(seen)
    shared, missing = _shared_directory(seen, request.shared_half)
    given = request.given_manifest
    main_manifest = given if given is not None else os.path.join(path, MANIFEST)
    if is_tar:
        return _tar_layout(seen, shared, missing, main_manifest)
    is_shared_alone = seen.is_shared_half and shared is None
    area = Area.SHARED if is_shared_alone and "postgresql.conf" not in seen.names else Area.LOCAL
    if shared is None and missing is None and seen.is_local_half_alone:
        missing = os.path.join(path, SHARED_PREFIX)
    halves = [Half(area, path, main_manifest)]
    if shared is not None:
        halves.append(Half(Area.SHARED, shared, _own_manifest(shared, MANIFEST), (), _title(path, shared)))
    return BackupLayout(path, Form.PLAIN, tuple(halves), (), seen.description, missing)


def _one_tar(path: str) -> BackupLayout:
    """Return the layout of a backup that is one tar; its halves are known once it was read."""
    return BackupLayout(path, Form.TAR_FILE, (Half(Area.LOCAL, os.path.dirname(path), None),), (), {})


def _is_tar(seen: Sighting) -> bool:
    """Tell which form it is; what has a manifest and nothing else is a directory that lacks everything."""
    path, names = seen.path, seen.names
    if seen.is_tar is not None:
        return seen.is_tar
    if MANIFEST in names:
        return False
    if MARKER_NAME in names:
        raise BackupUnusable(
            f'"{path}" holds {MARKER_NAME}: the backup is still being made, or was cut off before its end',
            hint="see whether it is still being made: ps -ef | grep basebackup; else use another backup",
        )
    raise BackupUnusable(
        f'"{path}" is not a backup: it holds neither PG_VERSION nor base.tar nor {MANIFEST}',
        hint="name the directory that -D of the backup command named",
    )


def _tar_layout(seen: Sighting, shared: str | None, missing: str | None, manifest: str) -> BackupLayout:
    path, tars = seen.path, seen.tars
    wal = [part for part in tars if part.area is Area.WAL]
    shared_tars = [part for part in tars if part.area is Area.SHARED]
    halves = [Half(Area.LOCAL, path, manifest, tuple(p for p in tars if p.area in (Area.LOCAL, Area.TABLESPACE)))]
    if shared is not None:
        # The official tool leaves data.tar beside base.tar and puts pg_wal.tar alone into the other directory.
        others = tar_parts(shared, list_names(shared))
        wal += [part for part in others if part.area is Area.WAL]
        shared_tars += [part for part in others if part.area is not Area.WAL]
    if shared_tars:
        directory = os.path.dirname(shared_tars[0].path)
        name = SHARED_MANIFEST if directory == path else MANIFEST
        title = "data.tar:" if directory == path else _title(path, directory)
        halves.append(Half(Area.SHARED, directory, _own_manifest(directory, name), tuple(shared_tars), title))
        missing = None
    elif shared is not None or seen.description.get("shared_storage") is True:
        missing = missing or os.path.join(path, "data.tar")
    return BackupLayout(path, Form.TAR_DIRECTORY, tuple(halves), tuple(wal), seen.description, missing)


def _own_manifest(directory: str, name: str) -> str | None:
    path = os.path.join(directory, name)
    return path if os.path.exists(path) else None


def _shared_directory(seen: Sighting, given: str | None) -> tuple[str | None, str | None]:
    """Return the directory of the shared half, or where it should be and is not."""
    if given is not None:
        return os.path.abspath(given), None
    there = next((one.path for one in seen.shared if one.is_directory), None)
    return there, next((one.path for one in seen.shared), None) if there is None else None


def _title(path: str, directory: str) -> str:
    return (os.path.relpath(directory, path) if directory.startswith(path + os.sep) else directory) + "/"
