"""Does a backup use one of some chunks? Answered from its index alone."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from polarvault.errors import PolarvaultError
from polarvault.repository.format.chunks import ChunkRef, placed
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.moves.reading import existing, read_moves
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.repository.reading.refs import read_refs

if TYPE_CHECKING:
    from polarvault.repository.catalogue.repository import Repository


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


def backups_with(repository: Repository, cluster: str, lost: set[ChunkRef], *, but: str) -> list[str]:
    """Return the labels of the backups that use one of the chunks, but for one; oldest first."""
    packs = {(one.label, one.pack) for one in lost}
    moves = read_moves(repository.store, repository.codec, cluster)
    found = []
    for other in repository.living_labels(cluster):
        if other == but:
            continue
        try:
            refs = read_refs(repository.store, repository.codec, ClusterNames.of(cluster), other)
            followed = moves.followed_by(other, refs.moves, existing(repository.store, ClusterNames.of(cluster)))
            if not packs & followed.needed(refs.named):
                continue
            if uses_any(repository.open_backup(cluster, other), lost):
                found.append(other)
        except PolarvaultError:
            continue  # It is damaged itself; its own verification says how.
    return found
