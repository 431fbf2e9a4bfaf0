"""The file that a fetch leaves behind: whole under its name, or not there at all."""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError
from polarvault.storage.files import storage_failed, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

# The page size of nearly every server, and a multiple of every file system's block: what is zero becomes a hole.
_BLOCK_BYTES = 8192
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
# The server's umask takes away what its data directory does not grant to the group.
_MODE = 0o640


class Output:
    """A file without a name until `publish`, so that even SIGKILL leaves nothing of it.

    Not every file system can do that (NFS, FUSE): there it has the name TARGET.polarvault meanwhile, and what a killed
    fetch left is removed by the next one.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.descriptor = -1
        self._directory = -1
        self._temporary = os.path.basename(target) + ".polarvault"
        self._is_named = False

    def __enter__(self) -> Self:
        directory = os.path.dirname(self.target) or "."
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            self.descriptor = self._open(directory)
        except OSError as problem:
            self._close()
            raise storage_failed(problem, "create a file in", directory) from problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_named:
            self._unlink()
        self._close()

    def _open(self, directory: str) -> int:
        try:
            descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE, _MODE)
        except OSError:
            pass  # Not supported here; if it is something worse, the next line says so.
        else:
            if os.path.exists(f"/proc/self/fd/{descriptor}"):
                return descriptor
            os.close(descriptor)
        # What a killed fetch left has the name, or a link that somebody has put there: never written through.
        self._unlink()
        descriptor = os.open(
            self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _MODE, dir_fd=self._directory
        )
        self._is_named = True
        return descriptor

    def resize(self, size_bytes: int) -> None:
        """Give the file its final size; what is added is a hole."""
        try:
            os.ftruncate(self.descriptor, size_bytes)
        except OSError as problem:
            raise storage_failed(problem, "extend", self.target) from problem

    def publish(self) -> None:
        """Give the file its name, in place of what had it."""
        try:
            # NFS and quotas tell of a write that failed only here, and then the file must not get its name.
            os.close(os.dup(self.descriptor))
            if not self._is_named:
                # Only a rename replaces a file; a name of its own has to come first.
                self._unlink()
                os.link(f"/proc/self/fd/{self.descriptor}", self._temporary, dst_dir_fd=self._directory)
                self._is_named = True
            os.rename(
                self._temporary, os.path.basename(self.target), src_dir_fd=self._directory, dst_dir_fd=self._directory
            )
            self._is_named = False
        except OSError as problem:
            raise storage_failed(problem, "create", self.target) from problem

    def _unlink(self) -> None:
        if os.path.lexists(os.path.join(os.path.dirname(self.target), self._temporary)):
            os.unlink(self._temporary, dir_fd=self._directory)

    def _close(self) -> None:
        # Given up first: a close that fails has closed it all the same (close(2)).
        descriptors = [one for one in (self.descriptor, self._directory) if one >= 0]
        self.descriptor = self._directory = -1
        for descriptor in descriptors:
            os.close(descriptor)


def write_sparsely(output: Output, views: Iterator[memoryview], *, most_bytes: int | None = None) -> int:
    """Write the content from the start of the file, blocks of zeros as holes; return its length.

    The file's size is set by the last byte that is not in a hole, so `Output.resize` has to follow. Stops with
    IntegrityError at more than most_bytes, so that a damaged file cannot fill the disk.
    """
    offset, kept = 0, b""
    for view in views:
        kept += view
        whole = len(kept) // _BLOCK_BYTES * _BLOCK_BYTES
        _write_blocks(output, kept[:whole], offset)
        offset, kept = offset + whole, kept[whole:]
        if most_bytes is not None and offset + len(kept) > most_bytes:
            raise IntegrityError(
                f'the content for "{output.target}" is longer than the {most_bytes} bytes of a segment',
                hint="take another copy from the server or another WAL directory",
            )
    _write_at(output, kept, offset)
    return offset + len(kept)


def _write_blocks(output: Output, content: bytes, offset: int) -> None:
    run = 0
    for start in range(0, len(content), _BLOCK_BYTES):
        if content.startswith(_ZERO_BLOCK, start):
            _write_at(output, content[run:start], offset + run)
            run = start + _BLOCK_BYTES
    _write_at(output, content[run:], offset + run)


def _write_at(output: Output, content: bytes, offset: int) -> None:
    if not content:
        return
    try:
        os.lseek(output.descriptor, offset, os.SEEK_SET)
        write_all(output.descriptor, [content])
    except OSError as problem:
        raise storage_failed(problem, "write", output.target) from problem
