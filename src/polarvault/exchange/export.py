"""Write a backup of a repository into files that PostgreSQL's own tools read: start reading here.

It is told to a target of `basebackup` as if a server had sent it. So the forms are those of basebackup: a directory, or
tar files, PolarDB's two halves with a manifest each; what a failure leaves behind is the same, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from polarvault.backupset.listing import MANIFEST, Disagreement, parse_listing
from polarvault.backupset.model import Area
from polarvault.backupset.saved_configuration import saved_beside, write_configuration
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.destination import Destination, Output
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.request import BackupRequest
from polarvault.basebackup.tar_output import TarOutput
from polarvault.errors import UsageError, WalIncomplete
from polarvault.exchange.files import StoredFiles
from polarvault.exchange.manifests import TABLESPACE_MAP, Comparison, make_manifest
from polarvault.model.segment import WalSegment
from polarvault.pgfiles import manifest as manifests
from polarvault.pgfiles.manifest import Manifest, ManifestFile, ManifestRange
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind, TarEvent
from polarvault.pipeline.member_sinks import MemberSink
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.chunks import PAGE_BYTES
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.index.root import Part, PartArea
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.server.base_backup import ArchiveBegins, BackupStart, Tablespace
from polarvault.server.identity import ServerIdentity
from polarvault.server.wal_stream import WalSink
from polarvault.taking.facts import ArchiveNames, BackupFacts, ReceivedBackup
from polarvault.taking.manifest_spool import ManifestSpool
from polarvault.taking.reporter import BackupProgress, BackupReporter
from polarvault.taking.target import Verbatim
from polarvault.wal.names import is_history_name, is_segment_name

_AREAS = {PartArea.LOCAL: Area.LOCAL, PartArea.SHARED: Area.SHARED, PartArea.TABLESPACE: Area.TABLESPACE}


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Where a backup goes: `directory`, and of PolarDB the shared half to `polardata` if that is given.

    as_tar: tar files instead of a directory; tablespace_mapping: old place to new one, absolute.
    """

    directory: str
    as_tar: bool = False
    polardata: str | None = None
    tablespace_mapping: Mapping[str, str] = field(default_factory=dict)
    sync: bool = True
    threads: int = 4


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. has_manifest: the manifest is the server's, not one that was made now."""

    identity: ServerIdentity
    files: int
    size_bytes: int
    has_manifest: bool
    settings: tuple[Disagreement, ...]
    closing_notes: tuple[str, ...]


def export_backup(
    backup: BackupInRepository, repository: Repository, request: ExportRequest, reporter: BackupReporter
) -> Exported:
    """Write one backup; on a failure nothing of it is left."""
    record = backup.reader.record
    generation = repository.generation(record.cluster, record.facts.system_identifier)
    _refuse_without_wal(backup, repository)
    identity = _identity(backup, generation)
    if request.polardata is not None and not identity.shared_storage:
        raise UsageError(f"{backup.path} has no shared half for --polardata", hint="leave --polardata out")
    created = CreatedPaths(0o750 if identity.group_access else 0o700, sync=request.sync)
    wanted = BackupRequest(
        directory=request.directory, format="tar" if request.as_tar else "plain", polardata=request.polardata,
        tablespace_mapping=dict(request.tablespace_mapping), sync=request.sync, keep_all=True,
    )  # fmt: skip
    destination = Destination(wanted, identity, reporter, created)
    output: Output = TarOutput(destination) if request.as_tar else PlainOutput(destination)
    export = _Export(backup, identity, output, reporter, as_tar=request.as_tar)
    # Beside the backup, where restore and import look for it.
    saved, beside = backup.saved_configuration(), saved_beside(request.directory)
    try:
        output.claim()
        if saved is not None:
            created.claim(beside)
            write_configuration(beside, saved, sync=request.sync)
        exported = export.run(threads=request.threads)
    except BaseException:
        output.abort()
        created.clean_up(reporter.step)
        raise
    return exported


def _refuse_without_wal(backup: BackupInRepository, repository: Repository) -> None:
    record = backup.reader.record
    facts = record.facts
    wal = repository.wal_of(record.cluster, facts.system_identifier)
    missing = next(wal.missing(facts.stop_timeline_id, facts.start_lsn, facts.stop_lsn), None)
    if missing is not None:
        raise WalIncomplete(
            f"the WAL of {backup.path} from {missing[0]} to {missing[1]} on timeline {facts.stop_timeline_id} is not "
            f"in {repository.store.address}, so that the backup cannot be made consistent",
            hint="export another backup; polarvault list shows which are good",
        )


def _identity(backup: BackupInRepository, generation: Generation) -> ServerIdentity:
    """Return what the server would say of itself."""
    facts, description = backup.reader.record.facts, backup.description
    details = facts.details
    has_shared_half = any(part.area is PartArea.SHARED for part in backup.reader.root.parts)
    polar_version = description.get("polar_version")
    return ServerIdentity(
        system_identifier=str(facts.system_identifier),
        timeline_id=facts.timeline_id,
        flush_lsn=facts.stop_lsn,
        version_num=facts.server_version,
        version=str(details.get("version") or facts.server_version // 10000),
        segment_size_bytes=generation.wal_segment_bytes,
        relation_segment_bytes=generation.relation_segment_bytes,
        block_bytes=PAGE_BYTES,
        data_checksums=generation.data_checksums,
        full_page_writes=details.get("full_page_writes") is not False,
        group_access=backup.look_through().group_readable,
        in_recovery=details.get("from_standby") is True,
        log_directory="log",
        polar_version=polar_version if isinstance(polar_version, str) else None,
        shared_data_directory="" if has_shared_half else None,
    )


class _Export:
    def __init__(
        self, backup: BackupInRepository, identity: ServerIdentity, output: Output, reporter: BackupReporter, *,
        as_tar: bool,
    ) -> None:  # fmt: skip
        self._backup, self._reader = backup, backup.reader
        self._identity, self._output, self._reporter = identity, output, reporter
        self._as_tar = as_tar
        self._parts = self._reader.root.parts
        self._spaces = [_tablespace(part) for part in self._parts]
        shared = {Area.SHARED} if identity.shared_storage else set()
        self._attached = self._reader.attachment(MANIFEST)
        contents = {} if self._attached is None else {Area.LOCAL: self._attached}
        self._listing = parse_listing(contents, frozenset({Area.LOCAL, *shared}))
        if self._listing.damage is not None:
            # It is compared with what passes: that has to be possible.
            manifests.parse_manifest(self._attached or b"")
        self._comparison = Comparison(self._listing)
        self._kept: dict[Area, set[str]] = {Area.LOCAL: set(), Area.SHARED: set()}
        self._added: list[ManifestFile] = []
        self._files = self._size = 0

    def run(self, *, threads: int) -> Exported:
        facts = self._facts()
        self._output.begin(facts)
        wal = self._output.wal()
        with StoredFiles(self._reader, threads=threads) as stored:
            groups = groupby(self._reader.rows(), key=lambda row: row.part)
            upcoming = next(groups, None)
            for number, part in enumerate(self._parts):
                # A tablespace may be empty.
                is_own = upcoming is not None and upcoming[0] == number
                self._write_part(number, part, upcoming[1] if upcoming is not None and is_own else iter(()), stored)
                if is_own:
                    upcoming = next(groups, None)
        if wal is not None:
            self._write_wal(wal)
        self._output.commit(self._received(facts))
        self._progress(len(self._parts), "", final=True)
        return Exported(
            self._identity, self._files, self._size, self._attached is not None, tuple(self._comparison.settings),
            tuple(self._output.closing_notes()),
        )  # fmt: skip

    def _facts(self) -> BackupFacts:
        facts = self._reader.record.facts
        spaces = [space for space, part in zip(self._spaces, self._parts, strict=True) if part.area in _AREAS]
        start = BackupStart(facts.start_lsn, facts.timeline_id, spaces)
        label = str(self._backup.description.get("label") or "polarvault export")
        return BackupFacts(self._identity, start, label, facts.started, "stream", streams_wal=True)

    def _write_part(self, number: int, part: Part, rows: Iterator[FileRow], stored: StoredFiles) -> None:
        area = _AREAS.get(part.area)
        if area is None:
            return
        space = self._spaces[number]
        sink = self._output.archive(ArchiveBegins(space.archive_name, space))
        assert sink is not None
        assert not isinstance(sink, Verbatim), "nothing here is as a server has compressed it"
        # In front of the names of an in-place tablespace, which lies inside of the data directory.
        prefix = f"{space.location}/" if space.oid is not None and space.is_in_place else ""
        kept = self._kept.get(Area.SHARED if prefix else area)
        for row, event in stored.events(self._without_links(rows) if part.area is PartArea.LOCAL else rows):
            self._compare(row, event, area, part.oid)
            if kept is not None and isinstance(event, MemberBegins) and row.kind is FileKind.FILE:
                kept.add(prefix + row.name)
            sink.accept(event)
            self._progress(number + 1, row.name)
        if part.area is PartArea.LOCAL and self._as_tar:
            self._write_tablespace_map(sink)
        sink.finish()

    def _without_links(self, rows: Iterator[FileRow]) -> Iterator[FileRow]:
        """Leave the links to tablespaces out of a tar: there the map says where they are, as a server has it."""
        for row in rows:
            is_link = row.kind is FileKind.SYMLINK and row.name.startswith("pg_tblspc/")
            if not (self._as_tar and is_link and not self._identity.shared_storage):
                yield row

    def _write_tablespace_map(self, sink: MemberSink) -> None:
        outer = [space for space in self._spaces if space.oid is not None and not space.is_in_place]
        if not outer or self._identity.shared_storage:
            return
        lines = [f"{space.oid} {_escaped(space.location or '')}\n" for space in outer]
        content = "".join(lines).encode("utf-8", "surrogateescape")
        started = self._reader.record.facts.started
        member = Member(
            TABLESPACE_MAP, MemberKind.FILE, len(content), 0o600, "", int(started.timestamp()), b""
        )  # fmt: skip
        for event in (MemberBegins(member), MemberData([memoryview(content)], len(content), 0), MemberEnds(member)):
            sink.accept(event)
        modified = started.strftime("%Y-%m-%d %H:%M:%S GMT")
        algorithm = next((entry.algorithm for entries in self._listing.entries.values() for entry in entries), "CRC32C")
        self._added.append(
            manifests.entry_for(TABLESPACE_MAP, content, last_modified=modified, algorithm=algorithm)
        )  # fmt: skip

    def _compare(self, row: FileRow, event: TarEvent, area: Area, oid: int) -> None:
        if row.kind is not FileKind.FILE:
            return
        if isinstance(event, MemberBegins):
            self._comparison.begin(area, row.name, oid=oid, mtime=row.mtime)
        elif isinstance(event, MemberData):
            self._comparison.data(event.views[0])
            self._size += event.size
        else:
            self._comparison.end()
            self._files += 1

    def _write_wal(self, sink: WalSink) -> None:
        size = self._identity.segment_size_bytes
        for entry, content in self._backup.wal(self._backup.look_through()).files():
            if is_history_name(entry.name):
                sink.add_history(entry.name, b"".join(map(bytes, content())))
            elif is_segment_name(entry.name):
                segment, offset = WalSegment.parse(entry.name, size), 0
                for view in content():
                    sink.write(segment, offset, view)
                    offset += len(view)
                sink.segment_done(segment)
        sink.finish()

    def _received(self, facts: BackupFacts) -> ReceivedBackup:
        record = self._reader.record.facts
        content, local, shared = self._manifest()
        spool = ManifestSpool(self._output.spool_directory)
        spool.append(content)
        return ReceivedBackup(
            facts, record.stop_lsn, record.stop_timeline_id, self._size, spool, local_names=local, shared_names=shared
        )

    def _manifest(self) -> tuple[bytes, ArchiveNames, ArchiveNames]:
        """Return the manifest, and of PolarDB which names it has of each half: those that were not stored, too."""
        record = self._reader.record.facts
        if self._attached is None:
            needed = ManifestRange(record.stop_timeline_id, record.start_lsn, record.stop_lsn)
            made = make_manifest(
                [*self._comparison.made, *self._added], needed,
                system_identifier=record.system_identifier, server_version=record.server_version,
            )  # fmt: skip
            content = manifests.encode_manifest(made)
        elif self._added:
            sent = manifests.parse_manifest(self._attached)
            content = manifests.encode_manifest(
                Manifest(sent.version, sent.files + self._added, sent.wal_ranges, sent.system_identifier)
            )
        else:
            content = self._attached
        if not self._identity.shared_storage:
            return content, ArchiveNames(), ArchiveNames()
        sent = manifests.parse_manifest(content)
        local, shared = _split(sent, self._kept[Area.LOCAL], self._kept[Area.SHARED])
        stored = Manifest(sent.version, local + shared, sent.wal_ranges, sent.system_identifier)
        return (
            manifests.encode_manifest(stored),
            ArchiveNames([entry.path for entry in local]),
            ArchiveNames([entry.path for entry in shared]),
        )

    def _progress(self, number: int, name: str, *, final: bool = False) -> None:
        total = self._reader.record.counts.get("read_bytes", 0)
        self._reporter.progress(BackupProgress(self._size, total, number, len(self._parts), name), final=final)


def _split(sent: Manifest, local: set[str], shared: set[str]) -> tuple[list[ManifestFile], list[ManifestFile]]:
    """Return the entries of each half, of files that are stored there.

    PolarDB's manifest lists the local half first and does not say where the shared one begins. Of a path that it lists
    twice the first entry is the local half's; one that is stored in one half only was left out of the other.
    """
    first = {entry.path: entry for entry in reversed(sent.files)}
    last = {entry.path: entry for entry in sent.files}
    return (
        [first[path] for path in last if path in local],
        [entry for path, entry in last.items() if path in shared],
    )


def _tablespace(part: Part) -> Tablespace:
    if part.area is PartArea.TABLESPACE:
        return Tablespace(str(part.oid), part.location, None, shared=False)
    return Tablespace(None, None, None, shared=part.area is PartArea.SHARED)


def _escaped(path: str) -> str:
    # As the server writes the map (do_pg_backup_start): line ends and backslashes behind a backslash.
    return "".join(f"\\{letter}" if letter in "\\\n\r" else letter for letter in path)
