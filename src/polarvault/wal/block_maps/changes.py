"""What the records of one stretch of WAL do, gathered into a block map."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.model.relation import MAIN_FORK, VISIBILITY_FORK
from polarvault.wal.block_maps.events import HEAP_BLOCKS_IN_VISIBILITY_PAGE, Events
from polarvault.wal.block_maps.model import NO_LIMIT, BlockMap, assembled
from polarvault.wal.block_maps.operations import Look, Silent, looks
from polarvault.wal.block_maps.references import kept_record, new_gatherer
from polarvault.wal.block_maps.state import BODY, CODE, LSN, MORE
from polarvault.wal.marks import ENTRY_WORDS, HAS_RELATIONS, Marks
from polarvault.wal.records import DATA_LONG, DATA_SHORT

# A map of more is a gap. A segment of 1 GB has images of 130 000 pages; without images, records of two million.
MOST_BLOCKS = 1 << 23
_END_LSN = 1
# The time in front of a commit's flags.
_TIME_BYTES = 8


def entries_of(marks: Marks) -> NDArray[numpy.int64]:
    """Return the entries of marks, one row each."""
    return numpy.frombuffer(marks.words, numpy.int64).reshape(-1, ENTRY_WORDS)


class Changes:
    """What is known of a stretch so far. start and end: of the records that were taken, None before the first one."""

    def __init__(self) -> None:
        self._references = new_gatherer()
        self._events = Events()
        self._is_too_large = False
        self.start: int | None = None
        self.end: Lsn | None = None

    def add(self, marks: Marks, entries: NDArray[numpy.int64], first: int, last: int) -> None:
        """Take the records of these numbers."""
        if first >= last:
            return
        if self.start is None:
            self.start = int(entries[first][LSN])
            version = versions.of_magic(int(entries[last - 1][MORE]) & 0xFFFF)
            if version is None or not version.records.changes_are_known:
                name = "this version" if version is None else f"PostgreSQL {version.major}"
                self._events.add_gap(self.start, f"what records of {name} change is not known well enough")
        self.end = Lsn(int(entries[last - 1][_END_LSN]))
        self._look(marks, entries, first, last)
        if self._is_too_large:
            return
        wrong = self._references.add(marks, entries, first, last)
        if wrong is not None:
            self._events.add_gap(int(entries[wrong][LSN]), "the record's headers cannot be read")
        if self._references.block_count > MOST_BLOCKS:
            self._is_too_large = True
            self._events.add_gap(self.start, f"more than {MOST_BLOCKS} blocks are changed in one segment")
            self._references = new_gatherer()

    def _look(self, marks: Marks, entries: NDArray[numpy.int64], first: int, last: int) -> None:
        """Decode what is about files, and note what is not known."""
        look = looks()[entries[first:last, CODE]]
        ends = numpy.flatnonzero(look == Look.DECODE_IF_IT_DROPS) + first
        may_drop = ends[_may_drop(marks, entries[ends, BODY])] if len(ends) else ends
        for number in (*(numpy.flatnonzero(look == Look.DECODE) + first), *may_drop):
            self._events.accept(kept_record(marks, entries, int(number)))
        for number in numpy.flatnonzero(look == Look.UNKNOWN)[:1] + first:
            code = int(entries[number][CODE])
            reason = f"a record of resource manager {code >> 8} with info {code & 0xFF:02X} is not known"
            self._events.add_gap(int(entries[number][LSN]), reason)

    def map(self, start: Lsn, end: Lsn) -> BlockMap:
        """Return the map."""
        forks, silent, keys = self._references.result()
        changed, flags, limits = self._events.rows()
        is_main = forks[:, 3] == MAIN_FORK
        is_heap = is_main & (silent & Silent.VISIBILITY_MAP != 0)
        # Its visibility map gets a row of its own, behind the others.
        heaps = numpy.flatnonzero(is_heap)
        visibility = forks[heaps].copy()
        visibility[:, 3] = VISIBILITY_FORK
        moved = numpy.zeros(len(forks), numpy.uint64)
        moved[heaps] = numpy.arange(len(heaps), dtype=numpy.uint64) + numpy.uint64(len(forks))
        half = numpy.uint64(32)
        rows, blocks = (keys >> half).astype(numpy.int64), keys & numpy.uint64(NO_LIMIT)
        of_heap = is_heap[rows]
        bits = moved[rows[of_heap]] << half | blocks[of_heap] // numpy.uint64(HEAP_BLOCKS_IN_VISIBILITY_PAGE)
        first_pages = numpy.flatnonzero(is_main & (silent & Silent.FIRST_PAGE != 0)).astype(numpy.uint64) << half
        plain = len(forks) + len(visibility)
        return assembled(
            start, end,
            forks=numpy.concatenate([forks, visibility, changed]),
            flags=numpy.concatenate([numpy.zeros(plain, numpy.uint8), flags]),
            limits=numpy.concatenate([numpy.full(plain, NO_LIMIT, numpy.uint32), limits]),
            keys=numpy.concatenate([keys, bits, first_pages]),
            databases=self._events.databases, tablespaces=self._events.tablespaces, gaps=self._events.gaps,
        )  # fmt: skip


def _may_drop(marks: Marks, bodies: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
    """Tell for which ends of transactions the flags say that relations are dropped, or cannot be found like this."""
    content = numpy.frombuffer(marks.bodies, numpy.uint8)
    inside = numpy.minimum(bodies, max(len(content) - 1, 0))
    marks_of_data = content[inside]
    flags_at = bodies + numpy.where(marks_of_data == DATA_SHORT, 2, 5) + _TIME_BYTES
    is_plain = ((marks_of_data == DATA_SHORT) | (marks_of_data == DATA_LONG)) & (flags_at < len(content))
    flags = content[numpy.minimum(flags_at, max(len(content) - 1, 0))]
    result: NDArray[numpy.bool_] = ~is_plain | (flags & HAS_RELATIONS != 0)
    return result
