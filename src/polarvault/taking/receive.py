"""Take in the stream of a base backup: every archive to its place, every page judged."""

from __future__ import annotations

from polarvault.errors import ChecksumFailure, RemoteProtocolError, ServerError
from polarvault.pipeline.member_sinks import MemberSink
from polarvault.pipeline.page_check import PageCheck, PageFindings
from polarvault.polardb.layout import REPLICA_SIGNAL
from polarvault.server.base_backup import (
    ArchiveBegins,
    ArchiveData,
    ArchiveEnds,
    BackupEvent,
    ManifestData,
    Progress,
    StreamEnds,
    Tablespace,
)
from polarvault.taking.archive import ArchiveInput, MemberInput, MemberLog, Stage
from polarvault.taking.facts import ArchiveNames, BackupFacts, ReceivedBackup
from polarvault.taking.guards.absences import Absences
from polarvault.taking.guards.node_role import replica_refusal
from polarvault.taking.manifest_spool import ManifestSpool
from polarvault.taking.reporter import BackupProgress, BackupReporter
from polarvault.taking.target import BackupTarget, Verbatim


class Receiver:
    """Takes the stream's events; knows which archive is open and how far the backup is."""

    def __init__(
        self,
        facts: BackupFacts,
        target: BackupTarget,
        reporter: BackupReporter,
        absences: Absences,
        *,
        findings: PageFindings | None,
        keep_manifest: bool,
    ) -> None:
        self._facts = facts
        self._target = target
        self._reporter = reporter
        self._absences = absences
        self._findings = findings
        self.page_check: PageCheck | None = None
        """The stage that verifies pages as they pass, where the stream brings them."""
        self._keep_manifest = keep_manifest
        self._log = MemberLog()
        self._archive: MemberInput | None = None
        self._tablespace: Tablespace | None = None
        self._archive_number = 0
        self._local_names, self._shared_names = ArchiveNames(), ArchiveNames()
        # PolarDB's local half, until it is known to be no read-only node's: how many of its names have been looked at.
        self._role_checked = 0
        self._manifest: ManifestSpool | None = None
        self._end: StreamEnds | None = None
        self.done_bytes = 0
        self.corruption: ServerError | None = None

    def accept(self, event: BackupEvent) -> None:
        """Take one event."""
        if isinstance(event, ArchiveData):
            if not isinstance(self._archive, ArchiveInput):
                raise RemoteProtocolError("the server sent data before it named an archive")
            self._archive.write(event.views)
            self.done_bytes += sum(map(len, event.views))
            self._check_role()
        elif isinstance(event, ArchiveBegins):
            self._archive_begins(event)
        elif isinstance(event, ArchiveEnds):
            self._archive_ends()
        elif isinstance(event, ManifestData):
            if self._keep_manifest:
                self._manifest = self._manifest or ManifestSpool(self._target.spool_directory)
                self._manifest.append(event.content)
        elif isinstance(event, Progress):
            self.done_bytes = max(self.done_bytes, event.done_bytes)
        else:
            self._end = event

    def begin_members(self, event: ArchiveBegins) -> MemberInput:
        """Begin an archive whose members come as such, not as a tar; an ArchiveEnds ends it."""
        destination = self._begin(event)
        assert not isinstance(destination, Verbatim), "what the server compresses it also sends"
        self._archive = MemberInput(event.name, destination, stages=[self._log], links=self._facts.links_of(event))
        return self._archive

    def _archive_begins(self, event: ArchiveBegins) -> None:
        destination = self._begin(event)
        if destination is not None:
            self._archive = ArchiveInput(
                event.name, destination, stages=self._stages(event), links=self._facts.links_of(event)
            )

    def _begin(self, event: ArchiveBegins) -> MemberSink | Verbatim | None:
        destination = self._target.archive(event)
        self._archive_number += 1
        self._tablespace = event.tablespace
        self._log.begin(self._names_of(event.tablespace))
        self._archive = None
        return destination

    def _names_of(self, tablespace: Tablespace) -> ArchiveNames:
        if not self._facts.identity.shared_storage:
            return ArchiveNames()
        return self._shared_names if tablespace.shared else self._local_names

    def _stages(self, event: ArchiveBegins) -> list[Stage]:
        """Return what looks at an archive on its way, in order; a stage is added here."""
        stages: list[Stage] = [self._log]
        if self.page_check is not None:
            oid = event.tablespace.oid
            self.page_check.set_prefix(f"pg_tblspc/{oid}/" if oid else "")
            stages.append(self.page_check)
        return stages

    def _archive_ends(self) -> None:
        archive, space = self._archive, self._tablespace
        self._archive = None
        self._check_role()
        if archive is None or space is None:
            return
        self._log.names.left_out |= archive.finish()
        if space.oid is None and not space.shared:
            self._log.local_half_ends()
        # Even an empty tablespace has the server's own directory. PolarDB sends tablespaces in ways of its own.
        if space.oid is not None and not self._log.member_count and not self._facts.identity.shared_storage:
            self._absences.empty_tablespaces.append(space)

    def report(self, *, final: bool = False) -> None:
        """Tell the reporter how far the backup is."""
        start = self._facts.start
        self._reporter.progress(
            BackupProgress(
                self.done_bytes, start.total_kb * 1024, self._archive_number, len(start.tablespaces), self._log.current
            ),
            final=final,
        )

    def result(self) -> ReceivedBackup:
        """Return what has been received; raise RemoteProtocolError if the stream did not say where the backup ends."""
        if self._end is None:
            raise RemoteProtocolError("the server ended the backup without an end position")
        self._reporter.step(f"write-ahead log end point: {self._end.stop_lsn}")
        return ReceivedBackup(
            self._facts, self._end.stop_lsn, self._end.timeline_id, self.done_bytes,
            manifest=self._manifest,
            local_names=self._local_names,
            shared_names=self._shared_names,
            pages=self._findings,
            corruption=self.corruption,
            configuration={name: bytes(content) for name, content in self._log.configuration.items()},
            lacks_configuration=self._log.lacks_configuration,
            linked_configuration=tuple(self._absences.configuration),
        )  # fmt: skip

    def close(self) -> None:
        """Forget what was kept for the result."""
        if self._manifest is not None:
            self._manifest.close()

    def _check_role(self) -> None:
        # Where SQL could not tell, the replica's own signal file does: it comes early, in base.tar.
        if not self._facts.identity.shared_storage:
            return
        sent = self._local_names.sent
        while self._role_checked < len(sent):
            if sent[self._role_checked] == REPLICA_SIGNAL:
                raise replica_refusal()
            self._role_checked += 1


def name_bad_pages(received: ReceivedBackup, reporter: BackupReporter) -> None:
    """Warn of the pages that our own check found wrong."""
    findings = received.pages or PageFindings()
    for bad in findings.bad_files:
        for page in bad.examples:
            reporter.warning(
                f'checksum verification failed in file "{bad.path}", block {page.block}: '
                f"calculated {page.calculated:X} but expected {page.stored:X}"
            )
        if bad.count > len(bad.examples):
            reporter.warning(f'file "{bad.path}" has a total of {bad.count} checksum verification failures')


def refuse_bad_pages(received: ReceivedBackup) -> None:
    """Raise ChecksumFailure if the server or our own check found wrong pages."""
    findings = received.pages or PageFindings()
    total = sum(bad.count for bad in findings.bad_files)
    if not total and received.corruption is None:
        return
    start_lsn = received.facts.start.start_lsn
    newer = any(page.lsn >= start_lsn for bad in findings.bad_files for page in bad.examples)
    where = f": {total} bad pages in {len(findings.bad_files)} files" if total else ""
    hint = "the pages are damaged on the server: check its disks and pg_stat_database.checksum_failures"
    if newer and not received.facts.identity.full_page_writes:
        hint = (
            "a page was torn while it was read, and full_page_writes is off, so that WAL cannot repair it: "
            "take the backup again, or set full_page_writes = on first"
        )
    raise ChecksumFailure(f"checksum error occurred{where}", hint=hint)
