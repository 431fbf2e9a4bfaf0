"""The seam to backups: what a restore needs of one, whatever its form. `on_disk` has the forms that lie in files."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from polarvault.backupset.model import Area, Form, Inventory, Part
from polarvault.backupset.saved_configuration import SavedConfiguration
from polarvault.errors import IntegrityError
from polarvault.pgfiles.tar import MemberKind
from polarvault.wal.source import WalSource


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory in a backup: the area that it was found in, its name there, its size in bytes."""

    area: Area
    name: str
    kind: MemberKind
    size: int = 0
    tablespace_oid: int = 0


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of a backup that this machine has as it is: an open descriptor, its size in bytes, its path."""

    descriptor: int
    size: int
    path: str


class DeliveryStopped(Exception):
    """The event that stops a delivery was set; what was delivered so far is not whole."""


class FileSink(Protocol):
    """Takes what one share delivers, from one thread. Errors of its own end the delivery."""

    def begin(self, entry: Entry, local: LocalFile | None) -> bool:
        """Take note of a file or directory that follows; return whether its content is wanted.

        local: the file itself, valid until this returns, which the sink may clone or move; it then returns False.
        """

    def data(self, views: Sequence[memoryview]) -> None:
        """Take the next bytes of the file begun; the views may be used again when this returns."""

    def end(self) -> None:
        """The file is complete."""

    def place(self, entry: Entry, offset: int, view: memoryview) -> None:
        """Take bytes of a file whose pieces come in any order, and from several shares; instead of begin, data, end.

        Every byte comes once. The file has its entry's size, whatever has come of it so far.
        """

    def close(self) -> None:
        """Nothing more comes, after a failure either; called once, last."""


@dataclass(frozen=True, slots=True)
class Concerned:
    """Backups beside a damaged one, newest first: others that need the same bytes, and older ones that do not.

    way: a backup, and the options with which its restore leads to where the damaged one ends; None: no WAL leads there.
    """

    others: Sequence[str]
    spared: Sequence[str]
    way: str | None = None


class Shelf(Protocol):
    """Where backups stand, and are found by the words that name them."""

    def find(
        self, word: str, *, shared_from: str | None = None, force: bool = False, local_only: bool = False
    ) -> Backup:
        """Return the backup that a word names; raise BackupUnusable, RepositoryNotFound, StorageFailed."""

    def several(self, word: str) -> Sequence[str]:
        """Return the words of all backups, if the word names a place that holds several; empty if it is one itself."""

    def concerned(self, problem: IntegrityError, word: str) -> Concerned | None:
        """Return what else the damage of a backup concerns; None where nobody here knows."""


class Share(Protocol):
    """Files of a backup that are delivered one after the other; shares are delivered at the same time."""

    def deliver(self, sink: FileSink, stop: threading.Event) -> None:
        """Deliver everything and close the sink; raise DeliveryStopped, StorageFailed, IntegrityError."""


def verify_command(path: str) -> str:
    """Return the line that tells everything that is wrong with a backup; path: as messages call it."""
    # A word that names a backup of a repository has no slash, and the paths of backups are whole.
    return f"polarvault {'verifybackup' if '/' in path else 'verify'} {shlex.quote(path)}"


class Backup(Protocol):
    """A backup that was recognised. path: what messages call it. parts: its directories and files on this machine."""

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def form(self) -> Form: ...  # noqa: D102
    @property
    def parts(self) -> tuple[Part, ...]: ...  # noqa: D102
    @property
    def description(self) -> Mapping[str, object]: ...  # noqa: D102
    def saved_configuration(self) -> SavedConfiguration | None:
        """Return the configuration files that were kept with it, because they lay outside of its data; None: none were.

        Raises BackupUnusable for what cannot be used.
        """

    @property
    def archives(self) -> Sequence[WalSource]:
        """Where the WAL of its cluster is archived, as far as the backup knows: what a recovery can go on with."""

    @property
    def fetched_bytes(self) -> int | None:
        """How much is read of a store for all of its files, WAL apart; None for what lies in files here."""

    def remarks(self) -> Sequence[str]:
        """Return what there is to say about what was delivered so far: what was damaged, and taken from elsewhere."""

    def speeds(self) -> Sequence[float]:
        """Return how many bytes of files a second the last restores from here laid out; nothing where none is known."""

    def note_speed(self, size_bytes: int, seconds: float) -> None:
        """Remember a restore that laid out so many bytes, for those that are planned later."""

    def parts_of(self, area: Area) -> list[Part]:
        """Return the parts that hold an area."""

    def look_through(self) -> Inventory:
        """Look at everything once; raise BackupUnusable, IntegrityError, StorageFailed."""

    def shares(
        self, inventory: Inventory, wanted: Callable[[Entry], bool], *, tablespaces: Container[int]
    ) -> AbstractContextManager[Iterator[Share]]:
        """Give what can be delivered in parallel, while it is still being listed; files are open until the exit.

        wanted is asked about what is listed, parents first, in the thread that iterates; what a share finds only when
        it is delivered, its sink alone is asked about. tablespaces: the oids of those that are wanted.
        """

    def wal(self, inventory: Inventory) -> WalSource:
        """Return the WAL that comes with the backup."""
