"""Where a server's files are, and the copy of them that a provider has made."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace

from polarvault.snapshots.choice import commands_for, provider_for
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.model import Made, SnapshotProvider
from polarvault.snapshots.mounts import mount_of
from polarvault.snapshots.zfs import Zfs
from polarvault.snapshotting.complete import Directories
from polarvault.snapshotting.model import SnapshotRecord, SnapshotRequest
from polarvault.snapshotting.shelf import Slot
from polarvault.taking.reporter import BackupReporter


@dataclass(frozen=True, slots=True)
class Source:
    """Where the server's files are: the data directory, PolarDB's shared half, tablespaces by oid."""

    local: str
    shared: str | None
    tablespaces: dict[str, str]
    wal: str | None = None
    """pg_wal, where that lies elsewhere and goes with it; with a connection it does not have to."""

    @property
    def directories(self) -> list[str]:
        """Everything, and what has pg_control last."""
        last = [self.local] if self.shared is None else [self.local, self.shared]
        return [*self.tablespaces.values(), *([self.wal] if self.wal else []), *last]


def refuse_nested(source: Source) -> None:
    """Raise SnapshotRefused for directories of a server that lie in one another."""
    for inner in source.directories:
        for outer in source.directories:
            if inner != outer and inner.startswith(outer.rstrip("/") + "/"):
                raise SnapshotRefused(
                    f'"{inner}" lies inside of "{outer}"',
                    hint="move it beside it, or take a backup: polarvault basebackup",
                )


def copy_of(provider: SnapshotProvider, made: Made, slot: Slot, source: Source) -> Directories:
    """Return the directories of a copy that can be written: the snapshot's own, or a clone's, which costs nothing."""
    if any(one.path is None for one in made.places) or provider.name not in ("reflink", "copy"):
        made = provider.clone(made, slot.clone, slot.id)
    paths = {place.source: place.path or "" for place in made.places}
    for path in paths.values():
        # The account of a drill or a clone has to get through to what is its own.
        while (path := os.path.dirname(path)) != slot.directory and path.startswith(slot.directory):
            os.chmod(path, os.stat(path).st_mode | 0o011)
    found = {original: paths[os.path.realpath(original)] for original in source.directories}
    return Directories(
        found[source.local],
        None if source.shared is None else found[source.shared],
        {oid: found[location] for oid, location in source.tablespaces.items()},
        None if source.wal is None else found[source.wal],
    )


def chosen_provider(
    request: SnapshotRequest, record: SnapshotRecord, source: Source, slot: Slot, reporter: BackupReporter
) -> tuple[SnapshotProvider, SnapshotRecord]:
    """Return who makes the snapshot, and the record with what finds its work again; warn of bad settings of ZFS."""
    commands = commands_for(source.directories, request.configured)
    provider = provider_for(source.directories, slot.directory, commands)
    if isinstance(provider, Zfs):
        for line in provider.advice(relies_on_records=source.shared is not None):
            reporter.warning(line)
    datasets = [mount_of(one).device for one in source.directories] if provider.name == "zfs" else []
    return provider, replace(
        record, provider=provider.name, datasets=tuple(dict.fromkeys(datasets)),
        is_atomic=provider.is_atomic(source.directories), commands=None if commands is None else asdict(commands),
    )  # fmt: skip
