"""Which chunks of some packs do backups use? Answered from their indexes; what several share is looked at once."""

from __future__ import annotations

from collections.abc import Set

from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.chunks import ChunkRef, placed
from polarvault.repository.moves.chunks import Place
from polarvault.repository.moves.packs import PackName


class LiveChunks:
    """Collects chunks of candidates by backup; old_packs: those of which it is noted what indexes still name."""

    def __init__(self, candidates: Set[PackName], *, old_packs: Set[PackName] = frozenset()) -> None:
        self.chunks: dict[PackName, dict[int, ChunkRef]] = {pack: {} for pack in candidates}
        self.named: dict[Place, ChunkRef] = {}
        """Places in old packs that stand in some index, and where these chunks are now."""
        self._old_packs = old_packs
        self._seen: set[Place] = set()

    def add_backup(self, repository: Repository, cluster: str, label: str) -> None:
        """Add what a backup uses; IntegrityError or ObjectMissing if that cannot be known."""
        reader = repository.open_backup(cluster, label, watch=self._watch)
        for chunk in reader.root.files:
            self._add(chunk.ref)
            if self._is_known(chunk.ref):
                continue
            for row in reader.index.files(chunk):
                if row.bundle is not None:
                    self._add(row.bundle)
                for ref in row.tables:
                    self._add(ref)
                    if self._is_known(ref):
                        continue
                    stored = reader.index.table(ref)
                    self._add(stored.whole_ref)
                    for one in stored.table.sums:
                        self._add(one)
                    for piece in stored.table.pieces:
                        self._add(placed(piece.base))
                        for overlay in piece.overlays:
                            self._add(placed(overlay.chunk))

    def _is_known(self, ref: ChunkRef) -> bool:
        """Tell whether an index chunk was looked at, and note that it is from now on."""
        if ref.place in self._seen:
            return True
        self._seen.add(ref.place)
        return False

    def _add(self, ref: ChunkRef) -> None:
        of_pack = self.chunks.get((ref.label, ref.pack))
        if of_pack is not None:
            of_pack[ref.number] = ref

    def _watch(self, ref: ChunkRef, found: ChunkRef) -> None:
        if (ref.label, ref.pack) in self._old_packs:
            self.named[ref.place] = found
