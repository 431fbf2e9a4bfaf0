"""Take a base backup: start reading here.

The order matters. Everything that can be refused is refused before the server starts a checkpoint; the WAL connection
stands before the backup begins; the manifest gets its name after all else is durable.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from polarvault.basebackup import recovery_settings
from polarvault.basebackup.archive_writer import ArchiveWriter
from polarvault.basebackup.checkpoint_watch import CheckpointWatch
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.node_role import refuse_replica, replica_refusal
from polarvault.basebackup.output import BackupContext, Output, ReceivedBackup
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.reporter import BackupProgress, Reporter
from polarvault.basebackup.request import BackupRequest
from polarvault.basebackup.stdout_output import StdoutOutput
from polarvault.basebackup.tar_output import TarOutput
from polarvault.basebackup.wal_end import finish_wal
from polarvault.errors import ChecksumFailure, RemoteProtocolError, ServerError, ServerRefused
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.pages import PAGE_BYTES, load_kernel
from polarvault.pipeline.page_check import PageCheck, PageFindings
from polarvault.pipeline.read_ahead import ReadAhead
from polarvault.polardb.layout import REPLICA_SIGNAL
from polarvault.server.base_backup import (
    ArchiveBegins,
    ArchiveData,
    ArchiveEnds,
    BackupEvent,
    BackupStart,
    BaseBackup,
    Batch,
    ManifestData,
    Progress,
    StreamEnds,
)
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.server.transport import Transport, open_transport
from polarvault.server.wal_stream import SlotPlan, WalSink, WalStream
from polarvault.wire.commands import BaseBackupOptions

# Buffers waiting between the socket and the writer; with the transport's own they bound memory at 12 MB.
_QUEUE_DEPTH = 8
# A checksum failure that the server found is reported with this SQLSTATE after everything has been sent.
_DATA_CORRUPTED = "XX001"


@dataclass(frozen=True, slots=True)
class BackupOutcome:
    """What a finished backup amounts to; sizes are bytes."""

    identity: ServerIdentity
    start_lsn: Lsn
    stop_lsn: Lsn
    timeline_id: int
    received_bytes: int
    left_out_bytes: int
    left_out_files: int
    pages: PageFindings | None
    closing_notes: list[str] = field(default_factory=list)


def take_base_backup(request: BackupRequest, connector: Connector, reporter: Reporter) -> BackupOutcome:
    """Take one base backup as asked; on failure leave behind what pg_basebackup would leave behind."""
    with ExitStack() as closing:
        connection = connector.replication()
        closing.callback(connection.close)
        identity = read_identity(connection)
        _refuse_impossible(request, identity, connector, reporter)
        # New files get the modes of the server's data directory, whatever the shell's umask.
        os.umask(0o027 if identity.group_access else 0o077)
        created = CreatedPaths(0o750 if identity.group_access else 0o700)
        context = BackupContext(request, identity, reporter, created)
        output = _choose_output(context)
        try:
            return _take(context, output, connection, connector)
        except ChecksumFailure:
            # As pg_basebackup: the files stay for inspection, but without a manifest they do not look whole.
            output.abandon()
            created.say_kept(reporter.step)
            raise
        except BaseException:
            output.abandon()
            if request.clean:
                created.clean_up(reporter.step)
            else:
                created.say_kept(reporter.note)
            raise


def _take(context: BackupContext, output: Output, connection: Connection, connector: Connector) -> BackupOutcome:
    request, identity, reporter = context.request, context.identity, context.reporter
    output.claim()
    wal = _open_wal(context, connector)
    failed = True
    try:
        if request.write_recovery_conf:
            context.recovery_settings = _recovery_settings(context, connection, connector)
        transport = open_transport(connection, lambda notice: _pass_on(reporter, notice))
        if request.incremental is not None:
            transport.upload("UPLOAD_MANIFEST", _file_parts(request.incremental))
        backup = BaseBackup(transport, base_backup_options(request, identity), identity.version_num)
        start = _begin(context, backup, connection, connector)
        output.begin(start)
        sink = output.wal_sink()
        if wal is not None and sink is not None:
            reporter.step("starting WAL stream")
            wal.start(sink, start.start_lsn, start.timeline_id)
        receiver = _Receiver(context, output)
        try:
            _receive(receiver, backup, transport, wal)
        except ServerError as error:
            if error.sqlstate != _DATA_CORRUPTED:
                raise
            receiver.server_found_corruption = error
        received = receiver.result()
        if identity.shared_storage or wal is not None:
            finish_wal(context, connector, wal, sink, received)
        _judge_pages(receiver)
        output.finish(received)
        failed = False
    finally:
        if failed:
            connection.cancel()
        if wal is not None:
            wal.close(failed=failed)
    reporter.step("base backup completed")
    return BackupOutcome(
        identity, start.start_lsn, received.stop_lsn, start.timeline_id, receiver.done_bytes,
        context.left_out.size_bytes, context.left_out.count,
        context.page_check.findings if context.page_check else None, output.closing_notes(),
    )  # fmt: skip


def base_backup_options(request: BackupRequest, identity: ServerIdentity) -> BaseBackupOptions:
    """Translate the request for this server."""
    shared = identity.shared_storage
    by_server = request.compression.location == "server" and request.compression.algorithm != "none"
    fetch = request.wal_method == "fetch"
    return BaseBackupOptions(
        label=request.label,
        progress=request.estimate_size,
        checkpoint_fast=request.checkpoint_fast,
        # PolarDB leaves the end out of the WAL it sends, and may fail on long paths (facts 1.6): never ask for it
        # there, unless the backup goes to a target on the server, where nothing else can supply it.
        wal=fetch and (not shared or request.target is not None),
        # Waiting would make PolarDB switch, and so burn, a segment of up to 1 GB at every backup (facts 1.6).
        wait=request.wal_method == "none" and not shared,
        max_rate_kb=request.max_rate_kb,
        # With it, a shared-storage server silently leaves tablespaces out (facts 1.5).
        tablespace_map=request.format == "tar" and not shared,
        verify_checksums=request.verify_checksums,
        manifest=("force-encode" if request.manifest_force_encode else "yes") if request.manifest else None,
        manifest_checksums=request.manifest_checksums,
        incremental=request.incremental is not None,
        target=request.target.partition(":")[0] if request.target else None,
        target_detail=(request.target.partition(":")[2] or None) if request.target else None,
        compression=request.compression.algorithm if by_server else None,
        compression_detail=request.compression.detail if by_server else None,
    )


def _refuse_impossible(
    request: BackupRequest, identity: ServerIdentity, connector: Connector, reporter: Reporter
) -> None:
    """Refuse what this server cannot do, before it starts a checkpoint for it."""
    if request.incremental is not None and identity.version_num < 170000:
        raise ServerRefused(
            f"server version {identity.version} does not support incremental backup", hint="it needs PostgreSQL 17"
        )
    if identity.version_num < 150000:
        if request.target is not None:
            raise ServerRefused(f"backup targets are not supported by server version {identity.version}")
        if request.compression.location == "server" and request.compression.algorithm != "none":
            raise ServerRefused(
                f"server version {identity.version} does not support server-side compression",
                hint=f"compress on the client: -Z client-{request.compression.algorithm}",
            )
    if request.polardata is not None and not identity.shared_storage:
        raise ServerRefused(
            f"{identity.product} keeps its data in one directory, there is no shared half for --polardata",
            hint="run the command again without --polardata",
        )
    if request.polar_disk_name is not None:
        reporter.note(
            f"PFS is not written to directly: the shared half goes to the mounted directory {request.polardata!r}"
        )
    if identity.shared_storage:
        refuse_replica(identity, connector)
        if not identity.full_page_writes:
            reporter.note(
                "full_page_writes is off on the server: every page is checked for torn writes as it passes"
                if identity.data_checksums and request.verify_checksums
                else "full_page_writes is off and pages are not checked: torn pages would go unnoticed"
            )


def _choose_output(context: BackupContext) -> Output:
    request = context.request
    if request.target is not None:
        return _NoOutput()
    if request.is_plain:
        return PlainOutput(context)
    if request.to_stdout:
        return StdoutOutput(context, 1)
    return TarOutput(context)


def _open_wal(context: BackupContext, connector: Connector) -> WalStream | None:
    if not context.streams_wal:
        return None
    request = context.request
    slot = SlotPlan.choose(
        name=request.slot, create=request.create_slot, no_slot=request.no_slot, process_id=os.getpid()
    )
    stream = WalStream(connector, context.identity, slot, status_interval_s=request.status_interval_s)
    try:
        stream.open()
    except BaseException:
        stream.close(failed=True)
        raise
    if slot.temporary:
        context.reporter.step(f'created temporary replication slot "{slot.name}"')
    elif slot.create:
        context.reporter.step(f'created replication slot "{slot.name}"')
    return stream


def _recovery_settings(context: BackupContext, connection: Connection, connector: Connector) -> bytes:
    shared = None
    if context.identity.shared_storage and context.request.directory is not None:
        from polarvault.polardb.layout import SHARED_HALF_NAME

        default = os.path.join(context.request.directory, SHARED_HALF_NAME)
        shared = os.path.abspath(context.request.polardata or default)
    return recovery_settings.recovery_settings(
        connection, slot=context.request.slot, dbname=connector.given_dbname, shared_data_directory=shared
    )


def _begin(context: BackupContext, backup: BaseBackup, connection: Connection, connector: Connector) -> BackupStart:
    """Start the backup and wait for the checkpoint."""
    request, identity, reporter = context.request, context.identity, context.reporter
    checks_pages = identity.data_checksums and request.verify_checksums and identity.block_bytes == PAGE_BYTES
    # Compiling takes 50 ms that the wait for the checkpoint has to spare.
    compiling = threading.Thread(target=load_kernel, name="kernel", daemon=True)
    if checks_pages:
        compiling.start()
    reporter.step("initiating base backup, waiting for checkpoint to complete")
    watch = CheckpointWatch(
        connector, reporter,
        is_polardb=identity.polar_version is not None, backend_pid=connection.pgconn.backend_pid,
        patience_s=request.checkpoint_timeout_s, spread=not request.checkpoint_fast,
    )  # fmt: skip
    try:
        start = backup.start(watch.tick)
    finally:
        watch.close()
    reporter.step("checkpoint completed")
    reporter.step(f"write-ahead log start point: {start.start_lsn} on timeline {start.timeline_id}")
    context.start = start
    if identity.shared_storage and any(tablespace.oid for tablespace in start.tablespaces):
        reporter.warning(
            "this cluster has user tablespaces, which PolarDB cannot keep on shared storage; they are stored as the "
            "server sends them"
        )
    if checks_pages:
        # The compiler is not safe for two threads at once.
        compiling.join()
        context.page_check = PageCheck(
            start_lsn=start.start_lsn,
            # PostgreSQL forces full-page images during a backup; PolarDB does so only with full_page_writes on.
            wal_repairs_torn_pages=identity.full_page_writes or not identity.shared_storage,
            relation_segment_bytes=identity.relation_segment_bytes,
        )
    return start


class _Receiver:
    """Takes the stream's events; knows which archive is open and how far the backup is."""

    def __init__(self, context: BackupContext, output: Output) -> None:
        self._context = context
        self._output = output
        self._writer: ArchiveWriter | None = None
        self._archive_number = 0
        self._manifest: list[bytes] = []
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
        elif isinstance(event, ArchiveEnds):
            if self._writer is not None:
                self._writer.finish()
            self._writer = None
        elif isinstance(event, ManifestData):
            self._manifest.append(event.content)
        elif isinstance(event, Progress):
            self.done_bytes = max(self.done_bytes, event.done_bytes)
        else:
            self._end = event

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
        manifest = b"".join(self._manifest) if self._context.request.manifest and self._manifest else None
        return ReceivedBackup(start, self._end.stop_lsn, self._end.timeline_id, manifest)

    @property
    def context(self) -> BackupContext:
        """The backup that is being received."""
        return self._context

    def _check_role(self) -> None:
        # Where SQL could not tell, the replica's own signal file does: it comes early, in base.tar.
        if self._context.identity.shared_storage and REPLICA_SIGNAL in self._context.local_names.sent:
            raise replica_refusal()


def _receive(receiver: _Receiver, backup: BaseBackup, transport: Transport, wal: WalStream | None) -> None:
    """Run the stream to its end; the WAL stream's failure ends it at once."""

    def tick() -> None:
        if wal is not None:
            wal.raise_failure()
        receiver.report()

    with ReadAhead[Batch](backup.batches(), depth=_QUEUE_DEPTH, interrupt=transport.interrupt) as reader:
        for batch in reader.items(tick):
            for event in batch.events:
                receiver.accept(event)
            batch.release()
            tick()
    receiver.report(final=True)


def _judge_pages(receiver: _Receiver) -> None:
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


def _pass_on(reporter: Reporter, notice: ServerError) -> None:
    reporter.warning(notice.message) if notice.severity == "WARNING" else reporter.note(notice.message)


def _file_parts(path: str) -> Iterator[bytes]:
    with open(path, "rb") as source:
        while part := source.read(1 << 16):
            yield part


class _NoOutput:
    """The backup goes to a target on the server; nothing arrives here."""

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
