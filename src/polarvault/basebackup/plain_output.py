"""Plain format: the data directory (PolarDB: both halves) as directory trees."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace

from polarvault.basebackup.destination import Destination, half_documents, seal_backup, write_documents
from polarvault.basebackup.recovery_settings import AUTO_CONF, STANDBY_SIGNAL
from polarvault.errors import RemoteProtocolError
from polarvault.model.names import name_problem, shown_name
from polarvault.pgfiles.tar import Member
from polarvault.pipeline.member_sinks import DirectorySink
from polarvault.pipeline.wal_sinks import WalDirectory
from polarvault.polardb.layout import SHARED_HALF_NAME, KeepRules, keep_everything
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup


class PlainOutput:
    """Extracts archives below -D; PolarDB's shared half goes to --polardata or to polar_shared_data below -D."""

    def __init__(self, destination: Destination) -> None:
        assert destination.request.directory is not None
        self._destination = destination
        self._root = destination.request.directory
        self.spool_directory: str | None = self._root
        self._shared_root = self._root
        if destination.identity.shared_storage:
            self._shared_root = destination.request.polardata or os.path.join(self._root, SHARED_HALF_NAME)
        self._tablespace_roots: list[str] = []
        self._known_locations: set[str] = set()
        self._sinks: list[DirectorySink] = []
        self._streams_wal = False
        self._wal: WalDirectory | None = None

    def claim(self) -> None:
        """Make or check -D, the shared half, and --waldir."""
        destination, request = self._destination, self._destination.request
        destination.created.claim(self._root)
        destination.created.mark(self._root)
        if self._shared_root != self._root:
            destination.created.claim(self._shared_root)
            destination.created.mark(self._shared_root)
        if request.waldir is not None:
            destination.created.claim(request.waldir)
            try:
                os.symlink(request.waldir, os.path.join(self._shared_root, "pg_wal"))
            except OSError as problem:
                raise files.storage_failed(problem, "create symbolic link in", self._shared_root) from problem

    def begin(self, facts: BackupFacts) -> None:
        """Make the directories of user tablespaces."""
        self._streams_wal = facts.streams_wal
        # Outer before inner: one tablespace may lie inside of another, and the outer directory has to be empty.
        for tablespace in sorted(
            facts.start.tablespaces, key=lambda one: self._new_location(one.location or "").count("/")
        ):
            if tablespace.oid is None or tablespace.location is None or tablespace.is_in_place:
                continue
            self._known_locations.add(tablespace.location.rstrip("/"))
            location = self._new_location(tablespace.location)
            if not os.path.isabs(location) or ".." in location.split("/") or name_problem(location[1:]) is not None:
                raise RemoteProtocolError(
                    f"the server gives {shown_name(location)} as the location of tablespace {tablespace.oid}, "
                    "which is no absolute path"
                )
            self._destination.created.claim(location, tablespace=tablespace.location)
            self._tablespace_roots.append(location)

    def wal(self) -> WalSink | None:
        """Return pg_wal of the half that holds the WAL."""
        if self._streams_wal:
            modes, request = self._destination.modes, self._destination.request
            self._wal = WalDirectory(
                os.path.join(self._shared_root, "pg_wal"),
                file_mode=modes.file, directory_mode=modes.directory, sync=request.sync,
            )  # fmt: skip
        return self._wal

    def archive(self, begins: ArchiveBegins) -> DirectorySink:
        """Extract the archive to where its tablespace or half belongs."""
        destination, tablespace = self._destination, begins.tablespace
        root = self._root
        if tablespace.shared:
            root = self._shared_root
        elif tablespace.is_in_place:
            root = self._make_in_place(tablespace.location or "")
        elif tablespace.oid is not None and tablespace.location is not None:
            root = self._new_location(tablespace.location)
        keep: Callable[[Member], bool] = keep_everything
        if destination.identity.shared_storage and not destination.request.keep_all and tablespace.oid is None:
            keep = KeepRules(tablespace.shared, destination.identity.log_directory)
        modes = replace(destination.modes, as_sent=not tablespace.shared)
        own_link = "pg_wal" if destination.request.waldir is not None and root == self._shared_root else None
        sink = DirectorySink(
            root, modes=modes, keep=keep, link_target=self._link_target, writeback=destination.request.sync,
            links=lambda name: name == own_link,
        )  # fmt: skip
        self._sinks.append(sink)
        return sink

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Write settings and manifests, sync all, rename the manifests into place."""
        request = self._destination.request
        if self._destination.recovery_settings is not None:
            self._append(AUTO_CONF, self._destination.recovery_settings)
            self._append(STANDBY_SIGNAL, b"")
        manifests = self._write_manifests(received)
        roots = [self._root, *self._tablespace_roots]
        if self._shared_root != self._root and not _is_below(self._shared_root, self._root):
            roots.append(self._shared_root)
        if request.waldir is not None:
            roots.append(request.waldir)
        seal_backup(self._destination, roots, manifests)
        self.abort()
        return StoredBackup(
            sum(sink.left_out.count for sink in self._sinks), sum(sink.left_out.size_bytes for sink in self._sinks)
        )

    def abort(self) -> None:
        """Close what is open."""
        for sink in self._sinks:
            sink.abandon()
        if self._wal is not None:
            self._wal.close()

    def closing_notes(self) -> list[str]:
        """Say where both halves are and how to restore them."""
        if not self._destination.identity.shared_storage:
            return []
        local, shared = os.path.abspath(self._root), os.path.abspath(self._shared_root)
        start = "do not start the backup itself: its settings still point at the live storage"
        if self._destination.recovery_settings is not None:
            own = "it starts as a standby of the server, on its own shared half"
            start = f"{own}: pg_ctl -D {shlex.quote(local)} start"
        return [
            f"local half:  {local}",
            f"shared half: {shared}",
            f"verify:      polarvault verifybackup {shlex.quote(local)}",
            f"restore:     polarvault restore {shlex.quote(local)} -D NEW_DIRECTORY --polardata NEW_SHARED_DIRECTORY",
            start,
        ]

    def _link_target(self, location: str) -> str:
        """Return where the link to a tablespace has to lead; the server told of each that is in the backup before."""
        if location.rstrip("/") not in self._known_locations:
            self._destination.reporter.warning(
                f'the tablespace at "{location}" was made while the backup was taken: it is not in the backup, its '
                "link leads to the server's own files, and recovery makes it again at that very place"
            )
        return self._new_location(location)

    def _new_location(self, location: str) -> str:
        return self._destination.request.tablespace_mapping.get(location.rstrip("/") or location, location)

    def _append(self, name: str, content: bytes) -> None:
        try:
            with Below(self._root) as below:
                if below.exists(name):
                    descriptor = below.open_for_writing(name, append=True)
                else:
                    descriptor = below.create(name, self._destination.modes.file)
                try:
                    files.write_all(descriptor, [content])
                finally:
                    os.close(descriptor)
        except OSError as problem:
            raise files.storage_failed(problem, "write file", os.path.join(self._root, name)) from problem

    def _make_in_place(self, name: str) -> str:
        try:
            with Below(self._shared_root) as below:
                below.make_directories(name, self._destination.modes.directory)
        except OSError as problem:
            raise files.storage_failed(problem, "create directory", name) from problem
        return os.path.join(self._shared_root, name)

    def _write_manifests(self, received: ReceivedBackup) -> list[str]:
        """Write what describes the backup under temporary names; return the final names."""
        if not self._destination.identity.shared_storage:
            return write_documents(self._destination, self._root, {"backup_manifest.tmp": received.manifest})
        nested = os.path.relpath(self._shared_root, self._root)
        shared_half = nested if _is_below(self._shared_root, self._root) else os.path.abspath(self._shared_root)
        added, made = half_documents(received, shared_half=shared_half)
        local, shared = dict(added), {}
        if made is not None:
            local["backup_manifest.tmp"], shared["backup_manifest.tmp"] = made.local, made.shared
        return [
            *write_documents(self._destination, self._shared_root, shared),
            *write_documents(self._destination, self._root, local),
        ]


def _is_below(path: str, directory: str) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(directory) + os.sep)
