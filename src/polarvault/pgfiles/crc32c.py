"""CRC-32C of a whole from the CRCs of its parts, so that one large file can be read by several threads.

A CRC is a remainder of polynomials over GF(2). Appending n zero bytes multiplies it by x^(8n); the CRC of two parts is
that of the first, so multiplied, plus that of the second.
"""

from __future__ import annotations

import functools

# The Castagnoli polynomial, bits reversed: the highest bit is the coefficient of x^0.
_POLYNOMIAL = 0x82F63B78
_ONE, _X = 1 << 31, 1 << 30


def combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32C of two adjoining parts from the CRC of each and the length of the second."""
    return _multiply(first, _power_of_x(8 * second_bytes)) ^ second


def _multiply(left: int, right: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product


@functools.lru_cache(maxsize=64)
def _power_of_x(exponent: int) -> int:
    result, factor = _ONE, _X
    while exponent:
        if exponent & 1:
            result = _multiply(result, factor)
        factor = _multiply(factor, factor)
        exponent >>= 1
    return result


@functools.lru_cache(maxsize=256)
def crc_of_zeros(count: int) -> int:
    """Return the CRC-32C of that many zero bytes, doubling its way up."""
    if count < 2:
        # Of one zero byte; the register begins and ends inverted, so it is not 0.
        return 0x527D5351 if count else 0
    half = crc_of_zeros(count // 2)
    doubled = combine(half, half, count // 2)
    return combine(doubled, crc_of_zeros(1), 1) if count % 2 else doubled
