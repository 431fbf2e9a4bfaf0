"""How much a file system says it can still take; some say nothing at all."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """What a file system has room for, in bytes."""

    available_bytes: int
    total_bytes: int


def free_space(path: str) -> FreeSpace | None:
    """Return what this user may still write to the file system of a path; None where it does not tell.

    A size of zero is no size: pfs-fuse, and other file systems in user space without a statfs, report all zeros while
    they have room. Raises OSError.
    """
    status = os.statvfs(path)
    if status.f_blocks == 0:
        return None
    return FreeSpace(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)
