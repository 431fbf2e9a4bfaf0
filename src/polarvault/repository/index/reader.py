"""Read the index of backups: chunks of the table of files, tables, sums."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from polarvault.errors import ObjectDamaged
from polarvault.repository.chunks.nearby import NearbyReader
from polarvault.repository.chunks.reader import ChunkReader
from polarvault.repository.format.chunks import ChunkRef, Moved
from polarvault.repository.index.files import FileRow, parse_files
from polarvault.repository.index.root import FilesChunk
from polarvault.repository.index.sums import parse_sums
from polarvault.repository.index.tables import ParsedTable, StoredTable

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# With 20 ms for a request, a file of 64 KiB whose table and sums were fetched each for itself would cost 40 ms.
_WINDOW_BYTES = 1 << 20
# Places that are read at the same time: rows, tables and sums of this backup and of those that it builds on.
_WINDOWS = 8
# Tables, and sums of tables, that are kept, because the stretches of a large file ask for theirs again; some 2 MB each.
_TABLES = 8


class IndexReader:
    """Reads index chunks of one cluster; may be used by several threads."""

    def __init__(self, chunks: ChunkReader, moved: Moved | None = None) -> None:
        """moved: tells where chunks are that compaction has put elsewhere."""
        self._moved = moved
        # Small chunks lie close to each other in the order in which they are asked for again.
        self._read = NearbyReader(chunks, window_bytes=_WINDOW_BYTES, windows=_WINDOWS).read
        self._tables: _Kept[ChunkRef, StoredTable] = _Kept()
        self._sums: _Kept[tuple[ChunkRef, ...], NDArray[numpy.uint8]] = _Kept()

    def files(self, chunk: FilesChunk) -> list[FileRow]:
        """Return the rows of a chunk of the table of files."""
        what = _named("files", chunk.ref)
        rows = parse_files(self._read(chunk.ref), what, self._moved)
        if len(rows) != chunk.rows:
            raise ObjectDamaged(f"{what} has {len(rows)} rows, and its root says {chunk.rows}")
        return rows

    def table(self, ref: ChunkRef) -> StoredTable:
        """Return a table, and the whole one that it patches."""
        return self._tables.get(ref, lambda: self._read_table(ref))

    def _read_table(self, ref: ChunkRef) -> StoredTable:
        parsed = ParsedTable(self._read(ref), _named("table", ref), self._moved)
        if parsed.below is None:
            whole = parsed.whole()
            return StoredTable(ref, whole, ref, whole)
        below = ParsedTable(self._read(parsed.below), _named("table", parsed.below), self._moved)
        if below.below is not None:
            raise ObjectDamaged(f"{_named('table', ref)} is a patch on a patch")
        whole = below.whole()
        return StoredTable(ref, parsed.over(whole), parsed.below, whole)

    def sums(self, refs: Sequence[ChunkRef], pages: int) -> NDArray[numpy.uint8]:
        """Return the sums, (pages, 16), of a table; they are shared, and not to be changed."""

        def parsed() -> NDArray[numpy.uint8]:
            return parse_sums([(self._read(ref), _named("sums", ref)) for ref in refs], pages)

        sums = self._sums.get(tuple(refs), parsed)
        return sums if len(sums) == pages else parsed()


class _Kept(Generic[Key, Value]):
    """The values that were asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of a key; two threads that miss it at the same time both make it."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
                return found
        found = make()
        with self._lock:
            self._values[key] = found
            if len(self._values) > _TABLES:
                self._values.popitem(last=False)
        return found


def _named(kind: str, ref: ChunkRef) -> str:
    return f"the {kind} in chunk {ref.number} of pack {ref.label}/{ref.pack:06}"
