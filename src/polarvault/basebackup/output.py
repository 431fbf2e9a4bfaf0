"""What the three kinds of output have in common: what they are told, and what they must be able to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from polarvault.basebackup import halves
from polarvault.basebackup.absences import Absences
from polarvault.basebackup.archive_writer import ArchiveWriter
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.halves import ArchiveNames, HalfManifests
from polarvault.basebackup.manifest_spool import ManifestSpool
from polarvault.basebackup.reporter import BackupReporter
from polarvault.basebackup.request import BackupRequest
from polarvault.model.compression import Compression
from polarvault.model.limits import CONFIGURATION_FILES
from polarvault.model.lsn import Lsn
from polarvault.pipeline.member_sinks import LeftOut, TreeModes
from polarvault.pipeline.page_check import PageCheck
from polarvault.server.base_backup import ArchiveBegins, BackupStart
from polarvault.server.identity import ServerIdentity
from polarvault.server.wal_stream import WalSink
from polarvault.storage import files
from polarvault.storage.below import Below

CONFIGURATION_NAMES = frozenset({"postgresql.conf", "pg_hba.conf"})


@dataclass(slots=True)
class BackupContext:
    """Everything an output needs to know about the backup that it stores."""

    request: BackupRequest
    identity: ServerIdentity
    reporter: BackupReporter
    created: CreatedPaths
    recovery_settings: bytes | None = None
    page_check: PageCheck | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    start: BackupStart | None = None
    current_member: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)
    absences: Absences = field(default_factory=Absences)
    # Which of the two files without which no server starts are in the backup.
    configuration_seen: set[str] = field(default_factory=set)
    lacks_configuration: bool = False
    # What the backup holds of files that may include others, by name.
    configuration: dict[str, bytearray] = field(default_factory=dict)
    # PolarDB: the names in base.tar and data.tar, in the order sent.
    local_names: ArchiveNames = field(default_factory=ArchiveNames)
    shared_names: ArchiveNames = field(default_factory=ArchiveNames)

    @property
    def modes(self) -> TreeModes:
        """Modes for new files and directories, as the server's data directory has them."""
        return TreeModes(0o640, 0o750) if self.identity.group_access else TreeModes(0o600, 0o700)

    @property
    def streams_wal(self) -> bool:
        """Tell whether WAL comes over a second connection.

        PolarDB's server leaves the end of the WAL out of a fetch (facts 1.6), so there a fetch is a stream.
        """
        method = self.request.wal_method
        return method == "stream" or (method == "fetch" and self.identity.shared_storage and not self.request.target)

    def names_of(self, event: ArchiveBegins) -> ArchiveNames:
        """Return the list that collects the archive's names."""
        if not self.identity.shared_storage:
            return ArchiveNames()
        return self.shared_names if event.tablespace.shared else self.local_names

    def links_of(self, event: ArchiveBegins) -> dict[str, str]:
        """Return the symbolic links that the archive may hold, by name, and where each leads."""
        if event.tablespace.oid is not None or self.start is None:
            return {}
        return {
            f"pg_tblspc/{tablespace.oid}": tablespace.location.rstrip("/")
            for tablespace in self.start.tablespaces
            if tablespace.oid is not None and tablespace.location is not None and tablespace.location.startswith("/")
        }

    def page_check_for(self, event: ArchiveBegins) -> PageCheck | None:
        """Return the page check, set to the archive's place in the data directory."""
        if self.page_check is not None:
            self.page_check.set_prefix(f"pg_tblspc/{event.tablespace.oid}/" if event.tablespace.oid else "")
        return self.page_check

    def note_member(self, name: str) -> bytearray | None:
        """Remember what is being received, for progress with --verbose; return where its content is wanted as well."""
        self.current_member = name
        if name in CONFIGURATION_NAMES:
            self.configuration_seen.add(name)
        if name.endswith(".conf") and len(self.configuration) < CONFIGURATION_FILES:
            return self.configuration.setdefault(name, bytearray())
        return None

    @property
    def tar_compression(self) -> Compression:
        """How the client compresses tar files."""
        compression = self.request.compression
        return compression if compression.location != "server" else Compression()


@dataclass(frozen=True, slots=True)
class ReceivedBackup:
    """What is known when the server has sent everything."""

    start: BackupStart
    stop_lsn: Lsn
    stop_timeline_id: int
    manifest: ManifestSpool | None


def half_documents(
    context: BackupContext, received: ReceivedBackup, *, shared_half: str | None
) -> tuple[dict[str, bytes], HalfManifests | None]:
    """Return what a PolarDB backup adds to its local half, and the two manifests if there are any."""
    finished = datetime.now(UTC)
    description = halves.describe_backup(
        context.identity,
        label=context.request.label,
        shared_half=shared_half,
        start_lsn=received.start.start_lsn,
        stop_lsn=received.stop_lsn,
        timeline_id=received.start.timeline_id,
        started=context.started,
        finished=finished,
        wal_method=context.request.wal_method,
    )
    added = {halves.DESCRIPTION: description}
    if received.manifest is None:
        return added, None
    manifest = received.manifest.content()
    added[halves.SERVER_MANIFEST] = manifest
    made = halves.make_half_manifests(
        manifest, context.local_names, context.shared_names, added=added, finished=finished
    )
    return added, made


def write_documents(
    context: BackupContext, root: str, documents: Mapping[str, bytes | ManifestSpool | None]
) -> list[str]:
    """Write what describes the backup into its directory, manifests under temporary names; return their final paths.

    A file of such a name that the server has sent is replaced, as pg_basebackup does.
    """
    final = []
    for name, content in documents.items():
        if content is None:
            continue
        try:
            with Below(root) as below:
                descriptor = below.create(name, context.modes.file, replace=True)
                try:
                    for part in [content] if isinstance(content, bytes) else content.parts():
                        files.write_all(descriptor, [part])
                finally:
                    os.close(descriptor)
        except OSError as problem:
            raise files.storage_failed(problem, "write", os.path.join(root, name)) from problem
        if name.endswith(".tmp"):
            final.append(os.path.join(root, name.removesuffix(".tmp")))
    return final


def seal_backup(context: BackupContext, roots: Iterable[str], manifests: list[str]) -> None:
    """Make everything below the roots durable, then give the manifests their names, in the order given.

    A directory with a backup_manifest is a complete backup, so the local half's, where people look, comes last. After
    it only the marks go that say that the backup is being made.
    """
    request = context.request
    if request.sync:
        context.reporter.step("syncing data to disk ...")
        for root in roots:
            files.fsync_tree(root, method=request.sync_method)
    for path in manifests:
        context.reporter.step(f'renaming "{path}.tmp" to "{path}"')
        try:
            with Below(os.path.dirname(path)) as below:
                below.rename(os.path.basename(path) + ".tmp", os.path.basename(path))
                if request.sync:
                    below.sync_directory()
        except OSError as problem:
            raise files.storage_failed(problem, "rename to", path) from problem
    context.created.unmark()


class Output(Protocol):
    """Where a backup goes. spool_directory: where there is space for what is kept for a while, None if nowhere."""

    spool_directory: str | None

    def claim(self) -> None:
        """Make or check the target directories; raise TargetNotEmpty before anything is touched."""

    def begin(self, start: BackupStart) -> None:
        """Take note of what will come; make tablespace directories."""

    def wal_sink(self) -> WalSink | None:
        """Return where streamed WAL goes; called after begin."""

    def open_archive(self, event: ArchiveBegins) -> ArchiveWriter | None:
        """Return a writer for the archive that begins; None if its data stays on the server."""

    def finish(self, received: ReceivedBackup) -> None:
        """Write manifests, make everything durable, and give the manifest its name last."""

    def abandon(self) -> None:
        """Close what is open after a failure; files are removed by CreatedPaths."""

    def closing_notes(self) -> list[str]:
        """Return what the user should know about where the backup is."""
