"""Take a backup of a cluster into a repository: start reading here."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from polarvault.backup.request import BackupJob
from polarvault.backup.target import Recorded, RepositoryTarget
from polarvault.errors import PolarvaultError
from polarvault.repository.catalogue.repository import Repository
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity
from polarvault.server.wal_connection import fetch_history
from polarvault.storage.objects.model import RequestCounts
from polarvault.taking.facts import ReceivedBackup, StoredBackup
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.take import Taking

_MOST_DATABASES = 10_000


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


def take_backup(job: BackupJob, repository: Repository, connector: Connector, reporter: BackupReporter) -> BackupResult:
    """Take one backup; on any failure nothing is recorded, and what was written is left for the next one to adopt."""
    opened: list[RepositoryTarget] = []

    def open_target(identity: ServerIdentity, connection: Connection) -> RepositoryTarget:
        history = ""
        if identity.timeline_id > 1:
            history = blake3(fetch_history(connection, identity.timeline_id)[1]).hexdigest()
        databases = read_databases(connector)
        opened.append(RepositoryTarget(repository, job, identity, reporter, history=history, databases=databases))
        return opened[0]

    taken = Taking(job.server_request, connector, reporter).into(open_target)
    recorded = opened[0].recorded
    assert recorded is not None
    store = repository.store
    return BackupResult(job.cluster, store.address, taken.received, taken.stored, recorded, store.counts())
