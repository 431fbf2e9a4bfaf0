"""Take a base backup into a target: start reading here.

The order matters. Everything that can be refused is refused before the server starts a checkpoint; the WAL connection
stands before the backup begins; the target makes the backup valid after all else is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from polarvault.errors import ServerError
from polarvault.pgfiles.pages import load_kernel
from polarvault.server.base_backup import BackupStart, BaseBackup
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.server.transport import open_transport
from polarvault.server.wal_stream import SlotPlan, WalStream
from polarvault.storage import files
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.guards.absences import Absences, explain_refusal
from polarvault.taking.guards.checkpoint_watch import CheckpointWatch
from polarvault.taking.guards.courtesy import Courtesy
from polarvault.taking.receive import Receiver, name_bad_pages, refuse_bad_pages
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.request import ServerRequest, SourceKind
from polarvault.taking.server_options import base_backup_options, checks_pages, refuse_impossible
from polarvault.taking.source import BackupSource, StreamSource
from polarvault.taking.target import BackupTarget
from polarvault.taking.wal_end import finish_wal

if TYPE_CHECKING:
    from polarvault.taking.local.place import LocalPlace


@dataclass(frozen=True, slots=True)
class TakenBackup:
    """A backup that its target has committed."""

    received: ReceivedBackup
    stored: StoredBackup


class Taking:
    """One backup being taken: the server, what is asked of it, who is told."""

    def __init__(
        self, request: ServerRequest, connector: Connector, reporter: BackupReporter, *,
        earlier_manifest: Callable[[], bytes | None] = lambda: None,
    ) -> None:  # fmt: skip
        """earlier_manifest: asked once the target is open, for the backup since which the server is to send changes."""
        self._request = request
        self._earlier_manifest = earlier_manifest
        self._connector = connector
        self._reporter = reporter
        self._started = datetime.now(UTC)

    def into(self, open_target: Callable[[ServerIdentity, Connection], BackupTarget]) -> TakenBackup:
        """Take the backup into the target that open_target returns for this server; it is aborted on failure."""
        with ExitStack() as closing:
            connection = self._connector.replication()
            closing.callback(connection.close)
            identity = read_identity(connection)
            refuse_impossible(self._request, identity, self._connector, self._reporter)
            target = open_target(identity, connection)
            try:
                return self._take(identity, target, connection, closing)
            except BaseException as error:
                # What cannot be closed any more is not what the user has to hear about.
                with suppress(OSError):
                    target.abort()
                if isinstance(error, ServerError):
                    raise explain_refusal(error) from None
                raise

    def _take(
        self, identity: ServerIdentity, target: BackupTarget, connection: Connection, closing: ExitStack
    ) -> TakenBackup:
        request, connector, reporter = self._request, self._connector, self._reporter
        place = None
        if request.source in (SourceKind.LOCAL, SourceKind.PFS):
            place = self._find_place(request, identity, connection, closing)
        target.claim()
        earlier = self._earlier_manifest() if place is None else None
        if earlier is not None:
            request = replace(request, incremental=earlier)
        if request.source is SourceKind.AUTO:
            place = self._find_place(request, identity, connection, closing)
        absences = Absences(identity.shared_data_directory)
        wal = self._open_wal(identity)
        failed, source = True, None
        try:

            def pass_on(notice: ServerError) -> None:
                absences.take_notice(notice)
                reporter.notice(notice)

            source = self._open_source(request, identity, connection, closing, pass_on, place)
            # The wait for the checkpoint is long enough for a first measurement.
            courtesy = self._courtesy(closing)
            start = self._begin(source, identity)
            absences.raise_if_any(connector)
            facts = BackupFacts(identity, start, request.label, self._started, request.wal_method, wal is not None)
            target.begin(facts)
            sink = target.wal()
            if wal is not None and sink is not None:
                reporter.step("starting WAL stream")
                wal.start(sink, start.start_lsn, start.timeline_id)
            receiver = Receiver(
                facts, target, reporter, absences, findings=source.findings, keep_manifest=request.manifest
            )
            closing.callback(receiver.close)

            def tick() -> None:
                if wal is not None:
                    wal.raise_failure()
                absences.raise_if_any(connector)
                receiver.report()

            source.run(receiver, tick, courtesy.pause if courtesy is not None else None)
            receiver.report(final=True)
            received = receiver.result()
            if identity.shared_storage or wal is not None:
                finish_wal(received, connector, reporter, wal, sink)
            absences.raise_if_any(connector)
            if sink is not None and received.pages is not None and received.pages.suspects:
                # The WAL reader takes its time to load, and most backups have no bad page.
                from polarvault.taking.guards.torn_pages import settle_pages

                settle_pages(received, sink, reporter, identity.segment_size_bytes)
            name_bad_pages(received, reporter)
            if request.refuses_bad_pages:
                refuse_bad_pages(received)
            stored = target.commit(received)
            failed = False
        finally:
            if failed and source is not None:
                source.cancel()
            if wal is not None:
                wal.close(failed=failed)
        reporter.step("base backup completed")
        return TakenBackup(received, stored)

    def _find_place(
        self, request: ServerRequest, identity: ServerIdentity, connection: Connection, closing: ExitStack
    ) -> LocalPlace | None:
        """Return the server's directories on this host, if the files are to be read from there."""
        # Most backups come by the stream.
        from polarvault.taking.local.choose import choose_place

        place = choose_place(request, identity, self._connector, connection, self._reporter)
        if place is not None:
            closing.callback(place.close)
        return place

    def _courtesy(self, closing: ExitStack) -> Courtesy | None:
        if self._request.courtesy is None:
            return None
        courtesy = Courtesy(self._connector, self._reporter, self._request.courtesy)
        closing.callback(courtesy.close)
        courtesy.start()
        return courtesy

    def _open_wal(self, identity: ServerIdentity) -> WalStream | None:
        """Open the second connection, over which WAL is streamed, if the WAL comes that way.

        PolarDB's server leaves the end of the WAL out of a fetch (facts 1.6), so there a fetch is a stream.
        """
        request = self._request
        fetches = request.wal_method == "fetch" and identity.shared_storage and not request.target
        if request.wal_method != "stream" and not fetches:
            return None
        plan = SlotPlan.choose(name=request.slot, create=request.create_slot, no_slot=request.no_slot)
        stream = WalStream(self._connector, identity, plan, status_interval_s=request.status_interval_s)
        try:
            stream.open()
        except BaseException:
            stream.close(failed=True)
            raise
        slot = stream.slot
        if slot.temporary:
            self._reporter.step(f'created temporary replication slot "{slot.name}"')
        elif slot.create:
            self._reporter.step(f'created replication slot "{slot.name}"')
        return stream

    def _begin(self, source: BackupSource, identity: ServerIdentity) -> BackupStart:
        """Start the backup and wait for the checkpoint."""
        request, reporter = self._request, self._reporter
        checked = checks_pages(request, identity)
        # Compiling takes 50 ms that the wait for the checkpoint has to spare.
        compiling = threading.Thread(target=load_kernel, name="kernel", daemon=True)
        if checked:
            compiling.start()
        reporter.step("initiating base backup, waiting for checkpoint to complete")
        watch = CheckpointWatch(
            self._connector, reporter,
            is_polardb=identity.polar_version is not None, backend_pid=source.backend_pid,
            patience_s=request.checkpoint_timeout_s, spread=not request.checkpoint_fast,
        )  # fmt: skip
        try:
            start = source.start(watch.tick)
        finally:
            watch.close()
            if checked:
                # Neither using the kernel nor leaving the program is safe while the compiler runs.
                compiling.join()
        reporter.step("checkpoint completed")
        reporter.step(f"write-ahead log start point: {start.start_lsn} on timeline {start.timeline_id}")
        if identity.shared_storage and any(tablespace.oid for tablespace in start.tablespaces):
            reporter.warning(
                "this cluster has user tablespaces, which PolarDB cannot keep on shared storage; they are stored as "
                "the server sends them"
            )
        if checked:
            source.check_pages(
                start_lsn=start.start_lsn,
                # PostgreSQL forces full-page images during a backup; PolarDB does so only with full_page_writes on.
                wal_repairs_torn_pages=identity.full_page_writes or not identity.shared_storage,
            )
        return start

    def _open_source(
        self, request: ServerRequest, identity: ServerIdentity, connection: Connection, closing: ExitStack,
        pass_on: Callable[[ServerError], None], place: LocalPlace | None,
    ) -> BackupSource:  # fmt: skip
        """Return what the bytes come from: the files themselves where there is a place, else the server's stream."""
        if place is not None:
            from polarvault.taking.local.source import LocalSource

            options = base_backup_options(request, identity)
            source = LocalSource(place, identity, request, waits=options.wait, notice=pass_on)
            closing.callback(source.close)
            return source
        transport = open_transport(connection, pass_on)
        closing.callback(transport.close)
        if request.incremental is not None:
            transport.upload("UPLOAD_MANIFEST", _parts(request.incremental))
        backup = BaseBackup(
            transport, base_backup_options(request, identity), identity.version_num,
            shared_storage=identity.shared_storage,
        )  # fmt: skip
        return StreamSource(connection, transport, backup, identity)


def _parts(manifest: str | bytes) -> Iterator[bytes]:
    """Yield a manifest, given itself or by its path, in parts."""
    if isinstance(manifest, bytes):
        yield from (manifest[at : at + (1 << 16)] for at in range(0, len(manifest), 1 << 16))
        return
    path = manifest
    try:
        with files.open_regular(path) as source:
            while part := source.read(1 << 16):
                yield part
    except OSError as problem:
        raise files.storage_failed(problem, "read", path) from problem
