"""What a running backup tells; `report.taking` puts it into words for a terminal, a log or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from polarvault.errors import ServerError


@dataclass(frozen=True, slots=True)
class BackupProgress:
    """How far the backup is: bytes received, the estimate (0 if unknown), and which archive of how many."""

    done_bytes: int
    total_bytes: int
    archive_number: int
    archive_count: int
    current: str


class BackupReporter(Protocol):
    """Receives what happens, in the backup's main thread."""

    def step(self, text: str) -> None:
        """A step of the backup; shown with --verbose."""

    def note(self, text: str) -> None:
        """Something that the user should know; always shown."""

    def warning(self, text: str) -> None:
        """Something that is wrong but does not end the backup."""

    def notice(self, notice: ServerError) -> None:
        """What the server says, in the form that libpq gives it; the same words once."""

    def progress(self, progress: BackupProgress, *, final: bool = False) -> None:
        """The current state; called often, shown at most a few times a second."""
