"""The use case: pg_backup_start, snapshot, pg_backup_stop, the WAL between, a plain backup.

The server itself enforces how far a copy must recover: its backup_label says where, and the WAL up to there is kept
with it. So the directories may lie on several file systems, and their parts may be of different moments. What is read
last is pg_control (on a standby it says how far replay has to get). On a failure nothing is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

from polarvault.errors import PolarvaultError, ServerRefused
from polarvault.pipeline.wal_sinks import WalDirectory
from polarvault.server.base_backup import BackupStart
from polarvault.server.connection import Connector
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.server.wal_stream import SlotPlan, WalStream
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.model import SnapshotProvider
from polarvault.snapshotting.complete import Directories, complete
from polarvault.snapshotting.model import SnapshotRecord, SnapshotRequest
from polarvault.snapshotting.shelf import Shelf, Slot
from polarvault.snapshotting.source import Source, chosen_provider, copy_of, refuse_nested
from polarvault.taking.facts import BackupFacts, ReceivedBackup
from polarvault.taking.guards.checkpoint_watch import CheckpointWatch
from polarvault.taking.guards.node_role import refuse_replica
from polarvault.taking.local.layout import find_archives
from polarvault.taking.local.place import LocalPlace, NotHere, find_place, read_control
from polarvault.taking.local.session import BackupSession, Stopped
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.wal_end import finish_wal


def create_snapshot(
    request: SnapshotRequest, connector: Connector, reporter: BackupReporter, *, clock: Callable[[], datetime]
) -> SnapshotRecord:
    """Take a snapshot of the server that the connector reaches; return what is written down about it."""
    shelf = prepared_shelf(request, reporter.note)
    with ExitStack() as closing:
        connection = connector.replication()
        closing.callback(connection.close)
        identity = read_identity(connection)
        _refuse_impossible(identity, connector)
        try:
            place = find_place(connector, connection, identity)
        except NotHere as problem:
            raise ServerRefused(
                f"a snapshot is made where the server's files are, and {problem.why}", hint=problem.what_to_do
            ) from None
        closing.callback(place.close)
        source = _find_source(place, identity)
        slot = shelf.new()
        record = SnapshotRecord(
            id=slot.id, name=request.name or slot.id, series=request.series, made=clock(), source=source.local,
            provider="", directories=tuple(source.directories), system_identifier=identity.system_identifier,
            version=identity.version, is_polardb=identity.polar_version is not None,
            from_standby=identity.in_recovery,
        )  # fmt: skip
        slot.make(record)
        with slot.locked():
            try:
                provider, record = chosen_provider(request, record, source, slot, reporter)
                _refuse_torn(provider, identity)
                # Before anything is made: what a kill leaves is found by it.
                slot.write_record(record)
                record = _take(request, connector, reporter, identity, place, source, provider, slot, record)
                slot.finish(record)
            except BaseException:
                slot.remove()
                raise
    return record


def _take(
    request: SnapshotRequest, connector: Connector, reporter: BackupReporter, identity: ServerIdentity,
    place: LocalPlace, source: Source, provider: SnapshotProvider, slot: Slot, record: SnapshotRecord,
) -> SnapshotRecord:  # fmt: skip
    session = BackupSession(
        place.sql, identity, label=request.label, fast=request.checkpoint_fast, waits=False
    )  # fmt: skip
    wal = WalStream(connector, identity, SlotPlan.choose(name=None, create=False, no_slot=False), status_interval_s=10)
    failed = True
    try:
        wal.open()
        reporter.step("waiting for the checkpoint of pg_backup_start")
        watch = CheckpointWatch(
            connector, reporter, is_polardb=record.is_polardb, backend_pid=session.backend_pid,
            patience_s=request.checkpoint_timeout_s, spread=not request.checkpoint_fast,
        )  # fmt: skip
        try:
            start_lsn = session.start(watch.tick)
        finally:
            watch.close()
        os.mkdir(slot.wal, 0o700)
        sink = WalDirectory(slot.wal, file_mode=0o600, directory_mode=0o700, sync=True)
        start = BackupStart(start_lsn, session.timeline_id, [])
        wal.start(sink, start_lsn, session.timeline_id)
        began = time.monotonic()
        reporter.step(f"snapshot of {', '.join(source.directories)} by {provider.name}")
        made = provider.create(source.directories, slot.id)
        control, _ = _control_of(place)
        stopped = session.stop(start_lsn, wal.raise_failure)
        held_s = time.monotonic() - began
        received = ReceivedBackup(
            BackupFacts(identity, start, request.label, datetime.now(UTC), "stream", streams_wal=True),
            stopped.stop_lsn, session.timeline_id, 0,
        )  # fmt: skip
        finish_wal(received, connector, reporter, wal, sink)
        sink.finish()
        failed = False
    finally:
        if failed:
            session.cancel()
        wal.close(failed=failed)
    directories = copy_of(provider, made, slot, source)
    description = {
        "format": 1, "label": request.label, "server_version": identity.version,
        "server_version_num": identity.version_num, "system_identifier": identity.system_identifier,
        "polardb": record.is_polardb, "polar_version": identity.polar_version,
        "shared_storage": identity.shared_storage, "wal_segment_size": identity.segment_size_bytes,
        "start_lsn": str(start_lsn), "stop_lsn": str(stopped.stop_lsn), "timeline": session.timeline_id,
        "snapshot": slot.id,
    }  # fmt: skip
    _check_tablespaces(place, identity, source)
    complete(
        directories, label=stopped.label, control=None if record.is_atomic else control, wal=slot.wal,
        description=description,
    )  # fmt: skip
    return _ended(record, directories, start_lsn=str(start_lsn), stopped=stopped, held_s=held_s, session=session)


def _ended(
    record: SnapshotRecord, directories: Directories, *, start_lsn: str, stopped: Stopped, held_s: float,
    session: BackupSession,
) -> SnapshotRecord:  # fmt: skip
    return replace(
        record, backup=directories.local, shared=directories.shared, start_lsn=start_lsn,
        stop_lsn=str(stopped.stop_lsn), timeline_id=session.timeline_id, held_s=held_s,
    )  # fmt: skip


def _find_source(place: LocalPlace, identity: ServerIdentity) -> Source:
    """Return the server's directories by their real paths; raise SnapshotRefused for those in one another."""
    spaces = _tablespaces(place, identity)
    shared = None if place.shared is None else os.path.realpath(place.shared.address)
    source = Source(os.path.realpath(place.data.address), shared, spaces)
    refuse_nested(source)
    return source


def prepared_shelf(request: SnapshotRequest, note: Callable[[str], None]) -> Shelf:
    """Return the directory of snapshots, without what killed commands have left; raise SnapshotRefused for its name."""
    shelf = Shelf(request.at)
    shelf.make()
    for done in shelf.sweep():
        note(done)
    if request.name is not None and shelf.with_name(request.name):
        raise SnapshotRefused(f'there is a snapshot "{request.name}" already', hint="choose another name")
    return shelf


def _tablespaces(place: LocalPlace, identity: ServerIdentity) -> dict[str, str]:
    archives = find_archives(place, identity, with_links=True, skip_special=lambda name: None)
    return {
        str(one.tablespace.oid): os.path.realpath(one.tablespace.location)
        for one in archives
        if one.tablespace.oid is not None and one.tablespace.location and one.tablespace.location.startswith("/")
    }


def _check_tablespaces(place: LocalPlace, identity: ServerIdentity, source: Source) -> None:
    if _tablespaces(place, identity) != source.tablespaces:
        raise SnapshotRefused(
            "tablespaces were made, moved or dropped while the snapshot was taken", hint="take it again"
        )


def _control_of(place: LocalPlace) -> tuple[bytes, object]:
    try:
        return read_control(place.shared or place.data)
    except NotHere as problem:
        raise ServerRefused(problem.why, hint=problem.what_to_do) from None


def _refuse_impossible(identity: ServerIdentity, connector: Connector) -> None:
    refuse_replica(identity, connector)
    if identity.is_newer:
        raise ServerRefused(
            f"{identity.product} is newer than what is known of data directories", hint="use a newer polarvault"
        )


def _refuse_torn(provider: SnapshotProvider, identity: ServerIdentity) -> None:
    """Raise SnapshotRefused where a copy would hold halves of pages, and no WAL has them whole (facts 5.4)."""
    if provider.name == "copy" and identity.polar_version is not None and not identity.full_page_writes:
        raise SnapshotRefused(
            "full_page_writes is off on this PolarDB, and its files can only be copied here: a page could be copied "
            "while it is written",
            hint="name a directory on the same XFS or btrfs: --at DIR; or take a backup, whose pages are checked: "
            "polarvault basebackup",
        )


def remove_snapshot(shelf: Shelf, word: str) -> str:
    """Remove a snapshot; return its name. Raises SnapshotRefused, StillNeeded, NotOurs."""
    slot = shelf.find(word)
    record = slot.record()
    with slot.locked():
        try:
            slot.remove()
        except PolarvaultError as problem:
            if problem.hint is None:
                problem.hint = "what was not removed is still there, and is removed by the same line later"
            raise
    return record.name if record else slot.id
