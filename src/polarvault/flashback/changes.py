"""What WAL records do to the rows of a table, and to its row in pg_class. Pure.

Layouts (server: access/heapam_xlog.h, access/htup_details.h, catalog/pg_class.h) are the same in 13 to 18. An update
gives the old row's place in its main data and the new row as the data of block 0: a header of 5 bytes, the null bitmap
up to t_hoff, and the row's bytes without those at its beginning and end that it has in common with the old one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from polarvault.model import versions
from polarvault.model.relation import BlockId, RelationFile
from polarvault.wal.blocks import KeptRecord, main_data
from polarvault.wal.images import page_image
from polarvault.wal.records import (
    BLOCK_HAS_IMAGE,
    BLOCK_SAME_RELATION,
    HEADER_BYTES,
    IMAGE_HAS_HOLE,
    LAST_BLOCK_ID,
    ORIGIN,
    TOP_XID,
    Record,
    find_main_data,
)

RMGR_STORAGE, RMGR_RELMAP, RMGR_STANDBY, RMGR_HEAP2, RMGR_HEAP = 2, 7, 8, 9, 10
STORAGE_CREATE, RUNNING_XACTS, RELMAP_UPDATE = 0x10, 0x10, 0x00
INSERT, DELETE, UPDATE, TRUNCATE, HOT_UPDATE = 0x00, 0x10, 0x20, 0x30, 0x40
_MULTI_INSERT = 0x50
OPERATION_MASK = 0x70
_DELETE_IS_SUPER = 0x08
_PREFIX_FROM_OLD, _SUFFIX_FROM_OLD = 0x20, 0x40
_RELATION = struct.Struct("<III")
# Of a row of pg_class behind its header: relname behind the oid; relfilenode, reltablespace, relpages, reltuples.
NAME_AT, NAME_BYTES = 4, 64
FILE_AT, FILE_BYTES = 88, 16
_ROW_HEADER_BYTES = 23
# Its header in a record: two masks, and t_hoff last.
_ROW_AT = 5
_LINE_POINTERS_AT = 24


class What(Enum):
    """What a record does to rows of a table."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Block:
    """A page that a record touches, and what the record has for it besides an image."""

    page: BlockId
    data: bytes


@dataclass(frozen=True, slots=True)
class RowMove:
    """An update: where the row was and where it is now, as block and item; flags: xl_heap_update's."""

    old: tuple[int, int]
    new: tuple[int, int]
    flags: int


def parts_of(record: Record) -> tuple[list[Block], bytes]:
    """Return the pages that a whole record touches and its main data; raise ValueError if it makes no sense."""
    layout = versions.record_layout(record.magic)
    body, at = record.body, 0
    found: list[tuple[BlockId, int, int]] = []
    relation: RelationFile | None = None
    try:
        main_at, main_bytes = find_main_data(body, record.magic)
        while len(body) - at > sum(image + data for _, image, data in found):
            block_id = body[at]
            if block_id in (ORIGIN, TOP_XID):
                at += 3 if block_id == ORIGIN else 5
                continue
            if block_id > LAST_BLOCK_ID:
                break
            flags = body[at + 1]
            (data_bytes,) = struct.unpack_from("<H", body, at + 2)
            at += 4
            image_bytes = 0
            if flags & BLOCK_HAS_IMAGE:
                image_bytes, _, image = struct.unpack_from("<HHB", body, at)
                at += 7 if image & layout.image_is_compressed and image & IMAGE_HAS_HOLE else 5
            if not flags & BLOCK_SAME_RELATION:
                relation = RelationFile(*_RELATION.unpack_from(body, at))
                at += _RELATION.size
            (block,) = struct.unpack_from("<I", body, at)
            at += 4
            if relation is None:
                raise ValueError("a block without a relation")
            found.append((BlockId(relation, flags & 0x0F, block), image_bytes, data_bytes))
    except (IndexError, struct.error) as short:
        raise ValueError("the record is shorter than its headers say") from short
    start = main_at - sum(image + data for _, image, data in found)
    blocks = []
    for page, image_bytes, data_bytes in found:
        start += image_bytes
        blocks.append(Block(page, body[start : start + data_bytes]))
        start += data_bytes
    return blocks, body[main_at : main_at + main_bytes]


def needs_whole(record: KeptRecord) -> bool:
    """Tell whether the rows that a record changes are counted from more than what was kept of it."""
    if len(record.body) >= record.total_bytes - HEADER_BYTES:
        return False
    operation = record.info & OPERATION_MASK
    if record.rmgr == RMGR_HEAP2:
        return operation == _MULTI_INSERT
    return record.rmgr == RMGR_HEAP and operation == DELETE


def rows_of(record: KeptRecord, whole: Record | None) -> tuple[What, int] | None:
    """Return what a record does to rows of the table that its first block is of; None for other records.

    whole: the same with all of its body, for those that need it; None for the others.
    """
    operation = record.info & OPERATION_MASK
    if record.rmgr == RMGR_HEAP:
        if operation == INSERT:
            return What.INSERT, 1
        if operation in (UPDATE, HOT_UPDATE):
            return What.UPDATE, 1
        if operation == DELETE:
            main = main_data(record) if whole is None else parts_of(whole)[1]
            # INSERT ... ON CONFLICT that came too late takes its own row back.
            is_super = len(main) >= 8 and main[7] & _DELETE_IS_SUPER
            return (What.INSERT, -1) if is_super else (What.DELETE, 1)
        return None
    if record.rmgr == RMGR_HEAP2 and operation == _MULTI_INSERT:
        main = main_data(record) if whole is None else parts_of(whole)[1]
        return What.INSERT, int.from_bytes(main[2:4], "little") if len(main) >= 4 else 1
    return None


def truncated_tables(main: bytes) -> tuple[int, list[int]]:
    """Return database and tables of a TRUNCATE record, which is written with wal_level = logical."""
    try:
        database, count = struct.unpack_from("<II", main)
        return database, list(struct.unpack_from(f"<{min(count, (len(main) - 12) // 4)}I", main, 12))
    except struct.error:
        return 0, []


def deleted_row(record: Record) -> tuple[BlockId, int]:
    """Return the page and the item of the row that a record deletes."""
    blocks, main = parts_of(record)
    return blocks[0].page, int.from_bytes(main[4:6], "little")


def inserted_row(record: Record, length: int) -> tuple[tuple[int, int], bytes]:
    """Return the block and item of a new row, and the first bytes of its columns; raise ValueError."""
    blocks, main = parts_of(record)
    if not blocks or len(main) < 2:
        raise ValueError("an insert without its row")
    item = int.from_bytes(main[:2], "little")
    page, data = blocks[0].page, blocks[0].data
    if not data:
        found = _row_on_image(record, page, item)
    elif len(data) > _ROW_AT:
        found = data[_ROW_AT + data[_ROW_AT - 1] - _ROW_HEADER_BYTES :]
    else:
        raise ValueError("a row without its header")
    if len(found) < length:
        raise ValueError("the row is cut")
    return (page.block, item), bytes(found[:length])


def moved_row(record: Record) -> tuple[BlockId, RowMove]:
    """Return the page that an update's new row is on, and both places; raise ValueError."""
    blocks, main = parts_of(record)
    try:
        _, old_item, _, flags, _, new_item = struct.unpack_from("<IHBBIH", main)
        old_block = blocks[1].page.block if len(blocks) > 1 else blocks[0].page.block
    except (struct.error, IndexError) as short:
        raise ValueError("an update without its rows") from short
    return blocks[0].page, RowMove((old_block, old_item), (blocks[0].page.block, new_item), flags)


def updated_bytes(record: Record, move: RowMove, page: BlockId, old: bytes) -> bytes:
    """Return the bytes of a row of pg_class that say which file it has, after an update.

    old: those before it. Raises ValueError where the record does not tell.
    """
    blocks, _ = parts_of(record)
    data = blocks[0].data
    if not data:
        found = _row_on_image(record, page, move.new[1])[FILE_AT : FILE_AT + FILE_BYTES]
        if len(found) != FILE_BYTES:
            raise ValueError("the row is cut")
        return found
    at = prefix = 0
    try:
        if move.flags & _PREFIX_FROM_OLD:
            (prefix,) = struct.unpack_from("<H", data, at)
            at += 2
        if move.flags & _SUFFIX_FROM_OLD:
            at += 2
        hoff = data[at + _ROW_AT - 1]
    except (struct.error, IndexError) as short:
        raise ValueError("a row without its header") from short
    own = data[at + _ROW_AT + hoff - _ROW_HEADER_BYTES :]
    # Columns of a fixed length stand in front of all others: what is left out at the end is where it was.
    return bytes(
        own[one - prefix] if prefix <= one < prefix + len(own) else old[one - FILE_AT]
        for one in range(FILE_AT, FILE_AT + FILE_BYTES)
    )


def _row_on_image(record: Record, page: BlockId, item: int) -> bytes:
    """Return the columns of a row on the page that a record holds, and what follows them there."""
    image = page_image(record, page)
    if image is None:
        raise ValueError("neither the row nor its page is in the record")
    try:
        (pointer,) = struct.unpack_from("<I", image, _LINE_POINTERS_AT + 4 * (item - 1))
        # 15 bits say where the row is, 15 more how long it is.
        at, length = pointer & 0x7FFF, pointer >> 17
        return bytes(image[at + image[at + _ROW_HEADER_BYTES - 1] : at + length])
    except (struct.error, IndexError) as short:
        raise ValueError("the row is not on its page") from short
