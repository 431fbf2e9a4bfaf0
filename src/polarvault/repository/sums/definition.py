"""What a page sum is: 128 bits of a keyed universal hash, computed for many pages at once.

Four passes of NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: "UMAC: fast and secure message authentication", 1999)
over the page, each reduced from 64 to 32 bits by an inner product modulo 2^36 - 5, as in UMAC's last layer (RFC 4418):

    words m[0..2047] of the page, little-endian, zeros behind a short one; m[2048] its length in bytes, m[2049] = 0
    nh[j]  = sum over i of (m[2i] + k[2i+2j] mod 2^32) * (m[2i+1] + k[2i+1+2j] mod 2^32)    mod 2^64, j = 0..3
    sum[j] = (sum over q = 0..3 of a[j][q] * (nh[j] >> 16q & 0xFFFF)  mod 2^36 - 5) mod 2^32  xor b[j]

Who does not know the key makes two pages with the same sum with a probability of at most 2^-124: each pass has 2^-32
for NH and 2^-32 for the reduction, and the passes are independent (the paper's theorem about Toeplitz keys).

Two implementations give the same answer: the kernel, compiled in memory, and numpy where no code can be generated.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Protocol

from polarvault.machine_code.compiling import CANNOT_COMPILE, KernelSource, MachineCode, load_kernel_code

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

PAGE_BYTES = 8192
SUM_BYTES = 16
KEY_BYTES = 32
_PASSES = 4
_WORDS = PAGE_BYTES // 4 + 2
_PRIME = (1 << 36) - 5
# What numpy takes at a time: its intermediate results then stay in the cache.
_NUMPY_PAGES = 8
_CONTEXT = "polarvault repository format 1 page sums"


class Kernel(Protocol):
    """Sums pages that lie one after the other; `length` is that of every page, which zeros follow up to 8192 bytes."""

    def __call__(self, address: int, count: int, length: int, nh_key: int, last_key: int, out: int, /) -> int:
        """Write 16 bytes a page to `out`."""
        ...


class PageSums:
    """Computes sums under one key; may be used by several threads at once."""

    def __init__(self, key: bytes, *, compiled: bool = True) -> None:
        """Expand the repository's 32 bytes; compiled=False takes numpy, as where no code can be generated."""
        import numpy
        from blake3 import blake3

        words = _WORDS + 2 * (_PASSES - 1)
        stream = blake3(key, derive_key_context=_CONTEXT).digest(length=4 * words + _PASSES * 5 * 8)
        self._nh_key = numpy.frombuffer(stream[: 4 * words], "<u4").copy()
        last = numpy.frombuffer(stream[4 * words :], "<u8").reshape(_PASSES, 5).copy()
        last[:, :4] %= numpy.uint64(_PRIME)
        self._last_key = last
        self._kernel = _load_kernel() if compiled else None

    def of(self, pages: memoryview | bytearray) -> NDArray[numpy.uint8]:
        """Return the sums, (n, 16) uint8, of the pages in a buffer; the last one may be short."""
        import numpy

        data = numpy.frombuffer(pages, numpy.uint8)
        whole, rest = divmod(len(data), PAGE_BYTES)
        sums = numpy.empty((whole + (rest > 0), SUM_BYTES), numpy.uint8)
        self._sum(data[: whole * PAGE_BYTES], PAGE_BYTES, sums[:whole])
        if rest:
            last = numpy.zeros(PAGE_BYTES, numpy.uint8)
            last[:rest] = data[whole * PAGE_BYTES :]
            self._sum(last, rest, sums[whole:])
        return sums

    def _sum(self, data: NDArray[numpy.uint8], length: int, sums: NDArray[numpy.uint8]) -> None:
        count = len(sums)
        if not count:
            return
        if self._kernel is None:
            for first in range(0, count, _NUMPY_PAGES):
                pages = data[first * PAGE_BYTES : (first + _NUMPY_PAGES) * PAGE_BYTES]
                sums[first : first + _NUMPY_PAGES] = self._with_numpy(pages, length)
            return
        self._kernel(
            data.ctypes.data, count, length, self._nh_key.ctypes.data, self._last_key.ctypes.data, sums.ctypes.data
        )

    def _with_numpy(self, data: NDArray[numpy.uint8], length: int) -> NDArray[numpy.uint8]:
        import numpy

        count = len(data) // PAGE_BYTES
        words = data.view("<u4").reshape(count, PAGE_BYTES // 4)
        first, second = numpy.ascontiguousarray(words[:, ::2]), numpy.ascontiguousarray(words[:, 1::2])
        sums = numpy.empty((count, _PASSES), "<u4")
        for number in range(_PASSES):
            key = self._nh_key[2 * number : 2 * number + _WORDS]
            products = numpy.multiply(first + key[:-2:2], second + key[1:-2:2], dtype=numpy.uint64)
            # Numbers of 64 bits wrap silently in arrays: that is the modulus.
            tail = (int(key[-2]) + length & 0xFFFFFFFF) * int(key[-1]) & 0xFFFFFFFFFFFFFFFF
            nh = products.sum(axis=1, dtype=numpy.uint64) + numpy.uint64(tail)
            folded = numpy.zeros(count, numpy.uint64)
            for part in range(4):
                folded += (nh >> numpy.uint64(16 * part) & numpy.uint64(0xFFFF)) * self._last_key[number, part]
            sums[:, number] = (folded % numpy.uint64(_PRIME) ^ self._last_key[number, 4]).astype("<u4")
        return sums.view(numpy.uint8)


@functools.cache
def _load_kernel() -> Kernel | None:
    try:
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)
        compiled: Kernel = signature(_code().address("sums"))
    except CANNOT_COMPILE:
        return None
    return compiled


@functools.cache
def _code() -> MachineCode:
    # Kept as long as the process: the code lives no longer than this object.
    return load_kernel_code(KERNEL)


def _emit() -> str:
    # Imported here: it needs llvmlite, which is expensive and may be absent.
    from polarvault.repository.sums.kernel import kernel_source

    return kernel_source(passes=_PASSES, page_bytes=PAGE_BYTES, prime=_PRIME)


KERNEL = KernelSource(_emit, ("repository.sums.kernel",), f"{_PASSES} {PAGE_BYTES} {_PRIME}")
