"""The use case: read everything once, and report everything that is wrong. This file reads as a table of contents.

Nothing is written, and nothing that is wrong with the backup ends the run (unless the caller wants the first finding
only): a DBA with a damaged backup has to know all of the damage.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from polarvault.backupset.model import Form
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.model.finding import Finding, Severity
from polarvault.pgfiles.manifest import ManifestFile
from polarvault.pgfiles.relation_paths import unlogged_path
from polarvault.verify.beyond import BeyondThread
from polarvault.verify.files.comparison import compare_names, compare_reading, judge_settings
from polarvault.verify.files.contents import SETTINGS, Contents, judge_tars, list_beside_tars, list_plain, list_tars
from polarvault.verify.files.databases import LostDatabase, judge_lost, lost_databases, missing_parts
from polarvault.verify.files.directories import judge_directories
from polarvault.verify.files.marks import judge_marks
from polarvault.verify.files.reading import FileReading, FileTask, read_files
from polarvault.verify.files.trees import IgnoreRules, file_outside
from polarvault.verify.layout import BackupLayout, Half, find_layout
from polarvault.verify.manifest.manifests import Expected, Manifests, manifests_of_tar, read_manifests
from polarvault.verify.own_wal import OwnWal
from polarvault.verify.pages.checked import first_block_of, page_judge_of, pages_not_checked, usual_blocks_per_segment
from polarvault.verify.pages.findings import PageJudge, in_damaged_copy, partial_page
from polarvault.verify.request import VerifyRequest
from polarvault.verify.small_files import SmallFiles

if TYPE_CHECKING:
    from collections.abc import Iterable

    from polarvault.backupset.wal.tars import SpooledWal
    from polarvault.verify.files.looks import Looked

# With fewer files than these, what looks at many small ones at a time is not loaded.
MANY_FILES = 4000


class VerifyReporter(Protocol):
    """Hears what is found, as soon as it is."""

    def finding(self, finding: Finding) -> None:
        """Something that was looked at, good or bad."""

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """How much has been read; total 0: not known yet."""


@dataclass(slots=True)
class VerifyResult:
    """All findings, what was read, and what was not checked and why."""

    layout: BackupLayout
    findings: list[Finding] = field(default_factory=list)
    file_count: int = 0
    bytes_read: int = 0
    checked_pages: int = 0
    repaired_pages: int = 0
    wal_records: int = 0
    wal_bytes: int = 0
    not_checked: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Tell whether no problem was found."""
        return not any(finding.severity is Severity.PROBLEM for finding in self.findings)


class FirstProblem(Exception):
    """Ends the run at the first problem, when that is wanted."""


def verify_backup(request: VerifyRequest, reporter: VerifyReporter) -> VerifyResult:
    """Verify a backup; raises BackupUnusable when there is none, and UsageError."""
    layout = find_layout(request)
    result = VerifyResult(layout)
    run = _Run(request, layout, result, reporter)
    try:
        run.everything()
    except FirstProblem:
        pass
    finally:
        run.close()
    return result


class _Run:
    def __init__(
        self, request: VerifyRequest, layout: BackupLayout, result: VerifyResult, reporter: VerifyReporter
    ) -> None:
        self._request = request
        self._layout = layout
        self._result = result
        self._reporter = reporter
        self._lock = threading.Lock()
        self._jobs = request.jobs or (os.cpu_count() or 1) + 1
        # A shared half inside of the local half is not part of it.
        inner = [half.title.rstrip("/") for half in layout.halves if half.title.endswith("/")]
        # That the mark of an unfinished backup is there is said by itself.
        self._ignored = IgnoreRules([*request.ignored, *inner, MARKER_NAME])
        self._beyond: BeyondThread | None = None
        self._contents: list[Contents] = []
        self._spooled_wal: SpooledWal | None = None
        self._unreadable: set[str] = set()
        self._mismatches: dict[str, Finding] = {}
        self._has_many = False

    def everything(self) -> None:
        """Go through all checks."""
        contents = self._contents
        if self._layout.form is Form.TAR_FILE:
            manifests, wal = self._read_one_tar()
        else:
            manifests, wal = self._read_parts(), None
        small = SmallFiles(contents, self._report)
        own_wal = OwnWal(self._request, self._layout, manifests, contents, small, wal)
        judge = self._page_judge(manifests, small)
        self._has_many = sum(len(one.sizes) for one in contents if one.tree is not None) >= MANY_FILES
        self._beyond = BeyondThread(
            lambda: self._judge_facts(manifests, small), own_wal,
            with_pages=judge is not None, with_looks=self._has_many,
        )  # fmt: skip
        expected = manifests.assign(contents, self._report)
        self._compare_names(contents, expected)
        self._read(contents, expected, small, judge, self._beyond.kernel_loaded)
        self._take_results(self._beyond)
        self._judge_pages(judge, small, own_wal, self._lost_databases(expected, small))
        if judge is not None:
            self._result.checked_pages, self._result.repaired_pages = judge.checked_pages, judge.repaired_by_wal

    def close(self) -> None:
        """End the thread, and close what is open."""
        if self._beyond is not None:
            self._beyond.stop()
        for found in self._contents:
            found.close()
        if self._spooled_wal is not None:
            self._spooled_wal.discard()

    # What is there

    def _read_parts(self) -> Manifests:
        """List directories and tars, and read what has to be read to be listed."""
        manifests = read_manifests(self._layout, self._report)
        self._contents += map(self._list, self._layout.halves)
        for finding in (*judge_marks(self._layout), *judge_tars(self._layout), *judge_directories(self._layout)):
            self._report(finding)
        if self._layout.is_tar:
            self._read_compressed(self._contents, manifests.algorithm)
        return manifests

    def _read_one_tar(self) -> tuple[Manifests, SpooledWal | None]:
        """Read a backup that is one tar, all of it: what it holds decides about the rest."""
        # Here: what only these need would slow down every start.
        from polarvault.pgfiles.pages import load_kernel
        from polarvault.verify.files.one_tar import OneTarChecks, read_one_tar

        checks = OneTarChecks(
            self._request.check_checksums,
            self._request.check_wal and self._request.wal_path is None,
            load_kernel() if self._wants_pages() else None,
            usual_blocks_per_segment(self._layout),
        )
        one = read_one_tar(self._layout.path, self._ignored, checks, self._report, advance=self._advance)
        self._contents += one.contents
        self._spooled_wal = one.wal
        halves = tuple(found.half for found in one.contents)
        self._layout = self._result.layout = replace(self._layout, halves=halves)
        given = self._request.given_manifest
        local = replace(halves[0], manifest_path=given) if given is not None else None
        manifests = manifests_of_tar(one.contents, one.manifests, local, self._report)
        if not one.choose(manifests.algorithm) and self._request.check_checksums:
            self._result.not_checked.append(f"checksums: {manifests.algorithm} in one tar; unpack it")
        return manifests, one.wal

    def _wants_pages(self) -> bool:
        return self._request.pages or (self._request.pages is None and self._request.check_checksums)

    def _advance(self, size: int) -> None:
        with self._lock:
            self._result.bytes_read += size
            self._reporter.progress(self._result.bytes_read, 0)

    def _list(self, half: Half) -> Contents:
        list_half = list_tars if self._layout.is_tar else list_plain
        return list_half(half, self._ignored, self._report)

    def _read_compressed(self, contents: list[Contents], algorithm: str | None) -> None:
        """Read what has to be read from its beginning; its readings are judged with the others."""
        if not any(part.compression for found in contents for part in found.half.tars):
            return
        # Here: what only compressed tars need would slow down every start.
        from polarvault.pgfiles.pages import load_kernel
        from polarvault.verify.files.compressed import StreamChecks, read_compressed_tars

        checks = StreamChecks(
            algorithm if self._request.check_checksums else None,
            load_kernel() if self._wants_pages() else None,
            usual_blocks_per_segment(self._layout),
        )

        for found in contents:
            read_compressed_tars(found, self._ignored, checks, self._report, jobs=self._jobs, advance=self._advance)

    def _compare_names(self, contents: list[Contents], expected: list[Expected]) -> None:
        tars = frozenset(part.path for part in self._layout.tars)
        directories: set[str] = set()
        for found, listed in zip(contents, expected, strict=True):
            if self._layout.form is Form.TAR_DIRECTORY and found.half.directory not in directories:
                # Both halves can lie in one directory, with the local half's manifest for what is beside the tars.
                directories.add(found.half.directory)
                list_beside_tars(found, listed.entries, tars, self._ignored, self._report)
            for path, target in found.outside.items():
                self._report(file_outside(found.half.name(path), target, is_listed=path in listed.entries))
            if listed.is_known:
                for finding in compare_names(found, listed.entries, self._ignored):
                    self._report(finding)

    # What it holds

    def _judge_facts(self, manifests: Manifests, small: SmallFiles) -> list[Finding]:
        # Here, in a thread of its own: it loads while files are read.
        from polarvault.verify.facts.whole import FactChecks

        return FactChecks(self._layout, manifests, self._contents, self._ignored, small).findings()

    def _page_judge(self, manifests: Manifests, small: SmallFiles) -> PageJudge | None:
        judge, reason = page_judge_of(self._request, self._layout, manifests, small)
        if reason is not None:
            self._result.not_checked.append(reason)
            if self._request.pages:
                self._report(pages_not_checked(reason))
        return judge

    def _read(
        self,
        contents: list[Contents],
        expected: list[Expected],
        small: SmallFiles,
        judge: PageJudge | None,
        kernel_loaded: threading.Event,
    ) -> None:
        tasks: list[FileTask] = []
        entries: dict[str, tuple[Contents, str, ManifestFile | None]] = {}
        for found, listed in zip(contents, expected, strict=True):
            for path in self._paths_to_read(found, listed, small, judge, kernel_loaded):
                entry = listed.entries.get(path)
                if path in found.readings:
                    # That a file has another size was said already.
                    is_comparable = entry is not None and entry.size == found.sizes[path]
                    is_wanted = self._request.check_checksums and is_comparable
                    reading = found.readings[path]
                    page_judge = self._judge_of(reading, path, small, judge)
                    self._judge(reading, found, path, entry if is_wanted else None, page_judge)
                elif (task := self._task(found, path, entry, small if judge is not None else None)) is not None:
                    tasks.append(task)
                    entries[task.name] = found, path, entry
            content = found.read_small(SETTINGS, self._report)
            settings = judge_settings(found.half, listed.entries.get(SETTINGS), content)
            if settings is not None and self._request.check_checksums:
                self._report(settings)
        already, total = self._result.bytes_read, sum(task.size for task in tasks)

        def tick(done: int) -> None:
            self._reporter.progress(already + done, already + total)

        with contextlib.closing(
            read_files(tasks, jobs=self._jobs, kernel_loaded=kernel_loaded, on_tick=tick)
        ) as readings:
            for reading in readings:
                self._result.bytes_read += reading.size
                self._judge(reading, *entries[reading.task.name], judge)
        tick(total)

    def _paths_to_read(
        self,
        found: Contents,
        listed: Expected,
        small: SmallFiles,
        judge: PageJudge | None,
        kernel_loaded: threading.Event,
    ) -> Iterable[str]:
        """Return the files of a half that are to be read one by one; many small ones are looked at before."""
        if not self._has_many:
            return found.sizes
        # Here: few backups have so many files.
        from polarvault.verify.files.small_first import look_at_small

        def take(looked: Looked) -> None:
            self._result.file_count += looked.count
            self._result.bytes_read += looked.size_bytes
            if judge is not None:
                judge.checked_pages += looked.pages

        return look_at_small(
            found, listed.entries,
            with_checksums=self._request.check_checksums,
            first_block=None if judge is None else lambda path: first_block_of(path, small),
            jobs=os.cpu_count() or 1, kernel_loaded=kernel_loaded, take=take,
        )  # fmt: skip

    def _judge_of(
        self, reading: FileReading, path: str, small: SmallFiles, judge: PageJudge | None
    ) -> PageJudge | None:
        """Return None where the pages of a compressed tar were numbered wrongly.

        They were read before pg_control, the last file of a tar, told how long the segments of a relation are.
        """
        first = reading.task.first_block
        if judge is None or not first or first == first_block_of(path, small):
            return judge
        self._result.not_checked.append(f"page checksums of {reading.task.name}: it is compressed; unpack the tar")
        return None

    def _task(
        self, found: Contents, path: str, entry: ManifestFile | None, pages: SmallFiles | None
    ) -> FileTask | None:
        """Return what is to be read of a file; None: nothing."""
        place = found.place_of(path)
        if place is None:
            return None
        algorithm = None
        if self._request.check_checksums and entry is not None and entry.size == place.size:
            algorithm = entry.algorithm
        # One that has grown is wrong already, and may be sparse and endless.
        has_grown = entry is not None and place.size > entry.size
        # Of a file outside of the backup nothing but its checksum is told.
        looks_at_pages = pages is not None and not has_grown and not place.is_outside
        first_block = first_block_of(path, pages) if pages is not None and looks_at_pages else None
        if algorithm is None and first_block is None:
            return None
        name = found.half.name(path)
        return FileTask(name, place.path, place.size, place.offset, algorithm, first_block, place.open)

    def _judge(
        self,
        reading: FileReading,
        found: Contents,
        path: str,
        entry: ManifestFile | None,
        judge: PageJudge | None,
    ) -> None:
        self._result.file_count += 1
        finding = compare_reading(reading, entry)
        if finding is not None and self._waits_for_pages(finding, reading, judge):
            self._mismatches[finding.subject] = finding
        elif finding is not None:
            self._report(finding)
        if judge is not None:
            judge.accept(reading, path, is_made_anew=reading.bad_count > 0 and unlogged_path(path) in found.sizes)
        is_as_sent = entry is None or entry.size == reading.size
        if judge is not None and is_as_sent and (partial := partial_page(reading)) is not None:
            self._report(partial)

    def _waits_for_pages(self, finding: Finding, reading: FileReading, judge: PageJudge | None) -> bool:
        """Tell whether a wrong checksum of a file is told together with the pages that are wrong in it, once."""
        is_wanted = judge is not None and not self._request.exit_on_error
        return is_wanted and finding.check == "wrong-checksum" and reading.bad_count > 0

    def _lost_databases(self, expected: list[Expected], small: SmallFiles) -> list[LostDatabase]:
        """Report what every cluster has and this backup has not; return databases without a directory."""
        if self._layout.missing_half is not None:
            return []  # That is worse, and was said.
        names = [[*found.sizes, *listed.entries] for found, listed in zip(self._contents, expected, strict=True)]
        for finding in missing_parts(self._contents, [name for half in names for name in half], self._ignored):
            self._report(finding)
        major = small.control.major_version if small.control is not None else None
        return lost_databases(self._contents[-1], names[-1], self._ignored, major=major, report=self._report)

    def _judge_pages(
        self, judge: PageJudge | None, small: SmallFiles, own_wal: OwnWal, lost: list[LostDatabase]
    ) -> None:
        """Look up bad pages and lost databases in the WAL, which is read once more for that."""
        suspects = judge.suspects() if judge is not None else []
        fates, is_whole = own_wal.fates_of(suspects) if suspects or lost else (None, False)
        changed = fates.changed_databases if fates is not None and is_whole else None
        start = small.label.start_lsn if small.label is not None else None
        for finding in judge_lost(lost, changed, start, self._contents[-1]):
            self._report(finding)
        if judge is None:
            return
        for finding in judge.findings(fates, is_whole=is_whole):
            mismatch = self._mismatches.pop(finding.subject, None) if finding.check == "page-checksum" else None
            self._report(finding if mismatch is None else in_damaged_copy(finding, mismatch))
        for mismatch in self._mismatches.values():
            self._report(mismatch)

    def _take_results(self, thread: BeyondThread) -> None:
        facts, verdict = thread.results()
        for finding in facts:
            self._report(finding)
        if thread.why_no_wal is not None:
            self._result.not_checked.append(thread.why_no_wal)
        if verdict is None:
            return
        for finding in verdict.findings:
            self._report(finding)
        self._result.wal_records, self._result.wal_bytes = verdict.records, verdict.bytes_read

    def _report(self, finding: Finding) -> None:
        with self._lock:
            if finding.check == "unreadable":
                # A small file is read for what it says, and once more for its checksum.
                if finding.subject in self._unreadable:
                    return
                self._unreadable.add(finding.subject)
            self._result.findings.append(finding)
            self._reporter.finding(finding)
        if self._request.exit_on_error and finding.severity is Severity.PROBLEM:
            raise FirstProblem
