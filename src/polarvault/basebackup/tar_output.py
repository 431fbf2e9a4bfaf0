"""Tar format: one tar file an archive, pg_wal.tar beside them, compressed if asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace

from polarvault.basebackup.destination import Destination, half_documents, seal_backup, write_documents
from polarvault.basebackup.recovery_settings import AUTO_CONF, STANDBY_SIGNAL
from polarvault.model.compression import Compression
from polarvault.pipeline.byte_sinks import ByteSink, FileBytes, compressed
from polarvault.pipeline.decompress import plain_name
from polarvault.pipeline.member_sinks import TarSink
from polarvault.pipeline.wal_sinks import WalTar
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.target import Verbatim

SHARED_MANIFEST = "backup_manifest.shared"
# Opens a new file by name, with the compressor in front of it.
FileOpener = Callable[[str, Compression], ByteSink]


class TarOutput:
    """Writes tar files into -D; PolarDB's data.tar and its WAL go to --polardata if that is given."""

    def __init__(self, destination: Destination) -> None:
        assert destination.request.directory is not None
        self._destination = destination
        self._root = destination.request.directory
        self.spool_directory: str | None = self._root
        self._shared_root = self._root
        if destination.identity.shared_storage and destination.request.polardata is not None:
            self._shared_root = destination.request.polardata
        self._streams_wal = False
        self._sinks: list[ByteSink] = []

    def claim(self) -> None:
        """Make or check -D and --polardata."""
        created = self._destination.created
        created.claim(self._root)
        created.mark(self._root)
        if self._shared_root != self._root:
            created.claim(self._shared_root)
            created.mark(self._shared_root)

    def begin(self, facts: BackupFacts) -> None:
        """Tablespaces become tar files; there is nothing to prepare."""
        self._streams_wal = facts.streams_wal

    def wal(self) -> WalSink | None:
        """Return pg_wal.tar: gzip as the data, but never lz4 or zstd, as pg_basebackup has it."""
        if not self._streams_wal:
            return None
        compression = self._destination.tar_compression
        if compression.algorithm != "gzip":
            compression = Compression()
        path = os.path.join(self._shared_root, "pg_wal.tar" + compression.suffix)
        return WalTar(self._file(self._shared_root, "pg_wal.tar", compression), path)

    def archive(self, begins: ArchiveBegins) -> TarSink | Verbatim:
        """Open the archive's tar file."""
        root = self._shared_root if begins.tablespace.shared else self._root
        return open_tar_archive(self._destination, begins, lambda name, how: self._file(root, name, how))

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Write manifests, sync all, rename the manifests into place."""
        manifests = self._write_manifests(received)
        seal_backup(self._destination, {self._root, self._shared_root}, manifests)
        return StoredBackup()

    def abort(self) -> None:
        """Close what is open; files are removed by CreatedPaths."""
        for sink in self._sinks:
            sink.abandon()

    def closing_notes(self) -> list[str]:
        """Say where both halves are and how to restore them."""
        if not self._destination.identity.shared_storage:
            return []
        local, shared = os.path.abspath(self._root), os.path.abspath(self._shared_root)
        suffix = self._destination.request.compression.suffix
        return [
            f"local half:  {local}/base.tar{suffix}",
            f"shared half: {shared}/data.tar{suffix}",
            f"restore:     polarvault restore {shlex.quote(local)} -D NEW_DIRECTORY --polardata NEW_SHARED_DIRECTORY",
        ]

    def _file(self, root: str, name: str, compression: Compression) -> ByteSink:
        path = os.path.join(root, name + compression.suffix)
        modes, sync = self._destination.modes, self._destination.request.sync
        sink = compressed(FileBytes(path, mode=modes.file, writeback=sync), compression)
        self._sinks.append(sink)
        return sink

    def _write_manifests(self, received: ReceivedBackup) -> list[str]:
        """Write what describes the backup, manifests under temporary names; return their final names."""
        if not self._destination.identity.shared_storage:
            return write_documents(self._destination, self._root, {"backup_manifest.tmp": received.manifest})
        apart = self._shared_root != self._root
        where = os.path.abspath(self._shared_root) if apart else None
        added, made = half_documents(received, shared_half=where)
        local, shared = dict(added), {}
        if made is not None:
            # One directory can hold only one file of that name, so the shared half's may need a name of its own.
            shared_name = "backup_manifest" if apart else SHARED_MANIFEST
            local["backup_manifest.tmp"], shared[shared_name + ".tmp"] = made.local, made.shared
        return [
            *write_documents(self._destination, self._shared_root, shared),
            *write_documents(self._destination, self._root, local),
        ]


def recovery_members(destination: Destination, begins: ArchiveBegins) -> dict[str, bytes]:
    """Return what -R appends to files of this archive."""
    tablespace = begins.tablespace
    if destination.recovery_settings is None or tablespace.oid is not None or tablespace.shared:
        return {}
    return {AUTO_CONF: destination.recovery_settings, STANDBY_SIGNAL: b""}


def open_tar_archive(destination: Destination, begins: ArchiveBegins, open_file: FileOpener) -> TarSink | Verbatim:
    """Return where one archive goes in tar format.

    What the server has compressed is stored as it comes, unless -R has to change what is inside.
    """
    appended = recovery_members(destination, begins)
    by_server = plain_name(begins.name) != begins.name
    if by_server and not appended:
        return Verbatim(open_file(begins.name, Compression()))
    compression = destination.tar_compression
    if by_server:
        compression = replace(destination.request.compression, location="client")
    return TarSink(open_file(plain_name(begins.name), compression), appended=appended)
