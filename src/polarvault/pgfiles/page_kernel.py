"""Emits the kernel that checks page checksums; what it computes is defined in `polarvault.pgfiles.pages`.

All 32 lanes are one vector, which the compiler cuts into what the CPU has. Nothing is stored while a page is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from polarvault.machine_code.language import Code, Number, Value


def kernel_source(offsets: Sequence[int], prime: int, page_bytes: int) -> str:
    """Return ``check``, with the parameters of `polarvault.pgfiles.pages.Kernel`, as LLVM IR.

    offsets: one for each lane.
    """
    module = ir.Module("pages")
    add_check(module, offsets, prime, page_bytes)
    return str(module)


def add_check(module: Any, offsets: Sequence[int], prime: int, page_bytes: int) -> Any:
    """Add ``check`` to a module and return it."""
    code = Code(module, "check", 7)
    address, count, first_block, per_run, stride, bad, capacity = code.parameters
    lanes = len(offsets)
    row_bytes = lanes * 4

    def mix(sums: Value, row: Number) -> Value:
        mixed = sums ^ row
        return mixed * prime ^ mixed >> 17

    def mix_row(sums: Value, at: Value) -> Value:
        return mix(sums, code.load_vector(at, lanes, 32))

    def check_page(found: Value, index: Value) -> Value:
        page = address + index // per_run * stride + index % per_run * page_bytes
        first_row = code.load_vector(page, lanes, 32)
        # The stored checksum, in the lower half of the third word, is not part of what it covers.
        covered = first_row & code.vector([0xFFFF0000 if lane == 2 else 0xFFFFFFFF for lane in range(lanes)], 32)
        sums = mix(code.vector(offsets, 32), covered)
        sums, _ = code.fold(page + row_bytes, page + page_bytes, row_bytes, sums, mix_row)
        folded = code.xor_of_lanes(mix(mix(sums, 0), 0))
        calculated = ((folded ^ first_block + index) & 0xFFFFFFFF) % 65535 + 1
        header = [code.lane(first_row, lane) for lane in range(4)]
        is_used = (header[0] | header[1] | header[2] | header[3]).differs(0)
        is_wrong = is_used & calculated.differs(header[2] & 0xFFFF)
        with code.when(is_wrong & (found < capacity)):
            code.store(bad + found * 8, index)
        return code.choose(is_wrong, found + 1, found)

    found, _ = code.fold(code.number(0), count, 1, code.number(0), check_page)
    code.give(found)
    return code.function
