"""Write chunks anew, in packs of a label of their own, and say in an object of moves where they are.

Chunks are opened, decoded and compared with their hash before they are written, and sealed anew; they are not
compressed again. The object of moves is written when all packs are durable; until then nothing has changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from polarvault.errors import IntegrityError, ObjectMissing
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.chunks.reader import ChunkReader, runs
from polarvault.repository.chunks.writer import PackWriter
from polarvault.repository.format import names
from polarvault.repository.format.chunks import ChunkKind, ChunkRef
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.moves.chunks import Place, encode_moved
from polarvault.repository.moves.packs import Moves, PackName


class Mover:
    """Moves chunks of one cluster; `abandon` after a failure leaves packs that nobody refers to."""

    def __init__(self, repository: Repository, cluster: str, label: str) -> None:
        self._repository, self._cluster, self._label = repository, cluster, label
        cluster_names = ClusterNames.of(cluster)
        self._reader = ChunkReader(repository.store, repository.codec, cluster_names)
        self._writer = PackWriter(repository.store, repository.codec, cluster_names, label)
        self.packs: dict[PackName, tuple[PackName, ...]] = {}
        self.moved: dict[Place, ChunkRef] = {}

    def move(self, pack: PackName, size_bytes: int, chunks: Iterable[ChunkRef]) -> None:
        """Move the living chunks of a pack; IntegrityError, ObjectMissing if one is damaged: then none of them."""
        read: list[tuple[ChunkRef, ChunkKind, bytes]] = []
        footer = self._reader.footer(*pack, size_bytes)
        for run in runs(list(chunks)):
            for ref, envelope in self._reader.copy_run(run):
                if ref.number >= len(footer) or footer[ref.number].hash != ref.hash:
                    raise IntegrityError(f"the footer of pack {pack[0]}/{pack[1]:06} and the index do not agree")
                read.append((ref, footer[ref.number].kind, envelope))
        targets = set()
        for ref, kind, envelope in read:
            new = self._writer.add(kind, envelope, raw=ref.raw, digest=ref.hash)
            self.moved[ref.place] = new
            targets.add((new.label, new.pack))
        self.packs[pack] = tuple(sorted(targets))

    def finish(
        self,
        considered: frozenset[str],
        *,
        merged: Sequence[Moves] = (),
        entries: Mapping[Place, ChunkRef] | None = None,
    ) -> Moves:
        """Make what was moved valid. merged: objects that this one replaces; entries: what of them is needed.

        It replaces what these replaced, too: a copy in another place may still have that.
        """
        written = {(self._label, one.number): (one.size_bytes, one.digest) for one in self._writer.finish()}
        packs = {old: set(targets) for old, targets in self.packs.items()}
        for place, ref in (entries or {}).items():
            packs.setdefault(place[:2], set()).add((ref.label, ref.pack))
        moves = Moves(
            os.urandom(8).hex(), datetime.now(UTC), self._cluster, self._label,
            {old: tuple(sorted(targets)) for old, targets in packs.items()}, written,
            considered, frozenset(one.id for one in merged).union(*(one.replaces for one in merged)),
        )  # fmt: skip
        name = f"{names.MOVES}/{moves.id}"
        content = self._repository.codec.document(
            Kind.MOVES, name, moves.clear(), encode_moved({**(entries or {}), **self.moved})
        )
        self._repository.store.put_new(name, [memoryview(part) for part in content])
        return moves

    def abandon(self) -> None:
        """Give up; safe to call after `finish`."""
        self._writer.abandon()


UNREADABLE = (IntegrityError, ObjectMissing)
