"""How much room files take that they share with nobody, as the file system tells (Linux: FS_IOC_FIEMAP).

A reflink shares its extents with the file that it came from until one of them is written; st_blocks counts them for
both.
Numbers: linux/fiemap.h, linux/fs.h.
"""

from __future__ import annotations

import fcntl
import os
import struct

_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_LAST, _SHARED = 0x1, 0x2000
_EXTENTS_AT_ONCE = 512
_WHOLE = (1 << 64) - 1


def own_bytes(descriptor: int) -> int | None:
    """Return how many bytes of an open file are shared with no other one; None: the file system does not tell."""
    start, total = 0, 0
    while True:
        buffer = bytearray(_HEAD.size + _EXTENTS_AT_ONCE * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, start, _WHOLE - start, 0, 0, _EXTENTS_AT_ONCE, 0)
        try:
            fcntl.ioctl(descriptor, _FIEMAP, buffer)
        except OSError:
            return None
        count = _HEAD.unpack_from(buffer)[3]
        if count == 0:
            return total
        for index in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEAD.size + index * _EXTENT.size)
            total += 0 if flags & _SHARED else length
            if flags & _LAST:
                return total
        if logical + length <= start:
            return None  # No way on: it would never end.
        start = logical + length


def own_bytes_below(root: str) -> int | None:
    """Return the sum over all files below a directory; None where the file system does not tell. Links are left alone.

    What is removed meanwhile counts as nothing.
    """
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                descriptor = os.open(
                    os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:
                continue
            try:
                own = own_bytes(descriptor)
            finally:
                os.close(descriptor)
            if own is None:
                return None
            total += own
    return total


def allocated_bytes_below(root: str) -> int:
    """Return the room that all files below a directory take, shared or not. What is removed meanwhile is nothing."""
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except OSError:
                continue
    return total
