"""A base copy: a backup laid out once where clones are, so that each clone is made of it by reflink.

It is the backup as it was, with its label and without settings of anybody's, and its server is never started. A plain
backup that can share extents with the clones itself needs none. Which backup it is of is in its id.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from polarvault.backupset.backup import Backup, Entry, Share
from polarvault.backupset.model import Area as BackupArea
from polarvault.backupset.model import Form, Inventory, Part
from polarvault.backupset.saved_configuration import SavedConfiguration
from polarvault.backupset.source import find_backup
from polarvault.clones.area import Area, Place
from polarvault.errors import IntegrityError
from polarvault.instance.host import Host
from polarvault.recovery.target import RecoveryRequest
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.places import check_space
from polarvault.restore.run import prepare, write_files
from polarvault.restore.write.finish import LayingOnly
from polarvault.snapshots.marks import remove_marked
from polarvault.snapshots.model import Kind
from polarvault.snapshots.names import ID_DIGITS
from polarvault.snapshots.trees import can_share
from polarvault.storage.files import storage_failed
from polarvault.wal.source import WalSource

_LOCK = ".bases.lock"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a clone is laid out from. backup: None, the one that was asked for; shares: by reflink."""

    backup: Backup | None
    directories: tuple[str, ...]
    shares: bool


def origin_of(plan: RestorePlan, area: Area, host: Host, say: Say, progress: Callable[[int], None]) -> Origin:
    """Return what the clone of a plan is laid out from, and make the base copy if one is wanted and not there."""
    source = plan.source
    parts = tuple(part.path for part in source.parts)
    if not can_share(area.path):
        say(
            f'the file system of "{area.path}" cannot share extents: the clone is a whole copy; XFS, btrfs and others '
            "can, name a directory there: --at DIR"
        )
        return Origin(None, parts or (source.path,), shares=False)
    if shares_with(plan, area.path):
        return Origin(None, parts, shares=True)
    place = _made_base(plan, area, host, say, progress)
    return Origin(BackupInBase(place.data, source, plan.inventory), (place.data,), shares=True)


def shares_with(plan: RestorePlan, directory: str) -> bool:
    """Tell by trying whether files of every directory of the backup can be cloned into a directory."""
    if plan.source.form is not Form.PLAIN or plan.chain or not can_share(directory):
        return False
    roots = [part.path for part in plan.source.parts]
    roots += [space.copy for space in plan.inventory.tablespaces if space.copy]
    return all((file := _some_file(root)) is None or can_share(directory, file) for root in roots)


def _some_file(root: str) -> str | None:
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path) and os.path.getsize(path) > 0:
                return path
    return None


def _made_base(plan: RestorePlan, area: Area, host: Host, say: Say, progress: Callable[[int], None]) -> Place:
    place = area.place(Kind.BASE, _id_of(plan))
    with _making(area):
        mark = place.mark
        if mark is not None and mark.is_whole:
            return place
        if mark is not None:
            # What made it was killed: the lock went with it.
            remove_marked(place.directory, Kind.BASE, place.id)
        say(f"restoring {plan.source.path} once, as the base of clones: {place.directory}")
        request = replace(
            plan.request, backup=plan.source.path if not plan.chain else plan.request.backup, target=place.data,
            start=False, brings_wal=False, recovery=RecoveryRequest(), settings=(), confined_to=place.run,
            port=None,
        )  # fmt: skip
        base_plan = prepare(request, host)
        check_space(base_plan)
        place.make(base_plan.account, plan.source.path)
        try:
            write_files(base_plan, host, progress, completion=LayingOnly())
            place.finish(plan.source.path)
        except BaseException:
            remove_marked(place.directory, Kind.BASE, place.id)
            raise
    return place


@contextmanager
def _making(area: Area) -> Iterator[None]:
    """Let one process make base copies at a time: two clones of one backup want the same."""
    path = os.path.join(area.path, _LOCK)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as problem:
        raise storage_failed(problem, "lock", path) from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _id_of(plan: RestorePlan) -> str:
    """Return an id that no other backup has: of one that was replaced under its name, label or times differ."""
    facts = [plan.source.path, str(plan.label), str(plan.inventory.control), str(plan.request.merge)]
    if plan.source.form is not Form.REPOSITORY:
        for part in plan.source.parts:
            status = os.stat(part.path)
            facts += [os.path.realpath(part.path), str(status.st_ino), str(status.st_mtime_ns), str(status.st_size)]
    return hashlib.sha256("\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:ID_DIGITS]


class BackupInBase:
    """A backup whose files are in a base copy, and which is otherwise what it was.

    Implements `backupset.backup.Backup`. What it knows of its WAL, and of where it ended, is the original's.
    """

    def __init__(self, path: str, original: Backup, inventory: Inventory) -> None:
        self._base = find_backup(path)
        self._original = original
        self._spans = inventory.spans

    @property
    def path(self) -> str:
        """The base copy."""
        return self._base.path

    @property
    def form(self) -> Form:
        """A plain directory."""
        return self._base.form

    @property
    def parts(self) -> tuple[Part, ...]:
        """The base copy's."""
        return self._base.parts

    @property
    def description(self) -> Mapping[str, object]:
        """The base copy has none."""
        return self._base.description

    def saved_configuration(self) -> SavedConfiguration | None:
        """Return what the original has."""
        return self._original.saved_configuration()

    @property
    def archives(self) -> Sequence[WalSource]:
        """The original's."""
        return self._original.archives

    @property
    def fetched_bytes(self) -> int | None:
        """Nothing: it is here."""
        return None

    def remarks(self) -> Sequence[str]:
        """Return nothing: there was something to say when the base was made."""
        return ()

    def speeds(self) -> Sequence[float]:
        """Return nothing."""
        return ()

    def note_speed(self, size_bytes: int, seconds: float) -> None:
        """Do nothing: it says nothing about the original."""

    def parts_of(self, area: BackupArea) -> list[Part]:
        """Return the parts that hold an area."""
        return self._base.parts_of(area)

    def look_through(self) -> Inventory:
        """Look at the base copy, and add where the backup ended."""
        return replace(self._base.look_through(), spans=self._spans)

    def shares(
        self, inventory: Inventory, wanted: Callable[[Entry], bool], *, tablespaces: Container[int]
    ) -> AbstractContextManager[Iterator[Share]]:
        """Give the files of the base copy."""
        return self._base.shares(inventory, wanted, tablespaces=tablespaces)

    def wal(self, inventory: Inventory) -> WalSource:
        """Return the WAL that the base copy has."""
        return self._base.wal(inventory)


@dataclass(frozen=True, slots=True)
class OneBackup:
    """A shelf with one backup on it. Implements `backupset.backup.Shelf`."""

    backup: Backup

    def find(
        self, word: str, *, shared_from: str | None = None, force: bool = False, local_only: bool = False
    ) -> Backup:
        """Return it, whatever the word."""
        return self.backup

    def several(self, word: str) -> Sequence[str]:
        """Return nothing: it is one."""
        return ()

    def concerned(self, problem: IntegrityError, word: str) -> None:
        """Know nothing."""
