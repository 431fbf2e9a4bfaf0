"""The page headers of a WAL segment: what the first page says of the cluster, and how far its pages are valid.

Layout (server: access/xlog_internal.h, little-endian): magic u16, flags u16, timeline u32, page address u64, length of
the rest of a record u32, 4 bytes of padding; on a segment's first page, which flag 0x2 marks, also system identifier
u64 at byte 24, segment size u32 at 32 and page size u32 at 36. Every version changes the magic number; so far all
begin with 0xD.

`polarvault wal fetch` uses this once for every segment of a recovery, so nothing heavier than struct is imported.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONG_HEADER_BYTES = 40
OTHER_COPY = "take another copy from the server or another WAL directory; pg_waldump shows what a segment holds"
_LONG = struct.Struct("<HHIQIxxxxQII")
_SHORT = struct.Struct("<HHIQ")
_RECORD_START = struct.Struct("<IIQ")
_REMAINING_AT, _REMAINING = 16, struct.Struct("<I")
BEGINNING_BYTES = LONG_HEADER_BYTES + _RECORD_START.size
_LONG_FLAG = 0x2
_MAGIC_MASK, _MAGIC = 0xF000, 0xD000
_MIN_SEGMENT_BYTES, _MAX_SEGMENT_BYTES = 1 << 20, 1 << 30


class SegmentHeader:
    """The facts on the first page of a segment. page_address: the LSN of the segment's first byte."""

    # Not a dataclass: importing dataclasses takes longer than a whole fetch.
    __slots__ = ("page_address", "page_bytes", "segment_size_bytes", "system_identifier", "timeline_id")

    def __init__(
        self, timeline_id: int, page_address: int, *, system_identifier: int, segment_size_bytes: int, page_bytes: int
    ) -> None:
        self.timeline_id = timeline_id
        self.page_address = page_address
        self.system_identifier = system_identifier
        self.segment_size_bytes = segment_size_bytes
        self.page_bytes = page_bytes


def parse_segment_header(first_bytes: bytes | memoryview) -> SegmentHeader | None:
    """Return the facts from the first 40 bytes of a segment; None when no WAL segment begins like this."""
    if len(first_bytes) < LONG_HEADER_BYTES:
        return None
    magic, flags, timeline, address, _, system, segment, page = _LONG.unpack_from(first_bytes)
    is_segment_size = _MIN_SEGMENT_BYTES <= segment <= _MAX_SEGMENT_BYTES and segment & (segment - 1) == 0
    # --with-wal-blocksize allows 1 to 64 kB.
    is_page_size = 1 << 10 <= page <= 1 << 16 and page & (page - 1) == 0
    if magic & _MAGIC_MASK != _MAGIC or not flags & _LONG_FLAG or not is_segment_size or not is_page_size:
        return None
    if timeline == 0 or address % segment:
        return None
    return SegmentHeader(
        timeline, address, system_identifier=system, segment_size_bytes=segment, page_bytes=page
    )  # fmt: skip


def begins_anew(first_bytes: bytes) -> bool:
    """Tell whether the first record of a segment says that none is before it: initdb writes such, and pg_resetwal.

    first_bytes: the first BEGINNING_BYTES. A record's header begins with its total length, the transaction, and the LSN
    of the record before (server: access/xlogrecord.h).
    """
    if len(first_bytes) < LONG_HEADER_BYTES + _RECORD_START.size:
        return False
    total, _, previous = _RECORD_START.unpack_from(first_bytes, LONG_HEADER_BYTES)
    (remaining,) = _REMAINING.unpack_from(first_bytes, _REMAINING_AT)
    return bool(total and not previous and not remaining)


class StartLook:
    """What the beginning of a copy says. problem: why it is not its segment, in words that follow the copy's name.

    is_hollow: the copy holds nothing at all. Without header and problem nothing of the segment has been written yet.
    """

    # Not a dataclass: importing dataclasses takes longer than a whole fetch.
    __slots__ = ("header", "hint", "is_hollow", "problem")

    def __init__(
        self, header: SegmentHeader | None, problem: str | None = None, *, is_hollow: bool = False, hint: str = ""
    ) -> None:
        self.header = header
        self.problem = problem
        self.is_hollow = is_hollow
        self.hint = hint or OTHER_COPY


def address_of(name: str, header: SegmentHeader) -> int:
    """Return the LSN of the first byte of the segment of this name, in segments of the header's size."""
    # The middle field of a name counts 4 GiB, the last one segments.
    return (int(name[8:16], 16) << 32) + int(name[16:24], 16) * header.segment_size_bytes


def judge_place(name: str, header: SegmentHeader) -> StartLook:
    """Say whether a segment's first page belongs to the segment of this name."""
    size_bytes, wanted = header.segment_size_bytes, address_of(name, header)
    if header.page_address != wanted:
        number = header.page_address % (1 << 32) // size_bytes
        real = f"{header.timeline_id:08X}{header.page_address >> 32:08X}{number:08X}"
        words, hint = f"holds the content of segment {real}", OTHER_COPY
        if header.page_address < wanted:
            words += ", which is older"
            hint += "; a server's pg_wal keeps older segments under new names: move it away if it was copied from there"
        return StartLook(header, words, hint=hint)
    # Pages from before a switch are copied to the new timeline's first segment, so an older timeline is right.
    if header.timeline_id > int(name[:8], 16):
        return StartLook(header, f"holds WAL of timeline {header.timeline_id}")
    return StartLook(header)


def valid_bytes(read: Callable[[int, int], bytes], header: SegmentHeader, available_bytes: int) -> int:
    """Return how much of a segment holds WAL, in whole pages; behind that are zeros, or pages of an older life.

    read(offset, length) returns bytes of the segment, of which available_bytes exist. Pages are written one after
    another, so the end is found by halving: a hole in the middle ends the useful part as well, wherever it is found.
    """
    good, bad = 0, min(available_bytes, header.segment_size_bytes) // header.page_bytes
    if available_bytes < header.segment_size_bytes and available_bytes % header.page_bytes:
        bad += 1  # A page that is cut still begins with its header.
    while good < bad:
        middle = (good + bad) // 2
        if is_valid_page(read(middle * header.page_bytes, _SHORT.size), header, middle):
            good = middle + 1
        else:
            bad = middle
    return min(good * header.page_bytes, available_bytes)


def is_valid_page(start: bytes, header: SegmentHeader, number: int) -> bool:
    """Tell whether a page that begins like this is the segment's page of that number, counted from 0."""
    if len(start) < _SHORT.size:
        return False
    magic, _, _, address = _SHORT.unpack_from(start)
    return magic & _MAGIC_MASK == _MAGIC and bool(address == header.page_address + number * header.page_bytes)
