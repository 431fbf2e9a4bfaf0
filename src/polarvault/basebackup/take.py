"""Take a base backup into files: which form, what -R and --copy-configuration add, what a failure leaves behind."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from polarvault.basebackup import recovery_settings
from polarvault.basebackup.copied_configuration import WithConfiguration
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.destination import Destination, Output
from polarvault.basebackup.places import pfs_target
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.request import BackupRequest
from polarvault.basebackup.server_target import ServerTarget
from polarvault.basebackup.stdout_output import StdoutOutput
from polarvault.basebackup.tar_output import TarOutput
from polarvault.errors import ChecksumFailure, ServerRefused
from polarvault.model.lsn import Lsn
from polarvault.pipeline.page_check import PageFindings
from polarvault.polardb.layout import SHARED_HALF_NAME
from polarvault.polardb.settings import gentle_mount, pfs_settings
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, show
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.take import Taking


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
    opened: list[tuple[CreatedPaths, Output]] = []

    def open_target(identity: ServerIdentity, connection: Connection) -> WithConfiguration:
        _refuse_places(request, identity)
        created = CreatedPaths(0o750 if identity.group_access else 0o700, sync=request.sync)
        settings = None
        if request.write_recovery_conf:
            settings = _recovery_settings(request, identity, connector, connection)
        destination = Destination(request, identity, reporter, created, settings)
        opened.append((created, output := _choose_output(destination, pfs_target(request))))
        return WithConfiguration(output, destination, connector, connection)

    try:
        taken = Taking(request, connector, reporter).into(open_target)
    except ChecksumFailure:
        # As pg_basebackup: the files stay for inspection, but without a manifest they do not look whole.
        for created, _ in opened:
            created.say_kept(reporter.step)
        raise
    except BaseException:
        for created, _ in opened:
            if request.clean:
                created.clean_up(reporter.step)
            else:
                created.say_kept(reporter.note)
        raise
    [(_, output)] = opened
    received, stored = taken.received, taken.stored
    start = received.facts.start
    return BackupOutcome(
        received.facts.identity, start.start_lsn, received.stop_lsn, start.timeline_id, received.received_bytes,
        stored.left_out_bytes, stored.left_out_files, received.pages, output.closing_notes(),
    )  # fmt: skip


def _refuse_places(request: BackupRequest, identity: ServerIdentity) -> None:
    if request.polardata is not None and not identity.shared_storage:
        raise ServerRefused(
            f"{identity.product} keeps its data in one directory, there is no shared half for --polardata",
            hint="run the command again without --polardata",
        )


def _choose_output(destination: Destination, mount: PfsMount | None) -> Output:
    request = destination.request
    if request.target is not None:
        return ServerTarget()
    if request.is_plain and mount is not None:
        # Loaded here: few have PFS.
        from polarvault.basebackup.pfs_output import PfsOutput

        return PfsOutput(destination, mount)
    if request.is_plain:
        return PlainOutput(destination)
    if request.to_stdout:
        return StdoutOutput(destination, 1)
    return TarOutput(destination)


def _recovery_settings(
    request: BackupRequest, identity: ServerIdentity, connector: Connector, connection: Connection
) -> bytes:
    storage: dict[str, str] = {}
    if identity.shared_storage and request.directory is not None:
        if (mount := pfs_target(request)) is not None:
            host_id = mount.host_id or 1
            wanted = [*pfs_settings(mount, host_id), gentle_mount()]
            storage = {one.name: one.value for one in wanted}
            return recovery_settings.recovery_settings(
                connector, identity.version_num, slot=request.slot, storage=storage
            )
        default = os.path.join(request.directory, SHARED_HALF_NAME)
        shared = os.path.abspath(request.polardata or default)
        storage = recovery_settings.storage_settings(shared, lambda name: show(connection, name))
    return recovery_settings.recovery_settings(connector, identity.version_num, slot=request.slot, storage=storage)
