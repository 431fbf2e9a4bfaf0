"""A stand-in for libpfsd behind the real helper: disks are directories of this machine, with PFS's rules and limits.

Run as a program it is the helper process that `PfsConnection` starts; what it does wrong on purpose is told to it in
the environment of the test. Disks lie below FAKE_PFS.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarvault.model.pfs_address import PfsAddress
from polarvault.storage.trees.pfs.helper import serve
from polarvault.storage.trees.pfs.library import MOST_CALL_BYTES, Status
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.pfs.problems import TOO_FEW_HOSTS, TOO_MANY_FILES
from polarvault.storage.trees.pfs.tree import PfsTree, PfsWritableTree

ROOT_VARIABLE = "FAKE_PFS"
# "files=N", "bytes=N", "hang=NAME", "slow=NAME", "die=NAME", "refuse=ERRNO", "hosts=N", joined by commas
FAULTS_VARIABLE = "FAKE_PFS_FAULTS"
HELPER = (sys.executable, str(Path(__file__).resolve()))
DISK = "loop9"


class FakeLibrary:
    """What libpfsd does, on directories. Implements `trees.pfs.library.PfsLibrary`."""

    def __init__(self) -> None:
        self._root = os.environ[ROOT_VARIABLE]
        words = [word.partition("=") for word in os.environ.get(FAULTS_VARIABLE, "").split(",") if word]
        self._faults = {name: value for name, _, value in words}
        self._disk = ""
        self._writable = False

    def mount(self, cluster: str, disk: str, host_id: int, *, writable: bool, force: bool, timeout_s: float) -> None:
        if "refuse" in self._faults:
            raise OSError(int(self._faults["refuse"]), "refused")
        if host_id > int(self._faults.get("hosts", 254)):
            raise OSError(TOO_FEW_HOSTS, "too few")
        if not os.path.isdir(f"{self._root}/{disk}"):
            raise OSError(errno.ETIMEDOUT, "no daemon")
        self._disk, self._writable = disk, writable

    def unmount(self) -> None:
        self._disk = ""

    def names(self, path: str) -> list[str]:
        return os.listdir(self._real(path))

    def status(self, path: str) -> Status:
        return _status(os.stat(self._real(path)))

    def open(self, path: str, flags: int) -> int:
        self._meet_faults(path)
        if flags & os.O_CREAT and not os.path.exists(self._real(path)):
            self._needs_inode()
        return os.open(self._real(path), flags, 0o777)

    def file_status(self, descriptor: int) -> Status:
        return _status(os.fstat(descriptor))

    def read(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        assert len(buffer) <= MOST_CALL_BYTES
        # The library may always return less than it was asked for.
        return os.preadv(descriptor, [buffer[: max(1, len(buffer) // 2 + 1)]], offset)

    def write(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        assert len(buffer) <= MOST_CALL_BYTES
        if "bytes" in self._faults and offset + len(buffer) > int(self._faults["bytes"]):
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(descriptor, buffer, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def make_directory(self, path: str) -> None:
        self._needs_inode()
        os.mkdir(self._real(path))

    def remove_directory(self, path: str) -> None:
        os.rmdir(self._real(path))

    def remove(self, path: str) -> None:
        os.unlink(self._real(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._real(old), self._real(new))

    def room(self) -> tuple[int, int] | None:
        if "silent" in self._faults:
            return None
        return int(self._faults.get("bytes", 1 << 40)), int(self._faults.get("files", 1 << 20)) - self._used()

    def _real(self, path: str) -> str:
        disk, _, rest = path[1:].partition("/")
        if disk != self._disk:
            raise OSError(errno.ENODEV, path)
        return f"{self._root}/{disk}/{rest}"

    def _used(self) -> int:
        return sum(len(names) + len(files) for _, names, files in os.walk(f"{self._root}/{self._disk}"))

    def _needs_inode(self) -> None:
        if "files" in self._faults and self._used() >= int(self._faults["files"]):
            raise OSError(TOO_MANY_FILES, "no inode")

    def _meet_faults(self, path: str) -> None:
        if path.endswith(self._faults.get("hang", "\0")):
            time.sleep(3600)
        if path.endswith(self._faults.get("slow", "\0")):
            time.sleep(1)
        if path.endswith(self._faults.get("die", "\0")):
            print("assertion failed", file=sys.stderr, flush=True)
            os.abort()


def _status(found: os.stat_result) -> Status:
    is_directory = stat.S_ISDIR(found.st_mode)
    return Status(is_directory, found.st_size, found.st_mtime, found.st_blocks * 512)


class FakeDisk:
    """One disk for a test."""

    def __init__(self, scratch: Path) -> None:
        self.root = scratch / "fake-pfs"
        (self.root / DISK).mkdir(parents=True, exist_ok=True)
        self.run_directory = scratch / "run"

    def mount(self, directory: str = "data", *, call_timeout_s: float = 30.0, host_id: int | None = 7) -> PfsMount:
        return PfsMount(PfsAddress(DISK, directory), host_id=host_id, call_timeout_s=call_timeout_s)

    def tree(self, mount: PfsMount | None = None, faults: str = "") -> PfsTree:
        with self._environment(faults):
            return PfsTree(mount or self.mount(), helper=HELPER, run_directory=str(self.run_directory))

    def writable_tree(self, mount: PfsMount | None = None, faults: str = "") -> PfsWritableTree:
        with self._environment(faults):
            return PfsWritableTree(mount or self.mount(), helper=HELPER, run_directory=str(self.run_directory))

    @contextmanager
    def _environment(self, faults: str) -> Iterator[None]:
        os.environ[ROOT_VARIABLE], os.environ[FAULTS_VARIABLE] = str(self.root), faults
        try:
            yield
        finally:
            del os.environ[ROOT_VARIABLE], os.environ[FAULTS_VARIABLE]


if __name__ == "__main__":
    serve(FakeLibrary, sys.argv[1:])
