"""Emits the compiled reader.

It follows `polarvault.wal.records.RecordReader` method by method; the reasons are given there.

All state is in one array of 64-bit words, `Slot`, that outlives a call: a call may end anywhere. The emitted functions
take the state's address, the address of the next byte and how many bytes there are from it on.

For each mark the reader writes one entry of eight words and the first bytes of the record's body, so that
Python looks at no other records. The first 8 bytes of its main data, a time or an LSN, are among the words.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from polarvault.machine_code.language import I64, Code, Number, Value
from polarvault.wal.compiled.crc32c import add_crc32c
from polarvault.wal.compiled.state import CRC_START, Crc32cMethod, Slot, Status
from polarvault.wal.marks import (
    BLOCK_HEADERS_BYTES,
    ENTRY_BYTES,
    PREPARED_BODY_BYTES,
    SMALL_BODY_BYTES,
    TABLESPACE_KINDS,
    TRANSACTION_KINDS,
    XLOG_KINDS,
    is_prepared,
)
from polarvault.wal.pages import (
    CONTINUES_RECORD,
    IS_LONG,
    KNOWN_FLAGS,
    LONG_HEADER_BYTES,
    MAGICS,
    OVERWRITES_RECORD,
    PAGE_BYTES,
    SHORT_HEADER_BYTES,
    Ending,
)
from polarvault.wal.records import (
    CHECKED_HEADER_BYTES,
    DATA_LONG,
    DATA_SHORT,
    FIRST_CUSTOM_RMGR,
    HEADER_BYTES,
    LAST_BUILTIN_RMGR,
    ORIGIN,
    RMGR_TABLESPACE,
    RMGR_TRANSACTION,
    RMGR_XLOG,
    TOP_XID,
    XLOG_SWITCH,
)


class _StateCode(Code):
    """A function that works on the state."""

    def __init__(self, module: Any, name: str) -> None:
        super().__init__(module, name, 3)
        self.state, self.here, self.available = self.parameters

    def get(self, slot: Slot) -> Value:
        """Read a word of the state."""
        return self.load(self.state + 8 * slot)

    def put(self, slot: Slot, value: Number) -> None:
        """Write a word of the state."""
        self.store(self.state + 8 * slot, value)

    def end_if(self, condition: Value, ending: Ending, lsn: Value, found: Number = 0, expected: Number = 0) -> None:
        """Note that valid WAL ends, and return, if the condition holds."""
        with self.when(condition):
            self.put(Slot.ENDING, ending)
            self.put(Slot.END_LSN, lsn)
            self.put(Slot.FOUND, found)
            self.put(Slot.EXPECTED, expected)
            self.give(Status.GOES_ON)

    def head(self, offset: int, bits: int) -> Value:
        """Read a field of the record header."""
        return self.load(self.state + 8 * Slot.HEAD + offset, bits)

    def left_in_page(self) -> Value:
        """Return how many bytes the page has from AT on."""
        return self.number(PAGE_BYTES) - (self.get(Slot.AT) & PAGE_BYTES - 1)


def _align(value: Value) -> Value:
    return value + 7 & ~7


def walker_source(method: Crc32cMethod) -> str:
    """Return the module as LLVM IR: ``walk(state, address, bytes)`` returns a Status, ``crc32c`` is there for tests."""
    module = ir.Module("wal")
    # The C library's, by its address as any process has it.
    copy = ir.Function(module, ir.FunctionType(I64, [I64, I64, I64]), "memcpy")
    crc32c = add_crc32c(module, method)
    finish = _add_finish(module, crc32c)
    steps = (_add_page_header(module), _add_header(module, copy, finish), _add_body(module, copy, crc32c, finish))
    _add_walk(module, *steps)
    return str(module)


def _add_walk(module: Any, page_header: Any, header: Any, body: Any) -> None:
    code = _StateCode(module, "walk")
    first = code.get(Slot.AT)
    end = first + code.available
    # What lies between AT and the bytes was said to be there by the caller, who begins with the byte at AT.
    with code.forever():
        at = code.get(Slot.AT)
        code.give_if(code.get(Slot.ENDING).differs(0) | at.equals(end) | (at > end), Status.GOES_ON)
        arguments = (code.state, code.here + at - first, end - at)
        in_page = at & PAGE_BYTES - 1
        begins = code.get(Slot.HEAD_BYTES) < HEADER_BYTES
        for condition, step in (
            (in_page.equals(0), page_header),
            (in_page.differs(0) & begins, header),
        ):
            with code.when(condition):
                status = code.call(step, *arguments)
                code.give_if(status.differs(Status.GOES_ON), status)
        with code.when(in_page.differs(0) & begins.equals(0)):
            code.call(body, *arguments)


def _add_page_header(module: Any) -> Any:
    """`RecordReader._take_page_header` and `PageSequence.problem`."""
    code = _StateCode(module, "page_header")
    code.give_if(code.available < SHORT_HEADER_BYTES, Status.NEEDS_BYTES)
    page, here = code.get(Slot.AT), code.here
    magic, flags = code.load(here, 16), code.load(here + 2, 16)
    timeline, address, remaining = code.load(here + 4, 32), code.load(here + 8), code.load(here + 16, 32)
    is_long = (flags & IS_LONG).differs(0)
    code.give_if(is_long & (code.available < LONG_HEADER_BYTES), Status.NEEDS_BYTES)

    known_magic, known_timeline, segment_bytes = map(code.get, (Slot.MAGIC, Slot.TIMELINE, Slot.SEGMENT_BYTES))
    is_known = magic.one_of(sorted(MAGICS)) & known_magic.equals(0) | magic.equals(known_magic)
    code.end_if(magic.equals(0), Ending.ZERO_PAGE, page)
    code.end_if(is_known.equals(0), Ending.PAGE_MAGIC, page, magic, known_magic)
    code.end_if((flags & ~KNOWN_FLAGS & 0xFFFF).differs(0), Ending.PAGE_FLAGS, page, flags)
    with code.when(is_long):
        _check_long_header(code, page, segment_bytes)
    is_first = (page & segment_bytes - 1).equals(0)
    code.end_if(is_first & is_long.equals(0), Ending.PAGE_FLAGS, page, flags)
    code.end_if(address.differs(page), Ending.PAGE_ADDRESS, page, address, page)
    code.end_if(timeline < known_timeline, Ending.TIMELINE, page, timeline, known_timeline)
    code.put(Slot.MAGIC, magic)
    code.put(Slot.TIMELINE, timeline)
    with code.when(is_long):
        system = code.load(here + 24)
        code.put(Slot.SYSTEM, code.choose(system.equals(0), code.get(Slot.SYSTEM), system))

    size = code.choose(is_long, LONG_HEADER_BYTES, SHORT_HEADER_BYTES)
    continues = (flags & CONTINUES_RECORD).differs(0)
    with code.when(code.get(Slot.PASSING).differs(0)):
        _pass_continuation(code, page, size, code.choose(continues, _align(remaining), 0))
    _check_continuation(code, page, flags, remaining)
    code.put(Slot.AT, page + size)
    code.give(Status.GOES_ON)
    return code.function


def _check_long_header(code: _StateCode, page: Value, segment_bytes: Value) -> None:
    here, known = code.here, code.get(Slot.SYSTEM)
    system, its_segment_bytes, its_page_bytes = code.load(here + 24), code.load(here + 32, 32), code.load(here + 36, 32)
    code.end_if(known.differs(0) & system.differs(known), Ending.SYSTEM_IDENTIFIER, page, system, known)
    code.end_if(its_segment_bytes.differs(segment_bytes), Ending.SEGMENT_SIZE, page, its_segment_bytes, segment_bytes)
    code.end_if(its_page_bytes.differs(PAGE_BYTES), Ending.BLOCK_SIZE, page, its_page_bytes, PAGE_BYTES)


def _pass_continuation(code: _StateCode, page: Value, size: Value, rest: Value) -> None:
    """`RecordReader._pass_continuation`."""
    fills_page = (rest + size) >= PAGE_BYTES
    code.put(Slot.PASSING, code.choose(fills_page, 1, 0))
    following = page + code.choose(fills_page, PAGE_BYTES, size + rest)
    code.put(Slot.AT, following)
    code.put(Slot.NEXT_LSN, following)
    code.give(Status.GOES_ON)


def _check_continuation(code: _StateCode, page: Value, flags: Value, remaining: Value) -> None:
    """`RecordReader._continuation_problem`."""
    with code.when(code.get(Slot.LSN).differs(0) & (flags & OVERWRITES_RECORD).differs(0)):
        code.put(Slot.LSN, 0)
        code.put(Slot.HEAD_BYTES, 0)
        code.put(Slot.BODIES_BYTES, code.get(Slot.BODY_START))
        code.put(Slot.NEXT_LSN, page)
    is_begun, head_bytes = code.get(Slot.LSN).differs(0), code.get(Slot.HEAD_BYTES)
    continues = (flags & CONTINUES_RECORD).differs(0)
    left = code.choose(head_bytes.equals(HEADER_BYTES), code.get(Slot.BODY_LEFT), code.head(0, 32) - head_bytes)
    code.end_if(continues & is_begun.equals(0), Ending.UNEXPECTED_CONTINUATION, page)
    code.end_if(is_begun & continues.equals(0), Ending.MISSING_CONTINUATION, page)
    code.end_if(is_begun & remaining.differs(left), Ending.CONTINUATION_LENGTH, page, remaining, left)


def _add_header(module: Any, copy: Any, finish: Any) -> Any:
    """`RecordReader._take_header`."""
    code = _StateCode(module, "header")
    have = code.get(Slot.HEAD_BYTES)
    part = code.least(code.number(HEADER_BYTES) - have, code.left_in_page())
    code.give_if(code.available < part, Status.NEEDS_BYTES)
    # Nothing is counted as taken yet: for want of room the same bytes are looked at again.
    code.call(copy, code.state + 8 * Slot.HEAD + have, code.here, part)
    with code.when(have.equals(0)):
        code.put(Slot.LSN, code.get(Slot.AT))
    lsn, total = code.get(Slot.LSN), code.head(0, 32)
    code.end_if(total.equals(0), Ending.ZERO_RECORD, lsn)
    code.end_if(total < HEADER_BYTES, Ending.RECORD_LENGTH, lsn, total)
    is_whole = (have + part).equals(HEADER_BYTES)
    with code.when(is_whole):
        _check_header(code, lsn)
        _expect_body(code, total - HEADER_BYTES)
    code.put(Slot.AT, code.get(Slot.AT) + part)
    code.put(Slot.HEAD_BYTES, have + part)
    with code.when(is_whole & total.equals(HEADER_BYTES)):
        code.call(finish, code.state, 0, 0)
    code.give(Status.GOES_ON)
    return code.function


def _check_header(code: _StateCode, lsn: Value) -> None:
    previous, rmgr, last = code.head(8, 64), code.head(17, 8), code.get(Slot.LAST_LSN)
    is_unknown = (rmgr > LAST_BUILTIN_RMGR) & (rmgr < FIRST_CUSTOM_RMGR)
    code.end_if(is_unknown, Ending.RESOURCE_MANAGER, lsn, rmgr)
    is_wrong = last.equals(0) & (previous >= lsn) | last.differs(0) & previous.differs(last)
    code.end_if(is_wrong, Ending.PREVIOUS_RECORD, lsn, previous, last)


def _bits(numbers: Any) -> int:
    return sum(1 << number for number in numbers)


def _expect_body(code: _StateCode, body_bytes: Value) -> None:
    """Set up the state for a record's body; return with NEEDS_ROOM when it is a mark and there is no room for it."""
    info, rmgr = code.head(16, 8), code.head(17, 8)
    is_xlog, is_transaction = rmgr.equals(RMGR_XLOG), rmgr.equals(RMGR_TRANSACTION)
    operation = code.choose(is_transaction, info >> 4 & 7, info >> 4)
    kinds = code.choose(is_transaction, _bits(k >> 4 for k in TRANSACTION_KINDS), _bits(k >> 4 for k in XLOG_KINDS))
    is_tablespace = rmgr.equals(RMGR_TABLESPACE) & operation.one_of([kind >> 4 for kind in TABLESPACE_KINDS])
    is_mark = (is_xlog | is_transaction) & (kinds >> operation & 1).differs(0) | is_tablespace
    prepared = [kind >> 4 for kind in TRANSACTION_KINDS if is_prepared(RMGR_TRANSACTION, kind)]
    is_long = is_transaction & operation.one_of(prepared) | is_tablespace
    with_blocks = code.get(Slot.WITH_BLOCKS).differs(0)
    is_mark, is_long = is_mark | with_blocks, is_long | with_blocks & is_transaction
    limit = code.choose(is_long, PREPARED_BODY_BYTES, code.choose(with_blocks, BLOCK_HEADERS_BYTES, SMALL_BODY_BYTES))
    wanted = code.choose(is_mark, code.least(body_bytes, limit), 0)
    code.put(Slot.WANTED, wanted)
    has_room = code.get(Slot.MARKS) < code.get(Slot.MARKS_CAPACITY)
    is_full = code.get(Slot.BODIES_BYTES) + wanted > code.get(Slot.BODIES_CAPACITY)
    code.give_if(is_mark & (has_room.equals(0) | is_full), Status.NEEDS_ROOM)
    code.put(Slot.IS_MARK, code.choose(is_mark, 1, 0))
    code.put(Slot.BODY_LEFT, body_bytes)
    code.put(Slot.CRC, CRC_START)


def _add_body(module: Any, copy: Any, crc32c: Any, finish: Any) -> Any:
    """The second half of `RecordReader._take_record_part`."""
    code = _StateCode(module, "body")
    left = code.get(Slot.BODY_LEFT)
    part = code.least(left, code.left_in_page(), code.available)
    with code.when(code.get(Slot.CHECK_CRC).differs(0)):
        code.put(Slot.CRC, code.call(crc32c, code.get(Slot.CRC), code.here, part))
    wanted, kept = code.get(Slot.WANTED), code.get(Slot.BODIES_BYTES)
    with code.when(wanted.differs(0)):
        keep = code.least(part, wanted)
        code.call(copy, code.get(Slot.BODIES) + kept, code.here, keep)
        code.put(Slot.BODIES_BYTES, kept + keep)
        code.put(Slot.WANTED, wanted - keep)
    code.put(Slot.AT, code.get(Slot.AT) + part)
    code.put(Slot.BODY_LEFT, left - part)
    with code.when(part.equals(left)):
        code.call(finish, code.state, 0, 0)
    code.give(Status.GOES_ON)
    return code.function


def _add_finish(module: Any, crc32c: Any) -> Any:
    """`RecordReader._finish`."""
    code = _StateCode(module, "finish")
    lsn = code.get(Slot.LSN)
    with code.when(code.get(Slot.CHECK_CRC).differs(0)):
        head = code.state + 8 * Slot.HEAD
        crc = code.call(crc32c, code.get(Slot.CRC), head, CHECKED_HEADER_BYTES) ^ CRC_START
        stored = code.head(CHECKED_HEADER_BYTES, 32)
        code.end_if(crc.differs(stored), Ending.CHECKSUM, lsn, stored, crc)
    end, segment_bytes = _align(code.get(Slot.AT)), code.get(Slot.SEGMENT_BYTES)
    is_switch = code.head(17, 8).equals(RMGR_XLOG) & (code.head(16, 8) & 0xF0).equals(XLOG_SWITCH)
    last = segment_bytes - 1
    end = code.choose(is_switch, (end + last) & (last ^ -1), end)
    code.put(Slot.AT, end)
    code.put(Slot.NEXT_LSN, end)
    code.put(Slot.LAST_LSN, lsn)
    code.put(Slot.RECORDS, code.get(Slot.RECORDS) + 1)
    with code.when(code.get(Slot.IS_MARK).differs(0)):
        _write_entry(code, lsn, end)
    code.put(Slot.LSN, 0)
    code.put(Slot.HEAD_BYTES, 0)
    code.put(Slot.BODY_START, code.get(Slot.BODIES_BYTES))
    code.give(Status.GOES_ON)
    return code.function


def _write_entry(code: _StateCode, lsn: Value, end: Value) -> None:
    """Write what `polarvault.wal.marks.Marks` reads."""
    start, number = code.get(Slot.BODY_START), code.get(Slot.MARKS)
    body, body_bytes = code.get(Slot.BODIES) + start, code.get(Slot.BODIES_BYTES) - start
    words = (
        lsn, end, _first_word(code, body, body_bytes), code.head(4, 32), code.head(16, 16),
        code.get(Slot.MAGIC) | code.head(0, 32) << 16, code.get(Slot.BODIES_TAKEN) + start, body_bytes,
    )  # fmt: skip
    entry = code.get(Slot.ENTRIES) + (number << ENTRY_BYTES.bit_length() - 1)
    for place, word in enumerate(words):
        code.store(entry + 8 * place, word)
    code.put(Slot.MARKS, number + 1)


def _first_word(code: _StateCode, body: Value, body_bytes: Value) -> Value:
    """Return the first 8 bytes of the main data of a record without blocks, 0 if there are fewer.

    Bytes behind the body may be looked at, but not used: the buffer has room for them.
    """
    at = code.number(0)
    for block_id, header_bytes in ((ORIGIN, 3), (TOP_XID, 5)):
        at = code.choose(code.load(body + at, 8).equals(block_id), at + header_bytes, at)
    mark = code.load(body + at, 8)
    at = at + code.choose(mark.equals(DATA_SHORT), 2, 5)
    is_there = mark.one_of([DATA_SHORT, DATA_LONG]) & (body_bytes >= at + 8)
    return code.choose(is_there, code.load(body + at), 0)
