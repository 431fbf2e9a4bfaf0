"""Packs of backups that were killed: what their footers name is not sent again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import numpy

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.repository.chunks.reader import ChunkReader
from polarvault.repository.format import names
from polarvault.repository.format.chunks import ChunkKind, ChunkRef
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.names import ClusterNames, pack_number
from polarvault.repository.format.packs import PackedChunk
from polarvault.storage.objects.store import ObjectStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEPT_FOOTERS = 64
_DATA = (ChunkKind.PIECE, ChunkKind.PAGES, ChunkKind.BUNDLE)


class Leftovers:
    """Chunks of packs without a record. In memory are eight bytes of each hash; footers are read again for the rest."""

    def __init__(self, packs: Sequence[tuple[str, int, int]]) -> None:
        """`packs`: label, number, size of each."""
        self._packs = list(packs)
        self._reader: ChunkReader | None = None
        self._hashes: NDArray[numpy.uint64] = numpy.zeros(0, numpy.uint64)
        self._owners: NDArray[numpy.uint32] = numpy.zeros(0, numpy.uint32)
        self._footers: OrderedDict[int, dict[bytes, ChunkRef]] = OrderedDict()

    @classmethod
    def find(cls, store: ObjectStore, codec: Codec, cluster: ClusterNames, *, with_record: Set[str]) -> Leftovers:
        """List the packs of labels that have no record."""
        packs = []
        for label in store.list_folders(cluster.all_packs):
            if label in with_record or not names.is_label(label):
                continue
            for one in store.list_objects(cluster.packs(label)):
                number = pack_number(one.name.rpartition("/")[2])
                if number is not None:
                    packs.append((label, number, one.size_bytes))
        return cls(sorted(packs))

    def leave_out(self, labels: Set[str]) -> None:
        """Adopt nothing of these: somebody removes them."""
        self._packs = [pack for pack in self._packs if pack[0] not in labels]

    def leave_out_packs(self, packs: Set[tuple[str, int]]) -> None:
        """Adopt nothing of these packs: compaction has put elsewhere what lives in them."""
        self._packs = [pack for pack in self._packs if pack[:2] not in packs]

    @property
    def labels(self) -> list[str]:
        """Whose packs they are."""
        return sorted({label for label, _, _ in self._packs})

    def load(self, reader: ChunkReader) -> None:
        """Read the footers. One that cannot be read is of no use, and no harm either."""
        self._reader = reader
        hashes, owners = [], []
        for owner in range(len(self._packs)):
            try:
                found = self._footer(owner)
            except (IntegrityError, StorageFailed):
                continue
            starts = numpy.frombuffer(b"".join(digest[:8] for digest in found), "<u8")
            hashes.append(starts)
            owners.append(numpy.full(len(starts), owner, numpy.uint32))
        if hashes:
            everything = numpy.concatenate(hashes)
            order = numpy.argsort(everything, kind="stable")
            self._hashes, self._owners = everything[order], numpy.concatenate(owners)[order]

    def find_chunk(self, digest: bytes) -> ChunkRef | None:
        """Return the place of a chunk by the BLAKE3 of its raw bytes; used by several threads."""
        if not len(self._hashes):
            return None
        wanted = numpy.frombuffer(digest[:8], "<u8")[0]
        at = int(numpy.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            try:
                found = self._footer(int(self._owners[at])).get(digest)
            except (IntegrityError, StorageFailed):
                found = None  # It was there a moment ago: somebody cleans up. The chunk is stored anew.
            if found is not None:
                return found
            at += 1
        return None

    def _footer(self, owner: int) -> dict[bytes, ChunkRef]:
        kept = self._footers.get(owner)
        if kept is not None:
            return kept
        label, number, size = self._packs[owner]
        assert self._reader is not None
        listed = self._reader.footer(label, number, size)
        found = {
            chunk.hash: _reference(label, number, place, chunk)
            for place, chunk in enumerate(listed)
            if chunk.kind in _DATA
        }
        while len(self._footers) >= _KEPT_FOOTERS:
            try:
                self._footers.popitem(last=False)
            except KeyError:
                break  # Another thread was faster.
        self._footers[owner] = found
        return found


def _reference(label: str, pack: int, number: int, chunk: PackedChunk) -> ChunkRef:
    return ChunkRef(label, pack, number, chunk.offset, chunk.stored, chunk.raw, chunk.hash)
