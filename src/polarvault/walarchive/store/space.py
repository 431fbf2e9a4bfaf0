"""Whether the disk of a directory has room for WAL."""

from __future__ import annotations

from polarvault.storage.free_space import FreeSpace, free_space

# Fewer segments than these left, or a twentieth of the disk, and somebody has to act.
_FEW_SEGMENTS = 4
_NEARLY_FULL = 0.05


def has_space(path: str, size_bytes: int) -> bool:
    """Tell whether so much can be written; a disk that does not tell is tried."""
    try:
        found = free_space(path)
    except OSError:
        return False
    return found is None or found.available_bytes >= size_bytes


def space_warning(path: str, segment_size_bytes: int, advice: str) -> str | None:
    """Say that the disk is nearly full: less than a few segments, or than a twentieth, is left."""
    try:
        found = free_space(path)
    except OSError:
        return None  # The next write says it better.
    if found is None or not _is_nearly_full(found, segment_size_bytes):
        return None
    return f'the disk of "{path}" is nearly full: {found.available_bytes >> 20} MB left; {advice}'


def _is_nearly_full(found: FreeSpace, segment_size_bytes: int) -> bool:
    few = found.available_bytes < _FEW_SEGMENTS * segment_size_bytes
    return few or found.available_bytes < _NEARLY_FULL * found.total_bytes
