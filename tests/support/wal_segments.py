"""Segments made up page by page, for tests that need a certain size, address or end and no record in them."""

from __future__ import annotations

import struct

from polarvault.model.segment import WalSegment

SYSTEM_IDENTIFIER = 7_000_000_000_000_000_001
PAGE_BYTES = 8192
MAGIC = 0xD110


def segment_content(
    segment: WalSegment,
    *,
    pages: int | None = None,
    timeline_id: int | None = None,
    system_identifier: int = SYSTEM_IDENTIFIER,
    used_of_last: int = PAGE_BYTES,
    magic: int = MAGIC,
) -> bytes:
    """Return the first pages (default: all) of a segment, with valid headers and a recognisable filling."""
    count = segment.size_bytes // PAGE_BYTES if pages is None else pages
    timeline = segment.timeline_id if timeline_id is None else timeline_id
    content = bytearray()
    for number in range(count):
        flags = 0x2 if number == 0 else 0
        page = struct.pack("<HHIQIxxxx", magic, flags, timeline, segment.start + number * PAGE_BYTES, 0)
        if number == 0:
            page += struct.pack("<QII", system_identifier, segment.size_bytes, PAGE_BYTES)
        used = used_of_last if number == count - 1 else PAGE_BYTES
        content += page.ljust(used, bytes([number % 250 + 1])).ljust(PAGE_BYTES, b"\0")
    return bytes(content)
