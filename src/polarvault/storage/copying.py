"""Copy one open file to another: the cheapest way first, or byte by byte where the bytes are to be looked at as well.

Holes stay holes. Steps are small, so that whoever waits for a signal is not kept waiting by one large file: `progress`
is called after each, with its bytes, and may raise to abandon the copy.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # `wal fetch` starts once for every WAL segment: what only types need is not imported.
    from collections.abc import Callable
    from typing import Protocol

    class Digest(Protocol):
        """Takes the bytes of a file in order, and holes as the zeros that they read as."""

        def update(self, content: bytes, /) -> None:
            """Take the next bytes."""

        def zeros(self, count: int) -> None:
            """Take that many zero bytes."""


_FICLONE = 0x40049409
# Below this a file is read and written at once: what asks about clones and holes costs more than its bytes.
_AT_ONCE_BYTES = 64 << 10
# In the kernel a step costs nothing; what is read should still be in the processor's cache when it is written.
_KERNEL_STEP_BYTES = 8 << 20
_READ_STEP_BYTES = 512 << 10


def copy_content(source: int, target: int, size: int, progress: Callable[[int], None] | None = None) -> None:
    """Copy the first `size` bytes between open files: reflink, copy_file_range, else plain; the target must be empty.

    The target gets exactly that size; a source that is longer or shorter is never cloned as a whole. Raises OSError.
    """
    if os.fstat(source).st_size == size and _reflink(source, target):
        if progress is not None:
            progress(sum(end - start for start, end in data_ranges(source, size)))
        return
    os.ftruncate(target, size)
    for start, end in data_ranges(source, size):
        while start < end:
            copied = _copy_some(source, target, start, end - start)
            if copied == 0:
                break
            start += copied
            if progress is not None:
                progress(copied)


def clone(source: int, target: int, size: int) -> bool:
    """Make the target share the source's extents, with exactly that size; False where the file system cannot.

    What the source has grown by meanwhile is cut off, what it lacks is a hole. Raises OSError.
    """
    if not _reflink(source, target):
        return False
    if os.fstat(target).st_size != size:
        os.ftruncate(target, size)
    return True


def copy_reading(
    source: int, target: int, size: int, digest: Digest, progress: Callable[[int], None] | None = None
) -> int:
    """Copy as `copy_content` does, and let digest see every byte on the way; return how many there were.

    That is less than size if the source is shorter. A reflink is taken where there is one, and the source then read;
    but a small file is just copied, holes and all.
    """
    if size <= _AT_ONCE_BYTES:
        content = os.pread(source, size, 0) if size else b""
        if len(content) == size:
            digest.update(content)
            _write_at(target, content, 0)
            if progress is not None:
                progress(size)
            return size
    shared = os.fstat(source).st_size == size and _reflink(source, target)
    if not shared:
        os.ftruncate(target, size)
    return read_through(source, size, digest, progress, target=None if shared else target)


def read_through(
    source: int, size: int, digest: Digest, progress: Callable[[int], None] | None = None, *, target: int | None = None
) -> int:
    """Let digest see the first `size` bytes of an open file, and write them to target; return how many there were."""
    end_of_file = min(size, os.fstat(source).st_size)
    position = 0
    for start, end in data_ranges(source, end_of_file):
        if start > position:
            digest.zeros(start - position)
        position = start
        while position < end:
            content = os.pread(source, min(_READ_STEP_BYTES, end - position), position)
            if not content:
                return position
            digest.update(content)
            if target is not None:
                _write_at(target, content, position)
            position += len(content)
            if progress is not None:
                progress(len(content))
    if position < end_of_file:
        digest.zeros(end_of_file - position)
    return end_of_file


def data_ranges(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Return (start, end) of every stretch of the first `size` bytes that is no hole; moves the position."""
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                break  # Only a hole is left.
            start, end = offset, size
        if start < end:
            found.append((start, end))
        offset = max(end, start)
    return found


def share_extents(source: int, target: int) -> None:
    """Give an empty open file all content of another one, as a reflink that takes no room; raise OSError.

    The content is of one moment, whoever writes meanwhile (ioctl_ficlone(2)).
    """
    import fcntl

    fcntl.ioctl(target, _FICLONE, source)


def _reflink(source: int, target: int) -> bool:
    try:
        share_extents(source, target)
    except OSError:
        return False  # Not btrfs, XFS or another file system that shares extents: copy instead.
    return True


def _copy_some(source: int, target: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, min(length, _KERNEL_STEP_BYTES), offset, offset)
    except OSError as problem:
        # Across file systems on old kernels, or where the file system does not implement it.
        if problem.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    content = os.pread(source, min(length, 1 << 20), offset)
    return os.pwrite(target, content, offset) if content else 0


def _write_at(target: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        # A short write is legal (a signal, a nearly full disk); the retry then reports the real error.
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
