"""Pages as a server makes them, and WAL records about them, for tests without a server."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.pgfiles.pages import PAGE_BYTES, page_checksum

HAS_IMAGE, HAS_DATA, WILL_INIT, SAME_RELATION = 0x10, 0x20, 0x40, 0x80
HEAP, XLOG, STORAGE, DATABASE = 10, 0, 2, 4
FPI, PARAMETER_CHANGE = 0xB0, 0x60
# Of 15 and later.
HAS_HOLE, APPLIES, PGLZ, LZ4, ZSTD = 0x01, 0x02, 0x04, 0x08, 0x10


def made_page(block: int, *, lsn: int = 0x10, fill: bytes = b"r", hole: int = 6000, flags: int = 0) -> bytes:
    """Return a page with a hole between pointers and rows, and its checksum."""
    lower = 64
    upper = lower + hole
    head = struct.pack("<IIHHHHHHI", lsn >> 32, lsn & 0xFFFFFFFF, 0, flags, lower, upper, PAGE_BYTES, PAGE_BYTES | 4, 0)
    page = bytearray(head.ljust(lower, b"p") + bytes(hole) + (fill * PAGE_BYTES)[: PAGE_BYTES - upper])
    page[8:10] = page_checksum(bytes(page), block).to_bytes(2, "little")
    return bytes(page)


@dataclass(frozen=True)
class Touched:
    """A block that a record touches. image: its stored bytes; hole: where it begins and its length."""

    block: int
    relation: tuple[int, int, int] = (1663, 5, 16384)
    fork: int = 0
    will_init: bool = False
    image: bytes | None = None
    image_flags: int = APPLIES
    hole: tuple[int, int] = (0, 0)
    is_compressed: bool = False
    data: bytes = b"data"


def record_body(touched: Sequence[Touched], main: bytes = b"main") -> bytes:
    """Return a record's body: the headers of its blocks, of the main data; then images and data; then the main data."""
    headers, payload = b"", b""
    for number, one in enumerate(touched):
        flags = one.fork | (HAS_DATA if one.data else 0) | (WILL_INIT if one.will_init else 0)
        flags |= HAS_IMAGE if one.image is not None else 0
        headers += struct.pack("<BBH", number, flags, len(one.data))
        if one.image is not None:
            image_flags = one.image_flags | (HAS_HOLE if one.hole[1] else 0)
            headers += struct.pack("<HHB", len(one.image), one.hole[0], image_flags)
            headers += struct.pack("<H", one.hole[1]) if one.hole[1] and one.is_compressed else b""
            payload += one.image
        headers += struct.pack("<III", *one.relation) + struct.pack("<I", one.block)
        payload += one.data
    return headers + bytes([255, len(main)]) + payload + main


def image_of(page: bytes, block: int, **how: int) -> Touched:
    """Return a page as a server puts it into a record: without its hole, not compressed."""
    lower, upper = struct.unpack_from("<HH", page, 12)
    return Touched(block, image=page[:lower] + page[upper:], hole=(lower, upper - lower), data=b"", **how)
