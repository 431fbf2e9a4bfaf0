"""Which bytes of files at hand are not those of a backup: told by page sums, without fetching the backup's data.

Whoever has the files reads them (`Held`); what differs is given as extents of chunks, which
`backup_reader.deliver_extents` fetches. A chunk is fetched whole, and only its pages that differ are delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from polarvault.repository.format.chunks import (
    HASH_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    PIECE_PAGES,
    TABLE_BYTES,
    ChunkRef,
)
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.backup_reader import SHARE_BYTES, BackupReader, Extent, add_piece
from polarvault.repository.sums.definition import PageSums

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

# Read and summed at a time; a multiple of a piece.
_READ_BYTES = 32 * PIECE_BYTES
_JOB_ROWS = 128


class Held(Protocol):
    """A file as it is at hand."""

    def read(self, offset: int, into: memoryview) -> int:
        """Read from an offset until the buffer is full or the file ends; return how many bytes that was."""


@dataclass(frozen=True, slots=True)
class Job:
    """Files whose differences are looked for together: whole ones, or a stretch of a long one (where it begins)."""

    rows: Sequence[FileRow]
    start: int = 0

    @property
    def size(self) -> int:
        """How many bytes of the backup that is."""
        return sum(min(row.size - self.start, SHARE_BYTES) for row in self.rows)


@dataclass(slots=True)
class Found:
    """What differs: extents by chunk; compared_bytes were read, differing_bytes are not as in the backup."""

    extents: dict[ChunkRef, list[Extent]] = field(default_factory=dict)
    compared_bytes: int = 0

    @property
    def differing_bytes(self) -> int:
        """How much has to be written."""
        return sum(extent.length for extents in self.extents.values() for extent in extents)

    @property
    def stored_bytes(self) -> int:
        """How much has to be fetched for it."""
        return sum(ref.stored for ref in self.extents)


def jobs(reader: BackupReader, wanted: Callable[[FileRow], bool]) -> Iterator[Job]:
    """Yield the wanted files, empty ones included, in jobs that can be done at the same time."""
    gathered: list[FileRow] = []
    size = 0
    for row in reader.rows():
        if row.kind is not FileKind.FILE or not wanted(row):
            continue
        if row.size > SHARE_BYTES:
            yield from (Job([row], start) for start in range(0, row.size, SHARE_BYTES))
            continue
        if gathered and (size + row.size > SHARE_BYTES or len(gathered) == _JOB_ROWS):
            yield Job(gathered)
            gathered, size = [], 0
        gathered.append(row)
        size += row.size
    if gathered:
        yield Job(gathered)


class Difference:
    """Compares; may be used by several threads. page_key: the repository's."""

    def __init__(self, reader: BackupReader, page_key: bytes) -> None:
        self._reader = reader
        self._sums = PageSums(page_key)

    def find(self, row: FileRow, start: int, held: Held | None, into: Found) -> None:
        """Add what of a file, or of its stretch from start on, is not as in the backup; held None: it is not there."""
        if not row.size:
            return
        if row.bundle is not None:
            if not self._is_same(row, held, into):
                into.extents.setdefault(row.bundle, []).append(Extent(row, 0, row.offset, row.size))
            return
        end = min(row.size, start + SHARE_BYTES)
        if held is None:
            self._reader.add_table(into.extents, row, start // TABLE_BYTES, start, end)
            return
        self._compare(row, start, end, held, into)

    def _is_same(self, row: FileRow, held: Held | None, into: Found) -> bool:
        if held is None:
            return False
        content = bytearray(row.size)
        length = held.read(0, memoryview(content))
        into.compared_bytes += length
        return length == row.size and blake3(self._sums.of(content).tobytes()).digest(HASH_BYTES) == row.hash

    def _compare(self, row: FileRow, start: int, end: int, held: Held, into: Found) -> None:
        number = start // TABLE_BYTES
        first = number * TABLE_BYTES
        stored = self._reader.index.table(row.tables[number]).table
        self._reader.check_pieces(row, number, stored)
        kept = self._reader.index.sums(stored.sums, -(-min(row.size - first, TABLE_BYTES) // PAGE_BYTES))
        buffer = memoryview(bytearray(min(end - start, _READ_BYTES)))
        for offset in range(start, end, _READ_BYTES):
            wanted = min(_READ_BYTES, end - offset)
            length = held.read(offset, buffer[:wanted])
            into.compared_bytes += length
            page = (offset - first) // PAGE_BYTES
            differing = _differing(self._sums.of(buffer[:length]), kept[page : page + -(-wanted // PAGE_BYTES)])
            for piece, bitmap in differing:
                slot = (offset - first) // PIECE_BYTES + piece
                add_piece(into.extents, row, first + slot * PIECE_BYTES, stored.pieces[slot], bitmap)


def _differing(mine: NDArray[numpy.uint8], kept: NDArray[numpy.uint8]) -> Iterator[tuple[int, int]]:
    """Yield the pieces with pages that differ, or that only the backup has, and the bitmap of these."""
    import numpy

    differs = numpy.ones(len(kept), bool)
    known = len(mine)
    differs[:known] = (numpy.ascontiguousarray(kept[:known]).view("<u8") != mine.view("<u8")).any(axis=1)
    for piece in numpy.unique(numpy.flatnonzero(differs) // PIECE_PAGES).tolist():
        pages = differs[piece * PIECE_PAGES : (piece + 1) * PIECE_PAGES]
        bitmap = sum(1 << page for page in numpy.flatnonzero(pages).tolist())
        yield piece, bitmap
