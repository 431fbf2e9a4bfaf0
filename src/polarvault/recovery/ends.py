"""Is the place where valid WAL ends its end, or is it damage? Pure: a segment's bytes go in, evidence comes out.

The server does not ask: what it cannot read as a record is the end of the WAL to it, and everything behind is lost
without a word. What follows tells the two apart. Behind the real end of the WAL a segment holds zeros, or pages of the
older segment that its file was before it was recycled: those carry another address, or the timeline that was left here.
A page behind the end with the address and the timeline that belong there has been written as a part of this very WAL.

On the last page alone records can stand behind the end although nothing is damaged: a server writes whole pages, also
while some of its sessions have not copied their records into them yet (access/transam/xlog.c, XLogWrite), and one that
is killed then leaves a hole. Only a segment switch proves more, because it waits for all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import google_crc32c

from polarvault.model.lsn import Lsn
from polarvault.wal.pages import (
    KNOWN_FLAGS,
    LONG_HEADER_BYTES,
    MAGICS,
    PAGE_BYTES,
    SHORT_HEADER_BYTES,
    Ending,
    WalEnd,
    read_page_header,
)
from polarvault.wal.records import (
    CHECKED_HEADER_BYTES,
    HEADER_BYTES,
    RMGR_INFO_MASK,
    RMGR_XLOG,
    XLOG_SWITCH,
    align,
    is_known_rmgr,
)

# The record was there, as far as its pages go; the place at which the end was seen is where it begins.
_IN_RECORD = (
    Ending.ZERO_RECORD,
    Ending.RECORD_LENGTH,
    Ending.RESOURCE_MANAGER,
    Ending.PREVIOUS_RECORD,
    Ending.CHECKSUM,
)
# The page has its address, and does not fit the one before it.
_IN_CHAIN = (Ending.UNEXPECTED_CONTINUATION, Ending.MISSING_CONTINUATION, Ending.CONTINUATION_LENGTH)
_RECORD = struct.Struct("<IIQBBxxI")


@dataclass(frozen=True, slots=True)
class Continuation:
    """WAL behind its end. is_certain: damage has ended the WAL; else a server that was killed leaves this as well."""

    lsn: Lsn
    is_certain: bool

    def __str__(self) -> str:
        return f"WAL of this segment goes on at {self.lsn}"


def find_continuation(
    views: Iterable[memoryview], start: Lsn, end: WalEnd, timeline_of: Callable[[int], int]
) -> Continuation | None:
    """Return what of this WAL follows its end in the same segment; None when nothing does.

    views: the segment's content from its first byte, the LSN `start`, on. timeline_of: the timeline at an LSN.
    """
    page_of_end = end.lsn - end.lsn % PAGE_BYTES
    look_from = page_of_end if end.ending in _IN_CHAIN else page_of_end + PAGE_BYTES
    own_page = b""
    for number, page in enumerate(_pages(views)):
        lsn = start + number * PAGE_BYTES
        if number == 0 and lsn > end.lsn and end.ending in _IN_RECORD:
            # The record began in the segment before; this page says how much of it was to come.
            look_from = _page_behind_rest(page, lsn)
        if lsn == page_of_end and end.ending in _IN_RECORD:
            own_page = bytes(page)
            if end.ending is Ending.CHECKSUM:
                # All of the record's pages were right; those behind it decide.
                look_from = _page_behind_record(own_page, end.lsn)
        if lsn >= look_from and _belongs_here(page, lsn, timeline_of):
            return Continuation(Lsn(lsn), is_certain=True)
    return _later_record(own_page, Lsn(page_of_end), end.lsn) if own_page else None


def _pages(views: Iterable[memoryview]) -> Iterator[bytes | memoryview]:
    kept = b""
    for view in views:
        at = 0
        if kept:
            at = min(PAGE_BYTES - len(kept), len(view))
            kept += view[:at]
            if len(kept) < PAGE_BYTES:
                continue
            yield kept
            kept = b""
        whole = at + (len(view) - at) // PAGE_BYTES * PAGE_BYTES
        for offset in range(at, whole, PAGE_BYTES):
            yield view[offset : offset + PAGE_BYTES]
        kept = bytes(view[whole:])
    if kept:
        yield kept


def _belongs_here(page: bytes | memoryview, lsn: int, timeline_of: Callable[[int], int]) -> bool:
    header = read_page_header(bytes(page[:LONG_HEADER_BYTES]))
    return (
        header is not None
        and header.magic in MAGICS
        and not header.flags & ~KNOWN_FLAGS
        and header.address == lsn
        and header.timeline_id == timeline_of(lsn)
    )


def _page_behind_record(page: bytes, lsn: int) -> int:
    """Return the first page behind a record that begins at the LSN in this page and is as long as it says."""
    in_page = lsn % PAGE_BYTES
    left = int.from_bytes(page[in_page : in_page + 4], "little") - (PAGE_BYTES - in_page)
    more = -(-left // (PAGE_BYTES - SHORT_HEADER_BYTES)) if left > 0 else 0
    return lsn - in_page + (1 + more) * PAGE_BYTES


def _page_behind_rest(page: bytes | memoryview, lsn: int) -> int:
    """Return the first page behind the rest of a record with which a segment begins."""
    header = read_page_header(bytes(page[:LONG_HEADER_BYTES]))
    left = 0 if header is None else header.remaining_bytes - (PAGE_BYTES - LONG_HEADER_BYTES)
    more = -(-left // (PAGE_BYTES - SHORT_HEADER_BYTES)) if left > 0 else 0
    return lsn + (1 + more) * PAGE_BYTES


def _later_record(page: bytes, page_lsn: Lsn, end: Lsn) -> Continuation | None:
    """Return the first whole, right record on the page of the end that follows one at the end or behind it."""
    first: Lsn | None = None
    at, previous = end - page_lsn + 8, None
    while at <= len(page) - HEADER_BYTES:
        found = _record_at(page, at, page_lsn + at, at_least=end if previous is None else previous, is_next=previous)
        if found is None:
            if first is not None:
                break
            at += 8
            continue
        total_bytes, is_switch = found
        first = first or Lsn(page_lsn + at)
        if is_switch:
            return Continuation(first, is_certain=True)
        previous, at = page_lsn + at, align(at + total_bytes)
    return None if first is None else Continuation(first, is_certain=False)


def _record_at(page: bytes, at: int, lsn: int, *, at_least: int, is_next: int | None) -> tuple[int, bool] | None:
    """Return length and whether it is a segment switch, if a right record stands there; is_next: what it follows."""
    total_bytes, _, before, info, rmgr, stored = _RECORD.unpack_from(page, at)
    if not HEADER_BYTES <= total_bytes <= len(page) - at or not is_known_rmgr(rmgr):
        return None
    if not at_least <= before < lsn or is_next not in (None, before):
        return None
    head = page[at : at + CHECKED_HEADER_BYTES]
    crc = google_crc32c.extend(google_crc32c.value(page[at + HEADER_BYTES : at + total_bytes]), head)
    if crc != stored:
        return None
    return total_bytes, rmgr == RMGR_XLOG and info & RMGR_INFO_MASK == XLOG_SWITCH
