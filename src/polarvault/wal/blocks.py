"""What the WAL does to pages: which blocks a record touches, which relations it makes, shortens and removes.

Layout of a block header (server: access/xlogrecord.h, little-endian): block number in the record u8, fork and flags u8,
data length u16; with an image its length u16, the hole's offset u16, flags u8, and the hole's length u16 if it is
compressed and has one; tablespace, database and file u32 each, unless they are those of the block before; page u32.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from polarvault.model import versions
from polarvault.model.relation import BlockId, RelationFile
from polarvault.wal.marks import (
    ENTRY_WORDS,
    HAS_DATABASE,
    HAS_FLAGS,
    HAS_RELATIONS,
    HAS_SUBTRANSACTIONS,
    TRANSACTION_KINDS,
    TRANSACTION_MASK,
    Marks,
)
from polarvault.wal.records import (
    BLOCK_HAS_IMAGE,
    BLOCK_SAME_RELATION,
    DATA_LONG,
    DATA_SHORT,
    HEADER_BYTES,
    IMAGE_HAS_HOLE,
    LAST_BLOCK_ID,
    ORIGIN,
    RMGR_INFO_MASK,
    RMGR_TRANSACTION,
    TOP_XID,
    find_main_data,
)

RMGR_STORAGE, RMGR_DATABASE = 2, 4
_STORAGE_CREATE, _STORAGE_TRUNCATE = 0x10, 0x20
# 15 and later write this record for STRATEGY FILE_COPY and SET TABLESPACE, earlier ones for every CREATE DATABASE.
_DATABASE_COPY = 0x00
_BLOCK_WILL_INIT, _FORK_MASK = 0x40, 0x0F
_RELATION = struct.Struct("<III")
# Words of an entry, see `Marks`.
_CODE, _BODY, _BODY_BYTES = 4, 6, 7


@dataclass(frozen=True, slots=True)
class BlockReference:
    """A page that a record touches; is_written_whole: replay does not look at what stands there.

    has_image: it is because the record holds the whole page, as it is afterwards.
    """

    page: BlockId
    is_written_whole: bool
    has_image: bool = False


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A valid record; of its body at least the headers of its blocks, or all if a transaction ends."""

    lsn: int
    rmgr: int
    info: int
    magic: int
    total_bytes: int
    body: bytes
    xid: int = 0


def records_about(marks: Marks, relations: Mapping[RelationFile, Sequence[int]], *, magic: int) -> Iterator[KeptRecord]:
    """Yield the records that name one of the relations, and those that fill databases, in the order of the WAL.

    Of a relation with block numbers only those records that may touch one of them, or that are about files: nearly all
    records are passed over by searching for bytes. The scanner must have been made with `with_blocks`. magic: of the
    WAL, for records in front of the first page header that was read.
    """
    words, bodies = marks.words, bytes(marks.bodies)
    starts, ends = words[_BODY::ENTRY_WORDS].tolist(), words[_BODY_BYTES::ENTRY_WORDS].tolist()
    ends = [start + length for start, length in zip(starts, ends, strict=True)]
    rmgrs = [code >> 8 for code in words[_CODE::ENTRY_WORDS].tolist()]
    numbers = {number for number, rmgr in enumerate(rmgrs) if rmgr == RMGR_DATABASE}
    about_files = [number for number, rmgr in enumerate(rmgrs) if rmgr in (RMGR_TRANSACTION, RMGR_STORAGE)]
    for relation, blocks in relations.items():
        needle = _RELATION.pack(*relation)
        if not blocks:
            numbers.update(_holding(bodies, needle, starts, ends))
            continue
        numbers.update(number for number in about_files if bodies.find(needle, starts[number], ends[number]) >= 0)
        # Of a busy relation there are many more records than of one of its blocks.
        for block in blocks:
            for number in _holding(bodies, struct.pack("<I", block), starts, ends):
                if bodies.find(needle, starts[number], ends[number]) >= 0:
                    numbers.add(number)
    for number in sorted(numbers):
        lsn, _, _, _, code, more, at, length = words[number * ENTRY_WORDS : (number + 1) * ENTRY_WORDS].tolist()
        body = bodies[at : at + length]
        yield KeptRecord(lsn, code >> 8, code & 0xFF, more & 0xFFFF or magic, more >> 16, body)


def records_holding(marks: Marks, needles: Iterable[bytes], *, magic: int) -> Iterator[KeptRecord]:
    """Yield the records in which one of some byte strings stands, and those about databases, as `records_about`."""
    words, bodies = marks.words, bytes(marks.bodies)
    starts, ends = words[_BODY::ENTRY_WORDS].tolist(), words[_BODY_BYTES::ENTRY_WORDS].tolist()
    ends = [start + length for start, length in zip(starts, ends, strict=True)]
    codes = words[_CODE::ENTRY_WORDS].tolist()
    numbers = {number for number, code in enumerate(codes) if code >> 8 == RMGR_DATABASE}
    for needle in needles:
        numbers.update(_holding(bodies, needle, starts, ends))
    for number in sorted(numbers):
        lsn, _, _, _, code, more, at, length = words[number * ENTRY_WORDS : (number + 1) * ENTRY_WORDS].tolist()
        yield KeptRecord(lsn, code >> 8, code & 0xFF, more & 0xFFFF or magic, more >> 16, bodies[at : at + length])


def records_selected(
    marks: Marks,
    needles: Iterable[bytes],
    codes: Container[int],
    wants: Callable[[int, int, int], bool],
    *,
    passed: Container[int],
    magic: int,
) -> Iterator[KeptRecord]:
    """Yield the records in which one of some byte strings stands, and those of some codes that are wanted.

    codes: resource manager and info in 16 bits. wants: gets xid, resource manager and info of such a record, when all
    records before it were yielded. passed: the numbers of records that are passed over.
    """
    words, all_bodies = marks.words, bytes(marks.bodies)
    every = zip(*(words[column::ENTRY_WORDS].tolist() for column in (_CODE, _BODY, _BODY_BYTES)), strict=True)
    kept = [(number, *one) for number, one in enumerate(every) if number not in passed]
    bodies = b"".join([all_bodies[at : at + length] for _, _, at, length in kept])
    ends = list(accumulate(length for _, _, _, length in kept))
    starts = [end - one[3] for end, one in zip(ends, kept, strict=True)]
    held = {place for needle in needles for place in _holding(bodies, needle, starts, ends)}
    others = {place for place, (_, code, _, _) in enumerate(kept) if code in codes}
    for place in sorted(held | others):
        number = kept[place][0]
        lsn, _, _, xid, code, more, at, length = words[number * ENTRY_WORDS : (number + 1) * ENTRY_WORDS].tolist()
        if place in held or wants(xid, code >> 8, code & 0xFF):
            body = all_bodies[at : at + length]
            yield KeptRecord(lsn, code >> 8, code & 0xFF, more & 0xFFFF or magic, more >> 16, body, xid)


def _holding(content: bytes, needle: bytes, starts: list[int], ends: list[int]) -> Iterator[int]:
    """Yield the numbers of the bodies that hold a byte string, and of some that it only begins in."""
    at = content.find(needle)
    while at >= 0:
        number = bisect_right(starts, at) - 1
        yield number
        at = content.find(needle, max(ends[number], at + 1))


def block_references(record: KeptRecord) -> list[BlockReference]:
    """Return the pages that a record touches; of a malformed record those in front of the damage."""
    return read_references(record)[0]


def read_references(record: KeptRecord) -> tuple[list[BlockReference], bool]:
    """Return the same, and whether the headers are well-formed and account for every byte of the record."""
    found: list[BlockReference] = []
    body, at, data_bytes = record.body, 0, 0
    relation: RelationFile | None = None
    main_bytes = 0
    is_whole_record = True
    # Behind the last header stand the blocks' data: a record without main data has no other mark of their end.
    left = record.total_bytes - HEADER_BYTES
    try:
        while left - at > data_bytes:
            block_id = body[at]
            if block_id == DATA_SHORT:
                main_bytes, at = body[at + 1], at + 2
                break
            if block_id == DATA_LONG:
                main_bytes, at = struct.unpack_from("<I", body, at + 1)[0], at + 5
                break
            if block_id in (ORIGIN, TOP_XID):
                at += 3 if block_id == ORIGIN else 5
                continue
            if block_id > LAST_BLOCK_ID:
                is_whole_record = False
                break
            flags = body[at + 1]
            (block_bytes,) = struct.unpack_from("<H", body, at + 2)
            at += 4
            is_whole, has_image = bool(flags & _BLOCK_WILL_INIT), False
            if flags & BLOCK_HAS_IMAGE:
                image_bytes, _, image = struct.unpack_from("<HHB", body, at)
                layout = versions.record_layout(record.magic)
                at += 7 if image & layout.image_is_compressed and image & IMAGE_HAS_HOLE else 5
                block_bytes += image_bytes
                has_image = bool(image & layout.image_applies)
                is_whole |= has_image
            if not flags & BLOCK_SAME_RELATION:
                relation = RelationFile(*_RELATION.unpack_from(body, at))
                at += _RELATION.size
            (block,) = struct.unpack_from("<I", body, at)
            at += 4
            data_bytes += block_bytes
            if relation is None:
                is_whole_record = False
                break
            found.append(BlockReference(BlockId(relation, flags & _FORK_MASK, block), is_whole, has_image))
    except (IndexError, struct.error):
        is_whole_record = False
    return found, is_whole_record and at + data_bytes + main_bytes == left


def made_relation(record: KeptRecord) -> RelationFile | None:
    """Return the relation that a record makes the file of."""
    made = made_fork(record)
    return None if made is None else made[0]


def made_fork(record: KeptRecord) -> tuple[RelationFile, int] | None:
    """Return the relation and the fork that a record makes the file of."""
    main = _storage_data(record, _STORAGE_CREATE, 16)
    if main is None:
        return None
    return RelationFile(*_RELATION.unpack_from(main)), int(struct.unpack_from("<i", main, _RELATION.size)[0])


def shortened_relation(record: KeptRecord) -> tuple[RelationFile, int] | None:
    """Return the relation that a record truncates, and the first block of its main fork that goes."""
    main = _storage_data(record, _STORAGE_TRUNCATE, 20)
    if main is None:
        return None
    (block,) = struct.unpack_from("<I", main)
    return RelationFile(*_RELATION.unpack_from(main, 4)), block


def removed_relations(record: KeptRecord) -> list[RelationFile]:
    """Return the relations whose files go with the end of a transaction."""
    if record.rmgr != RMGR_TRANSACTION or record.info & TRANSACTION_MASK not in TRANSACTION_KINDS:
        return []
    main = main_data(record)
    try:
        flags = struct.unpack_from("<I", main, 8)[0] if record.info & HAS_FLAGS else 0
        if not flags & HAS_RELATIONS:
            return []
        at = 12 + (8 if flags & HAS_DATABASE else 0)
        if flags & HAS_SUBTRANSACTIONS:
            at += 4 + 4 * int(struct.unpack_from("<I", main, at)[0])
        (count,) = struct.unpack_from("<I", main, at)
        first = at + 4
        return [RelationFile(*found) for found in _RELATION.iter_unpack(main[first : first + count * _RELATION.size])]
    except struct.error:
        return []


def copied_database(record: KeptRecord) -> tuple[int, int] | None:
    """Return tablespace and database that a record fills by copying another one's files."""
    if record.rmgr != RMGR_DATABASE or record.info & RMGR_INFO_MASK != _DATABASE_COPY:
        return None
    main = main_data(record)
    if len(main) < 8:
        return None
    database, tablespace = struct.unpack_from("<II", main)
    return tablespace, database


def source_of_copy(record: KeptRecord) -> int | None:
    """Return the database of which a record copies the files; None for every other record."""
    if record.rmgr != RMGR_DATABASE or record.info & RMGR_INFO_MASK != _DATABASE_COPY:
        return None
    main = main_data(record)
    return int(struct.unpack_from("<I", main, 8)[0]) if len(main) >= 16 else None


def changed_database(record: KeptRecord) -> int | None:
    """Return the database that a record makes, fills, moves or drops."""
    if record.rmgr != RMGR_DATABASE:
        return None
    # All of these records begin with it (server: commands/dbcommands_xlog.h).
    main = main_data(record)
    return int(struct.unpack_from("<I", main)[0]) if len(main) >= 4 else None


def _storage_data(record: KeptRecord, operation: int, length: int) -> bytes | None:
    if record.rmgr != RMGR_STORAGE or record.info & RMGR_INFO_MASK != operation:
        return None
    main = main_data(record)
    return main if len(main) >= length else None


def main_data(record: KeptRecord) -> bytes:
    """Return a record's main data, as far as they were kept; nothing if its headers make no sense."""
    try:
        at, length = find_main_data(record.body, record.magic)
    except ValueError:
        return b""
    return record.body[at : at + length]
