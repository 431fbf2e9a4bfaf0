"""The mark of a backup that is still being made, or was never finished: a small file in each of its directories.

It is there before the first byte of the backup and removed after all else is durable under its name, the manifest
included. So a backup that ended in an orderly way has none, whatever its options; what SIGKILL, a crash or a lost
machine has cut off has one, and nobody takes it for a backup.
"""

from __future__ import annotations

from datetime import UTC, datetime

from polarvault import __version__
from polarvault.storage.below import Below

MARKER_NAME = "polarvault_backup_in_progress"
# Enough for what we write, and not more of what anybody else has put there.
_SHOWN_BYTES = 4096


def marker_content(started: datetime, process_id: int) -> bytes:
    """Return what the mark says to who finds it: since when, by whom, and what to do."""
    return (
        f"This directory is not a backup (yet): polarvault {__version__} basebackup, process {process_id}, began to "
        f"write it at {started.astimezone(UTC).isoformat(timespec='seconds')}.\n"
        "When that process has ended and this file is still here, the backup was cut off and is incomplete: take "
        "another one.\n"
    ).encode()


def is_unfinished(directory: str) -> bool:
    """Tell whether a directory holds a backup that is being made or was never finished; raise OSError."""
    with Below(directory) as below:
        return below.exists(MARKER_NAME)


def read_marker(directory: str) -> str | None:
    """Return what the mark in a directory says, in one line; None if there is none; raise OSError."""
    with Below(directory) as below:
        if not below.exists(MARKER_NAME):
            return None
        try:
            content = below.read(MARKER_NAME, _SHOWN_BYTES)
        except OSError:
            return ""
        return " ".join(content.decode("utf-8", "replace").split())
