"""The content of a damaged chunk out of other backups: pages that are the same there, but lie in another chunk.

That is so after damage was found: the next backup stores anew what was damaged, and earlier ones still name the damaged
chunk. The page sums of both, 128 bits with the repository's key, tell that a page is the same; what was read is summed
once more. Nothing is guessed: a page of which no other backup has the same stays damaged.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from polarvault.errors import PolarvaultError
from polarvault.repository.format.chunks import HASH_BYTES, PAGE_BYTES, TABLE_BYTES
from polarvault.repository.index.files import FileRow, row_key
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.repository.sums.definition import PageSums
from polarvault.repository.writing.parent import Parent

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from polarvault.repository.catalogue.repository import Repository

# Backups that are looked through, the newest first; the tables of files of all of them are in memory.
_MOST_BACKUPS = 16


@dataclass(slots=True)
class _Other:
    label: str
    reader: BackupReader
    parent: Parent


class Rescue:
    """Set as `BackupReader.rescue`; used by several threads, one at a time."""

    def __init__(self, repository: Repository, cluster: str, reader: BackupReader) -> None:
        self._repository, self._cluster, self._reader = repository, cluster, reader
        self._sums = PageSums(repository.page_key)
        self._lock = threading.Lock()
        self._others: list[_Other] | None = None
        self.taken: Counter[tuple[str, str]] = Counter()
        """How many pages were taken, by file and by the label of the backup that had them."""

    def __call__(self, row: FileRow, offset: int, length: int) -> bytes | None:
        """Return bytes of a file that are damaged in this backup; None if not all of them are elsewhere."""
        with self._lock:
            try:
                return self._small(row) if row.bundle is not None else self._pages(row, offset, length)
            except PolarvaultError:
                return None  # The index of this backup is damaged as well.

    def notes(self) -> Sequence[str]:
        """Say which pages came from where."""
        return [
            f"{count} page{'s' * (count > 1)} of {path!r} are damaged in this backup, and were taken from "
            f"{self._cluster}@{label}, which has the same: polarvault verify {self._cluster} says what is damaged"
            for (path, label), count in sorted(self.taken.items())
        ]

    def _small(self, row: FileRow) -> bytes | None:
        for other in self._backups():
            found = self._row_in(other, row)
            if found is None or found.bundle is None or found.bundle == row.bundle:
                continue
            if (found.size, found.hash) != (row.size, row.hash):
                continue
            content = _read(other, found, 0, row.size)
            if content and blake3(self._sums.of(bytearray(content)).tobytes()).digest(HASH_BYTES) == row.hash:
                self.taken[row.name, other.label] += -(-row.size // PAGE_BYTES)
                return content
        return None

    def _pages(self, row: FileRow, offset: int, length: int) -> bytes | None:
        number = offset // TABLE_BYTES
        own = self._sums_of(self._reader, row, number)
        result = bytearray()
        for at in range(offset, offset + length, PAGE_BYTES):
            size = min(PAGE_BYTES, offset + length - at)
            page = (at - number * TABLE_BYTES) // PAGE_BYTES
            content = self._page(row, number, page, at, size, own[page].tobytes())
            if content is None:
                return None
            result += content
        return bytes(result)

    def _page(self, row: FileRow, number: int, page: int, at: int, size: int, wanted: bytes) -> bytes | None:
        for other in self._backups():
            found = self._row_in(other, row)
            if found is None or found.bundle is not None or number >= len(found.tables) or found.size < at + size:
                continue
            try:
                theirs = self._sums_of(other.reader, found, number)
            except PolarvaultError:
                continue
            if theirs[page].tobytes() != wanted:
                continue
            content = _read(other, found, at, size)
            if len(content) == size and self._sums.of(bytearray(content))[0].tobytes() == wanted:
                self.taken[row.name, other.label] += 1
                return content
        return None

    def _sums_of(self, reader: BackupReader, row: FileRow, number: int) -> NDArray[numpy.uint8]:
        stored = reader.index.table(row.tables[number]).table
        pages = -(-min(row.size - number * TABLE_BYTES, TABLE_BYTES) // PAGE_BYTES)
        return reader.index.sums(stored.sums, pages)

    def _row_in(self, other: _Other, row: FileRow) -> FileRow | None:
        part = other.parent.part_number(self._reader.root.parts[row.part])
        return None if part is None else other.parent.find(row_key(part, row.path))

    def _backups(self) -> list[_Other]:
        if self._others is None:
            self._others = []
            own = self._reader.record
            for label in reversed(self._repository.living_labels(self._cluster)):
                if label == own.label or len(self._others) == _MOST_BACKUPS:
                    continue
                try:
                    reader = self._repository.open_backup(self._cluster, label)
                    if reader.record.facts.system_identifier == own.facts.system_identifier:
                        self._others.append(_Other(label, reader, Parent(reader.index, reader.root)))
                except PolarvaultError:
                    continue
        return self._others


def _read(other: _Other, row: FileRow, offset: int, length: int) -> bytes:
    try:
        return other.reader.read(row, offset, length)
    except PolarvaultError:
        return b""
