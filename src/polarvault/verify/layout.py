"""Where the parts of a backup are: one half or two, plain or tar, which manifest describes which.

More lenient than `backupset.source`, which refuses what cannot be restored: here a part that is missing is something to
report, beside everything else that is wrong.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from polarvault.backupset.model import SHARED_PREFIX, STANDARD_INPUT, Area, Form, Part
from polarvault.backupset.source import load_description, tar_parts
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import BackupUnusable, UsageError
from polarvault.storage.files import storage_failed
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
    names = _list(path)
    tars = tar_parts(path, names)
    is_tar = request.format == "tar" if request.format else _looks_like_tar(path, names, tars)
    description = load_description(path)
    shared, missing = _shared_directory(path, names, request.shared_half, description)
    given = request.given_manifest
    main_manifest = given if given is not None else os.path.join(path, MANIFEST)
    if is_tar:
        return _tar_layout(path, tars, shared, missing, main_manifest, description)
    is_shared_alone = "PG_VERSION" not in names and "global" in names and "pg_wal" in names and shared is None
    area = Area.SHARED if is_shared_alone and "postgresql.conf" not in names else Area.LOCAL
    if shared is None and missing is None and _is_local_half_alone(path, names):
        missing = os.path.join(path, SHARED_PREFIX)
    halves = [Half(area, path, main_manifest)]
    if shared is not None:
        halves.append(Half(Area.SHARED, shared, _own_manifest(shared, MANIFEST), (), _title(path, shared)))
    return BackupLayout(path, Form.PLAIN, tuple(halves), (), description, missing)


def _one_tar(path: str) -> BackupLayout:
    """Return the layout of a backup that is one tar; its halves are known once it was read."""
    return BackupLayout(path, Form.TAR_FILE, (Half(Area.LOCAL, os.path.dirname(path), None),), (), {})


def _looks_like_tar(path: str, names: set[str], tars: list[Part]) -> bool:
    if "PG_VERSION" in names:
        return False
    if any(part.area is Area.LOCAL for part in tars):
        return True
    if names & {"global", "base"}:
        return False
    if tars:
        return True
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


def _tar_layout(
    path: str,
    tars: list[Part],
    shared: str | None,
    missing: str | None,
    manifest: str,
    description: Mapping[str, object],
) -> BackupLayout:
    wal = [part for part in tars if part.area is Area.WAL]
    shared_tars = [part for part in tars if part.area is Area.SHARED]
    halves = [Half(Area.LOCAL, path, manifest, tuple(p for p in tars if p.area in (Area.LOCAL, Area.TABLESPACE)))]
    if shared is not None:
        # The official tool leaves data.tar beside base.tar and puts pg_wal.tar alone into the other directory.
        others = tar_parts(shared, _list(shared))
        wal += [part for part in others if part.area is Area.WAL]
        shared_tars += [part for part in others if part.area is not Area.WAL]
    if shared_tars:
        directory = os.path.dirname(shared_tars[0].path)
        name = SHARED_MANIFEST if directory == path else MANIFEST
        title = "data.tar:" if directory == path else _title(path, directory)
        halves.append(Half(Area.SHARED, directory, _own_manifest(directory, name), tuple(shared_tars), title))
        missing = None
    elif shared is not None or description.get("shared_storage") is True:
        missing = missing or os.path.join(path, "data.tar")
    return BackupLayout(path, Form.TAR_DIRECTORY, tuple(halves), tuple(wal), description, missing)


def _is_local_half_alone(path: str, names: set[str]) -> bool:
    """Tell whether a plain directory is a local half that somebody's --polardata separated from the other one."""
    is_polardb = bool(names & {"polar_settings.conf", "polar_shmem_stat_file"})
    return is_polardb and "pg_wal" not in names and not os.path.exists(os.path.join(path, "global", "pg_control"))


def _own_manifest(directory: str, name: str) -> str | None:
    path = os.path.join(directory, name)
    return path if os.path.exists(path) else None


def _shared_directory(
    path: str, names: set[str], given: str | None, description: Mapping[str, object]
) -> tuple[str | None, str | None]:
    """Return the directory of the shared half, or where it should be and is not."""
    if given is not None:
        return os.path.abspath(given), None
    nested = os.path.join(path, SHARED_PREFIX)
    if SHARED_PREFIX in names and os.path.isdir(nested):
        return nested, None
    recorded = description.get("shared_half")
    if not isinstance(recorded, str) or not recorded:
        return None, None
    # A backup that was moved as a whole keeps its halves side by side.
    beside = os.path.join(os.path.dirname(path), os.path.basename(recorded.rstrip("/")))
    found = [os.path.normpath(os.path.join(path, recorded)), beside]
    return next(((place, None) for place in found if os.path.isdir(place)), (None, found[0]))


def _title(path: str, directory: str) -> str:
    return (os.path.relpath(directory, path) if directory.startswith(path + os.sep) else directory) + "/"


def _list(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError as problem:
        raise storage_failed(problem, "open directory", directory) from problem
