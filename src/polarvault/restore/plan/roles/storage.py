"""Where the restored server's data are: in directories of its own, merged into one, or in the primary's storage."""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from polarvault.backupset.model import Inventory
from polarvault.errors import UsageError
from polarvault.polardb.settings import (
    DATADIR,
    SHARED_STORAGE_MODE,
    Wanted,
    merged_settings,
    shared_storage_settings,
    split_protocol,
)
from polarvault.restore.facts import BackupFacts
from polarvault.restore.model import Layout, RestoreRequest
from polarvault.restore.plan.backup import local_settings
from polarvault.restore.plan.places import plan_layout

if TYPE_CHECKING:
    from polarvault.restore.plan.settings.book import SettingsBook


class StorageRules(ABC):
    """What a restore does about the places of the data."""

    def layout(self, request: RestoreRequest, backup: BackupFacts) -> Layout:
        """Decide where each area goes."""
        return plan_layout(request, backup.inventory, had_shared_half=backup.had_shared_half)

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
        if request.shared_target is not None:
            datadir = f"{protocol}://{request.shared_target}" if protocol else request.shared_target
            return Layout(request.target, None, {}, live_datadir=datadir)
        if not posixpath.isabs(path):
            raise UsageError(
                f"{DATADIR} is {configured!r} in the backup, relative to the source's data directory",
                hint="name the primary's storage by its full path: --polardata DIRECTORY",
            )
        return Layout(request.target, None, {}, live_datadir=configured)

    def settings(self, book: SettingsBook) -> Iterable[Wanted]:
        assert book.layout.live_datadir is not None
        return (
            Wanted(SHARED_STORAGE_MODE, "on", "a replica reads the primary's storage"),
            Wanted(DATADIR, book.layout.live_datadir, "the primary's storage"),
        )


OWN, MERGED, LIVE = _Own(), _Merged(), _Live()


def storage_directory(datadir: str) -> str:
    """Return the path of a storage without its protocol."""
    return posixpath.normpath(split_protocol(datadir)[1])
