"""Chunks of page sums: whole ones, and patches that hold the sums of pages that changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from polarvault.errors import ObjectDamaged
from polarvault.repository.format import columns
from polarvault.repository.sums.definition import SUM_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATCHES = 7
# A patch that holds more of the pages is no cheaper than all sums, and has to be read beside them.
_PATCHED_PART = 4


def encode_sums(sums: NDArray[numpy.uint8]) -> bytes:
    """Return the sums of all pages of a table."""
    return columns.encode({2: sums})


def encode_patch(sums: NDArray[numpy.uint8], earlier: NDArray[numpy.uint8]) -> bytes | None:
    """Return what changed since the sums of an earlier backup; None if whole sums are cheaper."""
    shared = min(len(sums), len(earlier))
    changed = numpy.ones(len(sums), bool)
    changed[:shared] = (sums[:shared] != earlier[:shared]).any(axis=1)
    (pages,) = changed.nonzero()
    if len(pages) * _PATCHED_PART > len(sums):
        return None
    return columns.encode({1: pages.astype("<u4"), 2: sums[pages]})


def parse_sums(chunks: Sequence[tuple[memoryview, str]], pages: int) -> NDArray[numpy.uint8]:
    """Return the sums, (pages, 16), of a whole chunk and its patches, each given with its name for messages."""
    sums = numpy.zeros((pages, SUM_BYTES), numpy.uint8)
    for number, (content, what) in enumerate(chunks):
        found = columns.Columns(content, what)
        places = found.numbers(1, 4)
        values = found.bytes_of(2, SUM_BYTES, len(places) if number else None)
        if not number:
            if len(places):
                raise ObjectDamaged(f"{what} is a patch where whole sums must be")
            sums[: len(values)] = values[:pages]
            continue
        # A file that was cut has fewer pages than the patches once had.
        inside = places < pages
        sums[places[inside]] = values[inside]
    return sums
