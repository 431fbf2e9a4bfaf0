"""Judge pages with wrong checksums: torn ones that WAL repairs at the restore are no damage, all others are. Pure.

Most backups have none. Where there are some, they are kept until all files were read, and then looked up in the WAL
(`wal.page_fates`). Without that WAL there is only their LSN: a page that was written during the backup lies between its
start and its end, and PostgreSQL writes full pages to the WAL while a backup runs, whatever full_page_writes says.
PolarDB does not with full_page_writes off (facts 5.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.model.relation import BlockId
from polarvault.pgfiles.pages import PAGE_BYTES, BadPage
from polarvault.pgfiles.relation_paths import relation_of
from polarvault.verify.files.reading import FileReading
from polarvault.wal.page_fates import Fate, PageFates

_NAMED = 5


@dataclass(slots=True)
class PageJudge:
    """Knows from when to when pages may be torn, and whether WAL repairs them; counts what it has judged."""

    start_lsn: Lsn | None
    end_lsn: Lsn | None
    wal_repairs: bool
    checked_pages: int = 0
    bad_pages: int = 0
    repaired_by_wal: int = 0
    _suspects: list[tuple[str, FileReading]] = field(default_factory=list)

    def accept(self, reading: FileReading, path: str, *, is_made_anew: bool = False) -> None:
        """Take what was read of a file; path: in its half. is_made_anew: by the server at its start, as it is unlogged.

        Keeps bad pages in mind.
        """
        self.checked_pages += reading.checked_pages
        if is_made_anew:
            self.repaired_by_wal += reading.bad_count
        elif reading.bad_count:
            self._suspects.append((path, reading))

    def suspects(self) -> list[BlockId]:
        """Return the pages that have to be looked up in the WAL."""
        return [found for path, reading in self._suspects for page in reading.bad_pages if (found := _id(path, page))]

    def findings(self, fates: PageFates | None, *, is_whole: bool) -> Iterator[Finding]:
        """Yield what a restore would not repair; fates: by the WAL, if it was read. is_whole: all of it was."""
        for path, reading in self._suspects:
            bad: list[tuple[BadPage, Fate]] = []
            unproved: list[BadPage] = []
            for page in reading.bad_pages:
                fate = _fate(fates, path, page)
                if fate is Fate.REPAIRED:
                    self.repaired_by_wal += 1
                elif is_whole or not self._may_be_repaired(page.lsn):
                    bad.append((page, fate))
                else:
                    unproved.append(page)
            # The pages beyond those that were kept are taken for bad.
            count = len(bad) + reading.bad_count - len(reading.bad_pages)
            self.bad_pages += count
            if count:
                yield _damaged(reading.task.name, bad, count, is_whole=is_whole)
            if unproved:
                yield _unproved(reading.task.name, unproved)

    def _may_be_repaired(self, lsn: int) -> bool:
        if not self.wal_repairs or self.start_lsn is None:
            return False
        return self.start_lsn <= lsn and (self.end_lsn is None or lsn <= self.end_lsn)


def _id(path: str, page: BadPage) -> BlockId | None:
    found = relation_of(path)
    return None if found is None else BlockId(*found, page.block)


def _fate(fates: PageFates | None, path: str, page: BadPage) -> Fate:
    found = _id(path, page)
    return Fate.UNTOUCHED if fates is None or found is None else fates.fate(found)


def _damaged(name: str, bad: list[tuple[BadPage, Fate]], count: int, *, is_whole: bool) -> Finding:
    named = ", ".join(
        f"block {page.block} (calculated {page.calculated:04X} but expected {page.stored:04X}, LSN {Lsn(page.lsn)})"
        for page, _ in bad[:_NAMED]
    )
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    meaning = "the rows on these pages are damaged; if the file agrees with the manifest, then at the source and "
    meaning += "before the backup was taken"
    if is_whole:
        meaning += "; the WAL of the backup does not write them anew"
    if any(fate is Fate.CHANGED for _, fate in bad):
        meaning += ", but changes them: recovery stops with invalid page in block"
    return Finding(
        severity=Severity.PROBLEM,
        check="page-checksum",
        subject=name,
        message=f'{count} {"page" if count == 1 else "pages"} with a wrong checksum in "{name}": {named}{more}',
        meaning=meaning,
        advice="check the source with pg_amcheck and its disks, take a new backup, and keep an older one that has "
        "these pages whole",
    )


def in_damaged_copy(pages: Finding, mismatch: Finding) -> Finding:
    """Return one finding about a file whose checksum is wrong because pages in it are."""
    message = pages.message.replace(f' in "{pages.subject}"', "", 1)
    meaning = f"the file is not the one that the server sent: {pages.meaning}"
    return replace(pages, message=f"{mismatch.message}: {message}", meaning=meaning, advice=mismatch.advice)


def _unproved(name: str, pages: list[BadPage]) -> Finding:
    named = ", ".join(f"block {page.block} (LSN {Lsn(page.lsn)})" for page in pages[:_NAMED])
    more = f" and {len(pages) - _NAMED} more" if len(pages) > _NAMED else ""
    count = f"{len(pages)} {'page' if len(pages) == 1 else 'pages'}"
    return Finding(
        severity=Severity.WARNING,
        check="page-unproved",
        subject=name,
        message=f'{count} with a wrong checksum and an LSN of the backup\'s time in "{name}": {named}{more}',
        meaning="the server may have written these pages while they were copied; then WAL repairs them at the restore. "
        "That could not be looked up, because the WAL was not read, or not all of it",
        advice="verify again with the WAL: without -n, or with -w DIR",
    )


def partial_page(reading: FileReading) -> Finding | None:
    """Return a warning when a relation file ends within a page: the server never reads what is left of it."""
    rest = reading.size % PAGE_BYTES
    if reading.task.first_block is None or reading.problem is not None or not rest:
        return None
    name = reading.task.name
    return Finding(
        severity=Severity.WARNING,
        check="partial-page",
        subject=name,
        message=f'"{name}" ends with {rest} bytes of a page of {PAGE_BYTES}',
        meaning="the file was cut at the source, or the disk was full when it was to grow: rows of that page are lost "
        "unless the WAL of the backup writes it anew",
        advice="check the table at the source with pg_amcheck, and its file system",
    )
