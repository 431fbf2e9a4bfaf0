"""A directory of this machine as a tree, on `storage.below`: nothing outside of it is ever reached."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from polarvault.storage.below import Below, NameRefused, follow_none
from polarvault.storage.trees.model import Entry, EntryKind, Room

_MODE_BITS = 0o7777
# What st_blocks counts, whatever the file system's own blocks are (stat(2)).
_STATUS_BLOCK_BYTES = 512


class LocalFile:
    """A regular file that is open for reading. Implements `trees.model.TreeFile`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """For what only files of this machine can do: clones, advice to the kernel."""

    def size(self) -> int:
        """Return how long it is now, in bytes."""
        return os.fstat(self.descriptor).st_size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from there; return how many bytes: fewer than its length only at the end of the file."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            if not got:
                break
            done += got
        return done

    def close(self) -> None:
        """Close; safe to call twice."""
        # Given up before it is closed: the number may be another thread's as soon as it is (close(2)).
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class LocalWrittenFile:
    """A file that is being written. Implements `trees.model.WrittenFile`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of the view there."""
        while view:
            # A short write is legal (a signal, a nearly full disk); the next one then reports the real error.
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, size: int) -> None:
        """Make it that long."""
        os.ftruncate(self.descriptor, size)

    def sync(self) -> None:
        """Make the content durable."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close; safe to call twice."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class LocalTree:
    """A directory of this machine. Implements `trees.model.Tree`.

    links tells of which names a symbolic link may be followed. Opening raises OSError. owner: as of `Below`.
    """

    def __init__(
        self, root: str, *, links: Callable[[str], bool] = follow_none, owner: tuple[int, int] | None = None
    ) -> None:
        self.address = root
        self._below = Below(root, links=links, owner=owner)

    def path(self, name: str) -> str:
        """Return what to call a name in messages; never to be opened."""
        return self._below.path(name)

    def list(self, name: str) -> list[Entry]:
        """Return what is in a directory, sorted by name; what goes meanwhile is left out."""
        directory = self._below.open_directory(name)
        entries = []
        try:
            with os.scandir(directory) as found:
                for one in found:
                    with suppress(FileNotFoundError):
                        entries.append(_entry(one.name, one.stat(follow_symlinks=False)))
        finally:
            os.close(directory)
        entries.sort(key=lambda entry: entry.name)
        return entries

    def status(self, name: str) -> Entry:
        """Return what has the name: a link itself, unless the layout has it; FileNotFoundError if nothing has."""
        return _entry(name.rpartition("/")[2], self._below.status(name))

    def link_target(self, name: str) -> str:
        """Return where a symbolic link leads; OSError with EINVAL for anything else."""
        target = self._below.link_target(name)
        if target is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path(name))
        return target

    def open(self, name: str) -> LocalFile:
        """Open a regular file; anything else is refused."""
        return LocalFile(self._below.open_regular(name))

    def room(self) -> Room:
        """Return what is free below the root."""
        directory = self._below.open_directory()
        try:
            status = os.fstatvfs(directory)
        finally:
            os.close(directory)
        # A file system without such a call reports zeros (pfs-fuse), as one without a table of inodes does (btrfs).
        return Room(
            status.f_bavail * status.f_frsize if status.f_blocks else None, status.f_favail if status.f_files else None
        )

    def close(self) -> None:
        """Close; files that are open stay open. Safe to call twice."""
        self._below.close()


class LocalWritableTree(LocalTree):
    """A directory of this machine, for writing as well. Implements `trees.model.WritableTree`."""

    def create(self, name: str, mode: int) -> LocalWrittenFile:
        """Make a file; FileExistsError if something has the name."""
        return LocalWrittenFile(self._below.create(name, mode))

    def make_directory(self, name: str, mode: int) -> None:
        """Make a directory; FileExistsError if something has the name."""
        try:
            made = self._below.make_directory(name, mode)
        except (NameRefused, NotADirectoryError):
            made = False
        if not made:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path(name))

    def set_length(self, name: str, size: int) -> None:
        """Make a regular file that is there so long."""
        descriptor = self._below.open_for_writing(name)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Rename a file; a file that has the new name is replaced."""
        self._below.rename(old, new)

    def remove(self, name: str) -> None:
        """Remove a file or a link, never what it points to."""
        self._below.unlink(name)

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory."""
        self._below.remove_directory(name)

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
        self._below.sync_directory(name)


def _entry(name: str, status: os.stat_result) -> Entry:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        kind = EntryKind.FILE
    elif stat.S_ISDIR(mode):
        kind = EntryKind.DIRECTORY
    else:
        kind = EntryKind.LINK if stat.S_ISLNK(mode) else EntryKind.OTHER
    return Entry(name, kind, status.st_size, status.st_mtime, mode & _MODE_BITS, status.st_blocks * _STATUS_BLOCK_BYTES)
