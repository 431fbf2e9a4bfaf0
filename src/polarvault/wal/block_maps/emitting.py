"""Emits the compiled gatherer: two hash tables, of forks and of blocks, that are filled from the headers of records.

It follows `polarvault.wal.blocks.read_references`; the reasons are given there. All state is in one array of 64-bit
words, `Slot`. A fork is a row of three words: tablespace and database, relation and fork, and the `Silent` kinds of the
records that change it. A block is one word: row + 1 << 32 | block. Both tables are open ones, at most half full; 0 is a
free place.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from polarvault.machine_code.language import Code, Number, Value
from polarvault.model.relation import INIT_FORK
from polarvault.wal.block_maps.operations import SILENT
from polarvault.wal.block_maps.state import BODY, BODY_BYTES, CODE, MORE, MOST_OF_RECORD, Slot
from polarvault.wal.marks import ENTRY_BYTES
from polarvault.wal.records import (
    BLOCK_HAS_IMAGE,
    BLOCK_SAME_RELATION,
    DATA_LONG,
    DATA_SHORT,
    HEADER_BYTES,
    IMAGE_HAS_HOLE,
    LAST_BLOCK_ID,
    ORIGIN,
    TOP_XID,
)

_ROW_BYTES = 24
# An odd number with many bits (2^64 divided by the golden ratio): a product's upper bits depend on all bits.
_SPREAD = 0x9E3779B97F4A7C15


class _Code(Code):
    """A function whose first parameter is the state."""

    def get(self, slot: Slot) -> Value:
        return self.load(self.parameters[0] + 8 * slot)

    def put(self, slot: Slot, value: Number) -> None:
        self.store(self.parameters[0] + 8 * slot, value)


def references_source() -> str:
    """Return the gatherer as LLVM IR: ``gather``, ``refill`` and ``place_rows``."""
    module = ir.Module("references")
    add_block = _add_block(module)
    find_row = _find_row(module)
    record = _add_record(module, find_row, add_block)
    _add_gather(module, record)
    _add_refill(module, add_block)
    _add_place_rows(module)
    return str(module)


def _add_block(module: Any) -> Any:
    """``add_block(state, key)``: put a block into the table, if it is not there."""
    code = _Code(module, "add_block", 2)
    key = code.parameters[1]
    mask, table = code.get(Slot.BLOCK_MASK), code.get(Slot.BLOCKS)
    code.put(Slot.PROBE, (key * _SPREAD) >> 20 & mask)
    with code.forever():
        probe = code.get(Slot.PROBE)
        place = table + (probe << 3)
        there = code.load(place)
        code.give_if(there.equals(key), 0)
        with code.when(there.equals(0)):
            code.store(place, key)
            code.put(Slot.BLOCK_COUNT, code.get(Slot.BLOCK_COUNT) + 1)
            code.give(0)
        code.put(Slot.PROBE, probe + 1 & mask)
    return code.function


def _hash_of_row(code: _Code, database: Value, relation: Value) -> Value:
    return (database * _SPREAD ^ relation) * _SPREAD >> 24 & code.get(Slot.ROW_MASK)


def _find_row(module: Any) -> Any:
    """``find_row(state, database, relation)``: return a fork's row, a new one if need be."""
    code = _Code(module, "find_row", 3)
    _, database, relation = code.parameters
    is_last = database.equals(code.get(Slot.LAST_DATABASE)) & relation.equals(code.get(Slot.LAST_RELATION))
    code.give_if(is_last, code.get(Slot.LAST_ROW))
    code.put(Slot.LAST_DATABASE, database)
    code.put(Slot.LAST_RELATION, relation)
    code.put(Slot.PROBE, _hash_of_row(code, database, relation))
    rows, places, mask = code.get(Slot.ROWS), code.get(Slot.ROW_PLACES), code.get(Slot.ROW_MASK)
    with code.forever():
        probe = code.get(Slot.PROBE)
        place = places + (probe << 3)
        there = code.load(place)
        with code.when(there.equals(0)):
            count = code.get(Slot.ROW_COUNT)
            row = rows + count * _ROW_BYTES
            code.store(row, database)
            code.store(row + 8, relation)
            code.store(row + 16, 0)
            code.store(place, count + 1)
            code.put(Slot.ROW_COUNT, count + 1)
            code.put(Slot.LAST_ROW, count)
            code.give(count)
        number = there - 1
        row = rows + number * _ROW_BYTES
        with code.when(code.load(row).equals(database) & code.load(row + 8).equals(relation)):
            code.put(Slot.LAST_ROW, number)
            code.give(number)
        code.put(Slot.PROBE, probe + 1 & mask)
    return code.function


def _add_record(module: Any, find_row: Any, add_block: Any) -> Any:
    """``record(state, body, body bytes, bytes of the whole body, kind)``: 0, or 1 if it cannot be read."""
    code = _Code(module, "record", 5)
    _, body, kept, left, kind = code.parameters
    for slot in (Slot.AT, Slot.DATA, Slot.HAS_RELATION):
        code.put(slot, 0)
    with code.forever():
        at, data = code.get(Slot.AT), code.get(Slot.DATA)
        code.give_if(at + data >= left, code.choose((at + data).equals(left), 0, 1))
        code.give_if(at >= kept, 1)
        here = body + at
        word = code.load(here, 8)
        for mark, bits, header_bytes in ((DATA_SHORT, 8, 2), (DATA_LONG, 32, 5)):
            end = code.load(here + 1, bits) + at + data + header_bytes
            code.give_if(word.equals(mark), code.choose(end.equals(left), 0, 1))
        is_other = word.one_of([ORIGIN, TOP_XID])
        code.give_if((word > LAST_BLOCK_ID) & is_other.equals(0), 1)
        with code.when(is_other):
            code.put(Slot.AT, at + code.choose(word.equals(ORIGIN), 3, 5))
        with code.when(is_other.equals(0)):
            _take_block(code, here, at, data, find_row, add_block)
            row = code.get(Slot.ROWS) + code.get(Slot.LAST_ROW) * _ROW_BYTES
            code.store(row + 16, code.load(row + 16) | kind)
    return code.function


def _take_block(code: _Code, here: Value, at: Value, data: Value, find_row: Any, add_block: Any) -> None:
    """Read one block's header, and note the block."""
    flags, block_bytes = code.load(here + 1, 8), code.load(here + 2, 16)
    has_image, is_same = (flags & BLOCK_HAS_IMAGE).differs(0), (flags & BLOCK_SAME_RELATION).differs(0)
    image = code.load(here + 8, 8)
    has_hole_length = (image & code.get(Slot.IS_COMPRESSED)).differs(0) & (image & IMAGE_HAS_HOLE).differs(0)
    behind_image = here + 4 + code.choose(has_image, code.choose(has_hole_length, 7, 5), 0)
    code.give_if(is_same & code.get(Slot.HAS_RELATION).equals(0), 1)
    fork = flags & 0x0F
    code.give_if(fork > INIT_FORK, 1)
    with code.when(is_same.equals(0)):
        code.put(Slot.DATABASE, code.load(behind_image))
        code.put(Slot.RELATION, code.load(behind_image + 8, 32))
        code.put(Slot.HAS_RELATION, 1)
    behind_relation = behind_image + code.choose(is_same, 0, 12)
    following = behind_relation + 4 - here + at
    # What was not kept must not be taken for a header.
    code.give_if(following > code.parameters[2], 1)
    relation = code.get(Slot.RELATION) | fork << 32
    row = code.call(find_row, code.parameters[0], code.get(Slot.DATABASE), relation)
    code.call(add_block, code.parameters[0], row + 1 << 32 | code.load(behind_relation, 32))
    image_bytes = code.choose(has_image, code.load(here + 4, 16), 0)
    code.put(Slot.AT, following)
    code.put(Slot.DATA, data + block_bytes + image_bytes)


def _add_gather(module: Any, record: Any) -> None:
    """``gather(state)``: take the records from NEXT to before END; 1 when a table needs more room first."""
    code = _Code(module, "gather", 1)
    with code.forever():
        number = code.get(Slot.NEXT)
        code.give_if(number >= code.get(Slot.END), 0)
        for count, mask in ((Slot.ROW_COUNT, Slot.ROW_MASK), (Slot.BLOCK_COUNT, Slot.BLOCK_MASK)):
            code.give_if((code.get(count) + MOST_OF_RECORD) * 2 > code.get(mask), 1)
        entry = code.get(Slot.ENTRIES) + number * ENTRY_BYTES
        rmgr = code.load(entry + 8 * CODE) >> 8
        kind = code.number(0)
        for number_of_rmgr, its_kind in SILENT.items():
            kind = code.choose(rmgr.equals(number_of_rmgr), its_kind, kind)
        body_bytes = (code.load(entry + 8 * MORE) >> 16) - HEADER_BYTES
        body = code.get(Slot.BODIES) + code.load(entry + 8 * BODY)
        wrong = code.call(
            record, code.parameters[0], body, code.load(entry + 8 * BODY_BYTES), body_bytes, kind
        )  # fmt: skip
        with code.when(wrong.differs(0) & code.get(Slot.WRONG).equals(0)):
            code.put(Slot.WRONG, number + 1)
        code.put(Slot.NEXT, number + 1)


def _add_refill(module: Any, add_block: Any) -> None:
    """``refill(state, table, places)``: add what is in another table of blocks."""
    code = _Code(module, "refill", 3)
    state, table, places = code.parameters

    def step(done: Value, at: Value) -> Value:
        key = code.load(at)
        with code.when(key.differs(0)):
            code.call(add_block, state, key)
        return done

    code.fold(table, table + (places << 3), 8, code.number(0), step)
    code.give(0)


def _add_place_rows(module: Any) -> None:
    """``place_rows(state)``: fill an empty table of forks from the rows, from NEXT on."""
    code = _Code(module, "place_rows", 2)
    number = code.parameters[1]
    row = code.get(Slot.ROWS) + number * _ROW_BYTES
    code.put(Slot.PROBE, _hash_of_row(code, code.load(row), code.load(row + 8)))
    with code.forever():
        place = code.get(Slot.ROW_PLACES) + (code.get(Slot.PROBE) << 3)
        with code.when(code.load(place).equals(0)):
            code.store(place, number + 1)
            code.give(0)
        code.put(Slot.PROBE, code.get(Slot.PROBE) + 1 & code.get(Slot.ROW_MASK))
