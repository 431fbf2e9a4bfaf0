"""Take a backup that lies in files into a repository: start reading here.

Its files go through `BackupWriter` as those of a server do, so that it may build on the backups that are there, and
later ones on it. What the files are, and whether they can become one, is found out by `source` first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from blake3 import blake3

from polarvault import __version__
from polarvault.backup.parent import ParentChoice, ServerState, choose_parent
from polarvault.backupset.listing import MANIFEST, SHARED_MANIFEST, Disagreement, Key, is_compared, key_of
from polarvault.backupset.model import CONTROL_NAME, DESCRIPTION_NAME, Area, Form
from polarvault.backupset.saved_configuration import configuration_documents
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.basebackup.halves import SERVER_MANIFEST
from polarvault.errors import PolarvaultError, UsageError, WalIncomplete
from polarvault.exchange.found_files import found_files
from polarvault.exchange.manifests import TABLESPACE_MAP, Comparison, make_manifest, merge_halves
from polarvault.exchange.source import FilesBackup, look_at, manifests_beside, refuse_other_names
from polarvault.model.lsn import Lsn
from polarvault.pgfiles import manifest as manifests
from polarvault.pgfiles.manifest import Manifest, ManifestRange
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, has_protocol
from polarvault.polardb.layout import KeepRules
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.record import IMPORTED_FROM, RecordFacts
from polarvault.repository.index.files import FileKind
from polarvault.repository.index.root import PartArea
from polarvault.repository.reading.as_backup import ATTACHED_CONFIGURATION
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.repository.wal.sink import RepositoryWalSink
from polarvault.repository.writing import backup_writer
from polarvault.repository.writing.backup_writer import BackupWriter, Outcome
from polarvault.taking.reporter import BackupProgress, BackupReporter
from polarvault.wal.backup_end import backup_end_problem
from polarvault.wal.history import history_file_name
from polarvault.walfiles.choice import find, history_of

_MANIFESTS = (MANIFEST, SHARED_MANIFEST, SERVER_MANIFEST)
# What is no file of the cluster, in either half.
_BESIDE = frozenset({*_MANIFESTS, DESCRIPTION_NAME, MARKER_NAME, TABLESPACE_MAP})
_AREAS = {Area.LOCAL: PartArea.LOCAL, Area.SHARED: PartArea.SHARED, Area.TABLESPACE: PartArea.TABLESPACE}
_KINDS = {MemberKind.FILE: FileKind.FILE, MemberKind.DIRECTORY: FileKind.DIRECTORY}


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What is taken in. wal_directories: where WAL is that does not come with it; stop_lsn: if nothing says it."""

    path: str
    cluster: str
    shared_from: str | None = None
    wal_directories: Sequence[str] = ()
    stop_lsn: Lsn | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A backup that is recorded now. has_manifest: its files were compared with one."""

    cluster: str
    address: str
    found: FilesBackup
    parent: ParentChoice
    outcome: Outcome
    size_bytes: int
    has_manifest: bool
    settings: tuple[Disagreement, ...]


def import_backup(request: ImportRequest, repository: Repository, reporter: BackupReporter) -> Imported:
    """Take one backup in; on any failure nothing is recorded."""
    found = look_at(
        request.path,
        shared_from=request.shared_from,
        wal_directories=request.wal_directories,
        stop_lsn=request.stop_lsn,
    )
    return _Import(request, repository, found, reporter).run()


def _refuse_older_generation(repository: Repository, cluster: str, found: FilesBackup) -> None:
    """Refuse a system identifier that would count as later than those that are there, and is not.

    The order of system identifiers is that in which the repository has met them: retention goes by it.
    """
    if found.control.system_identifier in repository.generations(cluster):
        return
    later = [record for record in repository.records(cluster) if record.facts.finished >= found.ended]
    if later:
        raise UsageError(
            f"{cluster} has backups of a later system identifier than {found.control.system_identifier}: "
            f"{cluster}@{later[-1].label}",
            hint=f"import it under a name of its own: polarvault import {cluster}-old {found.path}",
        )


@dataclass(slots=True)
class _Totals:
    size: int = 0
    manifests: dict[tuple[Area, str], bytes] = field(default_factory=dict)


class _Import:
    def __init__(
        self, request: ImportRequest, repository: Repository, found: FilesBackup, reporter: BackupReporter
    ) -> None:
        self._request, self._repository, self._found, self._reporter = request, repository, found, reporter
        self._shared_storage = found.inventory.has_shared_half
        self._comparison = Comparison(found.listing)
        self._totals = _Totals(manifests=manifests_beside(found.files))
        # Of compressed tars, of which it is known only now what they hold.
        self._passed: dict[Key, int] = {}
        self._history = ""

    def run(self) -> Imported:
        found, repository, cluster = self._found, self._repository, self._request.cluster
        control = found.control
        _refuse_older_generation(repository, cluster, found)
        relation_segment_bytes = control.relation_segment_blocks * control.block_size
        repository.ensure_generation(
            cluster,
            Generation(
                control.system_identifier, found.server_version, self._shared_storage, control.wal_segment_size,
                relation_segment_bytes, control.has_data_checksums,
            ),
        )  # fmt: skip
        self._wal = repository.wal(cluster, control.system_identifier, control.wal_segment_size)
        self._write_wal(self._wal)
        state = ServerState(
            control.system_identifier, found.label.timeline_id, found.label.start_lsn, self._history,
            control.has_data_checksums, relation_segment_bytes,
        )  # fmt: skip
        parent = choose_parent(repository.records(cluster), state, full=False)
        writer = repository.begin_backup(cluster, started=found.began, parts=found.parts, parent=parent.label)
        if writer.parent_label != parent.label:
            parent = ParentChoice(None, f"{parent.label} has expired at this moment")
        self._reporter.step(f"writing backup {writer.label}")
        try:
            outcome = self._write(writer, parent, relation_segment_bytes)
        except BaseException:
            writer.abandon()
            self._end_intents()
            raise
        self._end_intents()
        return Imported(
            cluster, repository.store.address, found, parent, outcome, self._totals.size,
            found.listing.is_known, tuple(self._comparison.settings),
        )  # fmt: skip

    def _end_intents(self) -> None:
        try:
            self._repository.end_intents()
        except PolarvaultError as problem:
            # The backup is whole, or there is a failure that matters more.
            self._reporter.note(f"the mark of this backup could not be removed: {problem.message}")

    def _write(self, writer: BackupWriter, parent: ParentChoice, relation_segment_bytes: int) -> Outcome:
        self._write_files(writer)
        local = [part.area for part in self._found.parts].index(PartArea.LOCAL)
        for part in self._found.parts:
            # One inside of the data directory (allow_in_place_tablespaces) has no link.
            if part.area is PartArea.TABLESPACE and part.location.startswith("/"):
                link, path = part.location.encode("utf-8", "surrogateescape"), b"pg_tblspc/%d" % part.oid
                writer.begin(backup_writer.Member(local, path, FileKind.SYMLINK, mode=0o777, link=link))
                writer.end()
        writer.attach(MANIFEST, [self._manifest()])
        writer.attach(DESCRIPTION_NAME, [self._description()])
        saved = self._found.files.saved_configuration()
        for name, content in (configuration_documents(saved) if saved is not None else {}).items():
            writer.attach(f"{ATTACHED_CONFIGURATION}/{name}", [content])
        # An expire with a short safety time may have removed what no record needed yet.
        found = self._found
        missing = next(self._wal.missing(found.stop_timeline_id, found.label.start_lsn, found.stop_lsn), None)
        if missing is not None:
            raise WalIncomplete(f"the WAL from {missing[0]} on was removed meanwhile", hint="import the backup again")
        return writer.commit(self._facts(parent, relation_segment_bytes))

    # Files

    def _write_files(self, writer: BackupWriter) -> None:
        found = self._found
        numbers = {(part.area, part.oid): number for number, part in enumerate(found.parts)}
        rules = {area: KeepRules(area is Area.SHARED) for area in (Area.LOCAL, Area.SHARED)}
        is_kept = False
        captured: bytearray | None = None
        total = sum(found.inventory.sizes.values()) + sum(found.inventory.tablespace_sizes.values())
        for area, oid, event in found_files(found.files, found.inventory):
            if isinstance(event, MemberBegins):
                member = event.member
                if member.kind is MemberKind.FILE and not found.inventory.is_whole:
                    self._passed[key_of(area, member.name, oid)] = member.size
                is_kept = self._is_kept(area, member, rules)
                is_manifest = area in rules and member.name in _MANIFESTS and found.files.form is Form.TAR_FILE
                captured = bytearray() if is_manifest else None
                if is_kept:
                    number = numbers[_AREAS[area], oid]
                    path = member.name.encode("utf-8", "surrogateescape")
                    writer.begin(
                        backup_writer.Member(
                            number, path, _KINDS[member.kind], member.size, member.mode & 0o7777, member.mtime
                        )
                    )
                    if member.kind is MemberKind.FILE:
                        self._comparison.begin(area, member.name, oid=oid, mtime=member.mtime)
            elif isinstance(event, MemberData):
                if captured is not None:
                    captured += b"".join(event.views)
                if is_kept:
                    writer.data(event.views)
                    for view in event.views:
                        self._comparison.data(view)
                    self._totals.size += event.size
                    self._reporter.progress(BackupProgress(self._totals.size, total, 1, 1, ""))
            else:
                if captured is not None:
                    self._totals.manifests[area, event.member.name] = bytes(captured)
                    captured = None
                if is_kept:
                    writer.end()
                    if event.member.kind is MemberKind.FILE:
                        self._comparison.end()
                is_kept = False
        if not found.inventory.is_whole:
            sizes = {key: size for key, size in self._passed.items() if is_compared(key[1])} | {
                key: size for key, size in found.inventory.lengths.items() if key not in self._passed
            }
            refuse_other_names(found.path, found.listing, sizes, has_shared_half=self._shared_storage)

    def _is_kept(self, area: Area, member: Member, rules: Mapping[Area, KeepRules]) -> bool:
        name = member.name
        if name in ("", ".") or member.kind is MemberKind.SYMLINK or has_protocol(name):
            return False
        if area in rules and name in _BESIDE:
            return False
        # WAL goes to all other WAL of the cluster.
        if area in rules and name.startswith("pg_wal/") and member.kind is MemberKind.FILE:
            return False
        return not self._shared_storage or area not in rules or rules[area](member)

    # WAL

    def _write_wal(self, wal: RepositoryWal) -> None:
        found = self._found
        segments = found.segments()
        names = {segment.file_name for segment in segments}
        found.wal.expect(lambda name: name in names)
        sink = RepositoryWalSink(wal)
        for segment in segments:
            copy = find(found.wal, segment)
            # Behind the end of the backup a segment may hold zeros where the server went on.
            wanted = min(segment.size_bytes, found.stop_lsn - segment.start)
            offset = 0
            for view in copy.views() if copy is not None else ():
                part = view[: wanted - offset]
                if part:
                    sink.write(segment, offset, part)
                    offset += len(part)
            if offset < wanted:
                raise WalIncomplete(
                    f"the backup needs the WAL up to {found.stop_lsn} on timeline {found.stop_timeline_id}, and it "
                    f"ends at {Lsn(segment.start + offset)}",
                    hint="name the directory that has the rest: --wal DIR",
                )
        sink.finish()
        if found.stop_timeline_id > 1:
            history = history_of(found.wal, found.stop_timeline_id)
            if history is None:
                name = history_file_name(found.stop_timeline_id)
                raise WalIncomplete(f"{name} is not in the WAL", hint="name the directory that has it: --wal DIR")
            sink.add_history(history_file_name(found.stop_timeline_id), history)
            self._history = blake3(history).hexdigest()
        if not found.label.is_from_standby:
            self._check_end(wal)

    def _check_end(self, wal: RepositoryWal) -> None:
        found = self._found
        problem = backup_end_problem(
            lambda lsn, length: wal.read(found.stop_timeline_id, lsn, length),
            start_lsn=found.label.start_lsn, stop_lsn=found.stop_lsn, segment_size_bytes=wal.segment_bytes,
        )  # fmt: skip
        if problem is not None:
            raise WalIncomplete(
                f"the backup cannot be made consistent: {problem}",
                hint="name the WAL of the same cluster with --wal DIR, and the right end with --stop-lsn",
            )

    # What describes it

    def _manifest(self) -> bytes:
        """Return one manifest of everything; a map of tablespaces is no file of the backup here."""
        found, there = self._found, self._totals.manifests
        local = there.get((Area.LOCAL, MANIFEST))
        shared = there.get((Area.SHARED, MANIFEST), there.get((Area.SHARED, SHARED_MANIFEST)))
        of_server = there.get((Area.LOCAL, SERVER_MANIFEST))
        if not found.listing.is_known or local is None:
            needed = ManifestRange(found.stop_timeline_id, found.label.start_lsn, found.stop_lsn)
            made = make_manifest(
                self._comparison.made, needed,
                system_identifier=found.control.system_identifier, server_version=found.server_version,
            )  # fmt: skip
            return manifests.encode_manifest(made)
        if of_server is not None:
            return of_server
        parsed = manifests.parse_manifest(local)
        lists_both = any(entry.path == CONTROL_NAME for entry in parsed.files)
        if shared is not None and not lists_both:
            return manifests.encode_manifest(merge_halves({Area.LOCAL: local, Area.SHARED: shared}))
        kept = [entry for entry in parsed.files if entry.path != TABLESPACE_MAP]
        if len(kept) == len(parsed.files):
            return local
        return manifests.encode_manifest(Manifest(parsed.version, kept, parsed.wal_ranges, parsed.system_identifier))

    def _description(self) -> bytes:
        found = self._found
        fields = {
            "format": 1,
            "label": found.label.label,
            "server_version": found.version,
            "server_version_num": found.server_version,
            "system_identifier": str(found.control.system_identifier),
            "polardb": self._shared_storage,
            "polar_version": None,
            "shared_storage": self._shared_storage,
            "wal_segment_size": found.control.wal_segment_size,
            "data_checksums": found.control.has_data_checksums,
            "start_lsn": str(found.label.start_lsn),
            "stop_lsn": str(found.stop_lsn),
            "timeline": found.label.timeline_id,
            "started_at": found.began.astimezone(UTC).isoformat(timespec="seconds"),
            "finished_at": found.ended.astimezone(UTC).isoformat(timespec="seconds"),
            **dict(found.files.description),
            "shared_half": None,
            "imported_by": f"polarvault {__version__}",
        }
        return (json.dumps(fields, indent=1) + "\n").encode()

    def _facts(self, parent: ParentChoice, relation_segment_bytes: int) -> RecordFacts:
        found = self._found
        segment = found.control.wal_segment_size
        details: dict[str, Any] = {
            "version": found.version,
            "polardb": bool(found.files.description.get("polardb", self._shared_storage)),
            "shared_storage": self._shared_storage,
            "from_standby": found.label.is_from_standby,
            "data_checksums": found.control.has_data_checksums,
            "full_page_writes": found.control.full_page_writes,
            "wal_segment_bytes": segment,
            "relation_segment_bytes": relation_segment_bytes,
            "history": self._history,
            "wal_first": str(Lsn(found.label.start_lsn - found.label.start_lsn % segment)),
            "note": self._request.note,
            IMPORTED_FROM: found.path,
        }
        return RecordFacts(
            started=found.began,
            finished=found.ended,
            system_identifier=found.control.system_identifier,
            timeline_id=found.label.timeline_id,
            start_lsn=found.label.start_lsn,
            stop_lsn=found.stop_lsn,
            stop_timeline_id=found.stop_timeline_id,
            server_version=found.server_version,
            reason=parent.reason,
            details=details,
        )
