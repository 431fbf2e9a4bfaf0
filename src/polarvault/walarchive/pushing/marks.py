"""Marks of files that a push has archived ahead of the server's asking, so that the next calls answer at once.

A mark says: this very file is durable in these very places. It is used once. Recovery gives old names to new WAL, so
the name says nothing: a mark holds the file's inode, size, times and the start of its first page (system identifier,
timeline, position), what the command was told, and what its configuration and the identity files of local
repositories were. Anything else than the same to the last byte, a mark that was cut by a crash included, is no mark:
then the file is pushed, and found to be there. Losing marks costs time, so they are not synced.

A bucket is known by its address only. If another repository is made there meanwhile, its first backup begins behind
everything that has a mark.
"""

from __future__ import annotations

import os
import zlib

from polarvault.storage.files import open_regular, storage_failed
from polarvault.storage.state_directory import state_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_HEAD, _END = "polarvault mark 1", "end"
_FIRST_BYTES = 40
_MARK_BYTES = 64 << 10


class Marks:
    """The marks of one command line. told: what it was told, apart from the path."""

    def __init__(self, directory: str, told: str) -> None:
        self.directory = directory
        self.told = told

    def take(self, path: str) -> bool:
        """Tell whether a file is archived already, and remove its mark: it is used once."""
        if not self.has(path):
            return False
        try:
            os.unlink(self._path(path))
        except OSError:
            return False  # Another call has used it.
        return True

    def has(self, path: str) -> bool:
        """Tell whether there is a mark that holds."""
        try:
            with open_regular(self._path(path)) as stream:
                lines = stream.read(_MARK_BYTES).decode().split("\n")
        except (OSError, ValueError):
            return False
        return self._holds(lines, file_identity(path))

    def leave(self, path: str, identity: str, places: Sequence[str]) -> bool:
        """Mark a file that is durable everywhere; tell whether that was possible. Raise StorageFailed if it is gone.

        identity: from before it was read; places: what `place_identity` returned of the files that must stay, from
        before the repositories were opened.
        """
        if file_identity(path) != identity or any("\n" in place or place.count("\t") != 1 for place in places):
            return False
        lines = [_HEAD, self.told, identity, *places, _END]
        from polarvault.storage.below import Below

        try:
            with Below(self.directory) as below:
                below.write(os.path.basename(path), "\n".join(lines).encode(), 0o600, sync=False, replace=True)
        except OSError:
            return False  # Where there is no room for a mark, the file is pushed once more.
        return True

    def forget_others(self, names: Iterable[str]) -> None:
        """Remove the marks of what the server will not ask for any more."""
        try:
            for name in set(os.listdir(self.directory)) - set(names):
                if name.startswith("."):
                    continue  # What a process that pushes ahead is known by.
                os.unlink(os.path.join(self.directory, name))
        except OSError:
            return  # Somebody else cleans up as well, or the next call does.

    def _path(self, path: str) -> str:
        return os.path.join(self.directory, os.path.basename(path))

    def _holds(self, lines: list[str], identity: str) -> bool:
        if lines[:3] != [_HEAD, self.told, identity] or lines[-1] != _END:
            return False
        return all(place_identity(line.partition("\t")[0]) == line for line in lines[3:-1])


def open_marks(environment: Mapping[str, str], told: str, *, outside: Sequence[str]) -> Marks | None:
    """Open the marks of a command line; None if this account has no place for them."""
    told = told.replace("\n", "\\n")
    directory = state_directory(environment, "pushed", f"{zlib.crc32(told.encode()):08x}", outside=outside)
    return None if directory is None else Marks(directory, told)


def file_identity(path: str) -> str:
    """Return what tells a file from every other that has or had its name; raise StorageFailed if it cannot be read."""
    try:
        with open_regular(path) as stream:
            found = os.fstat(stream.fileno())
            first = os.pread(stream.fileno(), _FIRST_BYTES, 0).hex()
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
    return f"{os.path.basename(path)} {found.st_dev} {found.st_ino} {found.st_size} {times} {first}"


def place_identity(path: str) -> str:
    """Return the path of a file that says which repository this is, and what changes when it is another one."""
    try:
        found = os.stat(path)
    except OSError:
        return f"{path}\tmissing"
    return f"{path}\t{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
