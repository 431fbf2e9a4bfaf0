"""Read the WAL behind a backup for what changed some tables: as recovery would read it, and no further.

Only records in which one of the tables' files is named are looked at, found by searching for its bytes, and those that
end transactions. A few are needed with all of their body, of which the reader keeps the beginning alone: they are cut
out of the WAL that was just read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from polarvault.backupset.backup import Backup
from polarvault.clones.model import CloneRequest
from polarvault.errors import IntegrityError, WalGap
from polarvault.flashback.counting import count_plain
from polarvault.flashback.following import CODES, Follower
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import parse_backup_label
from polarvault.recovery.survey import check_chain
from polarvault.recovery.wal.chain import WalChain, choose_timeline, follow
from polarvault.recovery.wal.places import places_of
from polarvault.recovery.wal.span import load_backup_span
from polarvault.recovery.wal.stock import WalStock, stock_of
from polarvault.wal.blocks import KeptRecord, records_selected
from polarvault.wal.marks import TIMED_KINDS, Marks
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, read_page_header
from polarvault.wal.records import Record, RecordReader
from polarvault.wal.scan import WalScanner

# How far before the asked moment reading begins: of a transaction that began earlier the beginning is not seen.
LOOK_BACK_BYTES = 256 << 20
# A record of a heap holds no more than a few pages.
_LONGEST_BYTES = 128 << 10
# Commits are not quite in the order of their times.
_SLACK = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ReadWal:
    """What was read. end_reason: why it ended there; last_time: of the last transaction that was seen to end."""

    start: Lsn
    end: Lsn
    end_reason: str
    last_time: datetime | None


@dataclass(frozen=True, slots=True)
class WalBehind:
    """The WAL that leads on from a backup."""

    stock: WalStock
    chain: WalChain


def wal_behind(request: CloneRequest, backup: Backup) -> WalBehind:
    """Return the WAL of a backup and behind it, on the timeline that was asked for; raise WalGap."""
    inventory = backup.look_through()
    content = inventory.file("backup_label")
    label = parse_backup_label(content) if content is not None else None
    places = places_of(request.recovery, backup)
    span = load_backup_span(backup, inventory, label, places)
    stock = stock_of(backup, inventory, places, span.segment_size_bytes)
    histories, _ = stock.histories()
    history, _ = choose_timeline(request.recovery.timeline, span, histories)
    identifier = inventory.control.system_identifier if inventory.control is not None else None
    chain = check_chain(stock, follow(history, span, stock.files(span.start_segment.number)), identifier)
    if not chain.files:
        raise WalGap(
            f"WAL segment {chain.missing.file_name} is not there, with which reading begins",
            hint="name the directory that has it: --wal DIR",
        )
    return WalBehind(stock, chain)


def read_changes(
    wal: WalBehind, follower: Follower, *, from_lsn: Lsn | None, until: datetime | None,
    progress: Callable[[int, int], None],
) -> ReadWal:  # fmt: skip
    """Feed the follower. from_lsn: where the catalogs were read, None: at the end, and what the WAL makes is followed.

    until: transactions behind this time are of no interest. What ends valid WAL is no error here.
    """
    size = wal.chain.files[0].segment.size_bytes
    first = 0 if from_lsn is None else max(0, from_lsn - LOOK_BACK_BYTES)
    files = wal.chain.since(first)
    scanner = WalScanner(files[0].segment.start, size, with_blocks=True)
    window = _Window(size)
    magic, last_time, reason = 0, None, "no more WAL is there"
    for number, file in enumerate(files):
        position, end = int(file.segment.start), int(min(file.segment.end, wal.chain.end))
        try:
            for piece in wal.stock.read(file):
                view = piece[: end - position]
                if not magic and len(view) >= LONG_HEADER_BYTES:
                    header = read_page_header(bytes(view[:LONG_HEADER_BYTES]))
                    magic = header.magic if header is not None else 0
                window.take(view, position)
                marks = scanner.feed(view)
                # A transaction ends behind all that it does.
                counts, counted = count_plain(marks, follower.files)
                follower.add(counts)
                _take_others(marks, follower, window, counted, from_lsn=from_lsn, magic=magic)
                times = [mark.time for mark in marks.outline(TIMED_KINDS) if mark.time is not None]
                last_time = max([*times, *([last_time] if last_time else [])], default=None)
                position += len(view)
                if scanner.end is not None or position >= end:
                    break
        except IntegrityError as damaged:
            reason = damaged.message
            break
        progress((number + 1) * size, len(files) * size)
        if scanner.end is not None:
            reason = str(scanner.end)
            break
        if until is not None and last_time is not None and last_time > until + _SLACK:
            reason = "later transactions are of no interest"
            break
        if position < end:
            reason = f'"{file.path}" ends there'
            break
    return ReadWal(files[0].segment.start, scanner.next_lsn, reason, last_time)


def _take_others(
    marks: Marks, follower: Follower, window: _Window, counted: Container[int], *, from_lsn: Lsn | None, magic: int
) -> None:
    """Have the follower take the records that were not counted, in their order."""
    taken = 0
    while True:
        needles = {struct.pack("<III", *one) for one in follower.needles}
        for record in records_selected(marks, needles, CODES, follower.wants, passed=counted, magic=magic):
            if record.lsn < taken:
                continue
            follower.take(record, window.record, follows=from_lsn is None or record.lsn >= from_lsn)
            if not {struct.pack("<III", *one) for one in follower.needles} <= needles:
                # A file was made, and what goes into it may stand in the rest of this piece.
                taken = record.lsn + 1
                break
        else:
            return


class _Window:
    """The WAL that was just read, so that a record can be read again, whole."""

    def __init__(self, segment_size_bytes: int) -> None:
        self._size = segment_size_bytes
        self._content = b""
        self._start = 0

    def take(self, view: memoryview, position: int) -> None:
        """Add what follows."""
        kept = self._content[-_LONGEST_BYTES:] if self._start + len(self._content) == position else b""
        self._start = position - len(kept)
        self._content = kept + bytes(view)

    def record(self, kept: KeptRecord) -> Record | None:
        """Return a record that has just been read with all of its body; None if it began before what is kept."""
        at = kept.lsn - self._start
        if at < 0:
            return None
        reader = RecordReader(kept.lsn, self._size, check_crc=False)
        # Headers of pages stand between its parts; what follows it is not read as well.
        pages = kept.total_bytes // (PAGE_BYTES - LONG_HEADER_BYTES) + 2
        records = reader.feed(self._content[at : at + kept.total_bytes + pages * LONG_HEADER_BYTES])
        # Of the first page in what is kept the header may be missing, and with it the version.
        return replace(records[0], magic=kept.magic) if records else None
