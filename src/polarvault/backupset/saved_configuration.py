"""DIR.configuration: the server's configuration files, kept beside a backup, because they lay outside of its data.

Not inside of it: pg_verifybackup takes every file that the manifest does not list for a fault. configuration.json says
where the files were at the server; below `files` each lies at that very path, so that nothing has to be renamed and
two files of one name in two directories stay apart. Written last of its directory, the JSON makes it complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from polarvault.errors import BackupUnusable
from polarvault.model.limits import CONFIGURATION_FILE_BYTES, CONFIGURATION_FILES
from polarvault.storage.below import Below
from polarvault.storage.files import storage_failed

SUFFIX = ".configuration"
INDEX_NAME = "configuration.json"
FILES_NAME = "files"
_FORMAT = 1
# hosts_file: from PostgreSQL 19 on.
_PLACES = ("config_file", "hba_file", "ident_file", "hosts_file")


@dataclass(frozen=True, slots=True)
class SavedConfiguration:
    """What was kept. Paths are those at the server: absolute and normal.

    places: config_file, hba_file and ident_file by name; files: contents; directories: what include_dir names;
    missing: files that belong to it and could not be read.
    """

    data_directory: str
    places: Mapping[str, str]
    files: Mapping[str, bytes]
    directories: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def main_directory(self) -> str:
        """The directory of postgresql.conf."""
        return os.path.dirname(self.places["config_file"])


def saved_beside(backup: str) -> str:
    """Return where the configuration of a backup is kept, if it is."""
    return backup.rstrip("/") + SUFFIX


def configuration_documents(saved: SavedConfiguration) -> dict[str, bytes]:
    """Return what is kept, by names below the directory of the configuration; the index comes last."""
    index = {
        "format": _FORMAT,
        "data_directory": saved.data_directory,
        **saved.places,
        "files": sorted(saved.files),
        "directories": list(saved.directories),
        "missing": list(saved.missing),
    }
    documents = {FILES_NAME + path: content for path, content in saved.files.items()}
    # File names are bytes: what is no UTF-8 survives as escapes.
    return documents | {INDEX_NAME: (json.dumps(index, indent=1) + "\n").encode()}


def write_configuration(directory: str, saved: SavedConfiguration, *, sync: bool) -> None:
    """Write everything into an empty directory, readable by its owner only; durable on return if sync.

    Raises StorageFailed.
    """
    try:
        with Below(directory) as below:
            for name, content in configuration_documents(saved).items():
                below.make_parents(name, 0o700, sync=sync)
                below.write(name, content, 0o600, sync=sync)
                if sync:
                    # The index comes last, and lies in the directory itself: with its name all names there are durable.
                    below.sync_parent(name)
    except OSError as problem:
        raise storage_failed(problem, "write the configuration into", directory) from problem


def read_configuration(directory: str) -> SavedConfiguration:
    """Read what was kept; raise BackupUnusable for what is no such directory, or names files outside of it."""
    try:
        with Below(directory) as below:
            return parse_configuration(lambda name: below.read(name, CONFIGURATION_FILE_BYTES), directory)
    except OSError as problem:
        raise BackupUnusable(
            f'"{directory}" holds no configuration of a server: {problem.strerror}',
            hint="it is made by: polarvault basebackup --copy-configuration",
        ) from problem


def parse_configuration(read: Callable[[str], bytes], directory: str) -> SavedConfiguration:
    """Return what was kept, by reading its documents; directory: what messages call the place."""
    index = _parsed(read(INDEX_NAME), directory)
    paths = _paths(index.get("files"), directory)
    files = {path: read(FILES_NAME + path) for path in paths}
    places = {name: _path(index.get(name), directory) for name in _PLACES if index.get(name) is not None}
    if "config_file" not in places:
        raise _broken(directory, "config_file")
    return SavedConfiguration(
        data_directory=_path(index.get("data_directory"), directory),
        places=places,
        files=files,
        directories=tuple(_paths(index.get("directories"), directory)),
        missing=tuple(_paths(index.get("missing"), directory)),
    )


def _parsed(content: bytes, directory: str) -> dict[str, object]:
    try:
        index = json.loads(content)
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise _broken(directory, "format")
    return index


def _paths(value: object, directory: str) -> list[str]:
    if not isinstance(value, list) or len(value) > CONFIGURATION_FILES:
        raise _broken(directory, "files")
    return [_path(one, directory) for one in value]


def _path(value: object, directory: str) -> str:
    """Return a path that leads nowhere else than it says: absolute, without . and .., without a line feed."""
    is_path = isinstance(value, str) and value.startswith("/") and not set(value) & {"\0", "\n"}
    if not isinstance(value, str) or not is_path or value != os.path.normpath(value) or value.startswith("//"):
        raise _broken(directory, f"path {str(value)[:200]!r}")
    return value


def _broken(directory: str, what: str) -> BackupUnusable:
    return BackupUnusable(
        f'"{os.path.join(directory, INDEX_NAME)}" is damaged or not ours: {what}',
        hint="put the files back by hand, or leave --configuration out",
    )
