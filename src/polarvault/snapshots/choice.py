"""Which provider makes snapshots of a path, found from its file system."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from polarvault.config.model import SnapshotConfiguration
from polarvault.snapshots.btrfs import Btrfs
from polarvault.snapshots.commands import Commands, CommandWords
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.model import SnapshotProvider
from polarvault.snapshots.mounts import mount_of
from polarvault.snapshots.trees import Trees, can_share
from polarvault.snapshots.zfs import KINDS, Zfs


def provider_for(directories: Sequence[str], at: str, commands: CommandWords | None = None) -> SnapshotProvider:
    """Return the best provider for directories that are there.

    at: a directory of ours, in which those keep what they make that make files. commands: of the configuration; they
    win, because they were asked for. Several file systems have no snapshot in common: then everything is copied.
    """
    if commands is not None:
        return Commands(at, commands)
    kinds = {mount_of(directory).kind for directory in directories}
    if kinds and kinds <= set(KINDS):
        return Zfs.of(directories)
    devices = {mount_of(path).device for path in (*directories, at)}
    if kinds == {"btrfs"} and len(devices) == 1:
        return Btrfs(at)
    return Trees(at, shares=len(devices) == 1 and can_share(at))


def commands_for(directories: Sequence[str], configured: Iterable[SnapshotConfiguration]) -> CommandWords | None:
    """Return the commands that serve all of these directories; raise SnapshotRefused where they serve some of them."""
    for one in configured:
        below = [any(_is_below(directory, path) for path in one.paths) for directory in directories]
        if all(below):
            return CommandWords(
                one.create, one.clone, one.list, one.destroy, is_atomic=one.is_atomic, timeout_s=one.timeout_s
            )
        if any(below):
            left = directories[below.index(False)]
            raise SnapshotRefused(
                f'"{left}" lies below none of the paths of [snapshots.{one.name}], and other directories of the server '
                "do",
                hint="name it there as well: paths = [...]",
            )
    return None


def _is_below(directory: str, path: str) -> bool:
    real, root = os.path.realpath(directory), os.path.realpath(path).rstrip("/")
    return real == root or real.startswith(root + "/")


def provider_again(
    name: str, at: str, datasets: Sequence[str] = (), commands: CommandWords | None = None
) -> SnapshotProvider:
    """Return the provider that made something earlier, by its name; "" for one that was cut off before."""
    if commands is not None:
        return Commands(at, commands)
    if name == "zfs":
        return Zfs(datasets)
    if name == "btrfs":
        return Btrfs(at)
    return Trees(at, shares=name == "reflink")
