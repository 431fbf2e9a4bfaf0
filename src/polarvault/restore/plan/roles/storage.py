"""Where the restored server's data are: in directories of its own, merged into one, or in the primary's storage."""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from polarvault.backupset.model import Inventory
from polarvault.errors import UsageError
from polarvault.polardb.settings import (
    CLUSTER_NAME,
    DATADIR,
    DISK_NAME,
    HOST_ID,
    SHARED_STORAGE_MODE,
    Wanted,
    gentle_mount,
    merged_settings,
    pfs_path_of,
    pfs_settings,
    shared_storage_settings,
    split_protocol,
)
from polarvault.restore.facts import BackupFacts
from polarvault.restore.model import Layout, RestoreRequest
from polarvault.restore.plan.backup import local_settings
from polarvault.restore.plan.places import plan_layout
from polarvault.storage.trees.pfs.mount import DEFAULT_CLUSTER, PfsMount

if TYPE_CHECKING:
    from polarvault.restore.plan.settings.book import SettingsBook


class StorageRules(ABC):
    """What a restore does about the places of the data."""

    def layout(self, request: RestoreRequest, backup: BackupFacts) -> Layout:
        """Decide where each area goes."""
        pfs = pfs_mount(request, backup) if request.pfs is not None else None
        return plan_layout(request, backup.inventory, had_shared_half=backup.had_shared_half, pfs=pfs)

    @abstractmethod
    def settings(self, book: SettingsBook) -> Iterable[Wanted]:
        """Yield what PolarDB has to be told of it; PostgreSQL nothing."""

    def left_out(self, inventory: Inventory) -> list[str]:
        """Say what of the backup has no place."""
        return [
            f'tablespace {space.oid} ("{space.location}") is left out: PolarDB cannot use tablespaces on shared storage'
            for space in inventory.tablespaces
        ]


class _Own(StorageRules):
    """As in the source: one directory, or two on shared storage."""

    def settings(self, book: SettingsBook) -> Iterable[Wanted]:
        shared = book.layout.shared
        if shared is None:
            return ()
        if (pfs := book.layout.pfs) is not None:
            return _on_own_disk(book, pfs)
        # The losers are commented out by set(), so that no RESET can bring the live storage back.
        return shared_storage_settings(shared, book.value, direct_io=book.facts.host.takes_direct_io)

    def left_out(self, inventory: Inventory) -> list[str]:
        return super().left_out(inventory) if inventory.has_shared_half else []


class _Merged(StorageRules):
    """Both halves of PolarDB in one directory."""

    def settings(self, book: SettingsBook) -> Iterable[Wanted]:
        book.disable(DATADIR, "both halves are in one directory")
        return merged_settings()


class _Live(StorageRules):
    """The primary's own, to which nothing is ever written."""

    def layout(self, request: RestoreRequest, backup: BackupFacts) -> Layout:
        configured = local_settings(backup.inventory).value(DATADIR) or ""
        protocol, path = split_protocol(configured)
        if request.pfs is not None:
            mount = pfs_mount(request, backup)
            return Layout(request.target, None, {}, live_datadir=f"{mount.address.path}/", pfs=mount)
        if request.shared_target is not None:
            datadir = f"{protocol}://{request.shared_target}" if protocol else request.shared_target
            return Layout(request.target, None, {}, live_datadir=datadir)
        if not posixpath.isabs(path):
            raise UsageError(
                f"{DATADIR} is {configured!r} in the backup, relative to the source's data directory",
                hint="name the primary's storage by its full path: --polardata DIRECTORY",
            )
        return Layout(request.target, None, {}, live_datadir=configured, pfs=_live_mount(request, backup))

    def settings(self, book: SettingsBook) -> Iterable[Wanted]:
        assert book.layout.live_datadir is not None
        if book.request.pfs is not None and (pfs := book.layout.pfs) is not None and pfs.host_id is not None:
            # Promoted, it has to take the disk from the primary that has failed: that is left as it is.
            return pfs_settings(pfs, pfs.host_id)
        return (
            Wanted(SHARED_STORAGE_MODE, "on", "a replica reads the primary's storage"),
            Wanted(DATADIR, book.layout.live_datadir, "the primary's storage"),
        )


def _on_own_disk(book: SettingsBook, pfs: PfsMount) -> list[Wanted]:
    """Return the settings of a server with a shared half of its own in PFS, perhaps beside somebody else's."""
    assert pfs.host_id is not None
    wanted = pfs_settings(pfs, pfs.host_id)
    place = book.facts.host.pfs
    is_shared = pfs.address.disk == book.value(DISK_NAME) or (place is not None and place.used_host_ids)
    if is_shared and not pfs.force:
        wanted.append(gentle_mount())
    return wanted


def _live_mount(request: RestoreRequest, backup: BackupFacts) -> PfsMount | None:
    """Return how the primary's storage is looked at where the backup's settings say that it lies in PFS."""
    value = local_settings(backup.inventory).value
    address = pfs_path_of(value)
    if address is None:
        return None
    return PfsMount(address, cluster=request.pfs_cluster or value(CLUSTER_NAME) or DEFAULT_CLUSTER)


OWN, MERGED, LIVE = _Own(), _Merged(), _Live()


def pfs_mount(request: RestoreRequest, backup: BackupFacts) -> PfsMount:
    """Return how the disk of --polardata is mounted: as asked, else as the source was, else by default."""
    assert request.pfs is not None
    value = local_settings(backup.inventory).value
    theirs = value if pfs_path_of(value) is not None else lambda name: None
    host_id = request.host_id or _number(theirs(HOST_ID)) or 1
    cluster = request.pfs_cluster or theirs(CLUSTER_NAME) or DEFAULT_CLUSTER
    return PfsMount(request.pfs, cluster=cluster, host_id=host_id, force=request.pfs_force)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None


def storage_directory(datadir: str) -> str:
    """Return the path of a storage without its protocol."""
    return posixpath.normpath(split_protocol(datadir)[1])
