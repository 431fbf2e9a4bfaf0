"""Which pages with wrong checksums are damaged, and which were only read while the server wrote them.

A page may be half old and half new, and then its LSN is either half's and says nothing. The WAL of the backup says it:
replay repairs a page of which the first record that touches it has the whole (`wal.page_fates`, as verifybackup does).
A page of which nothing is in the WAL is damaged, whatever its LSN; that is how random bytes are not taken for new ones.
"""

from __future__ import annotations

from collections import Counter

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.model.relation import BlockId
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.pages import BadPage
from polarvault.pgfiles.relation_paths import relation_of
from polarvault.pipeline.page_check import NAMED_PER_FILE, BadFile, PageFindings
from polarvault.server.wal_stream import WalSink
from polarvault.taking.facts import ReceivedBackup
from polarvault.taking.reporter import BackupReporter
from polarvault.wal.page_fates import Fate, PageFates
from polarvault.wal.scan import WalScanner

# A range of WAL in a repository: reading less of it costs as much.
_READ_BYTES = 16 << 20


def settle_pages(received: ReceivedBackup, sink: WalSink, reporter: BackupReporter, segment_bytes: int) -> None:
    """Look the wrong pages of a backup up in its WAL, and change what was found accordingly.

    Where the WAL cannot be read to the end what was found by LSNs is left, and a note says so.
    """
    findings = received.pages
    if findings is None or not findings.suspects:
        return
    if findings.suspects_left_out or received.facts.start.timeline_id != received.stop_timeline_id:
        reporter.note("the pages with wrong checksums were not looked up in the WAL of the backup")
        return
    blocks = {
        (path, page.block): BlockId(found[0], found[1], page.block)
        for path, page in findings.suspects
        if (found := relation_of(path)) is not None
    }
    fates = PageFates(blocks.values())
    try:
        problem = _read(received, sink, fates, segment_bytes)
    except PolarvaultError as failure:
        problem = failure.message
    if problem:
        reporter.note(f"the pages with wrong checksums were not looked up in all WAL of the backup: {problem}")
        return
    _change(findings, blocks, fates)


def _read(received: ReceivedBackup, sink: WalSink, fates: PageFates, segment_bytes: int) -> str:
    """Show all WAL of the backup to the fates; return what is wrong with it, "" if nothing is."""
    at, stop, timeline_id = int(received.facts.start.start_lsn), int(received.stop_lsn), received.stop_timeline_id
    scanner = WalScanner(Lsn(at), segment_bytes, expected_bytes=stop - at, with_blocks=True)
    magic = 0
    while at < stop:
        segment = WalSegment.holding(Lsn(at), timeline_id, segment_bytes)
        content = sink.read(segment, at - int(segment.start), min(_READ_BYTES, int(segment.end) - at, stop - at))
        if not content:
            return f"it ends at {Lsn(at)}"
        if not magic:
            # Of the records in front of the first page header; every page of a version's WAL has the same.
            magic = int.from_bytes(sink.read(segment, 0, 2), "little")
        fates.accept(scanner.feed(memoryview(content)), magic)
        if scanner.end is not None:
            return str(scanner.end)
        at += len(content)
    return ""


def _change(findings: PageFindings, blocks: dict[tuple[str, int], BlockId], fates: PageFates) -> None:
    bad: dict[str, list[BadPage]] = {}
    counts: Counter[str] = Counter()
    repaired = 0
    for path, page in findings.suspects:
        block = blocks.get((path, page.block))
        if block is not None and fates.fate(block) is Fate.REPAIRED:
            repaired += 1
            continue
        counts[path] += 1
        if counts[path] <= NAMED_PER_FILE:
            bad.setdefault(path, []).append(page)
    findings.bad_files = [BadFile(path, counts[path], pages) for path, pages in bad.items()]
    findings.repaired_by_wal = repaired
