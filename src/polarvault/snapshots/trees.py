"""Snapshots that are directories of files: reflinks where the file system shares extents, plain copies elsewhere.

Both are made file by file and are never of one moment. A snapshot is read-only by agreement only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from polarvault.snapshots.copies import Copy, PlainCopy, copy_by_reflink, copy_tree
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.marks import Mark, make_marked, read_mark, remove_marked, write_mark
from polarvault.snapshots.model import Atomicity, Kind, Made, Place
from polarvault.snapshots.mounts import mounts_below
from polarvault.snapshots.names import name_of
from polarvault.storage.extents import allocated_bytes_below, own_bytes_below
from polarvault.storage.files import storage_failed


class Trees:
    """Keeps its snapshots in one directory, `at`. Implements `model.SnapshotProvider` but for how files are copied."""

    def __init__(self, at: str, *, shares: bool) -> None:
        self._at = os.path.abspath(at)
        self._shares = shares

    @property
    def name(self) -> str:
        """Reflink or copy."""
        return "reflink" if self._shares else "copy"

    def atomicity(self, directories: Sequence[str]) -> Atomicity:
        """Return that no two files are of one moment."""
        return Atomicity.NEVER

    def is_atomic(self, directories: Sequence[str]) -> bool:
        """Tell that it is not."""
        return False

    def create(self, directories: Sequence[str], id_: str) -> Made:
        """Copy the directories to `at`/polarvault-snapshot-ID/NUMBER."""
        for directory in directories:
            self._check(directory)
        target = os.path.join(self._at, name_of(Kind.SNAPSHOT, id_))
        sources = [os.path.abspath(directory) for directory in directories]
        return self._copy(Kind.SNAPSHOT, id_, target, [(source, source) for source in sources])

    def clone(self, snapshot: Made, target: str, id_: str) -> Made:
        """Copy the files of a snapshot to target/NUMBER; the last component of target must be the clone's name."""
        pairs = [(place.path or "", place.source) for place in snapshot.places]
        return self._copy(Kind.CLONE, id_, os.path.abspath(target), pairs)

    def things(self) -> list[Made]:
        """Return everything in `at` that has our mark."""
        found = []
        try:
            names = sorted(os.listdir(self._at))
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise storage_failed(problem, "list", self._at) from problem
        for name in names:
            directory = os.path.join(self._at, name)
            mark = read_mark(directory)
            if mark is not None:
                found.append(self._made(mark, directory))
        return found

    def destroy(self, made: Made) -> None:
        """Remove the directory."""
        for root in {os.path.dirname(place.volume) for place in made.places} or {self._root(made)}:
            remove_marked(root, made.kind, made.id)

    def used_bytes(self, made: Made) -> int | None:
        """Return what its files share with no others; of copies all that they take."""
        total = 0
        for place in made.places:
            own = own_bytes_below(place.volume) if self._shares else allocated_bytes_below(place.volume)
            if own is None:
                return None
            total += own
        return total

    def _root(self, made: Made) -> str:
        return os.path.join(self._at, name_of(made.kind, made.id))

    def _check(self, directory: str) -> None:
        if not os.path.isdir(directory):
            raise SnapshotRefused(f'"{directory}" is not a directory', hint=f"see what it is: ls -ld {directory}")
        if not self._shares:
            return
        for inner in mounts_below(directory):
            raise SnapshotRefused(
                f'another file system is mounted at "{inner.point}", inside of "{directory}"; files of two file '
                "systems share no extents",
                hint="name that directory beside the others, or have everything copied",
            )

    def _copy(self, kind: Kind, id_: str, target: str, pairs: Sequence[tuple[str, str]]) -> Made:
        sources = tuple(source for _, source in pairs)
        mark = Mark(kind, id_, False, sources)
        make_marked(target, mark)
        stop = threading.Event()
        copy: Copy = copy_by_reflink if self._shares else PlainCopy(stop)
        try:
            for number, (path, _) in enumerate(pairs):
                copy_tree(path, os.path.join(target, str(number)), copy, stop)
            mark = Mark(kind, id_, True, sources)
            write_mark(target, mark)
        except BaseException:
            remove_marked(target, kind, id_)
            raise
        return self._made(mark, target)

    def _made(self, mark: Mark, directory: str) -> Made:
        volumes = [os.path.join(directory, str(number)) for number in range(len(mark.sources))]
        places = tuple(
            Place(source, volume, "", volume) for source, volume in zip(mark.sources, volumes, strict=True)
        )  # fmt: skip
        return Made(mark.kind, mark.id, self.name, places, mark.is_whole)


def can_share(directory: str, other: str | None = None) -> bool:
    """Tell by trying whether files below `directory` can share extents with others there, and with the file `other`.

    `directory` must be there and be writable; nothing is left in it.
    """
    try:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        source = os.open(directory, flags, 0o600) if other is None else os.open(other, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if other is None:
                os.write(source, bytes(4096))
            target = os.open(directory, flags, 0o600)
            try:
                copy_by_reflink(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError:
        return False
    return True
