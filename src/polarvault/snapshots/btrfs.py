"""Snapshots of btrfs subvolumes: each is of one moment; several are not, and one within another appears empty.

Facts: btrfs-subvolume(8). A snapshot is made writable first, because only so our mark, an attribute of its root, can be
put on it; then it is made read-only. The first inode of every subvolume has the number 256 (BTRFS_FIRST_FREE_OBJECTID).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from polarvault.errors import PolarvaultError
from polarvault.snapshots.errors import NotOurs, SnapshotRefused
from polarvault.snapshots.marks import Mark, make_marked, read_mark, remove_marked, write_mark
from polarvault.snapshots.model import Atomicity, Kind, Made, Place
from polarvault.snapshots.mounts import mount_of
from polarvault.snapshots.names import name_of
from polarvault.snapshots.programs import run
from polarvault.storage.extents import own_bytes_below
from polarvault.storage.files import fsync_parent, fsync_path, storage_failed

_SUBVOLUME_INODE = 256
_ATTRIBUTE = "user.polarvault.id"
_NUMBER = re.compile(r"\d{1,4}\Z", re.ASCII)


class Btrfs:
    """Keeps its snapshots in one directory of the file system, `at`. Implements `model.SnapshotProvider`.

    A thing is a directory with a mark that holds the subvolumes, named by number.
    """

    def __init__(self, at: str, *, program: str = "btrfs", timeout_s: float = 120.0) -> None:
        self._at = os.path.abspath(at)
        self._program = program
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:
        """The word for it."""
        return "btrfs"

    def atomicity(self, directories: Sequence[str]) -> Atomicity:
        """Return that one subvolume is of one moment."""
        return Atomicity.VOLUME

    def is_atomic(self, directories: Sequence[str]) -> bool:
        """Tell whether all directories lie in one subvolume."""
        return len({_subvolume_of(directory) for directory in directories}) == 1

    def create(self, directories: Sequence[str], id_: str) -> Made:
        """Make a snapshot of each subvolume that holds one of the directories."""
        volumes = list(dict.fromkeys(_subvolume_of(directory) for directory in directories))
        for directory in directories:
            for nested in _nested(directory):
                raise SnapshotRefused(
                    f'"{nested}" is a subvolume or a mounted file system of its own inside of "{directory}": in a '
                    "snapshot it would be empty",
                    hint="name it beside the others, or make it an ordinary directory",
                )
        sources = [os.path.realpath(directory) for directory in directories]
        inside = [os.path.relpath(source, _subvolume_of(source)) for source in sources]
        numbers = [volumes.index(_subvolume_of(source)) for source in sources]
        target = os.path.join(self._at, name_of(Kind.SNAPSHOT, id_))
        # The mark tells each directory with its volume and its place there, so that a list knows them again.
        mark = Mark(Kind.SNAPSHOT, id_, False, tuple(map(_word, numbers, inside, sources)))
        return self._make(mark, target, volumes, read_only=True)

    def clone(self, snapshot: Made, target: str, id_: str) -> Made:
        """Make a writable snapshot of each volume of a snapshot, in target/NUMBER."""
        volumes = list(dict.fromkeys(place.volume for place in snapshot.places))
        words = tuple(_word(volumes.index(place.volume), place.inside, place.source) for place in snapshot.places)
        mark = Mark(Kind.CLONE, id_, False, words)
        return self._make(mark, os.path.abspath(target), volumes, read_only=False)

    def things(self) -> list[Made]:
        """Return everything in `at` that has our mark."""
        try:
            names = sorted(os.listdir(self._at))
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise storage_failed(problem, "list", self._at) from problem
        directories = [os.path.join(self._at, name) for name in names]
        return [_made(mark, one) for one in directories if (mark := read_mark(one)) is not None]

    def destroy(self, made: Made) -> None:
        """Delete the subvolumes, each after its own mark was looked at, and then the directory that holds them."""
        roots = {os.path.dirname(place.volume) for place in made.places}
        for root in roots or {os.path.join(self._at, name_of(made.kind, made.id))}:
            if not os.path.lexists(root):
                continue
            mark = read_mark(root)
            if mark is None or (mark.kind, mark.id) != (made.kind, made.id):
                # It says whose it is.
                remove_marked(root, made.kind, made.id)
            for name in filter(_NUMBER.match, sorted(os.listdir(root))):
                self._delete(os.path.join(root, name), made.id)
            remove_marked(root, made.kind, made.id)

    def used_bytes(self, made: Made) -> int | None:
        """Return what its files share with no others."""
        sizes = [own_bytes_below(volume) for volume in {place.volume for place in made.places}]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def _make(self, mark: Mark, target: str, volumes: Sequence[str], *, read_only: bool) -> Made:
        make_marked(target, mark)
        try:
            for number, volume in enumerate(volumes):
                path = os.path.join(target, str(number))
                run([self._program, "subvolume", "snapshot", volume, path], timeout_s=self._timeout_s)
                try:
                    os.setxattr(path, _ATTRIBUTE, mark.id.encode())
                except OSError as problem:
                    # It has no mark yet, and nobody but us can have made it a moment ago.
                    run([self._program, "subvolume", "delete", path], timeout_s=self._timeout_s)
                    raise storage_failed(problem, "mark", path) from problem
                fsync_path(path)
                if read_only:
                    words = [self._program, "property", "set", "-ts", path, "ro", "true"]
                    run(words, timeout_s=self._timeout_s)
            fsync_path(target)
            mark = Mark(mark.kind, mark.id, True, mark.sources)
            write_mark(target, mark)
            fsync_parent(target)
        except BaseException:
            # What was begun goes; what keeps it from going is not what the caller has to hear of.
            with suppress(PolarvaultError):
                self.destroy(_made(mark, target))
            raise
        return _made(mark, target)

    def _delete(self, path: str, id_: str) -> None:
        if not _is_subvolume(path):
            return  # It goes with the directory.
        try:
            mark = os.getxattr(path, _ATTRIBUTE, follow_symlinks=False).decode("ascii", "replace")
        except OSError:
            mark = ""
        if mark != id_:
            raise NotOurs(
                f'the subvolume "{path}" does not carry the id {id_}: it is left as it is',
                hint=f"see what it is: btrfs subvolume show {path}",
            )
        run([self._program, "subvolume", "delete", path], timeout_s=self._timeout_s)


def _word(number: int, inside: str, source: str) -> str:
    return f"{number}:{'' if inside == '.' else inside}\n{source}"


def _made(mark: Mark, directory: str) -> Made:
    places = []
    for word in mark.sources:
        where, _, source = word.partition("\n")
        number, _, inside = where.partition(":")
        volume = os.path.join(directory, number)
        places.append(Place(source, volume, inside, os.path.join(volume, inside) if inside else volume))
    return Made(mark.kind, mark.id, "btrfs", tuple(places), mark.is_whole)


def _is_subvolume(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_ino == _SUBVOLUME_INODE and os.path.isdir(path) and not os.path.islink(path)


def _subvolume_of(directory: str) -> str:
    """Return the root of the subvolume that holds a directory; raise SnapshotRefused for what is no directory."""
    path = os.path.realpath(directory)
    if not os.path.isdir(path):
        raise SnapshotRefused(f'"{directory}" is not a directory', hint=f"see what it is: ls -ld {directory}")
    if mount_of(path).kind != "btrfs":
        # Elsewhere any directory may have that inode.
        raise SnapshotRefused(f'"{directory}" does not lie on btrfs', hint=f"findmnt -T {directory}")
    while not _is_subvolume(path):
        above = os.path.dirname(path)
        if above == path:
            raise SnapshotRefused(f'"{directory}" does not lie in a btrfs subvolume', hint=f"findmnt -T {directory}")
        path = above
    return path


def _nested(directory: str) -> Iterator[str]:
    """Yield every subvolume and every mount inside of a directory: each has a device number of its own."""
    device = os.stat(directory).st_dev
    for here, names, _ in os.walk(os.path.realpath(directory)):
        for name in list(names):
            path = os.path.join(here, name)
            with suppress(OSError):
                if os.lstat(path).st_dev != device:
                    names.remove(name)
                    yield path
