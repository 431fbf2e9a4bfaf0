"""WAL records that touch blocks and files, made by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from support.wal_bytes import LOGICAL_MESSAGE, PAGE, WalBuilder

STORAGE, DATABASE, TABLESPACE, HEAP2, HEAP, BTREE, SPGIST = 2, 4, 5, 9, 10, 11, 16
Relation = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """A block of a record. image: its length; hole: the image is compressed and has one. same: as the one before."""

    relation: Relation
    block: int
    fork: int = 0
    image: int | None = None
    hole: bool = False
    same: bool = False
    data: int = 0


def body_of(blocks: list[Block], main: bytes = b"", *, before: bytes = b"", compressed: int = 0x04) -> bytes:
    """Return a record's body: headers, then the blocks' images and data, then the main data."""
    headers, content = before, b""
    for number, one in enumerate(blocks):
        flags = one.fork | (0x10 if one.image is not None else 0) | (0x80 if one.same else 0)
        headers += struct.pack("<BBH", number, flags, one.data)
        if one.image is not None:
            headers += struct.pack("<HHB", one.image, 0, 0x01 | compressed if one.hole else 0)
            headers += struct.pack("<H", 0) if one.hole else b""
        if not one.same:
            headers += struct.pack("<III", *one.relation)
        headers += struct.pack("<I", one.block)
        content += bytes((one.image or 0) + one.data)
    if main:
        headers += bytes([255, len(main)]) if len(main) < 256 else struct.pack("<BI", 254, len(main))
    return headers + content + main


def change(wal: WalBuilder, *blocks: Block, rmgr: int = BTREE, info: int = 0, main: bytes = b"\0\0") -> int:
    """Write a record that touches blocks."""
    return wal.add(body_of(list(blocks), main), rmgr=rmgr, info=info)


def create(wal: WalBuilder, relation: Relation, fork: int = 0) -> int:
    """Write the record of a new file."""
    return wal.add_main(struct.pack("<IIIi", *relation, fork), rmgr=STORAGE, info=0x10)


def truncate(wal: WalBuilder, relation: Relation, block: int, flags: int = 7) -> int:
    """Write the record of a relation that gets shorter."""
    return wal.add_main(struct.pack("<IIIII", block, *relation, flags), rmgr=STORAGE, info=0x20)


def end_transaction(wal: WalBuilder, info: int, dropped: list[Relation], *, before: bytes = b"") -> int:
    """Write the end of a transaction of two subtransactions that drops relations."""
    main = bytes(8) + struct.pack("<I", 1 | 2 | 4) + bytes(8) + struct.pack("<III", 2, 5, 6)
    main += struct.pack("<I", len(dropped)) + b"".join(struct.pack("<III", *one) for one in dropped)
    return wal.add_main(main, rmgr=1, info=info | 0x80, before=before)


def message_up_to(wal: WalBuilder, lsn: int) -> int:
    """Write one record without blocks that ends exactly where the page or segment at `lsn` begins."""
    wal.begin_page_if_due()
    headers = range(-(-wal.lsn // PAGE) * PAGE, lsn, PAGE)
    between = sum(40 if page % wal.segment_bytes == 0 else 24 for page in headers)
    length = lsn - wal.lsn - between - 24 - 5
    return wal.add(struct.pack("<BI", 254, length) + bytes(length), rmgr=LOGICAL_MESSAGE)
