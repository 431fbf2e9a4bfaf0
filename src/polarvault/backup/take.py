"""Take a backup of a cluster into a repository: start reading here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from blake3 import blake3

from polarvault.backup.request import BackupJob
from polarvault.backup.several import SeveralTargets
from polarvault.backup.target import Recorded, RepositoryTarget
from polarvault.backupset.saved_configuration import SavedConfiguration, configuration_documents
from polarvault.errors import PolarvaultError, ServerError
from polarvault.model import versions
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.reading.as_backup import ATTACHED_CONFIGURATION
from polarvault.server.connection import Connection, Connector, is_on_this_machine
from polarvault.server.identity import ServerIdentity, show
from polarvault.server.wal_connection import fetch_history
from polarvault.storage.objects.model import RequestCounts
from polarvault.taking.configuration.server import read_server_configuration
from polarvault.taking.facts import ReceivedBackup, StoredBackup
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.take import Taking

_MOST_DATABASES = 10_000


@dataclass(frozen=True, slots=True)
class TakenBackups:
    """The backup in each repository, and by address why it is not in others."""

    results: Sequence[BackupResult]
    failed: Mapping[str, PolarvaultError]

    @property
    def exit_status(self) -> int:
        """1 if it is not everywhere, or has damaged pages."""
        return 1 if self.failed or self.results[0].is_damaged else 0


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A backup that is recorded, and what its store was asked."""

    cluster: str
    address: str
    received: ReceivedBackup
    stored: StoredBackup
    recorded: Recorded
    requests: RequestCounts

    @property
    def bad_pages(self) -> int:
        """How many pages of the source are damaged."""
        pages = self.received.pages
        return sum(bad.count for bad in pages.bad_files) if pages is not None else 0

    @property
    def is_damaged(self) -> bool:
        """Tell whether the server or our own check found damaged pages: they are in the backup as they are."""
        return bool(self.bad_pages) or self.received.corruption is not None


def read_outside(connector: Connector, connection: Connection, reporter: BackupReporter) -> dict[str, bytes]:
    """Return the configuration files that lie outside of the data directory, as attachments; no keys among them."""
    found = read_server_configuration(
        connector, port=connection.pgconn.port.decode("utf-8", "replace"), is_here=is_on_this_machine(connection)
    )
    if found is None or not found.outside:
        return {}
    saved = SavedConfiguration(
        data_directory=found.data_directory,
        places=found.places,
        files={path: content for path, content in found.files.items() if content is not None},
        directories=found.directories,
        missing=tuple(found.unreadable),
    )
    if found.places["config_file"] not in saved.files:
        reporter.note(
            "configuration files lie outside of the data directory and could not be read, so that they are not in the "
            f"backup: {', '.join(found.outside)}"
        )
        return {}
    return {f"{ATTACHED_CONFIGURATION}/{name}": content for name, content in configuration_documents(saved).items()}


def read_databases(connector: Connector) -> dict[str, str]:
    """Return the names of the databases by oid; none where the role may only stream."""
    try:
        sql = connector.without_prompt().sql()
        try:
            rows = sql.query("SELECT oid, datname FROM pg_catalog.pg_database").rows
        finally:
            sql.close()
    except PolarvaultError:
        return {}
    return {str(oid): str(name) for oid, name in rows[:_MOST_DATABASES]}


def take_backup(
    job: BackupJob,
    repositories: Sequence[Repository],
    connector: Connector,
    reporter: BackupReporter,
    *,
    unopened: Mapping[str, PolarvaultError] | None = None,
) -> TakenBackups:
    """Take one backup into all repositories at once, under one label.

    On a failure of the server nothing is recorded anywhere, and what was written is left for the next one to adopt; a
    repository that fails is left alone from then on, unless it was the last one. unopened: those that could not even be
    opened, by address.
    """
    opened: list[SeveralTargets] = []
    summarizes: list[bool] = []

    def open_target(identity: ServerIdentity, connection: Connection) -> SeveralTargets:
        history = ""
        if identity.timeline_id > 1:
            history = blake3(fetch_history(connection, identity.timeline_id)[1]).hexdigest()
        databases = read_databases(connector)
        outside = read_outside(connector, connection, reporter)
        label = repositories[0].new_label(datetime.now(UTC))
        targets = [
            RepositoryTarget(
                repository, job, identity, reporter, history=history, databases=databases, label=label, outside=outside
            )
            for repository in repositories
        ]
        # Before BASE_BACKUP: a connection that streams can be asked nothing.
        summarizes.append(
            versions.of_server(identity.version_num).makes_incremental_backups
            and not identity.is_newer
            and show(connection, "summarize_wal") == "on"
        )
        opened.append(SeveralTargets(targets, reporter))
        return opened[-1]

    def offer() -> bytes | None:
        return opened[-1].offer_parent() if summarizes[-1] else None

    try:
        taken = Taking(job.server_request, connector, reporter, earlier_manifest=offer).into(open_target)
    except ServerError as problem:
        if not opened or opened[-1].has_begun or opened[-1].targets[0].given_parent is None:
            raise
        reporter.note(f"the server cannot tell what has changed, and sends everything: {problem.message}")
        taken = Taking(job.server_request, connector, reporter).into(open_target)
    several = opened[-1]
    results = [
        BackupResult(job.cluster, target.address, taken.received, taken.stored, target.recorded, target.requests)
        for target in several.targets
        if target.recorded is not None
    ]
    failed = {**(unopened or {}), **{target.address: problem for target, problem in several.failed.items()}}
    return TakenBackups(results, failed)
