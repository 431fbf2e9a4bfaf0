"""A stage that verifies the checksum of every relation page as it passes (server: basebackup.c checks fewer).

The server skips pages newer than the start LSN, because WAL replay rewrites them. With full_page_writes off, as
PolarDB's sample configuration has it, replay does not: a torn page newer than the start is then beyond repair, and only
this check sees it (facts 5.4).
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field

from polarvault.pgfiles import pages
from polarvault.pgfiles.incremental_file import IncrementalReader, full_name
from polarvault.pgfiles.pages import PAGE_BYTES, BadPage
from polarvault.pgfiles.tar import MemberBegins, MemberData, MemberKind, TarEvent

# The server names at most this many pages per file; more would bury the message.
NAMED_PER_FILE = 5
# Of more wrong pages than these there is no doubt that something is wrong.
_SUSPECTS = 10_000
_CAPACITY = 4096


@dataclass(frozen=True, slots=True)
class BadFile:
    """Wrong pages of one file: how many, and the first of them."""

    path: str
    count: int
    examples: list[BadPage]


@dataclass(slots=True)
class PageFindings:
    """What the check has seen so far."""

    checked_pages: int = 0
    # Wrong pages older than the start LSN, or newer ones that WAL cannot repair.
    bad_files: list[BadFile] = field(default_factory=list)
    # Wrong pages newer than the start LSN that full-page images in the WAL overwrite at recovery.
    repaired_by_wal: int = 0
    suspects: list[tuple[str, BadPage]] = field(default_factory=list)
    """All wrong pages by file, whatever their LSN, for who has the WAL of the backup to look them up in."""
    suspects_left_out: int = 0


class PageJudge:
    """Judges pages with wrong checksums by their LSN; used by several threads."""

    def __init__(self, *, start_lsn: int, wal_repairs_torn_pages: bool) -> None:
        self.findings = PageFindings()
        self._start_lsn = start_lsn
        self._wal_repairs = wal_repairs_torn_pages
        self._lock = threading.Lock()

    def judge(self, path: str, block: int, page: memoryview) -> BadPage | None:
        """Take note of a wrong page; return it if it is damaged, None if recovery repairs it."""
        lsn, stored, _ = pages.read_page_header(page)
        bad = BadPage(block, pages.page_checksum(page, block), stored, lsn)
        with self._lock:
            if len(self.findings.suspects) < _SUSPECTS:
                self.findings.suspects.append((path, bad))
            else:
                self.findings.suspects_left_out += 1
            if lsn >= self._start_lsn and self._wal_repairs:
                # Read while the server was writing it; the WAL of this backup holds the whole page.
                self.findings.repaired_by_wal += 1
                return None
        return bad

    def count(self, checked_pages: int) -> None:
        """Pages were looked at."""
        with self._lock:
            self.findings.checked_pages += checked_pages

    def file_ends(self, path: str, wrong: list[BadPage]) -> None:
        """Take note of the damaged pages of a file that is complete."""
        if wrong:
            wrong.sort(key=lambda page: page.block)
            with self._lock:
                self.findings.bad_files.append(BadFile(path, len(wrong), wrong[:NAMED_PER_FILE]))


class PageCheck:
    """Follows tar events; feed it before the views are reused.

    gap_bytes: how far apart views of whole pages lie that come from one buffer; such views are checked in one call.
    """

    def __init__(
        self, *, start_lsn: int, wal_repairs_torn_pages: bool, relation_segment_bytes: int, gap_bytes: int = 0
    ) -> None:
        self._judges = PageJudge(start_lsn=start_lsn, wal_repairs_torn_pages=wal_repairs_torn_pages)
        self.findings = self._judges.findings
        self._kernel = pages.load_kernel()
        self._blocks_per_segment = relation_segment_bytes // PAGE_BYTES
        self._gap_bytes = gap_bytes
        self._prefix = ""
        self._bad = (ctypes.c_int64 * _CAPACITY)()
        self._bad_address = ctypes.addressof(self._bad)
        self._scratch = bytearray(PAGE_BYTES)
        self._scratch_address = ctypes.addressof(ctypes.c_char.from_buffer(self._scratch))
        self._filled = 0
        self._path = ""
        self._active = False
        self._block = self._first_block = 0
        self._changes: IncrementalReader | None = None
        self._wrong: list[BadPage] = []
        self._wrong_count = 0

    def set_prefix(self, prefix: str) -> None:
        """Name the directory that the next archive's members are relative to (pg_tblspc/<oid>/)."""
        self._prefix = prefix

    def accept(self, event: TarEvent) -> None:
        """Take the next event of the archive."""
        if isinstance(event, MemberData):
            if self._changes is not None:
                self._check_changes(self._changes, event.views)
            elif self._active:
                self._check_views(event.views)
        elif isinstance(event, MemberBegins):
            member = event.member
            whole = full_name(member.name) if member.kind is MemberKind.FILE else None
            name = whole or member.name
            segment = pages.relation_segment(name) if member.kind is MemberKind.FILE else None
            # A file of a size that is no multiple of a page holds something else; the server warns and skips it.
            self._active = segment is not None and (member.size % PAGE_BYTES == 0 or whole is not None)
            self._changes = None
            if self._active:
                self._path = self._prefix + name
                self._block = self._first_block = (segment or 0) * self._blocks_per_segment
                if whole is not None:
                    self._changes = IncrementalReader(member.name, member.size, segment_blocks=self._blocks_per_segment)
        elif self._active:
            self._finish_file()

    def _check_changes(self, changes: IncrementalReader, views: list[memoryview]) -> None:
        """Check the blocks of a file of which the server sends only those that changed."""
        for view in views:
            for block, page in changes.feed(view):
                self._block = self._first_block + block
                writable = memoryview(bytearray(page)) if page.readonly else page
                self._check_runs(_address(writable), 1, 1, PAGE_BYTES, [writable])

    def _check_views(self, views: list[memoryview]) -> None:
        """Check the pages in the views; the middle ones in one call, if they lie as a receive buffer has them."""
        middle = views[1:-1]
        per_run = len(middle[0]) // PAGE_BYTES if middle else 0
        if per_run and not middle[0].readonly:
            self._check_view(views[0])
            first, last = _address(middle[0]), _address(middle[-1])
            stride = per_run * PAGE_BYTES + self._gap_bytes
            total = len(middle) * per_run * PAGE_BYTES
            if not self._filled and last - first == (len(middle) - 1) * stride and sum(map(len, middle)) == total:
                self._check_runs(first, len(middle) * per_run, per_run, stride, middle)
                self._check_view(views[-1])
                return
            views = views[1:]
        for view in views:
            self._check_view(view)

    def _check_runs(self, address: int, count: int, per_run: int, stride: int, views: list[memoryview]) -> None:
        wrong = self._kernel(address, count, self._block, per_run, stride, self._bad_address, _CAPACITY)
        for index in self._bad[: min(wrong, _CAPACITY)]:
            start = index % per_run * PAGE_BYTES
            self._judge(self._block + index, views[index // per_run][start : start + PAGE_BYTES])
        self._block += count
        self.findings.checked_pages += count

    def _check_view(self, view: memoryview) -> None:
        length = len(view)
        offset = 0
        if self._filled:
            offset = min(PAGE_BYTES - self._filled, length)
            self._scratch[self._filled : self._filled + offset] = view[:offset]
            self._filled += offset
            if self._filled < PAGE_BYTES:
                return
            self._check_runs(self._scratch_address, 1, 1, PAGE_BYTES, [memoryview(self._scratch)])
            self._filled = 0
        count = (length - offset) // PAGE_BYTES
        if count:
            whole = view[offset:] if offset else view
            if whole.readonly:
                whole = memoryview(bytearray(whole))
            self._check_runs(_address(whole), count, count, PAGE_BYTES, [whole])
            offset += count * PAGE_BYTES
        if offset < length:
            self._filled = length - offset
            self._scratch[: self._filled] = view[offset:]

    def _judge(self, block: int, page: memoryview) -> None:
        bad = self._judges.judge(self._path, block, page)
        if bad is None:
            return
        self._wrong_count += 1
        if len(self._wrong) < NAMED_PER_FILE:
            self._wrong.append(bad)

    def _finish_file(self) -> None:
        self._active = False
        self._filled = 0
        if self._wrong_count:
            self.findings.bad_files.append(BadFile(self._path, self._wrong_count, self._wrong))
            self._wrong, self._wrong_count = [], 0


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
