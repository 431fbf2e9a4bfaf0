"""The backup that a new one is compared with: its rows by path, its tables. Rows are found without holding them all."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy

from polarvault.errors import IntegrityError, ObjectMissing
from polarvault.repository.index.files import FileRow
from polarvault.repository.index.reader import IndexReader
from polarvault.repository.index.root import FilesChunk, Part, Root

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Chunks of rows that are kept: the server sends a directory at a time, and that is a few chunks.
_KEPT_CHUNKS = 16


class Parent:
    """A parent's table of files. For a million files it takes 12 MB: a hash and the number of the chunk of each."""

    def __init__(self, index: IndexReader, root: Root) -> None:
        self.index = index
        self._parts = {_part_key(part): number for number, part in enumerate(root.parts)}
        self._chunks = root.files
        self.files_chunks = {chunk.ref.hash: chunk for chunk in root.files}
        self._kept: OrderedDict[int, dict[bytes, FileRow]] = OrderedDict()
        hashes: list[NDArray[numpy.int64]] = []
        numbers: list[NDArray[numpy.uint32]] = []
        self.unusable: list[str] = []
        """Chunks of rows that are damaged: their files count as new."""
        for number, chunk in enumerate(root.files):
            try:
                rows = index.files(chunk)
            except (IntegrityError, ObjectMissing) as problem:
                self.unusable.append(problem.message)
                self.files_chunks.pop(chunk.ref.hash, None)
                continue
            # Python's hash of bytes has 64 bits and a secret of its own: nobody can choose paths that meet.
            hashes.append(numpy.array([hash(row.key) for row in rows], numpy.int64))
            numbers.append(numpy.full(len(hashes[-1]), number, numpy.uint32))
        unsorted = numpy.concatenate(hashes) if hashes else numpy.zeros(0, numpy.int64)
        order = numpy.argsort(unsorted, kind="stable")
        self._hashes = unsorted[order]
        self._numbers = numpy.concatenate(numbers)[order] if numbers else numpy.zeros(0, numpy.uint32)

    def part_number(self, part: Part) -> int | None:
        """Return the number that a part has in the parent; a tablespace may have moved."""
        return self._parts.get(_part_key(part))

    def find(self, key: bytes) -> FileRow | None:
        """Return the row of a file by its key in the parent."""
        wanted = hash(key)
        at = int(numpy.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and int(self._hashes[at]) == wanted:
            row = self._rows(int(self._numbers[at])).get(key)
            if row is not None:
                return row
            at += 1
        return None

    def _rows(self, number: int) -> dict[bytes, FileRow]:
        rows = self._kept.get(number)
        if rows is None:
            if len(self._kept) >= _KEPT_CHUNKS:
                self._kept.popitem(last=False)
            chunk: FilesChunk = self._chunks[number]
            rows = self._kept[number] = {row.key: row for row in self.index.files(chunk)}
        self._kept.move_to_end(number)
        return rows


def _part_key(part: Part) -> tuple[str, int]:
    return part.area.value, part.oid
