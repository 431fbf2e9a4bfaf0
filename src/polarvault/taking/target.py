"""Where a backup goes: the seam between the stream that a server sends and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.pipeline.member_sinks import MemberSink
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A sink for an archive's bytes as the server sends them, compressed or not; they are only looked into."""

    sink: ByteSink


class BackupTarget(Protocol):
    """Takes one backup. The methods are called in this order, from one thread; only the WAL sink lives in another's.

    The views that sinks are given lie in receive buffers that are used again as soon as the call returns: a sink that
    hands bytes to a worker of its own copies them first, into buffers that are its own. (A directory needs no copy.)
    spool_directory: where there is space for what is kept until the end, None where only temporary files have some.
    """

    spool_directory: str | None

    def claim(self) -> None:
        """Take the place, before the server is asked for anything; raise TargetNotEmpty with nothing touched."""

    def begin(self, facts: BackupFacts) -> None:
        """The server has begun: refuse what cannot be stored here, prepare what the facts ask for."""

    def wal(self) -> WalSink | None:
        """Return where streamed WAL goes, None if none is wanted; called once, after begin."""

    def archive(self, begins: ArchiveBegins) -> MemberSink | Verbatim | None:
        """Return where the archive that begins goes; None if its data stays on the server."""

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Make everything durable, and last what makes the backup valid."""

    def abort(self) -> None:
        """Close what is open after a failure or a commit; safe to call at any time after claim began, and twice."""
