"""What this server is asked for, and what it is refused for, given the request."""

from __future__ import annotations

from polarvault.errors import ServerRefused
from polarvault.model import versions
from polarvault.pgfiles.pages import PAGE_BYTES
from polarvault.server.connection import Connector
from polarvault.server.identity import ServerIdentity
from polarvault.taking.guards.node_role import refuse_replica
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.request import ServerRequest
from polarvault.wire.commands import BaseBackupOptions


def checks_pages(request: ServerRequest, identity: ServerIdentity) -> bool:
    """Tell whether the checksum of every page is verified here as it passes."""
    wanted = identity.data_checksums and request.verify_checksums
    return wanted and identity.block_bytes == PAGE_BYTES and not identity.is_newer


def base_backup_options(request: ServerRequest, identity: ServerIdentity) -> BaseBackupOptions:
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
        # Ours sees every page that the server's would, and more: twice only costs the server's one process.
        verify_checksums=request.verify_checksums and (request.server_verifies or not checks_pages(request, identity)),
        manifest=("force-encode" if request.manifest_force_encode else "yes") if request.manifest else None,
        manifest_checksums=request.manifest_checksums,
        incremental=request.incremental is not None,
        target=request.target.partition(":")[0] if request.target else None,
        target_detail=(request.target.partition(":")[2] or None) if request.target else None,
        compression=request.compression.algorithm if by_server else None,
        compression_detail=request.compression.detail if by_server else None,
    )


def refuse_impossible(
    request: ServerRequest, identity: ServerIdentity, connector: Connector, reporter: BackupReporter
) -> None:
    """Refuse what this server cannot do, before it starts a checkpoint for it."""
    server = versions.of_server(identity.version_num)
    if request.incremental is not None and not server.makes_incremental_backups:
        raise ServerRefused(
            f"server version {identity.version} does not support incremental backup", hint="it needs PostgreSQL 17"
        )
    if not server.takes_option_lists:
        if request.target is not None:
            raise ServerRefused(f"backup targets are not supported by server version {identity.version}")
        if request.compression.location == "server" and request.compression.algorithm != "none":
            raise ServerRefused(
                f"server version {identity.version} does not support server-side compression",
                hint=f"compress on the client: -Z client-{request.compression.algorithm}",
            )
    if identity.is_newer:
        reporter.warning(
            f"{versions.is_not_known(identity.product)}; files, manifest and WAL are saved as they come; "
            "pages are checked by the server alone, and whether the WAL ends with the backup's last record is not"
        )
    if identity.shared_storage:
        refuse_replica(identity, connector)
        if not identity.full_page_writes:
            reporter.note(
                "full_page_writes is off on the server: every page is checked for torn writes as it passes"
                if identity.data_checksums and request.verify_checksums
                else "full_page_writes is off and pages are not checked: torn pages would go unnoticed"
            )
