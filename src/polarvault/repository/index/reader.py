"""Read the index of backups: chunks of the table of files, tables, sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from polarvault.errors import ObjectDamaged
from polarvault.repository.chunks.reader import ChunkReader
from polarvault.repository.format.chunks import ChunkRef
from polarvault.repository.index.files import FileRow, parse_files
from polarvault.repository.index.root import FilesChunk
from polarvault.repository.index.sums import parse_sums
from polarvault.repository.index.tables import ParsedTable, StoredTable

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


class IndexReader:
    """Reads index chunks of one cluster; may be used by several threads."""

    def __init__(self, chunks: ChunkReader) -> None:
        self._chunks = chunks

    def files(self, chunk: FilesChunk) -> list[FileRow]:
        """Return the rows of a chunk of the table of files."""
        what = _named("files", chunk.ref)
        rows = parse_files(self._chunks.read(chunk.ref), what)
        if len(rows) != chunk.rows:
            raise ObjectDamaged(f"{what} has {len(rows)} rows, and its root says {chunk.rows}")
        return rows

    def table(self, ref: ChunkRef) -> StoredTable:
        """Return a table, and the whole one that it patches."""
        parsed = ParsedTable(self._chunks.read(ref), _named("table", ref))
        if parsed.below is None:
            whole = parsed.whole()
            return StoredTable(ref, whole, ref, whole)
        below = ParsedTable(self._chunks.read(parsed.below), _named("table", parsed.below))
        if below.below is not None:
            raise ObjectDamaged(f"{_named('table', ref)} is a patch on a patch")
        whole = below.whole()
        return StoredTable(ref, parsed.over(whole), parsed.below, whole)

    def sums(self, refs: Sequence[ChunkRef], pages: int) -> NDArray[numpy.uint8]:
        """Return the sums, (pages, 16), of a table."""
        return parse_sums([(self._chunks.read(ref), _named("sums", ref)) for ref in refs], pages)


def _named(kind: str, ref: ChunkRef) -> str:
    return f"the {kind} in chunk {ref.number} of pack {ref.label}/{ref.pack:06}"
