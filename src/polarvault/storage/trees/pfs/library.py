"""libpfsd through ctypes: its calls as methods, its errors as OSError. Loaded in the helper process only.

Source of the interface: PolarDB-FileSystem, src/pfs_sdk/pfsd_sdk.h; measured facts where that says nothing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import platform
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polarvault.storage.trees.pfs.mount import LIBRARY_VARIABLE, TOOLS
from polarvault.storage.trees.pfs.room import read_room

# The project's own make installs the second and no shared first one.
_NAMES = ("libpfsd.so", "libpfsd_test.so")
_PLACES = ("", "/usr/local/polarstore/pfsd/lib/")
_READ, _WRITE, _LOG, _TOOL, _BY_FORCE = 0x1, 0x2, 0x10, 0x1000, 0x200000
# With one process and several threads the library itself refuses to write through a mount for reading.
_THREADS_MODE = 0
MOST_CALL_BYTES = 4 << 20
_DIRECTORY_TYPE = 4
_STATUS_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Status:
    """What has a name; modified: seconds since 1970."""

    is_directory: bool
    size_bytes: int
    modified: float
    allocated_bytes: int


class PfsLibrary(Protocol):
    """What the helper needs of the library; paths are whole ones, /DISK/NAME. Methods raise OSError."""

    def mount(self, cluster: str, disk: str, host_id: int, *, writable: bool, force: bool, timeout_s: float) -> None:
        """Mount the one disk of this process."""

    def unmount(self) -> None:
        """Give it back; nothing may be under way."""

    def names(self, path: str) -> list[str]:
        """Return the names in a directory."""

    def status(self, path: str) -> Status:
        """Return what has the name."""

    def open(self, path: str, flags: int) -> int:
        """Open a file; flags as of os.open."""

    def file_status(self, descriptor: int) -> Status:
        """Return what is open."""

    def read(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        """Read some bytes into a buffer of at most `MOST_CALL_BYTES`; 0 at the end of the file."""

    def write(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        """Write some bytes of a buffer of at most `MOST_CALL_BYTES`."""

    def truncate(self, descriptor: int, size: int) -> None:
        """Set the length of an open file."""

    def close(self, descriptor: int) -> None:
        """Close a file."""

    def make_directory(self, path: str) -> None:
        """Make a directory."""

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""

    def remove(self, path: str) -> None:
        """Remove a file."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""

    def room(self) -> tuple[int, int] | None:
        """Return the free bytes and inodes of the disk; None where pfsd does not tell."""


class _X86Stat(ctypes.Structure):
    """struct stat of Linux on x86-64 (glibc: bits/struct_stat.h)."""

    _fields_ = (
        ("st_dev", ctypes.c_uint64), ("st_ino", ctypes.c_uint64), ("st_nlink", ctypes.c_uint64),
        ("st_mode", ctypes.c_uint32), ("st_uid", ctypes.c_uint32), ("st_gid", ctypes.c_uint32),
        ("padding", ctypes.c_uint32), ("st_rdev", ctypes.c_uint64), ("st_size", ctypes.c_int64),
        ("st_blksize", ctypes.c_int64), ("st_blocks", ctypes.c_int64), ("st_times", ctypes.c_int64 * 6),
        ("reserved", ctypes.c_int64 * 3),
    )  # fmt: skip


class _ArmStat(ctypes.Structure):
    """struct stat of Linux on 64-bit ARM, and of other machines with the kernel's generic one."""

    _fields_ = (
        ("st_dev", ctypes.c_uint64), ("st_ino", ctypes.c_uint64), ("st_mode", ctypes.c_uint32),
        ("st_nlink", ctypes.c_uint32), ("st_uid", ctypes.c_uint32), ("st_gid", ctypes.c_uint32),
        ("st_rdev", ctypes.c_uint64), ("padding", ctypes.c_uint64), ("st_size", ctypes.c_int64),
        ("st_blksize", ctypes.c_int32), ("padding2", ctypes.c_int32), ("st_blocks", ctypes.c_int64),
        ("st_times", ctypes.c_int64 * 6), ("reserved", ctypes.c_int32 * 2),
    )  # fmt: skip


class _Dirent(ctypes.Structure):
    """struct dirent of Linux with 64-bit offsets."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64), ("d_off", ctypes.c_int64), ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8), ("d_name", ctypes.c_char * 256),
    )  # fmt: skip


_Stat = _X86Stat if platform.machine() in ("x86_64", "AMD64") else _ArmStat
_PATH, _INT, _SIZE, _OFFSET = ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "pfsd_set_mode": (None, (_INT,)),
    "pfsd_set_connect_timeout": (None, (_INT,)),
    "pfsd_mount": (_INT, (_PATH, _PATH, _INT, _INT)),
    "pfsd_umount": (_INT, (_PATH,)),
    "pfsd_umount_force": (_INT, (_PATH,)),
    "pfsd_open": (_INT, (_PATH, _INT, ctypes.c_uint)),
    "pfsd_close": (_INT, (_INT,)),
    "pfsd_pread": (ctypes.c_ssize_t, (_INT, ctypes.c_void_p, _SIZE, _OFFSET)),
    "pfsd_pwrite": (ctypes.c_ssize_t, (_INT, ctypes.c_void_p, _SIZE, _OFFSET)),
    "pfsd_ftruncate": (_INT, (_INT, _OFFSET)),
    "pfsd_stat": (_INT, (_PATH, ctypes.POINTER(_Stat))),
    "pfsd_fstat": (_INT, (_INT, ctypes.POINTER(_Stat))),
    "pfsd_mkdir": (_INT, (_PATH, ctypes.c_uint)),
    "pfsd_rmdir": (_INT, (_PATH,)),
    "pfsd_unlink": (_INT, (_PATH,)),
    "pfsd_rename": (_INT, (_PATH, _PATH)),
    "pfsd_opendir": (ctypes.c_void_p, (_PATH,)),
    "pfsd_readdir": (ctypes.POINTER(_Dirent), (ctypes.c_void_p,)),
    "pfsd_closedir": (_INT, (ctypes.c_void_p,)),
}


class LibraryMissing(OSError):
    """No libpfsd could be loaded; the message says what was tried."""


def load_library(environment: Mapping[str, str]) -> Libpfsd:
    """Load what POLARVAULT_LIBPFSD names, or libpfsd.so, or libpfsd_test.so; raise LibraryMissing."""
    named = environment.get(LIBRARY_VARIABLE)
    candidates = [named] if named else [place + name for place in _PLACES for name in _NAMES]
    tried = []
    for candidate in candidates:
        try:
            return Libpfsd(ctypes.CDLL(candidate, use_errno=True))
        except (OSError, AttributeError) as problem:
            tried.append(f"{candidate}: {problem}")
    raise LibraryMissing(errno.ENOENT, "; ".join(tried))


class Libpfsd:
    """The library, loaded. Implements `PfsLibrary`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._disk = ""
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)

    def mount(self, cluster: str, disk: str, host_id: int, *, writable: bool, force: bool, timeout_s: float) -> None:
        """Mount the one disk of this process. As a tool only where asked: that flag takes standard error away."""
        flags = _READ | _LOG | (_WRITE if writable else 0) | (_BY_FORCE if force else 0)
        if host_id == TOOLS:
            flags |= _TOOL
        self._library.pfsd_set_mode(_THREADS_MODE)
        self._library.pfsd_set_connect_timeout(int(timeout_s * 1000))
        ctypes.set_errno(0)
        if self._library.pfsd_mount(os.fsencode(cluster), os.fsencode(disk), host_id, flags) != 0:
            # A refusal of pfsd sets none.
            raise OSError(ctypes.get_errno() or errno.EACCES, "mount")
        self._disk = disk

    def unmount(self) -> None:
        """Give it back."""
        self._library.pfsd_umount_force(os.fsencode(self._disk))

    def names(self, path: str) -> list[str]:
        """Return the names in a directory."""
        directory = self._library.pfsd_opendir(os.fsencode(path))
        if not directory:
            raise _failure(path)
        found: list[str] = []
        try:
            while True:
                ctypes.set_errno(0)
                entry = self._library.pfsd_readdir(directory)
                if not entry:
                    if ctypes.get_errno():
                        raise _failure(path)
                    return found
                name = os.fsdecode(entry.contents.d_name)
                if name not in (".", ".."):
                    found.append(name)
        finally:
            self._library.pfsd_closedir(directory)

    def status(self, path: str) -> Status:
        """Return what has the name."""
        found = _Stat()
        if self._library.pfsd_stat(os.fsencode(path), ctypes.byref(found)) != 0:
            raise _failure(path)
        return _status(found)

    def open(self, path: str, flags: int) -> int:
        """Open a file."""
        descriptor: int = self._library.pfsd_open(os.fsencode(path), flags, 0o600)
        if descriptor < 0:
            raise _failure(path)
        return descriptor

    def file_status(self, descriptor: int) -> Status:
        """Return what is open."""
        found = _Stat()
        if self._library.pfsd_fstat(descriptor, ctypes.byref(found)) != 0:
            raise _failure("")
        return _status(found)

    def read(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        """Read some bytes."""
        place = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        got: int = self._library.pfsd_pread(descriptor, place, len(buffer), offset)
        if got < 0:
            raise _failure("")
        return got

    def write(self, descriptor: int, offset: int, buffer: memoryview) -> int:
        """Write some bytes."""
        place = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        put: int = self._library.pfsd_pwrite(descriptor, place, len(buffer), offset)
        if put < 0:
            raise _failure("")
        return put

    def truncate(self, descriptor: int, size: int) -> None:
        """Set the length of an open file."""
        if self._library.pfsd_ftruncate(descriptor, size) != 0:
            raise _failure("")

    def close(self, descriptor: int) -> None:
        """Close a file."""
        if self._library.pfsd_close(descriptor) != 0:
            raise _failure("")

    def make_directory(self, path: str) -> None:
        """Make a directory."""
        self._call("pfsd_mkdir", path, 0o700)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        self._call("pfsd_rmdir", path)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._call("pfsd_unlink", path)

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        self._call("pfsd_rename", old, os.fsencode(new))

    def room(self) -> tuple[int, int] | None:
        """Ask pfsd through the socket of its administration."""
        return read_room(self._disk)

    def _call(self, name: str, path: str, *more: int | bytes) -> None:
        if getattr(self._library, name)(os.fsencode(path), *more) != 0:
            raise _failure(path)


def _failure(path: str) -> OSError:
    return OSError(ctypes.get_errno() or errno.EIO, path)


def _status(found: Any) -> Status:
    return Status(
        stat.S_ISDIR(found.st_mode), found.st_size, found.st_times[2] + found.st_times[3] / 1e9,
        found.st_blocks * _STATUS_BLOCK_BYTES,
    )  # fmt: skip
