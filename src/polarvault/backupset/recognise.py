"""What lies at a path that is said to be a backup: one look for everybody, who then refuses, or reports, what is wrong.

`source.find_backup` refuses what cannot be restored; `verify.layout` reports it beside everything else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from polarvault.backupset.model import DESCRIPTION_NAME, SHARED_PREFIX, Area, Part
from polarvault.storage.files import open_regular, storage_failed

# pg_verifybackup takes .tgz, too.
_TAR_NAME = re.compile(r"(base|data|pg_wal|[0-9]+)\.(?:tar(?:\.(gz|lz4|zst))?|(tgz))\Z")


@dataclass(frozen=True, slots=True)
class SharedCandidate:
    """Where PolarDB's shared half may be. by_description: named there, not found inside of the backup."""

    path: str
    is_directory: bool
    looks_whole: bool
    by_description: bool


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is in a directory. names: of everything directly in it; tars: those of a backup; shared: best first."""

    path: str
    names: frozenset[str]
    tars: tuple[Part, ...]
    description: Mapping[str, object]
    shared: tuple[SharedCandidate, ...]

    @property
    def is_tar(self) -> bool | None:
        """Tell whether it is a backup of tar files or a directory tree; None: neither.

        A data directory says what it is, whatever lies in it besides (pg_verifybackup has the same rule).
        """
        if "PG_VERSION" in self.names:
            return False
        if any(part.area is Area.LOCAL for part in self.tars):
            return True
        if self.names & {"global", "base"}:
            return False
        return True if self.tars else None

    @property
    def is_shared_half(self) -> bool:
        """Tell whether this is the shared half of a PolarDB backup by itself."""
        return "PG_VERSION" not in self.names and {"global", "pg_wal"} <= self.names

    @property
    def is_local_half_alone(self) -> bool:
        """Tell whether this is a local half that somebody's --polardata separated from the other one."""
        is_polardb = bool(self.names & {"polar_settings.conf", "polar_shmem_stat_file"})
        has_control = os.path.exists(os.path.join(self.path, "global", "pg_control"))
        return is_polardb and "pg_wal" not in self.names and not has_control


def look_at(directory: str) -> Sighting:
    """Look at a directory; raise StorageFailed when it cannot be listed."""
    names = list_names(directory)
    description = _load_description(directory)
    return Sighting(
        directory, names, tuple(tar_parts(directory, names)), description,
        tuple(_shared_candidates(directory, names, description)),
    )  # fmt: skip


def tar_parts(directory: str, names: frozenset[str]) -> list[Part]:
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


def list_names(directory: str) -> frozenset[str]:
    """Return the names in a directory; raise StorageFailed."""
    try:
        return frozenset(os.listdir(directory))
    except OSError as problem:
        raise storage_failed(problem, "open directory", directory) from problem


def _shared_candidates(path: str, names: frozenset[str], description: Mapping[str, object]) -> list[SharedCandidate]:
    """Return where the shared half may be; what is on disk counts, the description is only a pointer."""
    found = []
    if SHARED_PREFIX in names:
        found.append(_candidate(os.path.join(path, SHARED_PREFIX), by_description=False))
    recorded = description.get("shared_half")
    if isinstance(recorded, str) and recorded:
        # A backup that was moved as a whole keeps its halves side by side.
        beside = os.path.join(os.path.dirname(path), os.path.basename(recorded.rstrip("/")))
        found += [
            _candidate(place, by_description=True) for place in (os.path.normpath(os.path.join(path, recorded)), beside)
        ]
    return found


def _candidate(path: str, *, by_description: bool) -> SharedCandidate:
    if not os.path.isdir(path):
        return SharedCandidate(path, False, False, by_description)
    names = list_names(path)
    looks_whole = {"global", "pg_wal"} <= names or bool(tar_parts(path, names))
    return SharedCandidate(path, True, looks_whole, by_description)


def _load_description(directory: str) -> Mapping[str, object]:
    """Read polarvault_backup.json; it is optional, and one that cannot be read is as good as none."""
    try:
        with open_regular(os.path.join(directory, DESCRIPTION_NAME)) as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
