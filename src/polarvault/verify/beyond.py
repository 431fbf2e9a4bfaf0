"""The checks that go beyond the manifest: what is read for them, and the thread that reads WAL beside the files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from polarvault.backupset.inventory import parse_major_version
from polarvault.backupset.model import Area, Form, Part
from polarvault.errors import BackupUnusable, IntegrityError
from polarvault.model import versions
from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.model.relation import BlockId
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label, parse_tablespace_map
from polarvault.pgfiles.control import ControlFile, parse_control, parse_known_control
from polarvault.pgfiles.pages import PAGE_BYTES, load_kernel, relation_segment
from polarvault.verify.files.contents import Contents, Report
from polarvault.verify.files.trees import IgnoreRules
from polarvault.verify.layout import BackupLayout
from polarvault.verify.manifest.manifests import Manifests
from polarvault.verify.pages.findings import PageJudge
from polarvault.verify.request import VerifyRequest

if TYPE_CHECKING:
    from polarvault.backupset.wal.tars import SpooledWal
    from polarvault.verify.pages.fates import PageFates
    from polarvault.verify.wal.check import WalVerdict
    from polarvault.wal.source import WalSource

_NEWER = f"the backup is of a server that is newer than {versions.KNOWN_VERSIONS}"
# Findings about a small file that is not there.
_NOT_THERE = ("version", "label-missing", "control-missing")
# Relation segments of PostgreSQL and of PolarDB, until pg_control says it.
_USUAL_BLOCKS, _POLARDB_BLOCKS = 131072, 16777216


def is_polardb(layout: BackupLayout) -> bool:
    """Tell whether the backup is one of PolarDB on shared storage, as far as its parts show."""
    shared = any(half.area is Area.SHARED for half in layout.halves)
    return shared or layout.missing_half is not None or layout.description.get("polardb") is True


def usual_blocks_per_segment(layout: BackupLayout) -> int:
    """Return the pages of a relation segment, where pg_control was not read yet."""
    return _POLARDB_BLOCKS if is_polardb(layout) else _USUAL_BLOCKS


class Beyond:
    """Reads the small files of the halves and judges from them."""

    def __init__(
        self,
        request: VerifyRequest,
        layout: BackupLayout,
        manifests: Manifests,
        contents: Sequence[Contents],
        ignored: IgnoreRules,
        report: Report,
        spooled_wal: SpooledWal | None = None,
    ) -> None:
        self._request = request
        self._layout = layout
        self._manifests = manifests
        self._contents = contents
        self._ignored = ignored
        self._spooled_wal = spooled_wal
        local, data = contents[0], contents[-1]
        self._control_bytes = data.read_small("global/pg_control", report)
        self._label_bytes = local.read_small("backup_label", report)
        self._version = local.read_small("PG_VERSION", report)
        self._map = self._read_map(report)
        self.control = _parsed_control(self._control_bytes)
        self.is_newer = _is_newer(self._version, self._control_bytes, self.control)
        self.label = _parsed_label(self._label_bytes)

    def judge_facts(self) -> list[Finding]:
        """Judge pg_control, backup_label and the tablespaces."""
        # Here, in a thread of its own: it loads while files are read.
        from polarvault.model.finding import problem
        from polarvault.verify.facts.backup import BackupFacts
        from polarvault.verify.facts.judge import judge_facts

        layout, local, data = self._layout, self._contents[0], self._contents[-1]
        findings = []
        if layout.missing_half is not None:
            findings.append(
                problem(
                    "shared-half-missing", layout.missing_half,
                    f'the shared half of the backup is not at "{layout.missing_half}"',
                    "this is the local half alone: it holds no data and does not start",
                    "name the place of the other half: --polardata DIR",
                )
            )  # fmt: skip
        if local.half.area is Area.SHARED:
            findings.append(
                problem(
                    "local-half-missing", layout.path,
                    "this is the shared half of a PolarDB backup, without the local one",
                    "it has no backup_label and no configuration, and does not start",
                    f"verify both: polarvault verifybackup LOCAL --polardata {layout.path}",
                )
            )  # fmt: skip
        tars = [part for half in layout.halves for part in half.tars if part.area is Area.TABLESPACE]
        facts = BackupFacts(
            control=self._control_bytes,
            control_path=data.half.name("global/pg_control"),
            label=self._label_bytes,
            label_path=local.half.name("backup_label"),
            version=self._version,
            manifest_system_identifier=self._manifests.system_identifier,
            wal_ranges=self._manifests.wal_ranges,
            tablespace_map=self._map,
            tablespace_links=data.links,
            tablespace_tars=frozenset(part.tablespace_oid for part in tars),
            is_tar=layout.is_tar,
            is_polardb=is_polardb(layout),
            expects_label=local.half.area is Area.LOCAL,
        )
        without = ("version", "label-missing") if local.half.area is Area.SHARED else ()
        return findings + [
            finding
            for finding in judge_facts(facts)
            if finding.check not in without
            and not self._is_ignored(finding.subject)
            and not (finding.check in _NOT_THERE and self._could_not_be_read(finding.subject))
        ]

    def _could_not_be_read(self, subject: str) -> bool:
        """Tell whether it was said why a small file could not be read: then it is not one that is not there."""
        for found in self._contents:
            path = subject.removeprefix(found.half.title)
            if subject == found.half.name(path) and found.is_refused(path):
                return True
        return False

    def _is_ignored(self, subject: str) -> bool:
        """Tell whether a finding is about a file that the user wants to be left out."""
        for half in reversed(self._layout.halves):
            if subject.startswith(half.title):
                return self._ignored.covers(subject.removeprefix(half.title))
        return False

    def page_judge(self) -> tuple[PageJudge | None, str | None]:
        """Return what judges pages; None when they are not checked, with the reason unless that was wanted."""
        wanted, control = self._request.pages, self.control
        if wanted is False or (wanted is None and not self._request.check_checksums):
            return None, "page checksums, as was asked for"
        if self.is_newer:
            return None, f"page checksums: {_NEWER}"
        if control is None:
            return None, "page checksums: pg_control does not say whether there are any"
        if not control.has_data_checksums:
            return None, "page checksums: the cluster has none (initdb --data-checksums, or pg_checksums --enable)"
        if control.block_size != PAGE_BYTES:
            return None, f"page checksums: pages of {control.block_size} bytes"
        ends = [wal_range.end for wal_range in self._manifests.wal_ranges if wal_range.end is not None]
        # Only PolarDB leaves full pages out of the WAL of a backup (facts 5.4).
        repairs = control.full_page_writes or not is_polardb(self._layout)
        start: Lsn | None = self.label.start_lsn if self.label is not None else None
        return PageJudge(start, max(ends, default=None), repairs), None

    def first_block(self, path: str) -> int | None:
        """Return the number of the first page in a relation file; None for a file whose pages carry no checksums."""
        segment = relation_segment(path)
        if segment is None or self.control is None:
            return None
        return segment * self.control.relation_segment_blocks

    @property
    def why_no_wal(self) -> str | None:
        """Why WAL is not read; None: it is."""
        if not self._request.check_wal:
            return "WAL, as was asked for"
        return f"WAL: {_NEWER}" if self.is_newer else None

    def check_wal(self, stop: Callable[[], bool]) -> WalVerdict | None:
        """Read the WAL that the backup needs; None when that is not wanted."""
        if self.why_no_wal is not None:
            return None
        # Here, in a thread of its own: the WAL reader takes its time to load, and files are read meanwhile.
        from polarvault.backupset.wal.tars import TarWal
        from polarvault.verify.facts.history import judge_histories, read_histories

        source = self._wal_source()
        verdict = self._read_wal(source, None, stop)
        half = self._contents[-1].half
        histories: Iterable[tuple[str, bytes | OSError]] = ()
        if isinstance(source, TarWal) and verdict.is_complete:
            histories = source.histories()
        if not self._layout.is_tar and self._request.wal_path is None:
            histories = read_histories(os.path.join(half.directory, "pg_wal"), half.title)
        more = judge_histories(histories, self.label, self._manifests.wal_ranges)
        return replace(verdict, findings=[*verdict.findings, *more])

    def page_fates(self, pages: Sequence[BlockId]) -> tuple[PageFates | None, bool]:
        """Look up in the WAL what becomes of pages; None when it is not to be read. Tell whether all of it could be."""
        if self.why_no_wal is not None:
            return None, False
        from polarvault.verify.pages.fates import PageFates

        fates = PageFates(pages)
        verdict = self._read_wal(self._wal_source(), fates, lambda: False)
        return fates, all(finding.severity is not Severity.PROBLEM for finding in verdict.findings)

    def _read_wal(self, source: WalSource | None, fates: PageFates | None, stop: Callable[[], bool]) -> WalVerdict:
        from polarvault.verify.wal.check import check_wal

        return check_wal(
            self._manifests.wal_ranges,
            source,
            segment_size_bytes=self.control.wal_segment_size if self.control else None,
            label=self.label,
            control=self.control,
            system_identifier=self._manifests.system_identifier,
            fates=fates,
            stop=stop,
        )

    def _wal_source(self) -> WalSource | None:
        from polarvault.backupset.wal.of_backup import tar_wal
        from polarvault.walfiles.directory import WalDirectory

        given = self._request.wal_path
        if given is not None:
            if os.path.isdir(given):
                return WalDirectory(given)
            return tar_wal(Part(Area.WAL, given, True, _compression_of(given)))
        if self._layout.form is Form.TAR_FILE:
            return self._spooled_wal if self._contents[-1].wal_in_data else None
        if self._layout.wal_tars:
            # To open a fifo would wait for ever.
            return tar_wal(self._layout.wal_tars[0]) if os.path.isfile(self._layout.wal_tars[0].path) else None
        data = self._contents[-1]
        if not data.wal_in_data:
            return None
        if not self._layout.is_tar:
            return WalDirectory(os.path.join(data.half.directory, "pg_wal"))
        return next((tar_wal(part) for part in data.half.tars if part.area is not Area.TABLESPACE), None)

    def _read_map(self, report: Report) -> dict[int, str] | None:
        content = self._contents[0].read_small("tablespace_map", report)
        if content is None:
            return None
        try:
            return parse_tablespace_map(content)
        except BackupUnusable as damage:
            from polarvault.model.finding import problem

            report(
                problem(
                    "tablespace-map", self._contents[0].half.name("tablespace_map"), damage.message,
                    "the tablespaces of a server that starts with it are missing", "use another backup",
                )
            )  # fmt: skip
            return None


class BeyondThread:
    """Judges the small files and reads WAL while other threads read files, and compiles the page kernel for them first.

    All that is compiled is compiled here, one thing after the other (see `machine_code`).
    """

    def __init__(self, beyond: Beyond, *, with_pages: bool) -> None:
        self.kernel_loaded = threading.Event()
        self._beyond = beyond
        self._with_pages = with_pages
        self._stopped = False
        self._facts: list[Finding] = []
        self._verdict: WalVerdict | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="beyond", daemon=True)
        self._thread.start()

    @property
    def why_no_wal(self) -> str | None:
        """Why no WAL is read; None: it is."""
        return self._beyond.why_no_wal

    def results(self) -> tuple[list[Finding], WalVerdict | None]:
        """Wait for the end; return what the small files say, and the WAL."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._facts, self._verdict

    def stop(self) -> None:
        """End the thread; the program must not end while it compiles."""
        self._stopped = True
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._with_pages:
                load_kernel()
            self.kernel_loaded.set()
            self._facts = self._beyond.judge_facts()
            self._verdict = self._beyond.check_wal(lambda: self._stopped)
        except BaseException as failure:  # The main thread raises it again.
            self._failure = failure
        finally:
            # A reader that waits for the kernel loads it itself, and meets the same failure.
            self.kernel_loaded.set()


def _parsed_control(content: bytes | None) -> ControlFile | None:
    try:
        return None if content is None else parse_control(content)
    except IntegrityError:
        # judge_facts says what is wrong with it.
        return None


def _is_newer(version: bytes | None, control_bytes: bytes | None, control: ControlFile | None) -> bool:
    """Tell whether the backup is of a server newer than all known ones: by PG_VERSION, or by pg_control beside it."""
    major = parse_major_version(version)
    if major is None or control_bytes is None:
        return major is not None and versions.is_newer(major)
    try:
        return versions.is_newer(major) or parse_known_control(control_bytes, major) is None
    except IntegrityError:
        return False


def _parsed_label(content: bytes | None) -> BackupLabel | None:
    try:
        return None if content is None else parse_backup_label(content)
    except BackupUnusable:
        return None


def _compression_of(path: str) -> str | None:
    suffix = path.rpartition(".")[2]
    return "gz" if suffix == "tgz" else suffix if suffix in ("gz", "lz4", "zst") else None


def pages_not_checked(reason: str) -> Finding:
    """Return the warning that pages are not checked although it was asked for."""
    return Finding(
        severity=Severity.WARNING,
        check="page-checksums",
        subject="pages",
        message=f"--pages was given, but nothing could be checked: {reason}",
        meaning="damage that pages had before the backup cannot be seen",
        advice="polarvault drill BACKUP --amcheck reads every page and row of a restored copy",
    )
