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
_LONG = struct.Struct("<HHIQIxxxxQII")
_SHORT = struct.Struct("<HHIQ")
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
