"""Which provider makes snapshots of a path, found from its file system."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.snapshots.btrfs import Btrfs
from polarvault.snapshots.commands import Commands, CommandWords
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


def provider_again(name: str, at: str, datasets: Sequence[str] = ()) -> SnapshotProvider:
    """Return the provider that made something earlier, by its name; "" for one that was cut off before."""
    if name == "zfs":
        return Zfs(datasets)
    if name == "btrfs":
        return Btrfs(at)
    return Trees(at, shares=name == "reflink")
