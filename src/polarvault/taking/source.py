"""Where the bytes of a backup come from: the seam between `taking.take` and the two sources that there are.

`StreamSource` is BASE_BACKUP on a replication connection; `taking.local.source.LocalSource` reads the files itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from polarvault.errors import ServerError
from polarvault.pipeline.page_check import PageCheck, PageFindings
from polarvault.pipeline.read_ahead import ReadAhead
from polarvault.server.base_backup import BackupStart, BaseBackup, Batch
from polarvault.server.connection import Connection
from polarvault.server.identity import ServerIdentity
from polarvault.server.transport import Transport
from polarvault.taking.receive import Receiver
from polarvault.wire.copy_scanner import DATA_PREFIX_BYTES

# Buffers waiting between the socket and the writer; with the transport's own they bound memory at 12 MB.
_QUEUE_DEPTH = 8
# A checksum failure that the server found is reported with this SQLSTATE after everything has been sent.
_DATA_CORRUPTED = "XX001"


Pause = Callable[[int, Callable[[], None]], None]


class BackupSource(Protocol):
    """One backup on one server. The methods are called in this order, from one thread.

    backend_pid: the server's process that waits for the checkpoint. findings: what the page check sees, None where
    pages are not checked.
    """

    backend_pid: int
    findings: PageFindings | None

    def start(self, while_waiting: Callable[[], None]) -> BackupStart:
        """Begin the backup; while_waiting runs about once a second until its checkpoint is there."""

    def check_pages(self, *, start_lsn: int, wal_repairs_torn_pages: bool) -> None:
        """Have the checksum of every page verified; asked before `run`, where it is wanted."""

    def run(self, receiver: Receiver, tick: Callable[[], None], pause: Pause | None) -> None:
        """Give everything to the receiver, the end of the backup last.

        tick is called again and again and may raise; pause is called with the bytes so far, and something to call
        meanwhile, and may wait.
        """

    def cancel(self) -> None:
        """Ask the server to give the backup up."""


class StreamSource:
    """BASE_BACKUP. Implements `BackupSource`."""

    def __init__(
        self, connection: Connection, transport: Transport, backup: BaseBackup, identity: ServerIdentity
    ) -> None:
        self._connection, self._transport, self._backup = connection, transport, backup
        self._identity = identity
        self._page_check: PageCheck | None = None
        self.backend_pid = connection.pgconn.backend_pid
        self.findings: PageFindings | None = None

    def start(self, while_waiting: Callable[[], None]) -> BackupStart:
        """Send the command and wait for the checkpoint."""
        return self._backup.start(while_waiting)

    def check_pages(self, *, start_lsn: int, wal_repairs_torn_pages: bool) -> None:
        """Have pages verified as they pass."""
        self._page_check = PageCheck(
            start_lsn=start_lsn, wal_repairs_torn_pages=wal_repairs_torn_pages,
            relation_segment_bytes=self._identity.relation_segment_bytes, gap_bytes=DATA_PREFIX_BYTES,
        )  # fmt: skip
        self.findings = self._page_check.findings

    def run(self, receiver: Receiver, tick: Callable[[], None], pause: Pause | None) -> None:
        """Run the stream to its end."""
        receiver.page_check = self._page_check
        try:
            with ReadAhead[Batch](
                self._backup.batches(), depth=_QUEUE_DEPTH, interrupt=self._transport.interrupt
            ) as reader:
                for batch in reader.items(tick):
                    for event in batch.events:
                        receiver.accept(event)
                    batch.release()
                    tick()
                    if pause is not None:
                        pause(receiver.done_bytes, tick)
        except ServerError as error:
            if error.sqlstate != _DATA_CORRUPTED:
                raise
            receiver.corruption = error

    def cancel(self) -> None:
        """Cancel the command."""
        self._connection.cancel()
