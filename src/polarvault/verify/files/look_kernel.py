"""Emits the loop that looks at small files; what it is for says `polarvault.verify.files.looks`."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir

from polarvault.machine_code.language import I64, Code, Value
from polarvault.pgfiles.page_kernel import add_check
from polarvault.pgfiles.pages import CONSTANTS, PAGE_BYTES
from polarvault.verify.files.look_rows import NOT_WANTED, ROW_BYTES, Word
from polarvault.wal.compiled.crc32c import add_crc32c, host_method
from polarvault.wal.compiled.state import CRC_START

# As `storage.below.open_regular`: a FIFO is not waited for, a link is not followed.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# openat returns an int: its upper half is not part of it.
_INT, _NEGATIVE = 0xFFFFFFFF, 0x80000000


def look_source() -> str:
    """Return ``look(directory, names, rows, count, buffer)`` as LLVM IR: how many files are not as their rows say.

    Their rows' names are NOT_WANTED afterwards.
    """
    module = ir.Module("looks")
    look_at_one = _add_look_at_one(module)
    code = Code(module, "look", 5)
    directory, names, rows, count, buffer = code.parameters

    def step(found: Value, row: Value) -> Value:
        name = code.load(row + 8 * Word.NAME)
        is_wrong = code.call(look_at_one, directory, names + name, row, buffer)
        code.store(row + 8 * Word.NAME, code.choose(is_wrong.differs(0), NOT_WANTED, name))
        return found + is_wrong

    found, _ = code.fold(rows, rows + count * ROW_BYTES, ROW_BYTES, code.number(0), step)
    code.give(found)
    return str(module)


def _add_look_at_one(module: Any) -> Any:
    """``look_at_one(directory, name, row, buffer)``: 0 if the file is as its row says, else 1."""
    check, crc32c = add_check(module, *CONSTANTS), add_crc32c(module, host_method())
    # The C library's, by their addresses as any process has them. No mode is passed to openat, but it takes one.
    openat = ir.Function(module, ir.FunctionType(I64, [I64] * 3, var_arg=True), "openat")
    read, close = (
        ir.Function(module, ir.FunctionType(I64, [I64] * n), name) for n, name in ((3, "read"), (1, "close"))
    )
    code = Code(module, "look_at_one", 4)
    directory, name, row, buffer = code.parameters
    size, crc, block = (code.load(row + 8 * word) for word in (Word.SIZE, Word.CRC, Word.BLOCK))
    descriptor = code.call(openat, directory, name, _FLAGS) & _INT
    code.give_if(descriptor >= _NEGATIVE, 1)
    # One byte more than there should be: a file that has grown is seen as well.
    taken = code.call(read, descriptor, buffer, size + 1)
    code.call(close, descriptor)
    code.give_if(taken.differs(size), 1)
    with code.when(crc.differs(NOT_WANTED)):
        calculated = code.call(crc32c, CRC_START, buffer, size) ^ CRC_START
        code.give_if(calculated.differs(crc), 1)
    with code.when(block.differs(NOT_WANTED)):
        count = size // PAGE_BYTES
        code.give_if(code.call(check, buffer, count, block, count, size, 0, 0).differs(0), 1)
    code.give(0)
    return code.function
