"""Plain format: the data directory (PolarDB: both halves) as directory trees."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace

from polarvault.basebackup.archive_writer import ArchiveWriter
from polarvault.basebackup.output import BackupContext, ReceivedBackup, half_documents, seal_backup
from polarvault.basebackup.recovery_settings import AUTO_CONF, STANDBY_SIGNAL
from polarvault.pgfiles.tar import Member
from polarvault.pipeline.member_sinks import DirectorySink
from polarvault.pipeline.wal_sinks import WalDirectory
from polarvault.polardb.layout import SHARED_HALF_NAME, KeepRules, keep_everything
from polarvault.server.base_backup import ArchiveBegins, BackupStart
from polarvault.server.wal_stream import WalSink
from polarvault.storage import files


class PlainOutput:
    """Extracts archives below -D; PolarDB's shared half goes to --polardata or to polar_shared_data below -D."""

    def __init__(self, context: BackupContext) -> None:
        assert context.request.directory is not None
        self._context = context
        self._root = context.request.directory
        self._shared_root = self._root
        if context.identity.shared_storage:
            self._shared_root = context.request.polardata or os.path.join(self._root, SHARED_HALF_NAME)
        self._tablespace_roots: list[str] = []
        self._sinks: list[DirectorySink] = []
        self._wal: WalDirectory | None = None

    def claim(self) -> None:
        """Make or check -D, the shared half, and --waldir."""
        context, request = self._context, self._context.request
        context.created.claim(self._root)
        if self._shared_root != self._root:
            context.created.claim(self._shared_root)
        if request.waldir is not None:
            context.created.claim(request.waldir)
            os.symlink(request.waldir, os.path.join(self._shared_root, "pg_wal"))

    def begin(self, start: BackupStart) -> None:
        """Make the directories of user tablespaces."""
        for tablespace in start.tablespaces:
            if tablespace.oid is None or tablespace.location is None:
                continue
            location = self._new_location(tablespace.location)
            if os.path.isabs(location):
                self._context.created.claim(location, tablespace=tablespace.location)
                self._tablespace_roots.append(location)

    def wal_sink(self) -> WalSink | None:
        """Return pg_wal of the half that holds the WAL."""
        if self._context.streams_wal:
            modes, request = self._context.modes, self._context.request
            self._wal = WalDirectory(
                os.path.join(self._shared_root, "pg_wal"),
                file_mode=modes.file, directory_mode=modes.directory, sync=request.sync,
            )  # fmt: skip
        return self._wal

    def open_archive(self, event: ArchiveBegins) -> ArchiveWriter:
        """Extract the archive to where its tablespace or half belongs."""
        context, tablespace = self._context, event.tablespace
        root = self._root
        if tablespace.shared:
            root = self._shared_root
        elif tablespace.oid is not None and tablespace.location is not None:
            # An in-place tablespace has a location relative to the data directory.
            root = os.path.join(self._shared_root, self._new_location(tablespace.location))
            os.makedirs(root, context.modes.directory, exist_ok=True)
        keep: Callable[[Member], bool] = keep_everything
        if context.identity.shared_storage and not context.request.keep_all and tablespace.oid is None:
            keep = KeepRules(tablespace.shared, context.identity.log_directory)
        modes = replace(context.modes, as_sent=not tablespace.shared)
        sink = DirectorySink(
            root, modes=modes, keep=keep, link_target=self._new_location, writeback=context.request.sync
        )
        self._sinks.append(sink)
        return ArchiveWriter(
            event.name, sink,
            page_check=context.page_check_for(event), names=context.names_of(event), on_member=context.note_member,
        )  # fmt: skip

    def finish(self, received: ReceivedBackup) -> None:
        """Write settings and manifests, sync all, rename the manifests into place."""
        request = self._context.request
        for sink in self._sinks:
            self._context.left_out.count += sink.left_out.count
            self._context.left_out.size_bytes += sink.left_out.size_bytes
            self._context.left_out.names |= sink.left_out.names
        if self._context.recovery_settings is not None:
            self._append(AUTO_CONF, self._context.recovery_settings)
            self._append(STANDBY_SIGNAL, b"")
        manifests = self._write_manifests(received)
        roots = [self._root, *self._tablespace_roots]
        if self._shared_root != self._root and not _is_below(self._shared_root, self._root):
            roots.append(self._shared_root)
        if request.waldir is not None:
            roots.append(request.waldir)
        seal_backup(self._context, roots, manifests)

    def abandon(self) -> None:
        """Nothing is held open: the sinks' descriptors die with the process or were closed."""

    def closing_notes(self) -> list[str]:
        """Say where both halves are and how to restore them."""
        if not self._context.identity.shared_storage:
            return []
        local, shared = os.path.abspath(self._root), os.path.abspath(self._shared_root)
        return [
            f"local half:  {local}",
            f"shared half: {shared}",
            f"verify:      polarvault verifybackup {shlex.quote(local)}",
            f"restore:     polarvault restore {shlex.quote(local)} -D NEW_DIRECTORY --polardata NEW_SHARED_DIRECTORY",
            "do not start the backup itself: its settings still point at the live storage",
        ]

    def _new_location(self, location: str) -> str:
        return self._context.request.tablespace_mapping.get(location.rstrip("/") or location, location)

    def _append(self, name: str, content: bytes) -> None:
        path = os.path.join(self._root, name)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, self._context.modes.file), "ab") as target:
                target.write(content)
        except OSError as problem:
            raise files.storage_failed(problem, "write file", path) from problem

    def _write_manifests(self, received: ReceivedBackup) -> list[str]:
        """Write what describes the backup under temporary names; return the final names."""
        if not self._context.identity.shared_storage:
            documents = {} if received.manifest is None else {"backup_manifest.tmp": received.manifest}
            return self._write(self._root, documents)
        nested = os.path.relpath(self._shared_root, self._root)
        shared_half = nested if _is_below(self._shared_root, self._root) else os.path.abspath(self._shared_root)
        added, made = half_documents(self._context, received, shared_half=shared_half)
        local, shared = dict(added), {}
        if made is not None:
            local["backup_manifest.tmp"], shared["backup_manifest.tmp"] = made.local, made.shared
        return self._write(self._shared_root, shared) + self._write(self._root, local)

    def _write(self, root: str, documents: dict[str, bytes]) -> list[str]:
        final = []
        for name, content in documents.items():
            path = os.path.join(root, name)
            files.write_durably(path, content, mode=self._context.modes.file, sync=False)
            if name.endswith(".tmp"):
                final.append(path.removesuffix(".tmp"))
        return final


def _is_below(path: str, directory: str) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(directory) + os.sep)
