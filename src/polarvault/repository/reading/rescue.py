"""What to take instead of a damaged chunk: the same pages out of other backups, or what a recovery makes the same.

The same pages lie in another chunk where damage was found before: the next backup stores anew what was damaged, and
earlier ones still name the damaged chunk. The page sums of both, 128 bits with the repository's key, tell that a page
is the same; what was read is summed once more. Of pages that no other backup has, the WAL tells which need not be the
same (`replayed`). Nothing is guessed: what neither proves stays damaged, and the reason is said.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from polarvault.errors import PolarvaultError
from polarvault.repository.format.chunks import HASH_BYTES, PAGE_BYTES, TABLE_BYTES
from polarvault.repository.index.files import FileRow, row_key
from polarvault.repository.reading.backup_reader import BackupReader, Extent
from polarvault.repository.reading.replayed import OlderBackup, Recovered, ReplayedPages
from polarvault.repository.sums.definition import PageSums
from polarvault.repository.writing.parent import Parent

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from polarvault.repository.catalogue.repository import Repository
    from polarvault.repository.wal.source import RepositoryWalSource

# Backups that are looked through, the newest first; the tables of files of all of them are in memory.
_MOST_BACKUPS = 16
_SHOWN_RANGES = 8


@dataclass(slots=True)
class _Other:
    label: str
    reader: BackupReader
    parent: Parent


class Rescue:
    """Set as `BackupReader.rescue`; used by several threads, one at a time. archive: all WAL of the cluster."""

    def __init__(
        self, repository: Repository, cluster: str, reader: BackupReader, archive: RepositoryWalSource | None = None
    ) -> None:
        self._repository, self._cluster, self._reader = repository, cluster, reader
        self._archive = archive
        self._sums = PageSums(repository.page_key)
        self._lock = threading.Lock()
        self._others: list[_Other] | None = None
        self._replayed: ReplayedPages | None = None
        self.taken: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        """Which blocks of a file were taken, by its name and by where they are from, in words."""

    def __call__(self, extents: Sequence[Extent], exactly: bool) -> Sequence[bytes | str]:
        """Return for each extent what to take instead, or why there is nothing.

        exactly: only the very same bytes.
        """
        with self._lock:
            try:
                return self._rescue(extents, exactly)
            except PolarvaultError as problem:
                # The index of this backup is damaged as well.
                return [problem.message] * len(extents)

    def notes(self) -> Sequence[str]:
        """Say which pages came from where."""
        return [
            f"{len(blocks)} page{'s' * (len(blocks) > 1)} of {path!r} ({_ranges(blocks)}), damaged in this backup: "
            f"{where}. polarvault verify {self._cluster} says what is damaged"
            for (path, where), blocks in sorted(self.taken.items())
        ]

    def _rescue(self, extents: Sequence[Extent], exactly: bool) -> list[bytes | str]:
        found: list[bytearray | str] = []
        missing: list[tuple[int, int, FileRow, int]] = []
        for number, extent in enumerate(extents):
            row, length = extent.row, extent.length
            small = self._small(row) if row.bundle is not None else None
            if small is not None:
                found.append(bytearray(small))
                continue
            content = bytearray(length)
            for at in range(0, length, PAGE_BYTES):
                offset = extent.file_offset + at
                page = None if row.bundle is not None else self._page(row, offset, min(PAGE_BYTES, length - at))
                if page is None:
                    missing.append((number, at, row, offset))
                else:
                    content[at : at + len(page)] = page
            found.append(content)
        if missing:
            self._add_replayed(extents, missing, found, exactly=exactly)
        return [content if isinstance(content, str) else bytes(content) for content in found]

    def _add_replayed(
        self,
        extents: Sequence[Extent],
        missing: Sequence[tuple[int, int, FileRow, int]],
        found: list[bytearray | str],
        *,
        exactly: bool,
    ) -> None:
        """Fill in what recovery makes right; what is not there becomes the reason why."""
        nowhere = "no other backup has the same page"
        pages = self._pages_by_wal()
        answers: Sequence[Recovered | str] = [""] * len(missing)
        if pages is not None and not exactly:
            answers = pages.find([extent.row for extent in extents], [(row, offset) for _, _, row, offset in missing])
        for (number, at, row, offset), answer in zip(missing, answers, strict=True):
            content = found[number]
            if isinstance(content, str):
                continue
            if isinstance(answer, str):
                block = f"block {offset // PAGE_BYTES}: " if len(content) > PAGE_BYTES else ""
                found[number] = f"{block}{nowhere}" + (f", and {answer}" if answer else "")
                continue
            content[at : at + PAGE_BYTES] = answer.content
            where = f" ({answer.where})" if answer.where else ""
            self.taken[row.name, f"now {answer.origin.value}{where}"].add(offset // PAGE_BYTES)

    def _pages_by_wal(self) -> ReplayedPages | None:
        if self._replayed is None and self._archive is not None:
            facts = self._reader.record.facts
            generation = self._repository.generation(self._cluster, facts.system_identifier)
            self._replayed = ReplayedPages(facts, generation, self._archive, self._reader.root.parts, self._all_older)
        return self._replayed

    def _all_older(self) -> list[OlderBackup]:
        return [self._older(other) for other in self._backups()]

    def _older(self, other: _Other) -> OlderBackup:
        def page(row: FileRow, at: int) -> bytes | None:
            found = self._row_in(other, row)
            content = b"" if found is None else _read(other, found, at, PAGE_BYTES)
            return content if len(content) == PAGE_BYTES else None

        return OlderBackup(f"{self._cluster}@{other.label}", other.reader.record.facts, page)

    def _small(self, row: FileRow) -> bytes | None:
        for other in self._backups():
            found = self._row_in(other, row)
            if found is None or found.bundle is None or found.bundle == row.bundle:
                continue
            if (found.size, found.hash) != (row.size, row.hash):
                continue
            content = _read(other, found, 0, row.size)
            if content and blake3(self._sums.of(bytearray(content)).tobytes()).digest(HASH_BYTES) == row.hash:
                self._note(other, row, range(-(-row.size // PAGE_BYTES)))
                return content
        return None

    def _page(self, row: FileRow, at: int, size: int) -> bytes | None:
        number = at // TABLE_BYTES
        page = at % TABLE_BYTES // PAGE_BYTES
        wanted = self._sums_of(self._reader, row, number)[page].tobytes()
        if wanted == self._sums.of(bytearray(size))[0].tobytes():
            self.taken[row.name, "known to be nothing but zeros"].add(at // PAGE_BYTES)
            return bytes(size)
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
                self._note(other, row, [at // PAGE_BYTES])
                return content
        return None

    def _note(self, other: _Other, row: FileRow, blocks: Iterable[int]) -> None:
        self.taken[row.name, f"taken from {self._cluster}@{other.label}, which has the same"].update(blocks)

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


def _ranges(blocks: set[int]) -> str:
    """Return block numbers in words: blocks 0-31, 40."""
    found: list[list[int]] = []
    for block in sorted(blocks):
        if found and found[-1][1] == block - 1:
            found[-1][1] = block
        else:
            found.append([block, block])
    shown = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in found[:_SHOWN_RANGES])
    more = f" and {len(found) - _SHOWN_RANGES} more ranges" if len(found) > _SHOWN_RANGES else ""
    return f"block{'s' * (len(blocks) > 1)} {shown}{more}"
