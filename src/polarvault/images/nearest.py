"""Images and snapshots of the same cluster beside its backups: the nearest before a target is taken, by its LSN.

Which one that is, restore's own choice among several backups decides: the newest from which the target is reached, by
the history of timelines and the WAL that is there, and not by the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polarvault.backupset.backup import Backup, Concerned, Shelf
from polarvault.backupset.source import OnDisk, find_backup
from polarvault.clones.base import BackupInBase
from polarvault.errors import IntegrityError, PolarvaultError
from polarvault.images.area import ImageArea
from polarvault.images.model import ImageState
from polarvault.snapshots.model import Kind
from polarvault.snapshotting.model import SnapshotState
from polarvault.snapshotting.shelf import Shelf as SnapshotShelf


@dataclass(frozen=True, slots=True)
class Nearer:
    """A shelf with more on it. Implements `backupset.backup.Shelf`.

    word: what names all of them. paths: plain backups that images and snapshots are. original: one of the cluster's
    backups, whose archive has the WAL with which those go on; None: they go on with directories alone.
    """

    shelf: Shelf
    word: str
    paths: tuple[str, ...]
    original: Backup | None = None

    def find(
        self, word: str, *, shared_from: str | None = None, force: bool = False, local_only: bool = False
    ) -> Backup:
        """Return the backup that a word names."""
        if word not in self.paths:
            return self.shelf.find(word, shared_from=shared_from, force=force, local_only=local_only)
        if self.original is None:
            return find_backup(word, force=force, local_only=local_only)
        return BackupInBase(word, self.original, find_backup(word).look_through())

    def several(self, word: str) -> Sequence[str]:
        """Return the cluster's backups and what is beside them."""
        return (*self.shelf.several(word), *(self.paths if word == self.word else ()))

    def concerned(self, problem: IntegrityError, word: str) -> Concerned | None:
        """Return what the shelf knows."""
        return None if word in self.paths else self.shelf.concerned(problem, word)


def paths_of(images: ImageArea | None, snapshots: SnapshotShelf | None, system_identifier: str) -> tuple[str, ...]:
    """Return the plain backups that the whole images and snapshots of a cluster are."""
    found: list[str] = []
    if images is not None:
        for place in images.places(Kind.IMAGE):
            status = place.status(sizes=False)
            record = status.record
            if status.state is ImageState.WHOLE and record and record.system_identifier == system_identifier:
                found.append(record.backup)
    if snapshots is not None:
        for slot in snapshots.slots():
            seen = slot.record()
            if seen is None or seen.system_identifier != system_identifier:
                continue
            if slot.status().state is SnapshotState.WHOLE:
                found.append(seen.backup)
    return tuple(found)


def image_paths(area: ImageArea, word: str) -> tuple[str, ...]:
    """Return the plain backups that the images of a name are, or the one that the word names; raise ImageNotFound."""
    records = [place.record() for place in area.named(word)]
    return tuple(record.backup for record in records if record is not None)


def identifier_of(shelf: Shelf, word: str) -> tuple[str, Backup] | None:
    """Return the system identifier of the cluster whose backups a word names, and one of them; None: nobody knows."""
    for backup in _backups(shelf, word):
        claimed = backup.description.get("system_identifier")
        if claimed is not None:
            return str(claimed), backup
        try:
            control = backup.look_through().control
        except PolarvaultError:
            continue
        if control is not None:
            return str(control.system_identifier), backup
    return None


def _backups(shelf: Shelf, word: str) -> Iterator[Backup]:
    for name in reversed(shelf.several(word)):
        try:
            yield shelf.find(name)
        except PolarvaultError:
            continue  # What is wrong with it is told when the backups are compared.


def of_images(area: ImageArea, word: str) -> Nearer:
    """Return the shelf for a word that names images."""
    return Nearer(OnDisk(), word, image_paths(area, word))
