"""What goes wrong in PFS, in words, with what to look at. Pure."""

from __future__ import annotations

import errno
import os

# Out of inodes: the library hands out an internal number (PolarDB-FileSystem: PFSErrCode in pfs_api.h).
TOO_MANY_FILES = 1001
# Of a mount: the host id is larger than the number of hosts that the disk was made for (measured).
TOO_FEW_HOSTS = 228
RUN_DIRECTORY = "/var/run/pfsd"
# What a program expects and handles: they keep their own class (FileNotFoundError and its like) and words.
_ORDINARY = frozenset({
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ENAMETOOLONG,
    errno.ELOOP,
})  # fmt: skip
_MEANINGS = {
    errno.ENOSPC: "no block is free on the disk (blocks have 4 MB, and every file takes one at least)",
    TOO_MANY_FILES: "no inode is free on the disk (a chunk of 10 GB has 2048)",
    errno.EROFS: "the disk is mounted for reading only",
    errno.EACCES: "pfsd refuses: the host id is in use, or the device may not be written",
    errno.EPERM: "pfsd refuses",
    errno.EIO: "pfsd could not read or write the device",
    errno.ENODEV: "the disk is not mounted",
    errno.ENOMEM: "pfsd has no channel or buffer left for another client",
    errno.EMFILE: "too many files are open in PFS",
    errno.ENFILE: "too many files are open in PFS",
    errno.EFBIG: "the file would be larger than PFS takes",
    errno.ESTALE: "pfsd was started again meanwhile",
    errno.EXDEV: "both names have to be on one disk",
}
_ROOM_HINT = "see what is free: pfs -C disk info {disk}; remove what is not needed, or grow the disk (pfs growfs)"
_HINTS = {
    errno.ENOSPC: _ROOM_HINT,
    TOO_MANY_FILES: _ROOM_HINT,
    errno.EACCES: "give another number, which no server on this disk has: --polar_host_id N",
    errno.EIO: "see its log: /var/log/pfsd-{disk}/pfsd.log",
}


class PfsProblem(OSError):
    """A failure that PFS itself has; hint: what to look at, or the next line to type."""

    # For --json, as of the classes in errors.py; it is an OSError, because whoever uses trees handles those.
    id = "pfs-failed"
    actor = "whoever runs the storage"
    remedy = "see whether pfsd runs and what it says: /var/log/pfsd-DISK/pfsd.log"

    def __init__(self, number: int, why: str, name: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(number, why, name)
        self.hint = hint


def problem_of(number: int, disk: str, name: str) -> OSError:
    """Return the exception for an errno of the library; name: what it was about, for messages."""
    if number in _ORDINARY:
        # The constructor chooses the class by the number.
        return OSError(number, os.strerror(number), name)
    why = _MEANINGS.get(number, os.strerror(number))
    # Full is full, whatever it is full of: callers look for this number.
    shown = errno.ENOSPC if number == TOO_MANY_FILES else number
    hint = _HINTS.get(number)
    return PfsProblem(shown, why, name, hint=None if hint is None else hint.format(disk=disk))


def pfsd_hint(disk: str) -> str:
    """Return what to look at where pfsd does not answer."""
    return (
        f"see whether it runs and what it says: pgrep -af 'pfsdaemon.*{disk}', /var/log/pfsd-{disk}/pfsd.log; its "
        f"clients are in {RUN_DIRECTORY}/{disk}"
    )
