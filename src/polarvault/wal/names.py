"""Names that a server asks its WAL archive for, and what a history file must hold to be one.

`polarvault wal fetch` imports this for every segment of a recovery: nothing heavy may be imported here.
"""

from __future__ import annotations

_HEX = frozenset("0123456789ABCDEF")


def is_segment_name(name: str) -> bool:
    """Tell whether a name is that of a segment: 24 hexadecimal digits."""
    return len(name) == 24 and _HEX.issuperset(name)


def is_history_name(name: str) -> bool:
    """Tell whether a name is that of a timeline history file."""
    return len(name) == 16 and name.endswith(".history") and _HEX.issuperset(name[:8])


def is_backup_history_name(name: str) -> bool:
    """Tell whether a name is that of a backup history file: SEGMENT.OFFSET.backup."""
    return len(name) == 40 and is_segment_name(name[:24]) and name[24] == "." and name.endswith(".backup")


def is_written(history: bytes) -> bool:
    """Tell a history file from what a crash of a careless archive_command leaves of it: nothing, or zeros."""
    return history != b"" and b"\0" not in history
