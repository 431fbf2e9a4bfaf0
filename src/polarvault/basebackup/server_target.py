"""A backup to a target on the server: nothing arrives here."""

from __future__ import annotations

from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup


class ServerTarget:
    """The server stores the backup itself."""

    spool_directory: str | None = None

    def claim(self) -> None:
        """Nothing to claim."""

    def begin(self, facts: BackupFacts) -> None:
        """Nothing to prepare."""

    def wal(self) -> WalSink | None:
        """WAL cannot be streamed to a target."""
        return None

    def archive(self, begins: ArchiveBegins) -> None:
        """Take no data: the server names its archives here as well, but keeps what is in them."""

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """The server has finished it."""
        return StoredBackup()

    def abort(self) -> None:
        """Nothing is open."""

    def closing_notes(self) -> list[str]:
        """Nothing to say."""
        return []
