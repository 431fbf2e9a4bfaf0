"""Copy a tree of files, several at a time: modes, owners, times, links and holes stay; on return it is durable.

The source may be written meanwhile: what goes away between being listed and being opened was not there.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from polarvault.storage.copying import copy_content, share_extents
from polarvault.storage.files import fsync_paths, storage_failed
from polarvault.storage.waiting import run_bounded

Copy = Callable[[int, int], None]
"""Gives an open, empty file the content of another one; raises OSError."""


class _Stopped(Exception):
    """Another worker has failed: the rest of this tree is not wanted any more."""


def copy_by_reflink(source: int, target: int) -> None:
    """Share the extents of a file, or fail."""
    share_extents(source, target)


class PlainCopy:
    """Copies bytes; `stop` ends it between two steps."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, source: int, target: int) -> None:
        """Copy what the file has now."""
        copy_content(source, target, os.fstat(source).st_size, self._step)

    def _step(self, _: int) -> None:
        if self._stop.is_set():
            raise _Stopped


def copy_tree(source: str, target: str, copy: Copy, stop: threading.Event, *, jobs: int = 0) -> None:
    """Copy a directory to one that is not there; raise StorageFailed. Sockets and devices are left out.

    stop is set on a failure, so that copies of whole files end soon. jobs: how many files at a time, 0 for a good one.
    """
    jobs = jobs or min(8, (os.cpu_count() or 1) + 2)
    tree = _Tree(source, target, copy)
    with ThreadPoolExecutor(jobs, thread_name_prefix="snapshot") as pool:
        try:
            run_bounded(pool, tree.calls(), workers=jobs)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    fsync_paths(tree.files)
    tree.finish_directories()


class _Tree:
    """One tree that is copied. files: those that were made, directories: with the status of what they are copies of."""

    def __init__(self, source: str, target: str, copy: Copy) -> None:
        self._source, self._target, self._copy = source, target, copy
        self.files: list[str] = []
        self._directories: list[tuple[str, os.stat_result]] = []

    def calls(self) -> Iterator[Callable[[], None]]:
        """Make directories and links, and yield a call for each file."""
        waiting = [(self._source, self._target)]
        while waiting:
            source, target = waiting.pop()
            entries = self._list(source)
            if entries is None:
                continue
            try:
                os.mkdir(target, 0o700)
            except OSError as problem:
                raise storage_failed(problem, "create directory", target) from problem
            self._directories.append((target, entries[1]))
            for entry in entries[0]:
                path = os.path.join(target, entry.name)
                if entry.is_symlink():
                    _copy_link(entry.path, path)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, path))
                elif entry.is_file(follow_symlinks=False):
                    yield partial(self._copy_file, entry.path, path)

    def _list(self, source: str) -> tuple[list[os.DirEntry[str]], os.stat_result] | None:
        """Return what is in a directory and its status; None for one that has gone since it was listed itself."""
        try:
            with os.scandir(source) as listing:
                entries = list(listing)
            return entries, os.stat(source, follow_symlinks=source == self._source)
        except OSError as problem:
            if isinstance(problem, FileNotFoundError) and source != self._source:
                return None
            raise storage_failed(problem, "read", source) from problem

    def _copy_file(self, source: str, target: str) -> None:
        try:
            reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise storage_failed(problem, "read", source) from problem
        try:
            status = os.fstat(reading)
            if not stat.S_ISREG(status.st_mode):
                return
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self.files.append(target)
                self._copy(reading, writing)
                if os.geteuid() == 0:
                    os.fchown(writing, status.st_uid, status.st_gid)
                os.fchmod(writing, stat.S_IMODE(status.st_mode))
                os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(writing)
        except OSError as problem:
            raise storage_failed(problem, "copy", source) from problem
        finally:
            os.close(reading)

    def finish_directories(self) -> None:
        """Give the directories owner, mode and times of their sources, and make the names in them durable."""
        # Deepest first: what is made in a directory changes its times.
        for path, status in reversed(self._directories):
            try:
                if os.geteuid() == 0:
                    os.chown(path, status.st_uid, status.st_gid)
                os.chmod(path, stat.S_IMODE(status.st_mode))
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            except OSError as problem:
                raise storage_failed(problem, "complete", path) from problem
        fsync_paths([path for path, _ in self._directories])


def _copy_link(source: str, target: str) -> None:
    try:
        status = os.lstat(source)
        os.symlink(os.readlink(source), target)
        if os.geteuid() == 0:
            os.lchown(target, status.st_uid, status.st_gid)
    except FileNotFoundError:
        pass  # Removed since it was listed.
    except OSError as problem:
        raise storage_failed(problem, "copy", source) from problem
