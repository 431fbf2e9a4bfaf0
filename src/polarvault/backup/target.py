"""A repository as the target of a base backup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from polarvault.backup.checksums import ReceivedFiles
from polarvault.backup.increments import whole_manifest
from polarvault.backup.members import ArchiveSink, Increments
from polarvault.backup.parent import ParentChoice, ServerState, choose_parent
from polarvault.backup.request import BackupJob
from polarvault.errors import PolarvaultError, RemoteProtocolError
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.manifest import parse_manifest
from polarvault.pgfiles.pages import PAGE_BYTES
from polarvault.pgfiles.tar import Member
from polarvault.polardb.layout import KeepRules, keep_everything
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.record import Damage, RecordFacts
from polarvault.repository.index.root import Part, PartArea
from polarvault.repository.states.states import Standing, States, standings
from polarvault.repository.wal.sink import RepositoryWalSink
from polarvault.repository.writing.backup_writer import BackupWriter, Outcome, WriterSettings
from polarvault.server.base_backup import ArchiveBegins, Tablespace
from polarvault.server.identity import ServerIdentity
from polarvault.storage.objects.model import RequestCounts
from polarvault.taking.describe import DESCRIPTION, describe_backup
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.reporter import BackupReporter

MANIFEST = "backup_manifest"
SENT_MANIFEST = "sent_manifest"
"""What the server has sent, where that was what had changed since the parent."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A backup that is recorded: what it cost, what it was compared with, what is wrong with its pages."""

    outcome: Outcome
    parent: ParentChoice
    facts: RecordFacts
    listed_files: int


class RepositoryTarget:
    """Takes one backup into a repository. Implements `taking.target.BackupTarget`.

    history: what tells this server's timeline from another one of the same number. databases: names by oid, for people.
    label: of the backup, None for a new one. outside: configuration files that no data directory holds, as attachments.
    """

    spool_directory: str | None = None

    def __init__(
        self,
        repository: Repository,
        job: BackupJob,
        identity: ServerIdentity,
        reporter: BackupReporter,
        *,
        history: str = "",
        databases: Mapping[str, str] | None = None,
        label: str | None = None,
        outside: Mapping[str, bytes] | None = None,
    ) -> None:
        self._repository, self._job = repository, job
        self._identity, self._reporter = identity, reporter
        self._history, self._outside = history, dict(outside or {})
        self._databases = dict(databases or {})
        self._received = ReceivedFiles()
        self._parts: list[Part] = []
        self._sinks: list[ArchiveSink] = []
        self._parent = ParentChoice(None, "")
        self._label = label
        self.wal_failure: PolarvaultError | None = None
        """What ended the WAL into this place, if others went on."""
        self.given_parent: str | None = None
        """The backup of which the server knows what changed since."""
        self._increments: Increments | None = None
        self._writer: BackupWriter | None = None
        self._wal: RepositoryWalSink | None = None
        self.recorded: Recorded | None = None

    @property
    def address(self) -> str:
        """Where the repository is."""
        return self._repository.store.address

    @property
    def requests(self) -> RequestCounts:
        """What its store was asked so far."""
        return self._repository.store.counts()

    def claim(self) -> None:
        """Note the cluster's generation; raise RepositoryMismatch if the name is another cluster's."""
        identity = self._identity
        self._repository.ensure_generation(
            self._job.cluster,
            Generation(
                int(identity.system_identifier),
                identity.version_num,
                identity.shared_storage,
                identity.segment_size_bytes,
                identity.relation_segment_bytes,
                identity.data_checksums,
            ),
        )

    def parent_with_manifest(self) -> tuple[str, bytes] | None:
        """Return the label and the manifest of the backup that would be the parent; None if there is none to build on.

        It must lie on one timeline, this server's: of what lies before a switch summaries may tell too little. What
        a verification found damaged cannot be taken unread.
        """
        identity, cluster = self._identity, self._job.cluster
        records = self._repository.records(cluster)
        choice = choose_parent(records, self._state(identity.timeline_id, identity.flush_lsn), full=self._job.full)
        record = next((one for one in records if one.label == choice.label), None)
        if record is None or record.facts.timeline_id != record.facts.stop_timeline_id:
            return None
        standing = standings(States(self._repository, cluster).listed(record.label)).get(record.label, Standing())
        if standing.is_damaged:
            return None
        manifest = self._repository.open_backup(cluster, record.label).attachment(MANIFEST)
        return None if manifest is None else (record.label, manifest)

    def _state(self, timeline_id: int, lsn: Lsn) -> ServerState:
        return ServerState(
            int(self._identity.system_identifier), timeline_id, lsn, self._history,
            self._identity.data_checksums, self._identity.relation_segment_bytes,
        )  # fmt: skip

    def begin(self, facts: BackupFacts) -> None:
        """Choose the parent, say in the repository what is about to be done, and open the writer."""
        job, start = self._job, facts.start
        state = self._state(start.timeline_id, start.start_lsn)
        self._parent = choose_parent(self._repository.records(job.cluster), state, full=job.full)
        if self.given_parent is not None:
            self._check_given_parent(self.given_parent)
        if self._parent.label is None:
            self._reporter.step(f"full backup: {self._parent.reason}")
        else:
            self._reporter.step(f"incremental to {self._parent.label}: {self._parent.reason}")
        self._parts = [_part(tablespace) for tablespace in start.tablespaces]
        self._writer = self._repository.begin_backup(
            job.cluster,
            started=facts.started,
            parts=self._parts,
            parent=self._parent.label,
            label=self._label,
            settings=WriterSettings() if job.level is None else WriterSettings(level=job.level),
        )
        if self.given_parent is not None:
            self._check_given_parent(self._writer.parent_label)
            reader = self._repository.open_backup(job.cluster, self.given_parent)
            self._increments = Increments(reader, self._identity.relation_segment_bytes // PAGE_BYTES)
        if self._writer.parent_label != self._parent.label:
            self._parent = ParentChoice(None, f"{self._parent.label} has expired at this moment")
        self._reporter.step(f"writing backup {self._writer.label}")
        if facts.streams_wal:
            self._wal = RepositoryWalSink(
                self._repository.wal(
                    job.cluster, int(self._identity.system_identifier), self._identity.segment_size_bytes
                )
            )

    def _check_given_parent(self, label: str | None) -> None:
        """Raise if another backup would be the parent than the one of which the server was told."""
        if label != self.given_parent or self._parent.label != self.given_parent:
            raise PolarvaultError(
                f"{self.given_parent}, on which this backup is to build, is not the parent any more",
                hint="another backup or an expire has come between: take the backup again",
            )
        self._parent = ParentChoice(label, "the last backup on this timeline; the server sends what has changed since")

    def wal(self) -> RepositoryWalSink | None:
        """Return what writes WAL into the repository, beside all other WAL of the cluster."""
        return self._wal

    def archive(self, begins: ArchiveBegins) -> ArchiveSink:
        """Return what takes the members of a tablespace or half."""
        assert self._writer is not None
        tablespace = begins.tablespace
        keep: Callable[[Member], bool] = keep_everything
        if self._identity.shared_storage and tablespace.oid is None:
            keep = KeepRules(tablespace.shared, self._identity.log_directory)
        sink = ArchiveSink(
            self._writer,
            self._parts.index(_part(tablespace)),
            received=self._received,
            prefix=b"pg_tblspc/%b/" % tablespace.oid.encode() if tablespace.oid else b"",
            keep=keep,
            increments=self._increments,
        )
        self._sinks.append(sink)
        return sink

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Compare everything with the server's manifest, and write the record last."""
        writer = self._writer
        assert writer is not None
        if self.wal_failure is not None:
            raise self.wal_failure
        if received.manifest is None:
            raise RemoteProtocolError("the server sent no manifest, so that nothing can be compared with it")
        manifest = received.manifest.content()
        listed = self._received.compare(manifest)
        finished = datetime.now(UTC)
        if self._increments is not None:
            parent = self._increments.reader.attachment(MANIFEST)
            assert parent is not None
            writer.attach(SENT_MANIFEST, [manifest])
            manifest = whole_manifest(parse_manifest(manifest), self._increments.whole, parse_manifest(parent))
        writer.attach(MANIFEST, [manifest])
        writer.attach(DESCRIPTION, [describe_backup(received, shared_half=None, finished=finished)])
        for name, content in self._outside.items():
            writer.attach(name, [content])
        if self._wal is not None:
            self._wal.flush()
        stored = StoredBackup(
            sum(sink.left_out.count for sink in self._sinks), sum(sink.left_out.size_bytes for sink in self._sinks)
        )
        facts = self._facts(received, stored, finished)
        self.recorded = Recorded(writer.commit(facts), self._parent, facts, listed)
        self._writer = None
        self._end_intents()
        return stored

    def abort(self) -> None:
        """Stop writing; what was written stays for the next backup to adopt."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()
            self._end_intents()

    def _end_intents(self) -> None:
        try:
            self._repository.end_intents()
        except PolarvaultError as problem:
            # The backup is whole, or there is a failure that matters more.
            self._reporter.note(
                f"the mark of this backup in {self._repository.store.address} could not be removed: {problem.message}"
            )

    def _facts(self, received: ReceivedBackup, stored: StoredBackup, finished: datetime) -> RecordFacts:
        identity, start = self._identity, received.facts.start
        pages = received.pages
        segment = identity.segment_size_bytes
        details: dict[str, Any] = {
            "version": identity.version,
            "polardb": identity.polar_version is not None,
            "shared_storage": identity.shared_storage,
            "from_standby": identity.in_recovery,
            "data_checksums": identity.data_checksums,
            "full_page_writes": identity.full_page_writes,
            "wal_segment_bytes": segment,
            "relation_segment_bytes": identity.relation_segment_bytes,
            "history": self._history,
            "wal_first": str(Lsn(start.start_lsn - start.start_lsn % segment)),
            "received_bytes": received.received_bytes,
            "left_out_files": stored.left_out_files,
            "left_out_bytes": stored.left_out_bytes,
            "checked_pages": pages.checked_pages if pages is not None else None,
            "bad_pages": sum(bad.count for bad in pages.bad_files) if pages is not None else None,
            "by_server": self.given_parent is not None,
            "note": self._job.note,
            "databases": self._databases,
        }
        return RecordFacts(
            started=received.facts.started,
            finished=finished,
            system_identifier=int(identity.system_identifier),
            timeline_id=start.timeline_id,
            start_lsn=start.start_lsn,
            stop_lsn=received.stop_lsn,
            stop_timeline_id=received.stop_timeline_id,
            server_version=identity.version_num,
            reason=self._parent.reason,
            damage=self._damage(received),
            details=details,
        )

    def _damage(self, received: ReceivedBackup) -> list[Damage]:
        found = []
        for bad in received.pages.bad_files if received.pages is not None else []:
            part, path = self._place(bad.path)
            for page in bad.examples:
                why = f"checksum {page.stored:04X} is stored, {page.calculated:04X} is calculated; LSN {Lsn(page.lsn)}"
                found.append(Damage(part, path, page.block, why))
        return found

    def _place(self, path: str) -> tuple[int, str]:
        """Return part and path below it of a file as the page check names it."""
        words = path.split("/", 2)
        if words[0] == "pg_tblspc" and len(words) == 3:
            for number, part in enumerate(self._parts):
                if part.area is PartArea.TABLESPACE and str(part.oid) == words[1]:
                    return number, words[2]
        # The data of PolarDB lies in the shared half.
        shared = [number for number, part in enumerate(self._parts) if part.area is PartArea.SHARED]
        local = [number for number, part in enumerate(self._parts) if part.area is PartArea.LOCAL]
        return (*shared, *local)[0], path


def _part(tablespace: Tablespace) -> Part:
    if tablespace.oid is not None:
        return Part(PartArea.TABLESPACE, int(tablespace.oid), tablespace.location or "")
    return Part(PartArea.SHARED if tablespace.shared else PartArea.LOCAL)
