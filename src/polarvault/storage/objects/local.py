"""Objects in a local directory: an object is a file of its own.

Theory of operation. A new object is written to a temporary file in `.incoming`, synced, and given its name by link(2),
which replaces nothing; then the directory of the name is synced, and so is every directory that had to be made. After a
crash at any moment an object is there whole or not at all. What has a temporary name is locked by whoever writes it
(flock), so that leftovers of killed programs are told from files in use without a clock, and removed.

A full disk must not keep anybody from making room: `.reserve` is a file that is removed when a small object that makes
room (`from_reserve`) does not fit, and is made again when there is space.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from polarvault.errors import (
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    PolarvaultError,
    StorageFailed,
    StoreForbidden,
    StoreFull,
)
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.storage.identity import rights_to_read
from polarvault.storage.objects.model import (
    Meter,
    RequestCounts,
    StoredObject,
    check_folder,
    check_object_name,
    is_object_name,
)
from polarvault.storage.objects.ranges import cut_ranges, join_ranges
from polarvault.storage.objects.refusals import too_long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

_INCOMING = ".incoming"
_RESERVE = ".reserve"
# Room for some two hundred tombstones, each in a new directory, on a file system with blocks of 4 kB.
_RESERVE_BYTES = 2 << 20
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_READ_BYTES = 8 << 20
# The directories whose own names are known to be durable; forgotten when there are too many, and synced once more.
_KNOWN_DIRECTORIES = 4096


class LocalStore:
    """Objects as files below a directory, which must exist: see `make_root`."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._meter = Meter()
        self._lock = threading.Lock()
        self._durable: set[str] = set()
        self._prepared = False
        self._reserve_spent = False
        try:
            self._below = Below(self._path)
        except OSError as problem:
            raise self._failed(problem, "open", "") from problem

    @staticmethod
    def make_root(path: str) -> None:
        """Make the directory of a store, and those above it that are missing, and their names durable.

        One that is there keeps its mode.
        """
        try:
            files.make_directories(path, _DIRECTORY_MODE, sync=True)
        except FileExistsError:
            if not os.path.isdir(path):
                raise StorageFailed(
                    f'"{path}" is not a directory', hint="name another place for the repository"
                ) from None
        except OSError as problem:
            raise files.storage_failed(problem, "make the directory", path) from problem

    @property
    def address(self) -> str:
        """The directory."""
        return self._path

    def counts(self) -> RequestCounts:
        """Return what has been asked of the store so far."""
        return self._meter.read()

    def close(self) -> None:
        """Close the directory."""
        self._below.close()

    # Writing

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object; on return it is durable. ObjectExists if something has the name; that is durable then."""
        check_object_name(name)
        self._meter.add(puts=1)
        try:
            self._put(name, views)
        except StoreFull:
            if not from_reserve:
                raise
            with self._explained("make room for", name):
                self._below.unlink(_RESERVE, missing_ok=True)
            self._reserve_spent = True
            self._put(name, views)

    def _put(self, name: str, views: Sequence[bytes | memoryview]) -> None:
        with self._explained("write", name):
            self._prepare()
            temporary, descriptor = self._begin()
            try:
                written = files.write_all(descriptor, views)
                os.fsync(descriptor)
                self._make_folder(name.rpartition("/")[0])
                try:
                    self._below.link(temporary, name)
                except FileExistsError:
                    # Its writer may have been killed, or still be about to sync it: who hears that it is there
                    # already relies on it.
                    self._below.sync_file(name)
                    self._below.sync_parent(name)
                    raise ObjectExists(f'"{name}" is there already in {self._path}') from None
                self._below.sync_parent(name)
            finally:
                # The lock ends with the descriptor: what cannot be removed now, the next writer removes.
                self._below.unlink(temporary, missing_ok=True)
                os.close(descriptor)
        self._meter.add(sent_bytes=written)

    def _begin(self) -> tuple[str, int]:
        """Return name and descriptor of a temporary file that is locked by us."""
        while True:
            temporary = f"{_INCOMING}/{os.urandom(8).hex()}"
            descriptor = self._below.create(temporary, _FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Between the two lines somebody may have taken it for a leftover.
                if os.fstat(descriptor).st_nlink:
                    return temporary, descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _prepare(self) -> None:
        """Once for each instance: the place for temporary files, without leftovers, and the reserve."""
        with self._lock:
            if self._prepared:
                return
            self._below.make_directory(_INCOMING, _DIRECTORY_MODE)
            self._remove_leftovers()
            self._make_reserve()
            self._prepared = True

    def _remove_leftovers(self) -> None:
        for entry in self._below.names(_INCOMING):
            leftover = f"{_INCOMING}/{entry}"
            try:
                descriptor = self._below.open_regular(leftover)
            except OSError:
                continue  # Finished meanwhile, or nothing of ours.
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._below.unlink(leftover, missing_ok=True)
            except BlockingIOError:
                pass  # Somebody writes it now.
            finally:
                os.close(descriptor)

    def _make_reserve(self) -> bool:
        """Make the reserve unless it is there; tell whether it is, now."""
        try:
            descriptor = self._below.create(_RESERVE, _FILE_MODE)
        except FileExistsError:
            return True
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise
        try:
            # Random bytes: zeros would take no space on a file system that compresses.
            files.write_all(descriptor, [os.urandom(_RESERVE_BYTES)])
            # Its name becomes durable with that of the first folder or object.
            os.fsync(descriptor)
        except OSError as problem:
            # Half a reserve would never be made whole; and what it took is needed for something else now.
            self._below.unlink(_RESERVE, missing_ok=True)
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def _make_folder(self, folder: str) -> None:
        """Make the directories of a folder, and all their names durable, whoever has made them."""
        words = folder.split("/") if folder else []
        for depth in range(1, len(words) + 1):
            directory = "/".join(words[:depth])
            if directory in self._durable:
                continue
            self._below.make_directory(directory, _DIRECTORY_MODE)
            self._below.sync_parent(directory)
            with self._lock:
                if len(self._durable) >= _KNOWN_DIRECTORIES:
                    self._durable.clear()
                self._durable.add(directory)

    def delete(self, name: str) -> None:
        """Remove an object; a success if there is none."""
        check_object_name(name)
        self._meter.add(deletes=1)
        with self._explained("remove", name):
            try:
                self._below.unlink(name, missing_ok=True)
                self._below.sync_parent(name)
            except (FileNotFoundError, NotADirectoryError):
                return  # Not even its folder is there.
            if self._reserve_spent:
                self._reserve_spent = not self._make_reserve()

    def extend_retention(self, name: str, until: datetime) -> None:
        """Do nothing: a file system locks nothing."""
        check_object_name(name)

    # Reading

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object."""
        check_object_name(name)
        self._meter.add(gets=1)
        with self._opened(name) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > most_bytes:
                raise too_long(name, self._path, size, most_bytes)
            return self._read(name, descriptor, 0, size)

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length)."""
        check_object_name(name)
        found = [memoryview(b"")] * len(ranges)
        with self._opened(name) as descriptor:
            for read in join_ranges(ranges):
                self._meter.add(gets=1)
                content = memoryview(self._read(name, descriptor, read.offset, read.length))
                for number, part in cut_ranges(ranges, read, content):
                    found[number] = part
        return found

    def stat(self, name: str) -> StoredObject:
        """Return size and time of an object."""
        check_object_name(name)
        self._meter.add(stats=1)
        with self._explained("look at", name), rights_to_read():
            return _described(name, self._below.status(name))

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield every object below a folder, sorted by name."""
        check_folder(folder)
        self._meter.add(lists=1)
        for name, status in self._walk(folder, after):
            if name > after:
                yield _described(name, status)

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the last words of the folders directly in a folder."""
        check_folder(folder)
        self._meter.add(lists=1)
        return sorted(
            name.rpartition("/")[2]
            for name, status in self._entries(folder)
            # Directories of objects that are gone stay behind, and others' lie at the root of a file system.
            if stat.S_ISDIR(status.st_mode) and any(self._walk(name, ""))
        )

    def _walk(self, folder: str, after: str) -> Iterator[tuple[str, os.stat_result]]:
        for name, status in self._entries(folder):
            if stat.S_ISREG(status.st_mode):
                yield name, status
            # All that lies in a directory begins with its name and a slash.
            elif stat.S_ISDIR(status.st_mode) and (f"{name}/" > after or after.startswith(f"{name}/")):
                yield from self._walk(name, after)

    def _entries(self, folder: str) -> list[tuple[str, os.stat_result]]:
        """Return what lies directly in a folder and may be ours, in the order of the names below it."""
        found: list[tuple[str, os.stat_result]] = []
        with self._explained("list", folder), rights_to_read():
            try:
                entries = self._below.names(folder)
            except (FileNotFoundError, NotADirectoryError):
                return []
            for entry in entries:
                name = f"{folder}/{entry}" if folder else entry
                if not is_object_name(name):
                    continue
                try:
                    found.append((name, self._below.status(name)))
                except FileNotFoundError:
                    continue  # Removed since it was listed.
        return sorted(found, key=lambda one: f"{one[0]}/" if stat.S_ISDIR(one[1].st_mode) else one[0])

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        with self._explained("read", name):
            # A restore by root works as the server's account, which need not be able to read the repository.
            with rights_to_read():
                descriptor = self._below.open_regular(name)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def _read(self, name: str, descriptor: int, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        left = length
        while left and (part := os.pread(descriptor, min(left, _READ_BYTES), offset + length - left)):
            parts.append(part)
            left -= len(part)
        self._meter.add(received_bytes=length - left)
        if left:
            size = os.fstat(descriptor).st_size
            raise ObjectTruncated(
                f'"{name}" in {self._path} has {size} bytes, and {length} from {offset} on were to be read',
                hint="get the file back from another copy; keep this one until it is known why",
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # Failures

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._failed(problem, action, name) from problem

    def _failed(self, problem: OSError, action: str, name: str) -> PolarvaultError:
        where = self._below.path(name) if name else self._path
        reason = problem.strerror or os.strerror(problem.errno or 0)
        message = f'could not {action} "{where}": {reason}'
        kinds: dict[int, Callable[[], PolarvaultError]] = {
            errno.ENOENT: lambda: _missing(name, self._path),
            errno.ENOTDIR: lambda: _missing(name, self._path),
            errno.ENOSPC: lambda: StoreFull(message, hint=f"df -h {self._path}"),
            errno.EDQUOT: lambda: StoreFull(message, hint="the disk quota is used up; raise it"),
            errno.EROFS: lambda: StoreForbidden(message, hint="the file system is mounted read-only"),
            errno.EACCES: lambda: StoreForbidden(message, hint=f"ls -ld {self._path}; id"),
            errno.EPERM: lambda: StoreForbidden(message, hint=f"ls -ld {self._path}; lsattr -d {self._path}"),
        }
        known = kinds.get(problem.errno or 0)
        return known() if known else files.storage_failed(problem, action, where)


def _missing(name: str, root: str) -> PolarvaultError:
    if not name:
        return StorageFailed(
            f'there is no directory "{root}"',
            hint="see that its file system is mounted (findmnt), and the spelling; a new one: polarvault repo init",
        )
    return ObjectMissing(f'there is no "{name}" in {root}', hint=f"ls -l {root}")


def _described(name: str, status: os.stat_result) -> StoredObject:
    from datetime import UTC, datetime

    return StoredObject(name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
