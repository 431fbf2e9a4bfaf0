"""The use case without a connection: only where everything, WAL included, lies in one atomic snapshot.

Such a copy is what a power cut would have left, and recovery makes of that what was committed; but nobody has told it
where it is consistent. So it is made a backup like a standby's: pg_control says that recovery has to get to the end of
the WAL that is in the copy (of a standby: to its own minimum recovery point), and a label says so to everybody else.
The server itself then refuses every earlier target. What is judged are the files of the copy, not those of the source,
which go on changing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from polarvault.backupset.model import CONTROL_NAME
from polarvault.errors import StorageFailed
from polarvault.instance.host import Host
from polarvault.instance.lock_file import LOCK_FILE_NAME, is_running
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgconf.configuration import Configuration
from polarvault.pgfiles.backup_label import standby_label
from polarvault.pgfiles.control import ClusterState, ControlFile, as_recovering, parse_control
from polarvault.polardb.settings import DATADIR, split_protocol, uses_shared_storage
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.model import SnapshotProvider
from polarvault.snapshots.mounts import mount_of
from polarvault.snapshotting.complete import Directories, complete
from polarvault.snapshotting.create import prepared_shelf
from polarvault.snapshotting.model import SnapshotRecord, SnapshotRequest
from polarvault.snapshotting.own_wal import wal_end
from polarvault.snapshotting.shelf import Slot
from polarvault.snapshotting.source import Source, chosen_provider, copy_of, refuse_nested
from polarvault.storage.files import open_regular, storage_failed
from polarvault.taking.reporter import BackupReporter

_MOST_CONTROL_BYTES = 1 << 16
# Programs that change a data directory while no server runs there; in their middle it is nothing.
_CHANGING = frozenset({"pg_rewind", "pg_resetwal", "pg_checksums", "pg_upgrade", "pg_basebackup", "pg_combinebackup"})
_WITH_CONNECTION = "take it with a connection, which makes up for that: -d CONNSTR"
_SIGNALS = ("standby.signal", "recovery.signal")


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a copy is. end_lsn: it is consistent from there on. label, control: what it lacks; None: nothing."""

    control: ControlFile
    end_lsn: Lsn
    from_standby: bool
    label: bytes | None
    new_control: bytes | None


def create_snapshot_alone(
    request: SnapshotRequest, data: str, shared: str | None, reporter: BackupReporter, *,
    clock: Callable[[], datetime],
) -> SnapshotRecord:  # fmt: skip
    """Take a snapshot of a data directory, of a server that runs or was shut down; return what is written down.

    shared: PolarDB's shared half, None to find it by the settings. Raises SnapshotRefused; then nothing is left.
    """
    shelf = prepared_shelf(request, reporter.note)
    source = _find_source(data, shared)
    refuse_nested(source)
    _refuse_while_changed(source)
    runs = is_running(source.local)
    slot = shelf.new()
    record = SnapshotRecord(
        id=slot.id, name=request.name or slot.id, series=request.series, made=clock(), source=source.local, provider="",
        directories=tuple(source.directories), is_polardb=source.shared is not None, connected=False,
    )  # fmt: skip
    slot.make(record)
    with slot.locked():
        try:
            provider, record = chosen_provider(request, record, source, slot, reporter)
            _refuse_torn(provider, source)
            # Before anything is made: what a kill leaves is found by it.
            slot.write_record(record)
            reporter.step(f"snapshot of {', '.join(source.directories)} by {provider.name}")
            record = _take(request, record, provider, source, slot, runs=runs)
            slot.finish(record)
        except BaseException:
            slot.remove()
            raise
    return record


def _take(
    request: SnapshotRequest, record: SnapshotRecord, provider: SnapshotProvider, source: Source, slot: Slot, *,
    runs: bool,
) -> SnapshotRecord:  # fmt: skip
    made = provider.create(source.directories, slot.id)
    directories = copy_of(provider, made, slot, source)
    judged = _judge(request, directories, record.made, source, runs=runs)
    control = judged.control
    first = WalSegment.holding(control.redo_lsn, control.timeline_id, control.wal_segment_size).file_name
    version = _version(directories)
    description = {
        "format": 1, "label": request.label, "server_version": version,
        "system_identifier": str(control.system_identifier), "polardb": source.shared is not None,
        "wal_segment_size": control.wal_segment_size, "start_lsn": str(control.redo_lsn),
        "stop_lsn": str(judged.end_lsn), "timeline": control.timeline_id, "snapshot": slot.id,
    }  # fmt: skip
    complete(
        directories, label=judged.label, control=judged.new_control, wal=directories.wal, description=description,
        first_segment=first,
    )  # fmt: skip
    return replace(
        record, backup=directories.local, shared=directories.shared, version=version,
        system_identifier=str(control.system_identifier), from_standby=judged.from_standby,
        start_lsn=str(control.redo_lsn), stop_lsn=str(judged.end_lsn), timeline_id=control.timeline_id,
    )  # fmt: skip


def _find_source(data: str, shared: str | None) -> Source:
    """Return the directories by their real paths; raise SnapshotRefused for what is no data directory."""
    local = os.path.realpath(data)
    if not os.path.exists(os.path.join(local, "PG_VERSION")):
        raise SnapshotRefused(f'"{data}" is no data directory: it has no PG_VERSION', hint=f"ls -ld {data}")
    if os.path.exists(os.path.join(local, "replica.signal")):
        raise SnapshotRefused(
            f'"{data}" is of a read-only node of PolarDB', hint="take the snapshot where the primary or a standby runs"
        )
    value = Configuration(local, Host()).value
    if shared is None and uses_shared_storage(value):
        protocol, path = split_protocol(value(DATADIR) or "")
        if protocol not in (None, "file", "file-dio"):
            raise SnapshotRefused(
                f"the shared half is at {value(DATADIR)}, which is no directory of this machine",
                hint="take a backup of it: polarvault basebackup",
            )
        shared = os.path.normpath(os.path.join(local, path))
    shared = None if shared is None else os.path.realpath(shared)
    where = shared or local
    if not os.path.exists(os.path.join(where, CONTROL_NAME)):
        raise SnapshotRefused(
            f'"{where}" holds no {CONTROL_NAME}', hint="of a PolarDB, name its shared half: --polardata DIR"
        )
    wal = os.path.realpath(os.path.join(where, "pg_wal"))
    return Source(local, shared, _tablespaces(local), None if wal == os.path.join(where, "pg_wal") else wal)


def _tablespaces(local: str) -> dict[str, str]:
    directory = os.path.join(local, "pg_tblspc")
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    paths = {name: os.path.join(directory, name) for name in names}
    return {name: os.path.realpath(path) for name, path in paths.items() if os.path.islink(path)}


def _refuse_torn(provider: SnapshotProvider, source: Source) -> None:
    directories = source.directories
    if provider.is_atomic(directories):
        return
    what = ", ".join(f'"{one}" ({mount_of(one).kind})' for one in directories)
    raise SnapshotRefused(
        f"without a connection everything has to be of one moment, and a snapshot of {what} by {provider.name} is not: "
        f"{provider.atomicity(directories)}",
        hint=f"{_WITH_CONNECTION}; ZFS takes all datasets of one pool at one moment, btrfs one subvolume",
    )


def _refuse_while_changed(source: Source) -> None:
    """Raise SnapshotRefused while a program changes the directory of which no pg_control tells it."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as stream:
                words = [os.fsdecode(word) for word in stream.read().split(b"\0")]
        except OSError:
            continue  # It ended while we looked.
        program = os.path.basename(words[0])
        named = {os.path.realpath(word.rpartition("=")[2].removeprefix("-D")) for word in words[1:] if "/" in word}
        if program in _CHANGING and named.intersection(source.directories):
            raise SnapshotRefused(
                f'{program} (process {name}) is changing "{source.local}"', hint="wait until it has ended"
            )


def _judge(request: SnapshotRequest, copy: Directories, now: datetime, source: Source, *, runs: bool) -> _Judged:
    """Return what a copy is; raise SnapshotRefused for one that is neither of a running server nor of a stopped one."""
    content = _read(os.path.join(copy.data, CONTROL_NAME))
    control = parse_control(content, os.path.join(source.shared or source.local, CONTROL_NAME))
    names = set(os.listdir(copy.local))
    runs = runs and LOCK_FILE_NAME in names
    if "backup_label" in names:
        raise _refused(source, "holds a backup_label: it is a backup, or pg_rewind's work, that was never started")
    if control.state is ClusterState.IN_PRODUCTION and runs and not names.intersection(_SIGNALS):
        if control.minimum_recovery_lsn:
            raise _refused(
                source, "was promoted, and its first checkpoint has not ended yet: a copy would open with "
                "inconsistent data, without a word",
                hint="end it: psql -c CHECKPOINT; then take the snapshot again",
            )  # fmt: skip
        end = wal_end(copy.pg_wal, control)
        if end <= control.checkpoint_lsn:
            raise _refused(source, f"has no WAL of its checkpoint at {control.checkpoint_lsn} in its pg_wal")
        recovering = as_recovering(content, end)
        label = standby_label(parse_control(recovering), now, request.label)
        return _Judged(control, end, False, label, recovering)
    if control.state is ClusterState.IN_ARCHIVE_RECOVERY and runs and "standby.signal" in names:
        end = control.minimum_recovery_lsn
        if not end or control.backup_start_lsn:
            raise _refused(
                source, "has not yet replayed all WAL of the backup that it was made of",
                hint="wait until it takes queries, and take the snapshot again",
            )  # fmt: skip
        if (has := wal_end(copy.pg_wal, control)) < end:
            raise _refused(source, f"has WAL up to {has} only, and its data need it up to {end}")
        return _Judged(control, end, True, standby_label(control, now, request.label), None)
    if control.state.is_clean and not runs and LOCK_FILE_NAME not in names:
        if control.state is ClusterState.SHUT_DOWN:
            end = max(wal_end(copy.pg_wal, control), control.checkpoint_lsn)
            return _Judged(control, end, False, None, None)
        end = Lsn(max(control.minimum_recovery_lsn, control.checkpoint_lsn))
        return _Judged(control, end, True, standby_label(control, now, request.label), None)
    state = control.state.name.lower().replace("_", " ")
    raise _refused(
        source, f"is neither of a server that runs nor of one that was shut down: pg_control says {state}, and "
        f"{'its server was running' if runs else 'no server was running there'}",
        hint="start it, or shut it down cleanly; or take the snapshot with a connection: -d CONNSTR",
    )  # fmt: skip


def _refused(source: Source, what: str, hint: str = _WITH_CONNECTION) -> SnapshotRefused:
    return SnapshotRefused(f'"{source.local}" {what}', hint=hint)


def _read(path: str) -> bytes:
    try:
        with open_regular(path) as stream:
            content: bytes = stream.read(_MOST_CONTROL_BYTES)
            return content
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem


def _version(copy: Directories) -> str:
    try:
        return _read(os.path.join(copy.local, "PG_VERSION")).decode("ascii", "replace").strip()[:20]
    except StorageFailed:
        return ""
