"""What backups in files have in common: what they are told, the documents beside the data, what makes them valid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from polarvault.basebackup import halves
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.halves import HalfManifests
from polarvault.basebackup.request import BackupRequest
from polarvault.model.compression import Compression
from polarvault.pipeline.member_sinks import TreeModes
from polarvault.server.identity import ServerIdentity
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.taking.describe import DESCRIPTION, describe_backup
from polarvault.taking.facts import ReceivedBackup
from polarvault.taking.manifest_spool import ManifestSpool
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.target import BackupTarget


@dataclass(frozen=True, slots=True)
class Destination:
    """What every form of a backup in files is told before it begins.

    created: the directories that it takes. recovery_settings: what -R adds to postgresql.auto.conf, None without it.
    """

    request: BackupRequest
    identity: ServerIdentity
    reporter: BackupReporter
    created: CreatedPaths
    recovery_settings: bytes | None = None

    @property
    def modes(self) -> TreeModes:
        """Modes for new files and directories, as the server's data directory has them."""
        return TreeModes(0o640, 0o750) if self.identity.group_access else TreeModes(0o600, 0o700)

    @property
    def tar_compression(self) -> Compression:
        """How the client compresses tar files."""
        compression = self.request.compression
        return compression if compression.location != "server" else Compression()


def half_documents(
    received: ReceivedBackup, *, shared_half: str | None
) -> tuple[dict[str, bytes], HalfManifests | None]:
    """Return what a PolarDB backup adds to its local half, and the two manifests if there are any."""
    finished = datetime.now(UTC)
    description = describe_backup(received, shared_half=shared_half, finished=finished)
    added = {DESCRIPTION: description}
    if received.manifest is None:
        return added, None
    manifest = received.manifest.content()
    added[halves.SERVER_MANIFEST] = manifest
    made = halves.make_half_manifests(
        manifest, received.local_names, received.shared_names, added=added, finished=finished
    )
    return added, made


def write_documents(
    destination: Destination, root: str, documents: Mapping[str, bytes | ManifestSpool | None]
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
                descriptor = below.create(name, destination.modes.file, replace=True)
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


def seal_backup(destination: Destination, roots: Iterable[str], manifests: list[str]) -> None:
    """Make everything below the roots durable, then give the manifests their names, in the order given.

    A directory with a backup_manifest is a complete backup, so the local half's, where people look, comes last. After
    it only the marks go that say that the backup is being made.
    """
    request = destination.request
    if request.sync:
        destination.reporter.step("syncing data to disk ...")
        for root in roots:
            files.fsync_tree(root, method=request.sync_method)
    for path in manifests:
        destination.reporter.step(f'renaming "{path}.tmp" to "{path}"')
        try:
            with Below(os.path.dirname(path)) as below:
                below.rename(os.path.basename(path) + ".tmp", os.path.basename(path))
                if request.sync:
                    below.sync_directory()
        except OSError as problem:
            raise files.storage_failed(problem, "rename to", path) from problem
    destination.created.unmark()


class Output(BackupTarget, Protocol):
    """A target of files, whose place the user wants to know."""

    def closing_notes(self) -> list[str]:
        """Return what the user should know about where the backup is."""
