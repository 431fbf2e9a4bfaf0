"""A backup to a target on the server: nothing arrives here."""

from __future__ import annotations

from polarvault.basebackup.output import ReceivedBackup
from polarvault.server.base_backup import ArchiveBegins, BackupStart
from polarvault.server.wal_stream import WalSink


class NoOutput:
    """The backup goes to a target on the server; nothing arrives here."""

    spool_directory: str | None = None

    def claim(self) -> None:
        """Nothing to claim."""

    def begin(self, start: BackupStart) -> None:
        """Nothing to prepare."""

    def wal_sink(self) -> WalSink | None:
        """WAL cannot be streamed to a target."""
        return None

    def open_archive(self, event: ArchiveBegins) -> None:
        """Take no data: the server names its archives here as well, but keeps what is in them."""

    def finish(self, received: ReceivedBackup) -> None:
        """The server has finished it."""

    def abandon(self) -> None:
        """Nothing is open."""

    def closing_notes(self) -> list[str]:
        """Nothing to say."""
        return []
