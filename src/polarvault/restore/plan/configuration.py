"""--configuration: where the files that `basebackup --copy-configuration` kept go back to. Pure.

Into the data directory, where they are then the restored server's own and are edited like any others; or into a
directory of Debian's layout, /etc/postgresql/VERSION/NAME, where nothing that is there is overwritten and only the
paths that name the source's places are changed, because postgresql.auto.conf cannot say them.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from polarvault.backupset.saved_configuration import SavedConfiguration
from polarvault.errors import TargetNotEmpty, UsageError
from polarvault.instance.debian import DebianCluster, cluster_at
from polarvault.pgconf.configuration import MAIN_FILE
from polarvault.pgconf.document import ConfDocument
from polarvault.pgconf.grammar import format_value

INTO_DATA = "data"
_NAMES = {
    "config_file": MAIN_FILE, "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf", "hosts_file": "pg_hosts.conf"
}  # fmt: skip
_PID_FILE = re.compile(r"(/.*/)[0-9.]+-[^/]+\.pid\Z")


@dataclass(frozen=True, slots=True)
class PutBack:
    """Files to put back: absolute path and content; directories that must be there though empty.

    root is where they go; cluster is set when that is a directory of Debian's layout. left_out: files of the source
    that have no place below root.
    """

    root: str
    files: Mapping[str, bytes]
    directories: tuple[str, ...]
    left_out: tuple[str, ...]
    cluster: DebianCluster | None


def plan_put_back(
    place: str, saved: SavedConfiguration, *, data_directory: str, major: int, owner: DebianCluster | None
) -> PutBack:
    """Decide where each file goes.

    place: `data`, or a directory; owner: the cluster in /etc that names the data directory already. Raises UsageError
    before anything is written.
    """
    if place == INTO_DATA:
        if owner is not None:
            raise UsageError(
                f"--configuration data: the server of cluster {owner} reads {owner.main_file}, and nothing in its data "
                "directory",
                hint=f"put it there: --configuration {owner.directory}",
            )
        return _placed(saved, data_directory, None)
    cluster = cluster_at(place)
    if cluster is None or cluster.version != str(major):
        raise UsageError(
            f"--configuration {place}: this is neither `data` nor a directory of Debian's layout for version {major}",
            hint=f"such as: --configuration /etc/postgresql/{major}/main",
        )
    if owner is not None and owner.directory != cluster.directory:
        raise UsageError(
            f'"{data_directory}" is the data directory of the cluster {owner}, which {owner.main_file} says',
            hint=f"put it there: --configuration {owner.directory}; or restore into another directory",
        )
    put = _placed(saved, cluster.directory, cluster)
    files = dict(put.files)
    files[cluster.main_file] = _renamed(files[cluster.main_file], data_directory, cluster)
    return replace(put, files=files)


def check_put_back(put: PutBack, there: Mapping[str, bytes | None]) -> None:
    """Raise TargetNotEmpty for files that are there with another content: they may be a running server's.

    there: what is at the paths in a directory of Debian's layout; None for what cannot be read.
    """
    others = [path for path, content in there.items() if put.files[path] != content]
    if others:
        aside = os.path.join(os.path.dirname(others[0]), "before-restore")
        raise TargetNotEmpty(
            f"configuration files are there already, and are others: {', '.join(others)}",
            hint="leave --configuration out to keep them as they are; or, if no server uses them, put them aside: "
            f"mkdir {shlex.quote(aside)} && mv -t {shlex.quote(aside)} {shlex.join(others)}",
        )


def _placed(saved: SavedConfiguration, root: str, cluster: DebianCluster | None) -> PutBack:
    named = {path: os.path.join(root, _NAMES[name]) for name, path in saved.places.items()}
    bases = list(dict.fromkeys(os.path.dirname(path) for path in saved.places.values()))

    def place(path: str) -> str | None:
        if path in named:
            return named[path]
        base = next((base for base in bases if path.startswith(base.rstrip("/") + "/")), None)
        return None if base is None else os.path.join(root, os.path.relpath(path, base))

    placed = {path: place(path) for path in saved.files}
    return PutBack(
        root=root,
        files={there: saved.files[path] for path, there in placed.items() if there is not None},
        directories=tuple(there for path in saved.directories if (there := place(path)) is not None),
        left_out=(*(path for path, there in placed.items() if there is None), *saved.missing),
        cluster=cluster,
    )


def _renamed(content: bytes, data_directory: str, cluster: DebianCluster) -> bytes:
    """Return the main file with the paths of this cluster in the place of the source's."""
    document = ConfDocument(content)
    entries = list(document.entries())
    wanted = {"data_directory": data_directory}
    for name in ("hba_file", "ident_file", "hosts_file"):
        if any(entry.name == name for entry in entries):
            wanted[name] = os.path.join(cluster.directory, _NAMES[name])
    for entry in entries:
        if entry.name == "external_pid_file" and (match := _PID_FILE.match(entry.value)):
            wanted["external_pid_file"] = f"{match[1]}{cluster.version}-{cluster.name}.pid"
        if entry.name == "cluster_name" and re.fullmatch(r"[0-9.]+/[^/]+", entry.value):
            wanted["cluster_name"] = str(cluster)
    for name, value in wanted.items():
        lines = [entry for entry in entries if entry.name == name]
        for entry in lines:
            document.set_value(entry.line, value)
        if not lines:
            document.append([f"{name} = {format_value(value)}"])
    return document.content
