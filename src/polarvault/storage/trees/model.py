"""What a tree is to those who read and write it: `Tree`, `WritableTree`, and what they return.

Names are relative to the root, components joined by "/", without "." and ".." and a leading "/"; "" is the root. Links
are never followed, but for those that the layout of a database has (pg_wal, pg_tblspc/OID), which whoever opens the
tree names. Every method may be called by several threads at once. Failures are OSError with an errno, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class EntryKind(Enum):
    """What has a name; OTHER is what no database consists of: sockets, FIFOs, devices."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory, its last component, and what has it.

    modified: seconds since 1970. mode: the permission bits. allocated_bytes: what it takes of the storage, None where
    that is not known.
    """

    name: str
    kind: EntryKind
    size_bytes: int
    modified: float
    mode: int
    allocated_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What is free; None: the file system does not say, which does not mean that there is nothing."""

    available_bytes: int | None
    available_files: int | None


class TreeFile(Protocol):
    """A regular file that is open for reading; positions are the caller's."""

    def size(self) -> int:
        """Return how long it is now, in bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from there; return how many bytes: fewer than its length only at the end of the file."""

    def close(self) -> None:
        """Close; safe to call twice."""


class Tree(Protocol):
    """A tree for reading. address: what messages call it, a directory or pfsd:///DISK/DIRECTORY."""

    address: str

    def path(self, name: str) -> str:
        """Return what to call a name in messages; never to be opened."""

    def list(self, name: str) -> list[Entry]:
        """Return what is in a directory, sorted by name; what goes meanwhile is left out."""

    def status(self, name: str) -> Entry:
        """Return what has the name: a link itself, unless the layout has it; FileNotFoundError if nothing has."""

    def link_target(self, name: str) -> str:
        """Return where a symbolic link leads; OSError with EINVAL for anything else."""

    def open(self, name: str) -> TreeFile:
        """Open a regular file; anything else is refused."""

    def room(self) -> Room:
        """Return what is free below the root."""

    def close(self) -> None:
        """Close; files that are open stay open. Safe to call twice."""


class WrittenFile(Protocol):
    """A file that is being written."""

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of the view there; what lies between written parts reads as zeros."""

    def truncate(self, size: int) -> None:
        """Make it that long: what is behind goes, what is missing is a hole."""

    def sync(self) -> None:
        """Make the content durable; the name is not, see `sync_directory`."""

    def close(self) -> None:
        """Close; safe to call twice."""


class WritableTree(Tree, Protocol):
    """A tree for writing as well. mode: permission bits, set whatever the umask; where there are none they are lost."""

    def create(self, name: str, mode: int) -> WrittenFile:
        """Make a file; FileExistsError if something has the name. Its directory must be there."""

    def make_directory(self, name: str, mode: int) -> None:
        """Make a directory; FileExistsError if something has the name."""

    def set_length(self, name: str, size: int) -> None:
        """Make a regular file that is there so long: what is behind goes, what is missing is a hole."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file; a file that has the new name is replaced."""

    def remove(self, name: str) -> None:
        """Remove a file or a link, never what it points to."""

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory; OSError with ENOTEMPTY or EEXIST if there is something in it."""

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
