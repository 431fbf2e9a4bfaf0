"""Gathers which blocks records register: each once, however often it is changed.

Two gatherers give the same, as the tests show: the compiled one, and a plain one where no code can be generated.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from polarvault.machine_code.compiling import CANNOT_COMPILE
from polarvault.model.relation import INIT_FORK, BlockId
from polarvault.wal.block_maps.operations import SILENT, Silent
from polarvault.wal.block_maps.state import BODY, BODY_BYTES, CODE, LSN, MORE
from polarvault.wal.blocks import KeptRecord, read_references
from polarvault.wal.marks import Marks


class Gatherer(Protocol):
    """What gathers. Numbers of records count the entries of the marks that are given."""

    def add(self, marks: Marks, entries: NDArray[numpy.int64], first: int, last: int) -> int | None:
        """Take records; return the first one whose headers cannot be read, None if there is none.

        All are of one version; `marks.bodies` may be lengthened.
        """
        ...

    @property
    def block_count(self) -> int:
        """How many blocks there are so far."""
        ...

    def result(self) -> tuple[NDArray[numpy.uint32], NDArray[numpy.uint8], NDArray[numpy.uint64]]:
        """Return forks, one row each, the `Silent` of the records that change each, and blocks: row << 32 | block."""
        ...


class PlainGatherer:
    """Python, at some MB/s."""

    def __init__(self) -> None:
        self._forks: dict[tuple[int, ...], int] = {}
        self._silent: list[Silent] = []
        self._keys: set[int] = set()

    @property
    def block_count(self) -> int:
        """How many blocks there are so far."""
        return len(self._keys)

    def add(self, marks: Marks, entries: NDArray[numpy.int64], first: int, last: int) -> int | None:
        """Take records."""
        wrong = None
        for number in range(first, last):
            record = kept_record(marks, entries, number)
            references, is_whole = read_references(record)
            if not is_whole and wrong is None:
                wrong = number
            for reference in references:
                if reference.page.fork <= INIT_FORK:
                    self._add(reference.page, SILENT.get(record.rmgr, Silent(0)))
                elif wrong is None:
                    wrong = number
        return wrong

    def _add(self, page: BlockId, silent: Silent) -> None:
        row = self._forks.setdefault((*page.relation, page.fork), len(self._forks))
        if row == len(self._silent):
            self._silent.append(Silent(0))
        self._silent[row] |= silent
        self._keys.add(row << 32 | page.block)

    def result(self) -> tuple[NDArray[numpy.uint32], NDArray[numpy.uint8], NDArray[numpy.uint64]]:
        """Return what was gathered."""
        forks = numpy.array(list(self._forks), numpy.uint32).reshape(len(self._forks), 4)
        return forks, numpy.array(self._silent, numpy.uint8), numpy.array(sorted(self._keys), numpy.uint64)


def kept_record(marks: Marks, entries: NDArray[Any], number: int) -> KeptRecord:
    """Return one record of marks."""
    entry = entries[number]
    code, more, at, length = (int(entry[word]) for word in (CODE, MORE, BODY, BODY_BYTES))
    body = bytes(marks.bodies[at : at + length])
    return KeptRecord(int(entry[LSN]), code >> 8, code & 0xFF, more & 0xFFFF, more >> 16, body)


def new_gatherer() -> Gatherer:
    """Return the faster one that works here."""
    try:
        # Imported here, because it loads the compiler.
        from polarvault.wal.block_maps.kernel import CompiledGatherer

        return CompiledGatherer()
    except CANNOT_COMPILE:
        return PlainGatherer()
