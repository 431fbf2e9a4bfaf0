"""Page checksums: PostgreSQL's FNV-1a variant (storage/checksum_impl.h), over many pages at once.

Two implementations give the same answer. The kernel (`page_kernel`) is compiled in memory by llvmlite: 32 lanes wide,
7 GB/s per core, and it runs without the GIL. Where code may not be generated (hardened kernels), numpy does the same at
about 1 GB/s; the tests compare both with `page_checksum`, the plain definition.

Shapes: pages are 8192 bytes; a page is 64 rows of 32 little-endian uint32. In the page header pd_lsn is two uint32
(high, low) at byte 0, pd_checksum a uint16 at byte 8, pd_upper a uint16 at byte 14.

A page that was never written is all zeros and has no checksum. Its mark is a header of zeros, not pd_upper alone, which
rot can clear: such a page is invalid to the server too (bufpage.c, PageIsVerified). What follows the header is not
looked at, because a backup can catch a new page while it is being written.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
from dataclasses import dataclass
from typing import Protocol

from polarvault.machine_code.compiling import CANNOT_COMPILE, KernelSource, MachineCode, load_kernel_code

PAGE_BYTES = 8192
_ROWS, _LANES = 64, 32
_PRIME = 16777619
# checksumBaseOffsets of checksum_impl.h: part of the on-disk format.
_OFFSETS = (
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
)  # fmt: skip
_RELATION_FILE = re.compile(
    r"(?:base/\d+|global|pg_tblspc/\d+/PG_[^/]+/\d+|PG_[^/]+/\d+)/\d+(?:_(?:fsm|vm|init))?(?:\.(\d+))?\Z"
)
_PAGE_HEADER = struct.Struct("<IIHHHH")


def relation_segment(path: str) -> int | None:
    """Return the segment number if the path is a relation file that carries page checksums, else None.

    The path is relative to the data directory, or to a tablespace's directory. Maps, pg_control and temporary files
    carry none (server: is_checksummed_file in basebackup.c).
    """
    match = _RELATION_FILE.match(path)
    if match is None:
        return None
    return int(match[1] or 0)


@dataclass(frozen=True, slots=True)
class BadPage:
    """A page whose checksum does not match; block counts from the start of the relation's fork."""

    block: int
    calculated: int
    stored: int
    lsn: int


class Kernel(Protocol):
    """Checks pages that lie in equal runs: `per_run` pages one after the other, a run every `stride` bytes.

    That is how pages lie in a receive buffer, where message headers stand between them. The indexes of wrong pages go
    to the int64 array at `bad`, at most `capacity` of them; returned is how many are wrong.
    """

    def __call__(
        self, address: int, count: int, first_block: int, per_run: int, stride: int, bad: int, capacity: int, /
    ) -> int:
        """Check `count` pages; the first has block number `first_block`."""
        ...


def page_checksum(page: bytes | memoryview, block: int) -> int:
    """Return the checksum that PostgreSQL stores for a page at a block number (pure Python, the reference)."""
    words = list(struct.unpack("<2048I", page))
    words[2] &= 0xFFFF0000
    sums = list(_OFFSETS)
    for row in range(0, 2048, _LANES):
        for lane in range(_LANES):
            mixed = sums[lane] ^ words[row + lane]
            sums[lane] = (mixed * _PRIME ^ mixed >> 17) & 0xFFFFFFFF
    result = 0
    for value in sums:
        for _ in range(2):
            value = (value * _PRIME ^ value >> 17) & 0xFFFFFFFF
        result ^= value
    return ((result ^ block) & 0xFFFFFFFF) % 65535 + 1


def read_page_header(page: bytes | memoryview) -> tuple[int, int, int]:
    """Return the LSN, the stored checksum and pd_upper of a page."""
    high, low, checksum, _, _, upper = _PAGE_HEADER.unpack_from(page)
    return high << 32 | low, checksum, upper


@functools.cache
def load_kernel() -> Kernel:
    """Return the compiled kernel, or the numpy one where no code can be generated."""
    try:
        return _compile_kernel()
    except CANNOT_COMPILE:
        return numpy_kernel


def numpy_kernel(address: int, count: int, first_block: int, per_run: int, stride: int, bad: int, capacity: int) -> int:
    """Check pages with numpy; the contract is that of `Kernel`."""
    import numpy

    runs = range(0, count, per_run)
    pages = b"".join(
        ctypes.string_at(address + number * stride, min(per_run, count - first) * PAGE_BYTES)
        for number, first in enumerate(runs)
    )
    words = numpy.frombuffer(pages, dtype="<u4").reshape(count, _ROWS, _LANES)
    sums = numpy.tile(numpy.array(_OFFSETS, dtype=numpy.uint32), (count, 1))
    mixed = numpy.empty_like(sums)
    first_row = words[:, 0, :].copy()
    first_row[:, 2] &= numpy.uint32(0xFFFF0000)
    prime, shift = numpy.uint32(_PRIME), numpy.uint32(17)
    zero = numpy.zeros_like(sums)
    for row in range(_ROWS + 2):
        value = first_row if row == 0 else words[:, row, :] if row < _ROWS else zero
        numpy.bitwise_xor(sums, value, out=mixed)
        numpy.multiply(mixed, prime, out=sums)
        numpy.right_shift(mixed, shift, out=mixed)
        numpy.bitwise_xor(sums, mixed, out=sums)
    folded = numpy.bitwise_xor.reduce(sums, axis=1)
    blocks = numpy.arange(first_block, first_block + count, dtype=numpy.uint64).astype(numpy.uint32)
    calculated = (folded ^ blocks) % numpy.uint32(65535) + numpy.uint32(1)
    stored = words[:, 0, 2] & numpy.uint32(0xFFFF)
    in_use = numpy.bitwise_or.reduce(words[:, 0, :4], axis=1) != 0
    (wrong,) = numpy.nonzero((calculated != stored) & in_use)
    found = (ctypes.c_int64 * capacity).from_address(bad)
    for position, index in enumerate(wrong[:capacity]):
        found[position] = int(index)
    return len(wrong)


@functools.cache
def _code() -> MachineCode:
    # Kept as long as the process: the code lives no longer than this object.
    return load_kernel_code(KERNEL)


def _emit() -> str:
    # Imported here: it needs llvmlite, which is expensive and may be absent.
    from polarvault.pgfiles.page_kernel import kernel_source

    return kernel_source(*CONSTANTS)


CONSTANTS = (_OFFSETS, _PRIME, PAGE_BYTES)
"""What the kernel is made with: an offset for each lane, the prime, the size of a page."""
KERNEL = KernelSource(_emit, ("pgfiles.page_kernel",), str(CONSTANTS))


def _compile_kernel() -> Kernel:
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 7)
    compiled: Kernel = signature(_code().address("check"))
    return compiled
