"""Column sets: arrays of numbers, one after the other, transformed so that zstd finds what repeats."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy

from polarvault.errors import ObjectDamaged
from polarvault.repository.format.frame import Buffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COUNT = struct.Struct("<H")
_COLUMN = struct.Struct("<BBBBI")
_MOST_COLUMNS = 64
_PLAIN, _PLANES, _DELTAS = 0, 1, 2
_NUMBERS = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_BYTES = (16, 32)


def encode(columns: Mapping[int, NDArray[Any]]) -> bytes:
    """Return a column set.

    A column is one-dimensional uint8, uint16, uint32, uint64, or (n, 16) or (n, 32) uint8. Empty ones are left out.
    """
    heads, bodies = [], []
    for number, column in sorted(columns.items()):
        if not len(column):
            continue
        size = column.itemsize if column.ndim == 1 else column.shape[1]
        kind, body = _transformed(column)
        heads.append(_COLUMN.pack(number, size, kind, 0, len(column)))
        bodies.append(body)
    return b"".join([_COUNT.pack(len(heads)), *heads, *bodies])


def _transformed(column: NDArray[Any]) -> tuple[int, bytes]:
    if column.ndim == 2 or column.itemsize == 1:
        return _PLAIN, column.tobytes()
    numbers = column.astype(column.dtype.newbyteorder("<"), copy=False)
    # Rising numbers, and offsets that mostly rise, become small differences; the first one is a difference to zero.
    differences = numpy.diff(numbers, prepend=numbers.dtype.type(0))
    return _DELTAS, _planes(differences)


def _planes(numbers: NDArray[Any]) -> bytes:
    return numpy.ascontiguousarray(numbers).view(numpy.uint8).reshape(len(numbers), numbers.itemsize).T.tobytes()


class Columns:
    """What a column set holds; every access says what must be there."""

    def __init__(self, content: Buffer, what: str) -> None:
        """Parse the heads; raise ObjectDamaged if they and the length do not agree."""
        self._what = what
        self._columns: dict[int, tuple[int, int, int, memoryview]] = {}
        view = memoryview(content)
        if len(view) < _COUNT.size:
            raise ObjectDamaged(f"{what} ends too early")
        (count,) = _COUNT.unpack_from(view)
        at = _COUNT.size + count * _COLUMN.size
        if count > _MOST_COLUMNS or at > len(view):
            raise ObjectDamaged(f"{what} claims {count} columns")
        last = -1
        for index in range(count):
            number, size, kind, zero, elements = _COLUMN.unpack_from(view, _COUNT.size + index * _COLUMN.size)
            length = size * elements
            known = size in _NUMBERS or (size in _BYTES and kind == _PLAIN)
            if number <= last or zero or kind > _DELTAS or not known or not elements or length > len(view) - at:
                raise ObjectDamaged(f"{what} has a column {number} that cannot be")
            self._columns[number] = (size, kind, elements, view[at : at + length])
            at += length
            last = number
        if at != len(view):
            raise ObjectDamaged(f"{what} has {len(view) - at} bytes behind its last column")

    def numbers(self, number: int, size: int, count: int | None = None) -> NDArray[Any]:
        """Return a column of numbers of a size in bytes; count: how many there must be."""
        found = self._columns.get(number)
        if found is None:
            self._check_count(number, 0, count)
            return numpy.zeros(0, _NUMBERS[size])
        width, kind, elements, data = found
        if width != size:
            raise ObjectDamaged(f"{self._what} has a column {number} of {width}-byte elements")
        self._check_count(number, elements, count)
        if kind == _PLAIN:
            return numpy.frombuffer(data, _NUMBERS[size])
        planes = numpy.frombuffer(data, numpy.uint8).reshape(size, elements)
        numbers = numpy.ascontiguousarray(planes.T).view(_NUMBERS[size]).reshape(elements)
        # Sums wrap as the differences did: that is how falling numbers come back.
        return numpy.cumsum(numbers, dtype=_NUMBERS[size]) if kind == _DELTAS else numbers

    def bytes_of(self, number: int, size: int, count: int | None = None) -> NDArray[numpy.uint8]:
        """Return a column of byte strings of a size, as (n, size) uint8."""
        found = self._columns.get(number)
        if found is None:
            self._check_count(number, 0, count)
            return numpy.zeros((0, size), numpy.uint8)
        width, _, elements, data = found
        if width != size:
            raise ObjectDamaged(f"{self._what} has a column {number} of {width}-byte elements")
        self._check_count(number, elements, count)
        return numpy.frombuffer(data, numpy.uint8).reshape(elements, size)

    def blob(self, number: int) -> bytes:
        """Return a column of single bytes as they are."""
        return self.numbers(number, 1).tobytes()

    def _check_count(self, number: int, elements: int, count: int | None) -> None:
        if count is not None and elements != count:
            raise ObjectDamaged(f"{self._what} has {elements} elements in column {number}, and {count} must be there")
