"""Take in the stream of a base backup: every event to its place, every page judged."""

from __future__ import annotations

from collections.abc import Callable

from polarvault.basebackup.archive_writer import ArchiveWriter
from polarvault.basebackup.manifest_spool import ManifestSpool
from polarvault.basebackup.node_role import replica_refusal
from polarvault.basebackup.output import CONFIGURATION_NAMES, BackupContext, Output, ReceivedBackup
from polarvault.basebackup.reporter import BackupProgress
from polarvault.errors import ChecksumFailure, RemoteProtocolError, ServerError
from polarvault.pipeline.page_check import PageFindings
from polarvault.pipeline.read_ahead import ReadAhead
from polarvault.polardb.layout import REPLICA_SIGNAL
from polarvault.server.base_backup import (
    ArchiveBegins,
    ArchiveData,
    ArchiveEnds,
    BackupEvent,
    BaseBackup,
    Batch,
    ManifestData,
    Progress,
    StreamEnds,
    Tablespace,
)
from polarvault.server.transport import Transport
from polarvault.server.wal_stream import WalStream

# Buffers waiting between the socket and the writer; with the transport's own they bound memory at 12 MB.
_QUEUE_DEPTH = 8


class Receiver:
    """Takes the stream's events; knows which archive is open and how far the backup is."""

    def __init__(self, context: BackupContext, output: Output) -> None:
        self._context = context
        self._output = output
        self._writer: ArchiveWriter | None = None
        self._tablespace: Tablespace | None = None
        self._archive_number = 0
        self._manifest: ManifestSpool | None = None
        self._end: StreamEnds | None = None
        self.done_bytes = 0
        self.server_found_corruption: ServerError | None = None

    def accept(self, event: BackupEvent) -> None:
        """Take one event."""
        if isinstance(event, ArchiveData):
            if self._writer is None:
                raise RemoteProtocolError("the server sent data before it named an archive")
            self._writer.write(event.views)
            self.done_bytes += sum(map(len, event.views))
            self._check_role()
        elif isinstance(event, ArchiveBegins):
            self._writer = self._output.open_archive(event)
            self._archive_number += 1
            self._tablespace = event.tablespace
        elif isinstance(event, ArchiveEnds):
            self._archive_ends()
        elif isinstance(event, ManifestData):
            if self._context.request.manifest:
                self._manifest = self._manifest or ManifestSpool(self._output.spool_directory)
                self._manifest.append(event.content)
        elif isinstance(event, Progress):
            self.done_bytes = max(self.done_bytes, event.done_bytes)
        else:
            self._end = event

    def _archive_ends(self) -> None:
        writer, space, context = self._writer, self._tablespace, self._context
        self._writer = None
        if writer is None or space is None:
            return
        writer.finish()
        if space.oid is None and not space.shared:
            context.lacks_configuration = context.configuration_seen != CONFIGURATION_NAMES
        # Even an empty tablespace has the server's own directory. PolarDB sends tablespaces in ways of its own.
        if space.oid is not None and not writer.member_count and not context.identity.shared_storage:
            context.absences.empty_tablespaces.append(space)

    def report(self, *, final: bool = False) -> None:
        """Tell the reporter how far the backup is."""
        start = self._context.start
        assert start is not None
        self._context.reporter.progress(
            BackupProgress(
                self.done_bytes, start.total_kb * 1024, self._archive_number, len(start.tablespaces),
                self._context.current_member,
            ),
            final=final,
        )  # fmt: skip

    def result(self) -> ReceivedBackup:
        """Return what the stream's end said."""
        start = self._context.start
        if self._end is None or start is None:
            raise RemoteProtocolError("the server ended the backup without an end position")
        self._context.reporter.step(f"write-ahead log end point: {self._end.stop_lsn}")
        return ReceivedBackup(start, self._end.stop_lsn, self._end.timeline_id, self._manifest)

    def close(self) -> None:
        """Forget what was kept for the result."""
        if self._manifest is not None:
            self._manifest.close()

    @property
    def context(self) -> BackupContext:
        """The backup that is being received."""
        return self._context

    def _check_role(self) -> None:
        # Where SQL could not tell, the replica's own signal file does: it comes early, in base.tar.
        if self._context.identity.shared_storage and REPLICA_SIGNAL in self._context.local_names.sent:
            raise replica_refusal()


def receive(
    receiver: Receiver, backup: BaseBackup, transport: Transport, wal: WalStream | None, check: Callable[[], None]
) -> None:
    """Run the stream to its end; the WAL stream's failure ends it at once, and so does what `check` raises."""

    def tick() -> None:
        if wal is not None:
            wal.raise_failure()
        check()
        receiver.report()

    with ReadAhead[Batch](backup.batches(), depth=_QUEUE_DEPTH, interrupt=transport.interrupt) as reader:
        for batch in reader.items(tick):
            for event in batch.events:
                receiver.accept(event)
            batch.release()
            tick()
    receiver.report(final=True)


def judge_pages(receiver: Receiver) -> None:
    """Raise ChecksumFailure if the server or our own check found wrong pages; name them first."""
    context = receiver.context
    findings = context.page_check.findings if context.page_check else PageFindings()
    for bad in findings.bad_files:
        for page in bad.examples:
            context.reporter.warning(
                f'checksum verification failed in file "{bad.path}", block {page.block}: '
                f"calculated {page.calculated:X} but expected {page.stored:X}"
            )
        if bad.count > len(bad.examples):
            context.reporter.warning(f'file "{bad.path}" has a total of {bad.count} checksum verification failures')
    total = sum(bad.count for bad in findings.bad_files)
    if not total and receiver.server_found_corruption is None:
        return
    newer = any(
        page.lsn >= context.start.start_lsn for bad in findings.bad_files for page in bad.examples if context.start
    )
    where = f": {total} bad pages in {len(findings.bad_files)} files" if total else ""
    hint = "the pages are damaged on the server: check its disks and pg_stat_database.checksum_failures"
    if newer and not context.identity.full_page_writes:
        hint = (
            "a page was torn while it was read, and full_page_writes is off, so that WAL cannot repair it: "
            "take the backup again, or set full_page_writes = on first"
        )
    raise ChecksumFailure(f"checksum error occurred{where}", hint=hint)
