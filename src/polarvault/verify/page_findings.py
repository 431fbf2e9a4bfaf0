"""Judge pages with wrong checksums: torn ones that WAL repairs at the restore are no damage, all others are. Pure.

A backup copies pages while the server writes them, so a page may be half old and half new. Its LSN lies between the
backup's start and its end, and the WAL of the backup holds the whole page: PostgreSQL writes full pages while a backup
runs, whatever full_page_writes says. PolarDB does not with full_page_writes off (facts 5.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.pages import PAGE_BYTES
from polarvault.verify.reading import FileReading

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

    def judge(self, reading: FileReading) -> Iterator[Finding]:
        """Yield a finding when a file has pages that a restore would not repair."""
        self.checked_pages += reading.checked_pages
        bad = [page for page in reading.bad_pages if not self._is_repaired(page.lsn)]
        repaired = len(reading.bad_pages) - len(bad)
        # The pages beyond those that were kept are taken for bad.
        count = reading.bad_count - repaired
        self.repaired_by_wal += repaired
        self.bad_pages += count
        if not count:
            return
        named = ", ".join(
            f"block {page.block} (calculated {page.calculated:04X} but expected {page.stored:04X}, LSN {Lsn(page.lsn)})"
            for page in bad[:_NAMED]
        )
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        name = reading.task.name
        yield Finding(
            severity=Severity.PROBLEM,
            check="page-checksum",
            subject=name,
            message=f'{count} {"page" if count == 1 else "pages"} with a wrong checksum in "{name}": {named}{more}',
            meaning="the rows on these pages are damaged; if the file agrees with the manifest, then at the source "
            "and before the backup was taken",
            advice="check the source with pg_amcheck and its disks, take a new backup, and keep an older one that has "
            "these pages whole",
        )

    def _is_repaired(self, lsn: int) -> bool:
        if not self.wal_repairs or self.start_lsn is None:
            return False
        return self.start_lsn <= lsn and (self.end_lsn is None or lsn <= self.end_lsn)


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
