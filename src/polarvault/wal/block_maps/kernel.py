"""Runs the compiled gatherer of `emitting`: tables and the words of its state."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy
from numpy.typing import NDArray

from polarvault.machine_code.compiling import KernelSource, MachineCode, load_kernel_code
from polarvault.model import versions
from polarvault.wal.block_maps.state import BODY, BODY_BYTES, MORE, MOST_OF_RECORD, Slot
from polarvault.wal.marks import Marks

# The longest header of a block: a record's bytes are looked at so far behind its end, and not used.
_SLACK = bytes(64)


def _emit() -> str:
    # Imported here: it needs llvmlite, which is expensive and may be absent.
    from polarvault.wal.block_maps.emitting import references_source

    return references_source()


KERNEL = KernelSource(
    _emit,
    (
        "model.lsn", "model.relation", "model.segment", "model.versions", "wal.block_maps.emitting",
        "wal.block_maps.operations", "wal.block_maps.state", "wal.blocks", "wal.marks", "wal.pages", "wal.records",
    ),
)  # fmt: skip


@functools.cache
def _code() -> MachineCode:
    # Kept as long as the process: the code lives no longer than this object.
    return load_kernel_code(KERNEL)


def _function(name: str, parameters: int) -> Any:
    kind = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * parameters)
    return kind(_code().address(name))


class CompiledGatherer:
    """The contract of `polarvault.wal.block_maps.references.Gatherer`; raises one of CANNOT_COMPILE when made."""

    def __init__(self) -> None:
        self._gather, self._place_row = _function("gather", 1), _function("place_rows", 2)
        self._refill = _function("refill", 3)
        self._state = numpy.zeros(len(Slot), numpy.uint64)
        self._set_rows(numpy.zeros(1 << 10, numpy.uint64), numpy.zeros((1 << 9, 3), numpy.uint64))
        self._set_blocks(numpy.zeros(1 << 14, numpy.uint64))
        # No fork has this number.
        self._state[Slot.LAST_RELATION] = (1 << 64) - 1

    @property
    def block_count(self) -> int:
        """How many blocks there are so far."""
        return int(self._state[Slot.BLOCK_COUNT])

    def add(self, marks: Marks, entries: NDArray[numpy.int64], first: int, last: int) -> int | None:
        """Take records."""
        if first >= last:
            return None
        bodies = marks.bodies if isinstance(marks.bodies, bytearray) else bytearray(marks.bodies)
        ends_at = int(entries[-1][BODY] + entries[-1][BODY_BYTES])
        if len(bodies) < ends_at + len(_SLACK):
            bodies += _SLACK
        state = self._state
        content = numpy.frombuffer(bodies, numpy.uint8)
        state[Slot.ENTRIES], state[Slot.BODIES] = entries.ctypes.data, content.ctypes.data
        state[Slot.NEXT], state[Slot.END], state[Slot.WRONG] = first, last, 0
        magic = int(entries[last - 1][MORE]) & 0xFFFF
        state[Slot.IS_COMPRESSED] = versions.record_layout(magic).image_is_compressed
        while self._gather(state.ctypes.data):
            self._grow()
        return int(state[Slot.WRONG]) - 1 if state[Slot.WRONG] else None

    def result(self) -> tuple[NDArray[numpy.uint32], NDArray[numpy.uint8], NDArray[numpy.uint64]]:
        """Return what was gathered."""
        rows = self._rows[: int(self._state[Slot.ROW_COUNT])]
        low = numpy.uint64(0xFFFF_FFFF)
        half = numpy.uint64(32)
        columns = [rows[:, 0] & low, rows[:, 0] >> half, rows[:, 1] & low, rows[:, 1] >> half]
        forks = numpy.stack(columns, axis=1).astype(numpy.uint32)
        keys = self._blocks[self._blocks != 0] - numpy.uint64(1 << 32)
        return forks, rows[:, 2].astype(numpy.uint8), keys

    def _grow(self) -> None:
        """Double the tables that are nearly half full."""
        state = self._state
        if (int(state[Slot.ROW_COUNT]) + MOST_OF_RECORD) * 2 > int(state[Slot.ROW_MASK]):
            rows = numpy.zeros((2 * len(self._rows), 3), numpy.uint64)
            rows[: len(self._rows)] = self._rows
            self._set_rows(numpy.zeros(2 * len(self._places), numpy.uint64), rows)
            for number in range(int(state[Slot.ROW_COUNT])):
                self._place_row(state.ctypes.data, number)
        if (int(state[Slot.BLOCK_COUNT]) + MOST_OF_RECORD) * 2 > int(state[Slot.BLOCK_MASK]):
            before = self._blocks
            self._set_blocks(numpy.zeros(2 * len(before), numpy.uint64))
            state[Slot.BLOCK_COUNT] = 0
            self._refill(state.ctypes.data, before.ctypes.data, len(before))

    def _set_rows(self, places: NDArray[numpy.uint64], rows: NDArray[numpy.uint64]) -> None:
        self._places, self._rows = places, rows
        self._state[Slot.ROW_PLACES], self._state[Slot.ROW_MASK] = places.ctypes.data, len(places) - 1
        self._state[Slot.ROWS] = rows.ctypes.data

    def _set_blocks(self, blocks: NDArray[numpy.uint64]) -> None:
        self._blocks = blocks
        self._state[Slot.BLOCKS], self._state[Slot.BLOCK_MASK] = blocks.ctypes.data, len(blocks) - 1
