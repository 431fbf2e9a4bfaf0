"""Tar format to standard output: one tar, whatever the server sends.

PolarDB's two halves become one tar in which the shared half lies below polar_shared_data/, so that extracting it gives
the same layout as plain format, and nothing of one half can overwrite the other. WAL cannot be sent while it arrives
(its size must stand in front of it), so it waits in a temporary directory, as sparse files.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace

from polarvault.basebackup.destination import Destination, half_documents, write_documents
from polarvault.basebackup.tar_output import TarOutput, recovery_members
from polarvault.errors import UsageError
from polarvault.pgfiles.tar import BLOCK_BYTES, TERMINATOR, encode_header, encode_member
from polarvault.pipeline.byte_sinks import ByteSink, StandardOutput, compressed
from polarvault.pipeline.decompress import plain_name
from polarvault.pipeline.member_sinks import TarSink
from polarvault.pipeline.wal_sinks import WalDirectory
from polarvault.polardb.layout import SHARED_HALF_NAME
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.storage import files
from polarvault.storage.copying import data_ranges
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.manifest_spool import ManifestSpool
from polarvault.taking.target import Verbatim

_COPY_BYTES = 1 << 20


class StdoutOutput:
    """Writes one tar to a descriptor; with --polardata PolarDB's shared half goes there as tar files instead."""

    spool_directory: str | None = None

    def __init__(self, destination: Destination, descriptor: int) -> None:
        self._destination = destination
        self._below: ByteSink = compressed(StandardOutput(descriptor), destination.tar_compression)
        self._streams_wal = False
        self._beside: TarOutput | None = None
        polardata = destination.request.polardata
        if destination.identity.shared_storage and polardata is not None:
            self._beside = TarOutput(replace(destination, request=replace(destination.request, directory=polardata)))
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._wal: WalDirectory | None = None
        self._verbatim = False

    def claim(self) -> None:
        """Check --polardata; standard output needs nothing."""
        if self._destination.identity.shared_storage and self._destination.request.polardata is not None:
            self._destination.created.claim(self._destination.request.polardata)
            self._destination.created.mark(self._destination.request.polardata)

    def begin(self, facts: BackupFacts) -> None:
        """Refuse what one tar cannot hold."""
        user_tablespaces = [tablespace for tablespace in facts.start.tablespaces if tablespace.oid is not None]
        if user_tablespaces:
            raise UsageError(
                f"can only write single tablespace to stdout, database has {len(user_tablespaces) + 1}",
                hint="write to a directory instead: -D DIRECTORY -Ft",
            )
        self._streams_wal = facts.streams_wal
        if self._beside is not None:
            self._beside.begin(facts)

    def wal(self) -> WalSink | None:
        """Return where WAL waits for its turn."""
        if not self._streams_wal:
            return None
        if self._beside is not None:
            return self._beside.wal()
        self._spool = tempfile.TemporaryDirectory(prefix="polarvault-wal-")
        self._wal = WalDirectory(self._spool.name, file_mode=0o600, directory_mode=0o700, sync=False)
        return self._wal

    def archive(self, begins: ArchiveBegins) -> TarSink | Verbatim:
        """Continue the one tar with this archive's members."""
        destination = self._destination
        if begins.tablespace.shared and self._beside is not None:
            return self._beside.archive(begins)
        appended = recovery_members(destination, begins)
        by_server = plain_name(begins.name) != begins.name
        if by_server and (destination.request.manifest or destination.identity.shared_storage or appended):
            raise UsageError(
                "cannot inject manifest into a compressed tar file",
                hint="use client-side compression, send the output to a directory rather than standard output, "
                "or use --no-manifest",
            )
        self._verbatim = by_server
        prefix = f"{SHARED_HALF_NAME}/" if begins.tablespace.shared else ""
        sink = TarSink(self._below, prefix=prefix, is_last=False, appended=appended)
        if prefix:
            sink.add_directory("")
        return Verbatim(_Unfinished(self._below)) if by_server else sink

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Add WAL and manifests, end the tar."""
        if self._spool is not None:
            self._add_wal(self._spool.name)
        if not self._destination.identity.shared_storage and received.manifest is not None:
            self._add_manifest(received.manifest)
        for name, content in self._documents(received).items():
            self._below.write([encode_member(name, content, mtime=int(time.time()))])
        if not self._verbatim:
            self._below.write([TERMINATOR])
        self._below.finish()
        self._destination.created.unmark()
        self.abort()
        return StoredBackup()

    def abort(self) -> None:
        """Close what is open, remove the spooled WAL."""
        self._below.abandon()
        if self._beside is not None:
            self._beside.abort()
        if self._wal is not None:
            self._wal.close()
        if self._spool is not None:
            self._spool.cleanup()

    def closing_notes(self) -> list[str]:
        """Say how to restore from the tar."""
        if not self._destination.identity.shared_storage:
            return []
        return [
            "restore: polarvault restore FILE.tar -D NEW_DIRECTORY --polardata NEW_SHARED_DIRECTORY",
        ]

    def _documents(self, received: ReceivedBackup) -> dict[str, bytes]:
        if not self._destination.identity.shared_storage:
            return {}
        polardata = self._destination.request.polardata
        shared_half = os.path.abspath(polardata) if polardata is not None else SHARED_HALF_NAME
        added, made = half_documents(received, shared_half=shared_half)
        if made is None:
            return added
        if polardata is None:
            return {**added, f"{SHARED_HALF_NAME}/backup_manifest": made.shared, "backup_manifest": made.local}
        write_documents(self._destination, polardata, {"backup_manifest": made.shared})
        if self._destination.request.sync:
            files.fsync_tree(polardata, method=self._destination.request.sync_method)
        return {**added, "backup_manifest": made.local}

    def _add_manifest(self, manifest: ManifestSpool) -> None:
        self._below.write([encode_header("backup_manifest", manifest.size_bytes, mtime=int(time.time()))])
        for part in manifest.parts():
            self._below.write([part])
        self._below.write([bytes(-manifest.size_bytes % BLOCK_BYTES)])

    def _add_wal(self, directory: str) -> None:
        for folder, prefix in ((directory, ""), (os.path.join(directory, "archive_status"), "archive_status/")):
            for entry in sorted(os.scandir(folder), key=lambda found: found.name):
                if entry.is_file():
                    name = f"{SHARED_HALF_NAME}/pg_wal/{prefix}{entry.name}"
                    self._add_file(name, entry.path)

    def _add_file(self, name: str, path: str) -> None:
        size = os.path.getsize(path)
        self._below.write([encode_header(name, size, mtime=int(time.time()))])
        position = 0
        with open(path, "rb", buffering=0) as source:
            for start, end in [*data_ranges(source.fileno(), size), (size, size)]:
                if start > position:
                    self._below.write_zeros(start - position)
                position = start
                while position < end:
                    content = os.pread(source.fileno(), min(_COPY_BYTES, end - position), position)
                    self._below.write([content])
                    position += len(content)
        self._below.write([bytes(-size % 512)])


class _Unfinished:
    """A sink whose end is somebody else's decision."""

    def __init__(self, below: ByteSink) -> None:
        self.write = below.write
        self.write_zeros = below.write_zeros
        self.abandon = below.abandon

    def finish(self) -> None:
        """Leave the sink below open."""
