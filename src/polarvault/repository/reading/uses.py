"""Does a backup use one of some chunks? Answered from its index alone."""

from __future__ import annotations

from collections.abc import Set

from polarvault.repository.format.chunks import ChunkRef, placed
from polarvault.repository.reading.backup_reader import BackupReader


def uses_any(reader: BackupReader, chunks: Set[ChunkRef]) -> bool:
    """Tell whether any file of a backup needs one of the chunks, data or index."""
    places = {one.place for one in chunks}
    if any(chunk.ref.place in places for chunk in reader.root.files):
        return True
    for row in reader.rows():
        if row.bundle is not None and row.bundle.place in places:
            return True
        for ref in row.tables:
            if ref.place in places:
                return True
            stored = reader.index.table(ref)
            table = stored.table
            if any(one.place in places for one in table.sums):
                return True
            for piece in table.pieces:
                if placed(piece.base).place in places or any(
                    placed(overlay.chunk).place in places for overlay in piece.overlays
                ):
                    return True
    return False
