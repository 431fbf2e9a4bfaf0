"""Local files: durable writes. Beside `below` the one place that calls fsync; copies are made by `copying`.

Theory: a file is durable after fsync of the file and of the directory that names it; a rename after fsync of the
directory. Writeback is started early (`start_writeback`) so that the fsync at the end finds little left to do.
"""

from __future__ import annotations

import errno
import os
import stat

from polarvault.errors import DiskFull, StorageFailed

# `wal fetch` starts once for every WAL segment: what only some functions need is imported there.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    import threading
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

_SYNC_FILE_RANGE_WRITE = 2
# fsync waits for the disk, not for a core, so more threads than cores are right.
_SYNC_THREADS = 8
_SYNC_SHARE = 64


def storage_failed(problem: OSError, action: str, path: str | os.PathLike[str]) -> StorageFailed:
    """Turn an OSError into our error, with the next step for the causes that have one, or that the error brings."""
    hints = {
        errno.ENOSPC: f"free space on the file system of {os.fspath(path)!r} (df -h) or choose another target",
        errno.EDQUOT: "the disk quota is used up; raise it or choose another target",
        errno.EROFS: "the file system is mounted read-only; choose another target",
        errno.EACCES: "check owner and mode of the directory (ls -ld) and the user who runs this command",
        errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    }
    kind = DiskFull if problem.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailed
    return kind(
        f'could not {action} "{os.fspath(path)}": {problem.strerror or os.strerror(problem.errno or 0)}',
        hint=getattr(problem, "hint", None) or hints.get(problem.errno or 0),
    )


_loaded: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL:
    import ctypes

    if not _loaded:
        _loaded.append(ctypes.CDLL(None, use_errno=True))
    return _loaded[0]


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel to start writing a range to disk, without waiting; purely a hint, failures do not matter."""
    import ctypes

    _libc().sync_file_range(
        descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
    )


def write_all(descriptor: int, views: Sequence[memoryview | bytes]) -> int:
    """Write every byte of the views at the current position; return how many. Raises OSError."""
    # IOV_MAX is 1024 on Linux; a receive buffer holds far fewer messages, a list of small members may not.
    return sum(_write_vector(descriptor, views[first : first + 1000]) for first in range(0, len(views), 1000))


def _write_vector(descriptor: int, views: Sequence[memoryview | bytes]) -> int:
    total = expected = sum(map(len, views))
    written = os.writev(descriptor, views)
    while written < expected:
        # A short write is legal (a signal, a nearly full disk); the retry then reports the real error.
        skip = written
        rest: list[memoryview | bytes] = []
        for view in views:
            if skip >= len(view):
                skip -= len(view)
                continue
            rest.append(memoryview(view)[skip:])
            skip = 0
        views, expected = rest, expected - written
        written = os.writev(descriptor, views)
    return total


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Make a file or directory durable."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as problem:
        raise storage_failed(problem, "open", path) from problem
    try:
        os.fsync(descriptor)
    except OSError as problem:
        # Some file systems cannot sync a directory and say so; PostgreSQL ignores exactly these two as well.
        if not (os.path.isdir(path) and problem.errno in (errno.EBADF, errno.EINVAL)):
            raise storage_failed(problem, "fsync", path) from problem
    finally:
        os.close(descriptor)


def fsync_parent(path: str | os.PathLike[str]) -> None:
    """Make the name of a file durable."""
    fsync_path(os.path.dirname(os.path.abspath(path)))


def fsync_paths(paths: Iterable[str]) -> None:
    """Make many files durable, in parallel. After a failure or an interruption no other file is begun."""
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial
    from itertools import islice

    from polarvault.storage.waiting import run_bounded

    stop, left = threading.Event(), iter(paths)
    # In shares: handing over a million small files one by one would cost more than syncing them, and all at once
    # more memory than anything else here.
    shares = iter(lambda: list(islice(left, _SYNC_SHARE)), [])
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="fsync") as pool:
        try:
            run_bounded(pool, (partial(_fsync_each, share, stop) for share in shares), workers=_SYNC_THREADS)
        except BaseException:
            # The pool waits for its threads before it goes: each for the one file that it is at.
            stop.set()
            raise


def _fsync_each(paths: list[str], stop: threading.Event) -> None:
    for path in paths:
        if stop.is_set():
            return
        fsync_path(path)


def fsync_tree(root: str, *, method: str = "fsync") -> None:
    """Make every file and directory below root durable, and root's own name.

    method: "fsync" syncs each file, "syncfs" asks the file system once per root (Linux), as --sync-method does.
    Symbolic links are not followed, except that root itself may be one.
    """
    if method == "syncfs":
        import ctypes

        descriptor = os.open(root, os.O_RDONLY)
        try:
            if _libc().syncfs(descriptor) != 0:
                problem = OSError(ctypes.get_errno(), "syncfs")
                raise storage_failed(problem, "synchronize the file system of", root)
        finally:
            os.close(descriptor)
        return
    directories: list[str] = []
    fsync_paths(_files_below(root, directories))
    # Directories after files: a name must not be durable before what it names.
    fsync_paths(directories)
    fsync_parent(root)


def _files_below(root: str, directories: list[str]) -> Iterator[str]:
    """Yield every file below a directory; add this and all directories below it to `directories`."""
    pending = [root]
    while pending:
        directory = pending.pop()
        directories.append(directory)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    # Both are known from the directory itself: a million files are not asked one by one.
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif not entry.is_symlink():
                        yield entry.path
        except OSError as problem:
            raise storage_failed(problem, "open directory", directory) from problem


def create_file(path: str, mode: int, flags: int = os.O_WRONLY) -> int:
    """Open a file, made with exactly this mode if it is not there; never through a link. Raise OSError.

    What is there must be a regular file: opening a FIFO would wait without end for somebody who reads it. The umask has
    no say: it is the caller's shell's, and the same for all threads of the process.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        try:
            # A FIFO that nobody reads is refused at once; on a regular file the flag changes nothing (open(2)).
            descriptor = os.open(path, flags | os.O_NONBLOCK)
        except OSError as problem:
            if problem.errno != errno.ENXIO:
                raise
            raise OSError(errno.EINVAL, "it is not a regular file", path) from problem
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file", path) from None
        return descriptor
    os.fchmod(descriptor, mode)
    return descriptor


def make_directories(path: str, mode: int, *, sync: bool = False) -> None:
    """Make a directory, and those above it that are missing, with exactly this mode. Raise OSError if it is there.

    With sync their names are durable on return.
    """
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.exists(parent):
        make_directories(parent, mode, sync=sync)
    os.mkdir(path, mode)
    os.chmod(path, mode)
    if sync:
        fsync_parent(path)


def write_durably(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Write a small file: temporary file, fsync, rename, fsync of the directory. On return it is durable.

    What has the temporary name, a link perhaps, is removed and never written to.
    """
    temporary = f"{os.fspath(path)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        try:
            descriptor = os.open(temporary, flags, mode)
        except FileExistsError:
            os.unlink(temporary)
            descriptor = os.open(temporary, flags, mode)
        try:
            write_all(descriptor, [content])
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as problem:
        raise storage_failed(problem, "write", path) from problem
    if sync:
        fsync_parent(path)


def open_regular(path: str, *, buffer_bytes: int = 0) -> BinaryIO:
    """Open a file for reading; raise OSError for anything else: a FIFO would be waited for without end."""
    # On a FIFO this returns at once; on a regular file the flag changes nothing (open(2)).
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return open(descriptor, "rb", buffering=buffer_bytes)
