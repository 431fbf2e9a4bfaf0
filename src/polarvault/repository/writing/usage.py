"""Which packs a backup uses, and how many bytes of each: what `refs` says, so that expiring needs no index."""

from __future__ import annotations

from collections import Counter

from polarvault.repository.format.chunks import PAGE_BYTES, ChunkRef, placed
from polarvault.repository.index.tables import Table


class Usage:
    """Adds up live bytes by pack."""

    def __init__(self) -> None:
        self.live: Counter[tuple[str, int]] = Counter()

    def add(self, ref: ChunkRef, *, used: int | None = None, of: int = 1) -> None:
        """Count a chunk, or of one that several share the part that is used."""
        share = ref.stored if used is None else -(-ref.stored * used // max(of, 1))
        self.live[ref.label, ref.pack] += share

    def add_table(self, table: Table) -> None:
        """Count what the pieces and the sums of a table refer to."""
        for ref in table.sums:
            self.add(ref)
        for piece in table.pieces:
            self.add(placed(piece.base))
            for overlay in piece.overlays:
                chunk = placed(overlay.chunk)
                self.add(chunk, used=overlay.bitmap.bit_count(), of=chunk.raw // PAGE_BYTES)
