"""Files that are laid out into PFS: written in large blocks, in parallel, holes left out, durable at once.

A file in PFS is written in the blocks that PFS allocates, because each call goes through a daemon and costs as much for
8 kB as for a megabyte.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from polarvault.pgfiles.digest import Digest
from polarvault.storage.copying import data_ranges
from polarvault.storage.trees.model import WritableTree, WrittenFile
from polarvault.storage.trees.small_files import make_directories

_BLOCK_BYTES = 4 << 20
_ZEROS = bytes(1 << 20)


class PfsFiles:
    """The shared half that is being laid out; used by several threads. Methods raise OSError."""

    def __init__(self, tree: WritableTree, *, file_mode: int, directory_mode: int) -> None:
        self._tree = tree
        self._file_mode = file_mode
        self._directory_mode = directory_mode
        self._prefix = tree.address + "/"
        self._lock = threading.Lock()
        self._made: set[str] = {""}
        self._placed: dict[str, PlacedInPfs] = {}

    def name(self, target: str) -> str | None:
        """Return a target's name below the directory in PFS; None for one that is a path of this machine."""
        if target == self._tree.address:
            return ""
        return target.removeprefix(self._prefix) if target.startswith(self._prefix) else None

    def make_directory(self, name: str) -> None:
        """Make a directory and what is missing above it."""
        with self._lock:
            # One at a time: threads would only find that the other was faster, at the price of a call each.
            if name not in self._made:
                make_directories(self._tree, name, self._directory_mode)
                self._made.add(name)

    def create(self, name: str, *, replace: bool) -> WrittenFile:
        """Make a file and what is missing above it; replace: one of the same name may be there."""
        self.make_directory(name.rpartition("/")[0])
        try:
            return self._tree.create(name, self._file_mode)
        except FileExistsError:
            if not replace:
                raise
        self._tree.remove(name)
        return self._tree.create(name, self._file_mode)

    def make_hole(self, name: str, size: int) -> None:
        """Make a file of zeros that takes no room."""
        file = self.create(name, replace=True)
        try:
            file.truncate(size)
        finally:
            file.close()

    def copy(self, name: str, source: int, size: int, digest: Digest | None, advance: Callable[[int], None]) -> int:
        """Copy the first `size` bytes of an open file of this machine; return how many there were."""
        file = self.create(name, replace=False)
        try:
            end = min(size, os.fstat(source).st_size)
            position = 0
            for start, stop in data_ranges(source, end):
                if digest is not None and start > position:
                    digest.zeros(start - position)
                position = start
                while position < stop:
                    content = os.pread(source, min(_BLOCK_BYTES, stop - position), position)
                    if not content:
                        return position
                    if digest is not None:
                        digest.update(content)
                    file.write(position, memoryview(content))
                    position += len(content)
                    advance(len(content))
            if position < end:
                if digest is not None:
                    digest.zeros(end - position)
                file.truncate(end)
            return end
        finally:
            file.close()

    def placed(self, name: str, size: int) -> PlacedInPfs:
        """Return the file whose pieces come in any order, perhaps from several threads; it has its whole length."""
        with self._lock:
            found = self._placed.get(name)
        if found is not None:
            return found
        self.make_directory(name.rpartition("/")[0])
        with self._lock:
            if (found := self._placed.get(name)) is None:
                file = self._tree.create(name, self._file_mode)
                file.truncate(size)
                found = self._placed[name] = PlacedInPfs(self, name, file, size)
            return found

    def forget(self, name: str) -> None:
        """A placed file has all its pieces."""
        with self._lock:
            self._placed.pop(name, None)

    def close(self) -> None:
        """Close what is open still."""
        with self._lock:
            placed, self._placed = [*self._placed.values()], {}
        for one in placed:
            one.close()


class PlacedInPfs:
    """A file whose pieces come in any order; it closes itself when all are there."""

    def __init__(self, files: PfsFiles, name: str, file: WrittenFile, size: int) -> None:
        self._files, self._name, self._file = files, name, file
        self._missing = size
        self._lock = threading.Lock()

    def write(self, offset: int, view: memoryview) -> None:
        """Write a piece at its place; raise OSError."""
        self._file.write(offset, view)
        with self._lock:
            self._missing -= len(view)
            is_whole = self._missing <= 0
        if is_whole:
            self._files.forget(self._name)
            self._file.close()

    def close(self) -> None:
        """Close it."""
        self._file.close()


class AppendedInPfs:
    """A file whose bytes come in order, in small pieces; zeros of a WAL segment become holes."""

    def __init__(self, file: WrittenFile, *, sparse: bool) -> None:
        self._file = file
        self._sparse = sparse
        self._buffer = bytearray(_BLOCK_BYTES)
        self._filled = 0
        self._position = 0

    def append(self, views: Sequence[memoryview]) -> None:
        """Write the next bytes; raise OSError."""
        for view in views:
            if self._sparse and not view[0] and len(view) <= len(_ZEROS) and _ZEROS.startswith(view):
                self._flush()
                self._position += len(view)
            else:
                self._take(view)

    def _take(self, view: memoryview) -> None:
        while view:
            part = view[: _BLOCK_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == _BLOCK_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._filled:
            self._file.write(self._position, memoryview(self._buffer)[: self._filled])
            self._position += self._filled
            self._filled = 0

    def finish(self, size: int) -> None:
        """Write the rest, and give the file its length: a hole at the end exists only then."""
        self._flush()
        if self._position != size or self._sparse:
            self._file.truncate(size)
        self._file.close()

    def close(self) -> None:
        """Close an unfinished one."""
        self._file.close()
