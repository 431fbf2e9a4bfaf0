"""Plain format with PolarDB's shared half in PFS: from one shared storage straight onto another.

The local half is a directory as ever; WAL is received beside it, because it comes in small writes that have to be
durable one by one, and follows into PFS when the backup has ended. The shared half's manifest gets its name last there.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from polarvault.backupset.unfinished import MARKER_NAME, marker_content
from polarvault.basebackup.destination import Destination, half_documents, seal_backup, write_documents
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.recovery_settings import AUTO_CONF, STANDBY_SIGNAL
from polarvault.errors import DiskFull, TargetNotEmpty, UsageError
from polarvault.model.units import format_bytes
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, TarEvent, has_protocol
from polarvault.pipeline.member_sinks import DirectorySink, LeftOut, MemberSink
from polarvault.pipeline.wal_sinks import WalDirectory
from polarvault.polardb.layout import KeepRules, keep_everything
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.storage import files
from polarvault.storage.trees.laying import AppendedInPfs, PfsFiles
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.pfs.occupants import enclosing_database, occupancy_of
from polarvault.storage.trees.pfs.tree import PfsTree, PfsWritableTree
from polarvault.storage.trees.small_files import make_directories, remove_contents, write_file
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup

_MANIFEST = "backup_manifest"
_WAL_SPOOL = "pg_wal.polarvault"
_JOBS_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700


class PfsSink:
    """Writes the members of one archive into PFS. Implements `pipeline.member_sinks.MemberSink`."""

    def __init__(self, tree: PfsWritableTree, keep: Callable[[Member], bool]) -> None:
        self.left_out = LeftOut()
        self._tree = tree
        self._files = PfsFiles(tree, file_mode=_JOBS_FILE_MODE, directory_mode=_DIRECTORY_MODE)
        self._keep = keep
        self._writing: AppendedInPfs | None = None
        self._size = 0
        self._name = ""

    def accept(self, event: TarEvent) -> None:
        """Create, write or finish."""
        try:
            if isinstance(event, MemberBegins):
                self._begin(event.member)
            elif isinstance(event, MemberData):
                if self._writing is not None:
                    self._writing.append(event.views)
            elif self._writing is not None:
                self._writing.finish(self._size)
                self._writing = None
        except OSError as problem:
            raise files.storage_failed(problem, "write to file", self._tree.path(self._name)) from problem

    def _begin(self, member: Member) -> None:
        if member.name in ("", "."):
            return
        if has_protocol(member.name) or not self._keep(member):
            if member.kind is MemberKind.FILE:
                self.left_out.add(member)
            return
        self._name, self._size = member.name, member.size
        if member.kind is MemberKind.DIRECTORY:
            self._files.make_directory(member.name)
        elif member.kind is MemberKind.FILE:
            self._writing = AppendedInPfs(self._files.create(member.name, replace=True), sparse=False)

    def finish(self) -> None:
        """Every file is closed then."""

    def abandon(self) -> None:
        """Close what is open; safe to call twice."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with suppress(OSError):
                writing.close()


class PfsOutput(PlainOutput):
    """Extracts the local half below -D and the shared half into PFS."""

    def __init__(self, destination: Destination, mount: PfsMount) -> None:
        super().__init__(destination)
        self._mount = mount
        self._address = str(mount.address)
        self._tree: PfsWritableTree | None = None
        self._made = 0
        self._pfs_sinks: list[PfsSink] = []

    def claim(self) -> None:
        """Make or check -D, and the directory in PFS, which is mounted from then on."""
        destination = self._destination
        if destination.request.waldir is not None:
            raise UsageError("--waldir makes a link, and PFS has none", hint="leave --waldir out")
        self._look()
        destination.created.claim(self._root)
        destination.created.mark(self._root)
        destination.created.elsewhere.append(self)
        try:
            self._tree = PfsWritableTree(self._mount)
            self._made = self._tree.make_root()
            if self._tree.list(""):
                raise TargetNotEmpty(f'directory "{self._address}" exists but is not empty', hint="it was not touched")
            write_file(self._tree, MARKER_NAME, marker_content(datetime.now(UTC), os.getpid()), _JOBS_FILE_MODE)
        except OSError as problem:
            raise files.storage_failed(problem, "create directory", self._address) from problem

    def _look(self) -> None:
        """Refuse a directory that holds something, or lies in somebody's database; nothing is made for it."""
        address = self._mount.address
        top, _, below = address.directory.partition("/")
        try:
            tree = PfsTree(replace(self._mount, address=replace(address, directory=top), host_id=None))
            try:
                around, occupancy = enclosing_database(tree, below), occupancy_of(tree, below)
            finally:
                tree.close()
        except OSError as problem:
            raise files.storage_failed(problem, "look at", self._address) from problem
        if around is not None:
            raise UsageError(f'"{self._address}" lies inside of "{around}", in which a database lives')
        if occupancy is not None:
            raise TargetNotEmpty(
                f'directory "{self._address}" exists but is not empty',
                hint=f"choose another directory; see what is there: pfs -C {self._mount.cluster} ls {address.path}",
            )

    def begin(self, facts: BackupFacts) -> None:
        """See that there is room, as far as the server's estimate and the disk tell."""
        super().begin(facts)
        assert self._tree is not None
        wanted = sum((space.size_kb or 0) * 1024 for space in facts.start.tablespaces if space.shared)
        available = self._tree.room().available_bytes
        if available is not None and wanted > available:
            raise DiskFull(
                f'not enough space for "{self._address}": {format_bytes(wanted)} are needed, {format_bytes(available)} '
                "are free",
                hint=f"see what is free: pfs -C {self._mount.cluster} info {self._mount.address.disk}",
            )

    def wal(self) -> WalSink | None:
        """Return the place beside the local half in which WAL waits for the end of the backup."""
        if self._streams_wal:
            request = self._destination.request
            self._wal = WalDirectory(
                os.path.join(self._root, _WAL_SPOOL), file_mode=0o600, directory_mode=0o700, sync=request.sync
            )
        return self._wal

    def archive(self, begins: ArchiveBegins) -> DirectorySink | PfsSink:  # type: ignore[override]
        """Extract the shared half into PFS, everything else as ever."""
        if not begins.tablespace.shared:
            return super().archive(begins)
        assert self._tree is not None
        rules = KeepRules(True, self._destination.identity.log_directory)
        sink = PfsSink(self._tree, keep_everything if self._destination.request.keep_all else rules)
        self._pfs_sinks.append(sink)
        return sink

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Bring the WAL after, write settings and manifests, sync, and give the manifests their names, in PFS first."""
        assert self._tree is not None
        if self._destination.recovery_settings is not None:
            self._append(AUTO_CONF, self._destination.recovery_settings)
            self._append(STANDBY_SIGNAL, b"")
        self._bring_wal(self._tree)
        added, made = half_documents(received, shared_half=self._address)
        local = dict(added)
        if made is not None:
            local["backup_manifest.tmp"] = made.local
        final = write_documents(self._destination, self._root, local)
        try:
            if made is not None:
                write_file(self._tree, f"{_MANIFEST}.tmp", made.shared, _JOBS_FILE_MODE)
                self._tree.rename(f"{_MANIFEST}.tmp", _MANIFEST)
            self._tree.remove(MARKER_NAME)
        except OSError as problem:
            raise files.storage_failed(problem, "complete", self._address) from problem
        seal_backup(self._destination, [self._root], final)
        self.abort()
        self._tree.close()
        sinks: list[MemberSink] = [*self._sinks, *self._pfs_sinks]
        return StoredBackup(sum(one.left_out.count for one in sinks), sum(one.left_out.size_bytes for one in sinks))

    def _bring_wal(self, tree: PfsWritableTree) -> None:
        if self._wal is None:
            return
        spool = self._wal.directory
        self._wal.close()
        laying = PfsFiles(tree, file_mode=_JOBS_FILE_MODE, directory_mode=_DIRECTORY_MODE)
        try:
            make_directories(tree, "pg_wal/archive_status", _DIRECTORY_MODE)
            for directory, _, names in os.walk(spool):
                for name in names:
                    path = os.path.join(directory, name)
                    with open(path, "rb", buffering=0) as stream:
                        size = os.fstat(stream.fileno()).st_size
                        place = os.path.join("pg_wal", os.path.relpath(path, spool))
                        laying.copy(place, stream.fileno(), size, None, lambda done: None)
            shutil.rmtree(spool)
        except OSError as problem:
            raise files.storage_failed(problem, "bring the WAL to", f"{self._address}/pg_wal") from problem

    def abort(self) -> None:
        """Close what is open."""
        for sink in self._pfs_sinks:
            sink.abandon()
        super().abort()

    def clean_up(self, say: Callable[[str], None]) -> None:
        """Remove what was made in PFS, after a failure."""
        if self._tree is None:
            return
        say(f'removing contents of directory "{self._address}"')
        try:
            remove_contents(self._tree)
            self._tree.remove_root(self._made)
        except OSError as problem:
            say(f'"{self._address}" could not be removed: {problem.strerror}; {MARKER_NAME} in it says what it is')
        finally:
            self._tree.close()

    def say_kept(self, say: Callable[[str], None]) -> None:
        """Tell what is left in place."""
        if self._tree is not None:
            say(f'directory "{self._address}" not removed at user\'s request')
            self._tree.close()

    def closing_notes(self) -> list[str]:
        """Say where both halves are, and what they are good for."""
        local = os.path.abspath(self._root)
        start = "do not start the backup itself: its settings still point at the live storage"
        if self._destination.recovery_settings is not None:
            own = "it starts as a standby of the server, on its own shared half"
            start = f"{own}: pg_ctl -D {shlex.quote(local)} start"
        return [
            f"local half:  {local}",
            f"shared half: {self._address}",
            "of a shared half in PFS neither verifybackup nor restore reads: keep another backup for these",
            start,
        ]
