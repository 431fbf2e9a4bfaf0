"""The seam to whatever makes snapshots, and its values. Frozen, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Kind(Enum):
    """What a thing is that we have made."""

    SNAPSHOT = "snapshot"
    CLONE = "clone"
    BASE = "base"
    """A copy that clones are made of."""
    IMAGE = "image"
    """A restored copy that WAL was replayed into, and that the next one is made of."""


class Atomicity(Enum):
    """How far everything in a snapshot is of one moment."""

    NEVER = "each file is of another moment"
    VOLUME = "everything in one volume is of one moment"
    SET = "everything in one pool is of one moment"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Place:
    """A directory in a snapshot or clone. source: of what it is a picture; volume: the provider's word for where it is.

    inside: the path below the volume's root, "" for the root itself. path: where its files are now; None: a snapshot
    whose files can be read in a clone only.
    """

    source: str
    volume: str
    inside: str
    path: str | None


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot or a clone that was made here.

    is_whole: it is complete; one that is not was cut off while it was made, and is only good for being destroyed.
    places: of a thing that was listed, the volumes alone are known, and source is "".
    """

    kind: Kind
    id: str
    provider: str
    places: tuple[Place, ...]
    is_whole: bool = True


class SnapshotProvider(Protocol):
    """Makes and removes snapshots and clones in one place. Every method may be called again after a failure.

    Methods raise SnapshotRefused before anything was made, SnapshotFailed and StorageFailed after what was begun has
    been taken back.
    """

    @property
    def name(self) -> str:
        """The word for people and for records: zfs, btrfs, reflink, commands, copy."""

    def atomicity(self, directories: Sequence[str]) -> Atomicity:
        """Return how far a snapshot of these directories would be of one moment."""

    def is_atomic(self, directories: Sequence[str]) -> bool:
        """Tell whether everything in a snapshot of all these directories would be of one moment."""

    def create(self, directories: Sequence[str], id_: str) -> Made:
        """Make a snapshot of directories that do not lie in one another. On return it is durable.

        Raises SnapshotRefused for a directory of which something would be missing, or under an id that is taken.
        """

    def clone(self, snapshot: Made, target: str, id_: str) -> Made:
        """Make a copy of a snapshot that can be written; `target` is made and holds a directory for each volume.

        The snapshot does not change with it. Raises SnapshotRefused under an id that is taken.
        """

    def things(self) -> list[Made]:
        """Return everything that was made here and is still there, in the order of ids; nothing of anybody else's."""

    def destroy(self, made: Made) -> None:
        """Remove a thing; one that is gone already is no error. Raises NotOurs, StillNeeded; then it is as it was."""

    def used_bytes(self, made: Made) -> int | None:
        """Return what would be free without it, as far as the file system says; None: it does not."""
