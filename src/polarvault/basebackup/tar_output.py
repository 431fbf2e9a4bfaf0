"""Tar format: one tar file an archive, pg_wal.tar beside them, compressed if asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace

from polarvault.basebackup.archive_writer import ArchiveWriter
from polarvault.basebackup.output import (
    BackupContext,
    ReceivedBackup,
    half_documents,
    seal_backup,
    write_documents,
)
from polarvault.basebackup.recovery_settings import AUTO_CONF, STANDBY_SIGNAL
from polarvault.model.compression import Compression
from polarvault.pipeline.byte_sinks import ByteSink, FileBytes, compressed
from polarvault.pipeline.decompress import plain_name
from polarvault.pipeline.member_sinks import TarSink
from polarvault.pipeline.wal_sinks import WalTar
from polarvault.server.base_backup import ArchiveBegins, BackupStart
from polarvault.server.wal_stream import WalSink

SHARED_MANIFEST = "backup_manifest.shared"
# Opens a new file by name, with the compressor in front of it.
FileOpener = Callable[[str, Compression], ByteSink]


class TarOutput:
    """Writes tar files into -D; PolarDB's data.tar and its WAL go to --polardata if that is given."""

    def __init__(self, context: BackupContext) -> None:
        assert context.request.directory is not None
        self._context = context
        self._root = context.request.directory
        self.spool_directory: str | None = self._root
        self._shared_root = self._root
        if context.identity.shared_storage and context.request.polardata is not None:
            self._shared_root = context.request.polardata
        self._sinks: list[ByteSink] = []

    def claim(self) -> None:
        """Make or check -D and --polardata."""
        created = self._context.created
        created.claim(self._root)
        created.mark(self._root)
        if self._shared_root != self._root:
            created.claim(self._shared_root)
            created.mark(self._shared_root)

    def begin(self, start: BackupStart) -> None:
        """Tablespaces become tar files; there is nothing to prepare."""

    def wal_sink(self) -> WalSink | None:
        """Return pg_wal.tar: gzip as the data, but never lz4 or zstd, as pg_basebackup has it."""
        if not self._context.streams_wal:
            return None
        compression = self._context.tar_compression
        if compression.algorithm != "gzip":
            compression = Compression()
        path = os.path.join(self._shared_root, "pg_wal.tar" + compression.suffix)
        return WalTar(self._file(self._shared_root, "pg_wal.tar", compression), path)

    def open_archive(self, event: ArchiveBegins) -> ArchiveWriter:
        """Open the archive's tar file."""
        root = self._shared_root if event.tablespace.shared else self._root
        return open_tar_archive(self._context, event, lambda name, how: self._file(root, name, how))

    def finish(self, received: ReceivedBackup) -> None:
        """Write manifests, sync all, rename the manifests into place."""
        manifests = self._write_manifests(received)
        seal_backup(self._context, {self._root, self._shared_root}, manifests)

    def abandon(self) -> None:
        """Close what is open; files are removed by CreatedPaths."""
        for sink in self._sinks:
            sink.abandon()

    def closing_notes(self) -> list[str]:
        """Say where both halves are and how to restore them."""
        if not self._context.identity.shared_storage:
            return []
        local, shared = os.path.abspath(self._root), os.path.abspath(self._shared_root)
        suffix = self._context.request.compression.suffix
        return [
            f"local half:  {local}/base.tar{suffix}",
            f"shared half: {shared}/data.tar{suffix}",
            f"restore:     polarvault restore {shlex.quote(local)} -D NEW_DIRECTORY --polardata NEW_SHARED_DIRECTORY",
        ]

    def _file(self, root: str, name: str, compression: Compression) -> ByteSink:
        path = os.path.join(root, name + compression.suffix)
        modes, sync = self._context.modes, self._context.request.sync
        sink = compressed(FileBytes(path, mode=modes.file, writeback=sync), compression)
        self._sinks.append(sink)
        return sink

    def _write_manifests(self, received: ReceivedBackup) -> list[str]:
        """Write what describes the backup, manifests under temporary names; return their final names."""
        if not self._context.identity.shared_storage:
            return write_documents(self._context, self._root, {"backup_manifest.tmp": received.manifest})
        apart = self._shared_root != self._root
        where = os.path.abspath(self._shared_root) if apart else None
        added, made = half_documents(self._context, received, shared_half=where)
        local, shared = dict(added), {}
        if made is not None:
            # One directory can hold only one file of that name, so the shared half's may need a name of its own.
            shared_name = "backup_manifest" if apart else SHARED_MANIFEST
            local["backup_manifest.tmp"], shared[shared_name + ".tmp"] = made.local, made.shared
        return [
            *write_documents(self._context, self._shared_root, shared),
            *write_documents(self._context, self._root, local),
        ]


def recovery_members(context: BackupContext, event: ArchiveBegins) -> dict[str, bytes]:
    """Return what -R appends to files of this archive."""
    tablespace = event.tablespace
    if context.recovery_settings is None or tablespace.oid is not None or tablespace.shared:
        return {}
    return {AUTO_CONF: context.recovery_settings, STANDBY_SIGNAL: b""}


def open_tar_archive(context: BackupContext, event: ArchiveBegins, open_file: FileOpener) -> ArchiveWriter:
    """Return a writer for one archive in tar format.

    What the server has compressed is stored as it comes, unless -R has to change what is inside.
    """
    appended = recovery_members(context, event)
    by_server = plain_name(event.name) != event.name
    verbatim: ByteSink | None = None
    if by_server and not appended:
        verbatim = open_file(event.name, Compression())
        sink = TarSink(verbatim)
    else:
        compression = context.tar_compression
        if by_server:
            compression = replace(context.request.compression, location="client")
        sink = TarSink(open_file(plain_name(event.name), compression), appended=appended)
    return ArchiveWriter(
        event.name, sink, verbatim=verbatim,
        page_check=context.page_check_for(event), names=context.names_of(event), on_member=context.note_member,
        links=context.links_of(event),
    )  # fmt: skip
