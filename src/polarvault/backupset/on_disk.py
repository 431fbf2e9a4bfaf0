"""Backups in files: directory trees delivered file by file, tars as they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from polarvault.backupset.backup import DeliveryStopped, Entry, FileSink, LocalFile, Share
from polarvault.backupset.inventory import take_inventory
from polarvault.backupset.model import Area, BackupSource, Inventory, Part
from polarvault.backupset.reading.plain_tree import PlainTree, TreeEntry
from polarvault.backupset.reading.tarstream import read_tar
from polarvault.backupset.saved_configuration import SavedConfiguration, read_configuration, saved_beside
from polarvault.backupset.wal.of_backup import wal_of
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind
from polarvault.storage.files import storage_failed
from polarvault.wal.source import WalSource

# Files in a share: most files of a cluster are tiny, and a task for each would cost more than the copy.
_SHARE_FILES = 64
_SHARE_BYTES = 64 << 20
_READ_BYTES = 1 << 20


class BackupOnDisk(BackupSource):
    """A directory, two halves, tar files, or one tar. Implements `backup.Backup`."""

    __slots__ = ()

    def saved_configuration(self) -> SavedConfiguration | None:
        """Read the directory beside the backup, if it is there."""
        directory = saved_beside(self.path)
        return read_configuration(directory) if os.path.exists(directory) else None

    @property
    def fetched_bytes(self) -> None:
        """Nothing: it is here."""
        return None

    def remarks(self) -> Sequence[str]:
        """Return nothing."""
        return ()

    def speeds(self) -> Sequence[float]:
        """Return nothing: where files lie says nothing about the next ones."""
        return ()

    def note_speed(self, size_bytes: int, seconds: float) -> None:
        """Do nothing."""

    @property
    def archives(self) -> tuple[WalSource, ...]:
        """None: files do not know where WAL is archived."""
        return ()

    def look_through(self) -> Inventory:
        """Look at everything once, as the account at work."""
        return take_inventory(self)

    def wal(self, inventory: Inventory) -> WalSource:
        """Return the WAL in pg_wal directories, or in the tars that hold it."""
        return wal_of(self, inventory)

    @contextmanager
    def shares(
        self, inventory: Inventory, wanted: Callable[[Entry], bool], *, tablespaces: Container[int]
    ) -> Iterator[Iterator[Share]]:
        """Give a tar as one share, and files of a tree in batches, so that listing and copying overlap."""
        with ExitStack() as trees:
            yield self._shares(inventory, wanted, tablespaces, trees)

    def _shares(
        self, inventory: Inventory, wanted: Callable[[Entry], bool], tablespaces: Container[int], trees: ExitStack
    ) -> Iterator[Share]:
        for part in self.parts:
            if part.is_tar:
                yield _TarShare(part)
            else:
                skip = self.inside_local if part.area is Area.LOCAL else frozenset[str]()
                tree = PlainTree(part.path, skip=skip, tablespace=part.area is Area.TABLESPACE)
                yield from _tree_shares(part, trees.enter_context(tree), wanted)
        for space in inventory.tablespaces:
            if space.copy is not None and space.oid in tablespaces:
                part = Part(Area.TABLESPACE, space.copy, tablespace_oid=space.oid)
                tree = trees.enter_context(PlainTree(space.copy, tablespace=True))
                yield from _tree_shares(part, tree, wanted)


def _tree_shares(part: Part, tree: PlainTree, wanted: Callable[[Entry], bool]) -> Iterator[Share]:
    batch: list[tuple[TreeEntry, Entry]] = []
    size = 0
    for found in tree.walk():
        if found.kind is MemberKind.SYMLINK:
            continue
        entry = Entry(part.area, found.name, found.kind, found.status.st_size, part.tablespace_oid)
        if not wanted(entry) or found.kind is not MemberKind.FILE:
            continue
        batch.append((found, entry))
        size += entry.size
        if len(batch) >= _SHARE_FILES or size >= _SHARE_BYTES:
            yield _TreeShare(tree, batch)
            batch, size = [], 0
    if batch:
        yield _TreeShare(tree, batch)


@dataclass(frozen=True, slots=True)
class _TreeShare:
    """Some files of a directory tree."""

    tree: PlainTree
    files: list[tuple[TreeEntry, Entry]]

    def deliver(self, sink: FileSink, stop: threading.Event) -> None:
        try:
            for found, entry in self.files:
                if stop.is_set():
                    raise DeliveryStopped
                self._deliver(found, entry, sink, stop)
        finally:
            sink.close()

    def _deliver(self, found: TreeEntry, entry: Entry, sink: FileSink, stop: threading.Event) -> None:
        path = os.path.join(self.tree.root, found.name)
        try:
            descriptor = self.tree.open(found)
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem
        try:
            if not sink.begin(entry, LocalFile(descriptor, os.fstat(descriptor).st_size, path)):
                return
            view = memoryview(bytearray(_READ_BYTES))
            while not stop.is_set():
                try:
                    count = os.readv(descriptor, [view])
                except OSError as problem:
                    raise storage_failed(problem, "read", path) from problem
                if not count:
                    sink.end()
                    return
                sink.data([view[:count]])
            raise DeliveryStopped
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _TarShare:
    """Everything in one tar; read as it is delivered."""

    part: Part

    def deliver(self, sink: FileSink, stop: threading.Event) -> None:
        try:
            is_wanted = False
            for event in read_tar(self.part):
                if stop.is_set():
                    raise DeliveryStopped
                if isinstance(event, MemberBegins):
                    member = event.member
                    is_wanted = member.kind is not MemberKind.SYMLINK and sink.begin(self._entry(member), None)
                elif is_wanted and isinstance(event, MemberData):
                    sink.data(event.views)
                elif is_wanted:
                    sink.end()
        finally:
            sink.close()

    def _entry(self, member: Member) -> Entry:
        return Entry(self.part.area, member.name, member.kind, member.size, self.part.tablespace_oid)
