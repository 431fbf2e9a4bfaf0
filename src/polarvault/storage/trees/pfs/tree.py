"""A directory in PFS as a tree. Implements `storage.trees.model` on a connection to a helper."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence

from polarvault.model.names import name_problem
from polarvault.storage.trees.model import Entry, EntryKind, Room
from polarvault.storage.trees.pfs.connection import HELPER, PfsConnection
from polarvault.storage.trees.pfs.messages import BLOCK_BYTES, Call, Request, unpack_entries, unpack_status
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.pfs.problems import RUN_DIRECTORY

# PFS has no owners and no modes and shows 0777; a database's files are its own.
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700


class _OpenFile:
    """A file that is open in the helper."""

    def __init__(self, connection: PfsConnection, descriptor: int, name: str) -> None:
        self._connection = connection
        self._descriptor = descriptor
        self._name = name

    def close(self) -> None:
        """Close; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._connection.ask(Request(Call.CLOSE, descriptor), self._name)


class PfsFile(_OpenFile):
    """A regular file that is open for reading. Implements `trees.model.TreeFile`."""

    def size(self) -> int:
        """Return how long it is now, in bytes."""
        reply = self._connection.ask(Request(Call.FILE_STATUS, self._descriptor), self._name)
        return unpack_status(reply.payload)[1]

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from there; return how many bytes: fewer than its length only at the end of the file."""
        done = 0
        with self._connection.channel() as channel:
            while done < len(buffer):
                wanted = min(BLOCK_BYTES, len(buffer) - done)
                request = Request(Call.READ, self._descriptor, offset + done, wanted)
                got = self._connection.exchange(channel, request, self._name).value
                buffer[done : done + got] = channel.block[:got]
                done += got
                if got < wanted:
                    break
        return done


class PfsWrittenFile(_OpenFile):
    """A file that is being written. Implements `trees.model.WrittenFile`."""

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of the view there."""
        with self._connection.channel() as channel:
            for start in range(0, len(view), BLOCK_BYTES):
                part = view[start : start + BLOCK_BYTES]
                channel.block[: len(part)] = part
                request = Request(Call.WRITE, self._descriptor, offset + start, len(part))
                self._connection.exchange(channel, request, self._name)

    def truncate(self, size: int) -> None:
        """Make it that long."""
        self._connection.ask(Request(Call.TRUNCATE, self._descriptor, size=size), self._name)

    def sync(self) -> None:
        """Do nothing: pfsd writes to the device past all caches before it answers; its own fsync is empty."""


class PfsTree:
    """A directory in PFS. Implements `trees.model.Tree`. Opening starts the helper and mounts; it raises OSError.

    helper: the program that serves it, for tests.
    """

    writable = False

    def __init__(self, mount: PfsMount, *, helper: Sequence[str] = HELPER, run_directory: str = RUN_DIRECTORY) -> None:
        self.mount = mount
        self.address = str(mount.address)
        self._connection = PfsConnection(mount, writable=self.writable, helper=helper, run_directory=run_directory)
        self.host_id = self._connection.host_id

    def path(self, name: str) -> str:
        """Return what to call a name in messages; never to be opened."""
        return f"{self.address}/{name}" if name else self.address

    def list(self, name: str) -> list[Entry]:
        """Return what is in a directory, sorted by name; what goes meanwhile is left out."""
        reply = self._connection.ask(Request(Call.LIST, payload=self._name(name)), self.path(name))
        entries = [_entry(one, status) for one, status in unpack_entries(reply.payload)]
        entries.sort(key=lambda entry: entry.name)
        return entries

    def status(self, name: str) -> Entry:
        """Return what has the name; FileNotFoundError if nothing has."""
        reply = self._connection.ask(Request(Call.STATUS, payload=self._name(name)), self.path(name))
        return _entry(name.rpartition("/")[2], reply.payload)

    def link_target(self, name: str) -> str:
        """Raise: PFS has no links."""
        self.status(name)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path(name))

    def open(self, name: str) -> PfsFile:
        """Open a regular file; anything else is refused."""
        reply = self._connection.ask(Request(Call.OPEN, payload=self._name(name)), self.path(name))
        return PfsFile(self._connection, reply.value, self.path(name))

    def room(self) -> Room:
        """Return what is free on the disk."""
        reply = self._connection.ask(Request(Call.ROOM), self.address)
        if not reply.value:
            return Room(None, None)
        size, files = json.loads(reply.payload)
        return Room(int(size), int(files))

    def close(self) -> None:
        """Give the disk back. Files that are open can be used no more. Safe to call twice."""
        self._connection.close()

    def _name(self, name: str) -> bytes:
        """Return a name as the helper takes it; the helper looks as well."""
        if name and name_problem(name) is not None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path(name))
        return os.fsencode(name)


class PfsWritableTree(PfsTree):
    """A directory in PFS, for writing as well. Implements `trees.model.WritableTree`."""

    writable = True

    def make_root(self) -> int:
        """Make the directory itself, and what is missing above it; return how many, 0 if it was there."""
        return self._connection.ask(Request(Call.MAKE_ROOT), self.address).value

    def remove_root(self, made: int) -> None:
        """Remove what `make_root` has made, from the innermost; raise OSError at one that holds something."""
        self._connection.ask(Request(Call.REMOVE_ROOT, size=made), self.address)

    def create(self, name: str, mode: int) -> PfsWrittenFile:
        """Make a file; FileExistsError if something has the name. PFS has no modes."""
        reply = self._connection.ask(Request(Call.CREATE, payload=self._below(name)), self.path(name))
        return PfsWrittenFile(self._connection, reply.value, self.path(name))

    def make_directory(self, name: str, mode: int) -> None:
        """Make a directory; FileExistsError if something has the name."""
        self._connection.ask(Request(Call.MAKE_DIRECTORY, payload=self._below(name)), self.path(name))

    def set_length(self, name: str, size: int) -> None:
        """Make a regular file that is there so long."""
        self._connection.ask(Request(Call.SET_LENGTH, size=size, payload=self._below(name)), self.path(name))

    def rename(self, old: str, new: str) -> None:
        """Rename a file; a file that has the new name is replaced."""
        names = self._below(old) + b"\0" + self._below(new)
        self._connection.ask(Request(Call.RENAME, payload=names), self.path(old))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._connection.ask(Request(Call.REMOVE, payload=self._below(name)), self.path(name))

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory."""
        self._connection.ask(Request(Call.REMOVE_DIRECTORY, payload=self._below(name)), self.path(name))

    def sync_directory(self, name: str) -> None:
        """Do nothing: names are in PFS's journal on the device before it answers."""

    def _below(self, name: str) -> bytes:
        if not name:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.address)
        return self._name(name)


def _entry(name: str, packed: bytes) -> Entry:
    is_directory, size, modified, allocated = unpack_status(packed)
    if is_directory:
        return Entry(name, EntryKind.DIRECTORY, 0, modified, _DIRECTORY_MODE, allocated)
    return Entry(name, EntryKind.FILE, size, modified, _FILE_MODE, allocated)
