"""Does recovery need what stood on a page that is left out? Told by the WAL that will be replayed, before it is.

A record that holds a page whole, or makes it anew, can be replayed over zeros; so can the ones after it. Any other
record on a page of zeros ends the server ("WAL contains references to invalid pages": a page of zeros counts as not
initialized; server: access/transam/xlogutils.c). While a backup runs the server writes whole pages, and after each
checkpoint with full_page_writes on; but some records never hold the page that they name. Seen: a page that vacuum marks
all-visible without data checksums and wal_log_hints (XLOG_HEAP2_VISIBLE).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from polarvault.errors import BackupUnusable
from polarvault.model.lsn import Lsn
from polarvault.model.relation import FREE_SPACE_FORK, VISIBILITY_FORK, BlockId, RelationFile
from polarvault.model.segment import WalSegment
from polarvault.recovery.wal.span import load_backup_span
from polarvault.restore.model import RestorePlan
from polarvault.wal.blocks import KeptRecord, block_references, copied_database, records_holding, source_of_copy
from polarvault.wal.pages import LONG_HEADER_BYTES, read_page_header
from polarvault.wal.scan import WalScanner
from polarvault.walfiles.choice import find
from polarvault.walfiles.directory import wal_sources
from polarvault.walfiles.search_list import SearchList

# The server takes pages of zeros of these for empty ones (freespace.c, visibilitymap.c).
_MAY_BE_ZERO = (FREE_SPACE_FORK, VISIBILITY_FORK)
_FORCE = "restore all of the backup, or to a target before that, or from a later backup"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A record that cannot be replayed without what is left out: where it is, and why."""

    lsn: int
    why: str


class _Whole:
    """Which pages of left-out databases replay has made whole: a bit a page."""

    def __init__(self, databases: frozenset[int]) -> None:
        self._databases = databases
        self._bits: dict[tuple[RelationFile, int], bytearray] = {}

    def look_at(self, record: KeptRecord) -> Obstacle | None:
        """Return the obstacle that a record is, if it is one."""
        copied = source_of_copy(record)
        if copied in self._databases:
            made = copied_database(record)
            return Obstacle(record.lsn, f"it makes database {made[1] if made else 0} by copying files of {copied}")
        for reference in block_references(record):
            page = reference.page
            if page.relation.database_oid not in self._databases or page.fork in _MAY_BE_ZERO:
                continue
            if reference.is_written_whole:
                self._add(page)
            elif not self._has(page):
                return Obstacle(record.lsn, f"it changes block {page.block} of relation file {page.relation.number}")
        return None

    def _add(self, page: BlockId) -> None:
        bits = self._bits.setdefault((page.relation, page.fork), bytearray())
        if page.block // 8 >= len(bits):
            bits.extend(bytes(page.block // 8 + 1 - len(bits)))
        bits[page.block // 8] |= 1 << page.block % 8

    def _has(self, page: BlockId) -> bool:
        bits = self._bits.get((page.relation, page.fork), b"")
        return page.block // 8 < len(bits) and bool(bits[page.block // 8] >> page.block % 8 & 1)


def check_replay(plan: RestorePlan, databases: frozenset[int]) -> None:
    """Raise BackupUnusable if recovery would need what is left out, or if that cannot be known."""
    recovery = plan.recovery
    if recovery is not None and not recovery.is_checked:
        raise BackupUnusable(
            "the WAL that recovery would read cannot be looked at, so that nobody knows whether it needs the databases "
            "that are left out; nothing was written",
            hint="name the WAL by --wal, or take it from the repository; or restore all databases",
        )
    source = SearchList(
        [plan.source.wal(plan.inventory), *plan.source.archives, *wal_sources(plan.request.recovery.wal_directories)]
    )
    span = load_backup_span(plan.source, plan.inventory, plan.label, source)
    end = recovery.end_lsn if recovery is not None else span.end_lsn
    if recovery is None and end is not None:
        # Without a target the server replays what is valid in the last segment as well.
        end = WalSegment.holding(Lsn(end - 1), span.end_timeline_id, span.segment_size_bytes).end
    if end is None:
        raise BackupUnusable("where recovery ends is not known; nothing was written", hint="restore all databases")
    whole = _Whole(databases)
    for record in _records(source, _segments(plan, span.start_segment, end), span.start_lsn, end, databases):
        obstacle = whole.look_at(record)
        if obstacle is not None:
            names = ", ".join(sorted(plan.left_out.databases.values())) if plan.left_out is not None else ""
            raise BackupUnusable(
                f"recovery cannot do without the databases that are left out ({names}): the record at "
                f"{Lsn(obstacle.lsn)} needs what stood there, because {obstacle.why}; nothing was written",
                hint=_FORCE,
            )


def _segments(plan: RestorePlan, first: WalSegment, end: Lsn) -> Iterator[WalSegment]:
    """Yield the segments in the order of replay: what the plan names beyond the backup counts."""
    needed = {one.number: one for one in plan.recovery.needed} if plan.recovery is not None else {}
    number, timeline_id = first.number, first.timeline_id
    while number * first.size_bytes < end:
        segment = needed.get(number, WalSegment(timeline_id, number, first.size_bytes))
        timeline_id = segment.timeline_id
        yield segment
        number += 1


def _records(
    source: SearchList, segments: Iterator[WalSegment], start: Lsn, end: Lsn, databases: frozenset[int]
) -> Iterator[KeptRecord]:
    needles = [struct.pack("<I", oid) for oid in sorted(databases)]
    scanner: WalScanner | None = None
    magic = 0
    at = int(start)
    for segment in segments:
        copy = find(source, segment)
        if copy is None:
            raise BackupUnusable(
                f"WAL segment {segment.file_name} is not there, so that nobody knows whether recovery needs the "
                "databases that are left out; nothing was written",
                hint="restore all databases",
            )
        position = int(segment.start)
        for view in copy.views():
            if not magic and len(view) >= LONG_HEADER_BYTES:
                header = read_page_header(bytes(view[:LONG_HEADER_BYTES]))
                magic = header.magic if header is not None else 0
            scanner = scanner or WalScanner(start, segment.size_bytes, with_blocks=True)
            skip = max(0, at - position)
            stop = min(len(view), int(end) - position)
            if skip < stop:
                yield from records_holding(scanner.feed(view[skip:stop]), needles, magic=magic)
                at = position + stop
            position += len(view)
            if scanner.end is not None or at >= end:
                return
