"""Is the WAL that a backup brings along right, from where it begins to where it ends?

A server that is started with it would stop there, or, where zeros or old content stand, take that for the end of the
WAL. No manifest lists WAL files; what tells are the checksums of the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polarvault.model.segment import WalSegment
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.storage.trees.model import Tree
from polarvault.wal.marks import MarkKind
from polarvault.wal.names import is_segment_name
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, Ending, PageSequence, WalEnd, read_page_header
from polarvault.wal.scan import WalScanner

_READ_BYTES = 1 << 20
# Where nobody knows how far the backup's WAL reaches, these are where it just ends.
_MERE_END = (Ending.ZERO_RECORD, Ending.ZERO_PAGE, Ending.PAGE_ADDRESS)


@dataclass(frozen=True, slots=True)
class WalDamage:
    """The first place at which WAL is wrong."""

    segment: WalSegment
    end: WalEnd

    def __str__(self) -> str:
        return f"{self.end}; that is byte {self.end.lsn - self.segment.start}"


def find_damage(tree: Tree, span: BackupSpan, system_identifier: int, *, directory: str = "") -> WalDamage | None:
    """Read the segments of a pg_wal, a directory in a tree, from the span's start to its end.

    Returns the first damage, None without any. A segment that is not there ends it: somebody else has to supply that
    one. Without a known end the WAL is read up to the record that ends the backup. Raises OSError, and ValueError for a
    start where no record can begin.
    """
    scanner = WalScanner(span.start_lsn, span.segment_size_bytes, expected_bytes=_expected_bytes(span))
    for segment, content in _segments(tree, directory, span):
        damage = _header_problem(next(content, memoryview(b"")), segment, system_identifier)
        for view in content if damage is None else ():
            is_over = any(mark.lsn_argument == span.start_lsn for mark in
                          scanner.feed(view).select((MarkKind.BACKUP_END,)))  # fmt: skip
            if is_over if span.end_lsn is None else scanner.next_lsn >= span.end_lsn:
                return None
            if scanner.end is not None:
                damage = scanner.end
                break
        if damage is not None:
            is_end = span.end_lsn is None and damage.ending in _MERE_END
            holding = WalSegment.holding(damage.lsn, segment.timeline_id, segment.size_bytes)
            return None if is_end else WalDamage(holding, damage)
    return None


def _expected_bytes(span: BackupSpan) -> int | None:
    return None if span.end_lsn is None else max(0, span.end_lsn - span.start_lsn)


def _segments(tree: Tree, directory: str, span: BackupSpan) -> Iterator[tuple[WalSegment, Iterator[memoryview]]]:
    """Yield each segment from the start on with its first page header, then its content from the start LSN on."""
    names = {entry.name for entry in tree.list(directory) if is_segment_name(entry.name)}
    # A standby can follow a switch of the timeline while it is backed up; the newer segment holds the older's content.
    found = sorted({int(name[:8], 16) for name in names}, reverse=True)
    timelines = [one for one in found if span.timeline_id <= one <= span.end_timeline_id]
    number = span.start_segment.number
    while True:
        candidates = (WalSegment(timeline_id, number, span.segment_size_bytes) for timeline_id in timelines)
        segment = next((one for one in candidates if one.file_name in names), None)
        if segment is None:
            return
        name = f"{directory}/{segment.file_name}" if directory else segment.file_name
        yield segment, _content(tree, name, segment, span)
        number += 1


def _content(tree: Tree, name: str, segment: WalSegment, span: BackupSpan) -> Iterator[memoryview]:
    file = tree.open(name)
    try:
        head = bytearray(LONG_HEADER_BYTES)
        yield memoryview(head)[: file.read_into(0, memoryview(head))]
        position = max(int(span.start_lsn), int(segment.start))
        while position < segment.end:
            # Not far behind the end, where nothing counts; a record that begins before it is read to its own end.
            wanted = _READ_BYTES if span.end_lsn is None else max(int(span.end_lsn) - position, PAGE_BYTES)
            piece = bytearray(min(wanted, _READ_BYTES, segment.end - position))
            got = file.read_into(position - segment.start, memoryview(piece))
            if not got:
                return
            position += got
            yield memoryview(piece)[:got]
    finally:
        file.close()


def _header_problem(head: memoryview, segment: WalSegment, system_identifier: int) -> WalEnd | None:
    """Return what is wrong with a segment's first page, which the server looks at wherever it begins to read."""
    header = read_page_header(bytes(head))
    pages = PageSequence(segment.size_bytes)
    pages.system_identifier = system_identifier
    return WalEnd(Ending.ZERO_PAGE, segment.start) if header is None else pages.problem(header, segment.start)
