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
from polarvault.basebackup.absences import Absences, explain_refusal
from polarvault.basebackup.checkpoint_watch import CheckpointWatch
from polarvault.basebackup.copied_configuration import ConfigurationCopy, say_outside
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.no_output import NoOutput
from polarvault.basebackup.output import BackupContext, Output
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.receiver import Receiver, judge_pages, receive
from polarvault.basebackup.reporter import BackupReporter
from polarvault.basebackup.request import BackupRequest
from polarvault.basebackup.server_options import base_backup_options, refuse_impossible
from polarvault.basebackup.stdout_output import StdoutOutput
from polarvault.basebackup.tar_output import TarOutput
from polarvault.basebackup.wal_end import finish_wal
from polarvault.errors import ChecksumFailure, ServerError
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.pages import PAGE_BYTES, load_kernel
from polarvault.pipeline.page_check import PageCheck, PageFindings
from polarvault.polardb.layout import SHARED_HALF_NAME
from polarvault.server.base_backup import BackupStart, BaseBackup
from polarvault.server.connection import Connection, Connector, is_on_this_machine
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.server.transport import open_transport
from polarvault.server.wal_stream import SlotPlan, WalStream
from polarvault.storage import files

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


def take_base_backup(request: BackupRequest, connector: Connector, reporter: BackupReporter) -> BackupOutcome:
    """Take one base backup as asked; on failure leave behind what pg_basebackup would leave behind."""
    with ExitStack() as closing:
        connection = connector.replication()
        closing.callback(connection.close)
        identity = read_identity(connection)
        refuse_impossible(request, identity, connector, reporter)
        created = CreatedPaths(0o750 if identity.group_access else 0o700, sync=request.sync)
        context = BackupContext(request, identity, reporter, created, absences=Absences(identity.shared_data_directory))
        output = _choose_output(context)
        try:
            return _take(context, output, connection, connector, closing)
        except ServerError as error:
            _leave(request, output, created, reporter)
            raise explain_refusal(error) from None
        except ChecksumFailure:
            # As pg_basebackup: the files stay for inspection, but without a manifest they do not look whole.
            output.abandon()
            created.say_kept(reporter.step)
            raise
        except BaseException:
            _leave(request, output, created, reporter)
            raise


def _leave(request: BackupRequest, output: Output, created: CreatedPaths, reporter: BackupReporter) -> None:
    """Close and, unless the user wants to look at it, remove what a failed backup has written."""
    output.abandon()
    if request.clean:
        created.clean_up(reporter.step)
    else:
        created.say_kept(reporter.note)


def _take(
    context: BackupContext, output: Output, connection: Connection, connector: Connector, closing: ExitStack
) -> BackupOutcome:
    request, identity, reporter = context.request, context.identity, context.reporter
    output.claim()
    copy = ConfigurationCopy(context)
    port, is_here = connection.pgconn.port.decode("utf-8", "replace"), is_on_this_machine(connection)
    if request.copy_configuration:
        copy.read(connector, port=port, is_here=is_here)
    wal = _open_wal(context, connector)
    failed = True
    try:
        if request.write_recovery_conf:
            context.recovery_settings = _recovery_settings(context, connector)
        absences = context.absences
        transport = open_transport(connection, lambda notice: _pass_on(context, notice))
        if request.incremental is not None:
            transport.upload("UPLOAD_MANIFEST", _file_parts(request.incremental))
        backup = BaseBackup(
            transport, base_backup_options(request, identity), identity.version_num,
            shared_storage=identity.shared_storage,
        )  # fmt: skip
        start = _begin(context, backup, connection, connector)
        absences.raise_if_any(connector)
        output.begin(start)
        sink = output.wal_sink()
        if wal is not None and sink is not None:
            reporter.step("starting WAL stream")
            wal.start(sink, start.start_lsn, start.timeline_id)
        receiver = Receiver(context, output)
        closing.callback(receiver.close)
        try:
            receive(receiver, backup, transport, wal, lambda: absences.raise_if_any(connector))
        except ServerError as error:
            if error.sqlstate != _DATA_CORRUPTED:
                raise
            receiver.server_found_corruption = error
        received = receiver.result()
        if identity.shared_storage or wal is not None:
            finish_wal(context, connector, wal, sink, received)
        absences.raise_if_any(connector)
        judge_pages(receiver)
        copy.write()
        if not request.copy_configuration:
            absences.warn_of_configuration(reporter)
            if not absences.configuration:
                say_outside(context, connector, port=port, is_here=is_here)
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


def _choose_output(context: BackupContext) -> Output:
    request = context.request
    if request.target is not None:
        return NoOutput()
    if request.is_plain:
        return PlainOutput(context)
    if request.to_stdout:
        return StdoutOutput(context, 1)
    return TarOutput(context)


def _open_wal(context: BackupContext, connector: Connector) -> WalStream | None:
    if not context.streams_wal:
        return None
    request = context.request
    plan = SlotPlan.choose(name=request.slot, create=request.create_slot, no_slot=request.no_slot)
    stream = WalStream(connector, context.identity, plan, status_interval_s=request.status_interval_s)
    try:
        stream.open()
    except BaseException:
        stream.close(failed=True)
        raise
    slot = stream.slot
    if slot.temporary:
        context.reporter.step(f'created temporary replication slot "{slot.name}"')
    elif slot.create:
        context.reporter.step(f'created replication slot "{slot.name}"')
    return stream


def _recovery_settings(context: BackupContext, connector: Connector) -> bytes:
    shared = None
    if context.identity.shared_storage and context.request.directory is not None:
        default = os.path.join(context.request.directory, SHARED_HALF_NAME)
        shared = os.path.abspath(context.request.polardata or default)
    return recovery_settings.recovery_settings(
        connector, context.identity.version_num, slot=context.request.slot, shared_data_directory=shared
    )


def _begin(context: BackupContext, backup: BaseBackup, connection: Connection, connector: Connector) -> BackupStart:
    """Start the backup and wait for the checkpoint."""
    request, identity, reporter = context.request, context.identity, context.reporter
    checks_pages = identity.data_checksums and request.verify_checksums and identity.block_bytes == PAGE_BYTES
    checks_pages = checks_pages and not identity.is_newer
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
        if checks_pages:
            # Neither using the kernel nor leaving the program is safe while the compiler runs.
            compiling.join()
    reporter.step("checkpoint completed")
    reporter.step(f"write-ahead log start point: {start.start_lsn} on timeline {start.timeline_id}")
    context.start = start
    if identity.shared_storage and any(tablespace.oid for tablespace in start.tablespaces):
        reporter.warning(
            "this cluster has user tablespaces, which PolarDB cannot keep on shared storage; they are stored as the "
            "server sends them"
        )
    if checks_pages:
        context.page_check = PageCheck(
            start_lsn=start.start_lsn,
            # PostgreSQL forces full-page images during a backup; PolarDB does so only with full_page_writes on.
            wal_repairs_torn_pages=identity.full_page_writes or not identity.shared_storage,
            relation_segment_bytes=identity.relation_segment_bytes,
        )
    return start


def _pass_on(context: BackupContext, notice: ServerError) -> None:
    context.absences.take_notice(notice)
    context.reporter.notice(notice)


def _file_parts(path: str) -> Iterator[bytes]:
    try:
        with files.open_regular(path) as source:
            while part := source.read(1 << 16):
                yield part
    except OSError as problem:
        raise files.storage_failed(problem, "read", path) from problem
