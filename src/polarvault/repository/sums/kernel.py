"""Emits the kernel that computes page sums; what it computes is defined in `polarvault.repository.sums.definition`.

Sixteen words are one vector, which the compiler cuts into what the CPU has. The four passes share each load of the
page; their keys, one pair of words apart, come from the first-level cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from polarvault.machine_code.language import Code, Value

_LANES = 16
_ROW_BYTES = _LANES * 4
_PAIR_BYTES = 8


def kernel_source(*, passes: int, page_bytes: int, prime: int) -> str:
    """Return ``sums``, with the parameters of `polarvault.repository.sums.definition.Kernel`, as LLVM IR."""
    module = ir.Module("sums")
    code = Code(module, "sums", 6)
    address, count, length, nh_key, last_key, out = code.parameters
    empty = code.vector([0] * (_LANES // 2), 64)

    def sum_page(done: Value, page: Value) -> Value:
        def add_row(states: Sequence[Value], at: Value) -> list[Value]:
            row = code.load_vector(page + at, _LANES, 32)
            added = []
            for number, state in enumerate(states):
                key = code.load_vector(nh_key + at + number * _PAIR_BYTES, _LANES, 32)
                pairs = code.as_lanes(row + key, 64)
                added.append(state + (pairs & 0xFFFFFFFF) * (pairs >> 32))
            return added

        totals, _ = code.fold_all(code.number(0), code.number(page_bytes), _ROW_BYTES, [empty] * passes, add_row)
        for number, total in enumerate(totals):
            # The length is the message's last pair.
            key = nh_key + page_bytes + number * _PAIR_BYTES
            tail = (code.load(key, 32) + length & 0xFFFFFFFF) * code.load(key + 4, 32)
            nh = code.sum_of_lanes(total) + tail
            keys = last_key + number * 40
            folded = (nh & 0xFFFF) * code.load(keys)
            for part in (1, 2, 3):
                folded = folded + (nh >> 16 * part & 0xFFFF) * code.load(keys + 8 * part)
            code.store_part(out + done * (4 * passes) + number * 4, folded % prime ^ code.load(keys + 32), 32)
        return done + 1

    code.fold(address, address + count * page_bytes, page_bytes, code.number(0), sum_page)
    code.give(0)
    return str(module)
