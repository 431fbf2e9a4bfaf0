"""Whether the disk of a directory has room for WAL."""

from __future__ import annotations

import os

# Fewer segments than these left, or a twentieth of the disk, and somebody has to act.
_FEW_SEGMENTS = 4
_NEARLY_FULL = 0.05


def has_space(path: str, size_bytes: int) -> bool:
    """Tell whether so much can be written."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize >= size_bytes


def space_warning(path: str, segment_size_bytes: int, advice: str) -> str | None:
    """Say that the disk is nearly full: less than a few segments, or than a twentieth, is left."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None  # The next write says it better.
    free = found.f_bavail * found.f_frsize
    if free >= _FEW_SEGMENTS * segment_size_bytes and free >= _NEARLY_FULL * found.f_blocks * found.f_frsize:
        return None
    return f'the disk of "{path}" is nearly full: {free >> 20} MB left; {advice}'
