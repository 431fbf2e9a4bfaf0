"""Where chunks are now that compaction has moved: applied to every reference as an index chunk is parsed.

Kept as arrays: an entry takes 26 bytes, and a terabyte's repository may have a million. Size, raw size and hash of a
chunk stay what its reference says; only its place is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.repository.format import columns
from polarvault.repository.format.chunks import ChunkRef
from polarvault.repository.format.frame import HEADER_BYTES
from polarvault.repository.format.names import LABEL_BYTES, PACKS, check_label
from polarvault.repository.moves.packs import PackName

if TYPE_CHECKING:
    from numpy.typing import NDArray

Place = tuple[str, int, int]

_LABELS, _OLD_LABEL, _OLD_PACK, _OLD_NUMBER, _LABEL, _PACK, _NUMBER, _OFFSET, _STORED = range(1, 10)
# A place as one number: 16 bits for the label's position, 20 for the pack, 16 for the chunk.
_PACK_BITS, _NUMBER_BITS = 20, 16
# Of moves that follow each other; each compaction at least halves what it moves, so that honest ones are a few.
_MOST_STEPS = 64


def encode_moved(moved: Mapping[Place, ChunkRef]) -> bytes:
    """Return the sealed part of an object of moves: from old places to new ones."""
    labels = sorted({old[0] for old in moved} | {ref.label for ref in moved.values()})
    position = {label: number for number, label in enumerate(labels)}
    rows = sorted(moved.items())
    return columns.encode(
        {
            _LABELS: numpy.frombuffer("".join(labels).encode(), numpy.uint8),
            _OLD_LABEL: _numbers((position[old[0]] for old, _ in rows), "<u2"),
            _OLD_PACK: _numbers((old[1] for old, _ in rows), "<u4"),
            _OLD_NUMBER: _numbers((old[2] for old, _ in rows), "<u4"),
            _LABEL: _numbers((position[ref.label] for _, ref in rows), "<u2"),
            _PACK: _numbers((ref.pack for _, ref in rows), "<u4"),
            _NUMBER: _numbers((ref.number for _, ref in rows), "<u4"),
            _OFFSET: _numbers((ref.offset for _, ref in rows), "<u4"),
            _STORED: _numbers((ref.stored for _, ref in rows), "<u4"),
        }
    )


def _numbers(values: Iterable[int], kind: str) -> NDArray[Any]:
    return numpy.fromiter(values, kind)


class MovedChunks:
    """All moves of a cluster; `resolve` may be called by several threads."""

    def __init__(self, objects: Sequence[tuple[memoryview, str, Set[PackName]]] = ()) -> None:
        """Take the sealed parts, each with its name for messages; raise ObjectDamaged. Later ones count for more.

        The third of each: old packs whose chunks are where they were.
        """
        self._labels: dict[str, int] = {}
        keys: list[NDArray[Any]] = []
        places: list[NDArray[Any]] = []
        for content, what, blocked in objects:
            own_keys, own_places = self._parse(content, what)
            if blocked:
                packs = {(self._labels[label] << _PACK_BITS) | pack for label, pack in blocked if label in self._labels}
                kept = ~numpy.isin(own_keys >> numpy.uint64(_NUMBER_BITS), numpy.array(sorted(packs), numpy.uint64))
                own_keys, own_places = own_keys[kept], own_places[kept]
            keys.append(own_keys)
            places.append(own_places)
        joined = numpy.concatenate(keys) if keys else numpy.zeros(0, numpy.uint64)
        order = numpy.argsort(joined, kind="stable")
        self._keys = joined[order]
        self._places = (numpy.concatenate(places) if places else numpy.zeros((0, 5), numpy.uint32))[order]
        self._names = list(self._labels)
        self._packs = {(self._names[int(one) >> _PACK_BITS], int(one) & (1 << _PACK_BITS) - 1) for one in self._old()}

    def __bool__(self) -> bool:
        return bool(len(self._keys))

    def has_moved_from(self, label: str, pack: int) -> bool:
        """Tell whether chunks of a pack were put elsewhere."""
        return (label, pack) in self._packs

    def resolve(self, ref: ChunkRef) -> ChunkRef:
        """Return a reference to the same chunk where it is now."""
        for _ in range(_MOST_STEPS):
            if (ref.label, ref.pack) not in self._packs:
                return ref
            key = self._key(ref.label, ref.pack, ref.number)
            at = int(numpy.searchsorted(self._keys, key, "right")) - 1
            if at < 0 or self._keys[at] != key:
                return ref
            label, pack, number, offset, stored = self._places[at].tolist()
            ref = ChunkRef(self._names[label], pack, number, offset, stored, ref.raw, ref.hash)
        raise ObjectDamaged(f"the moves of chunk {ref.number} of pack {ref.label}/{ref.pack:06} lead in a circle")

    def entries(self, packs: Set[PackName]) -> Iterator[tuple[Place, ChunkRef]]:
        """Yield old places in some packs, and where each chunk is now; raw size and hash are left empty."""
        for key in numpy.unique(self._keys).tolist():
            pack = key >> _NUMBER_BITS
            old = self._names[pack >> _PACK_BITS], pack & (1 << _PACK_BITS) - 1
            if old in packs:
                place = (*old, key & (1 << _NUMBER_BITS) - 1)
                yield place, self.resolve(ChunkRef(*place, 0, 0, 0, b""))

    def _old(self) -> NDArray[Any]:
        return numpy.unique(self._keys >> numpy.uint64(_NUMBER_BITS))

    def _key(self, label: str, pack: int, number: int) -> numpy.uint64:
        return numpy.uint64(((self._labels[label] << _PACK_BITS | pack) << _NUMBER_BITS) | number)

    def _parse(self, content: memoryview, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
        found = columns.Columns(content, what)
        text = found.blob(_LABELS).decode("ascii", "replace")
        if len(text) % LABEL_BYTES:
            raise ObjectDamaged(f"{what} has labels of a wrong length")
        labels = [check_label(text[at : at + LABEL_BYTES]) for at in range(0, len(text), LABEL_BYTES)]
        for name in labels:
            self._labels.setdefault(name, len(self._labels))
        if len(self._labels) > 1 << 16:
            raise ObjectDamaged(f"{what} names more labels than can be")
        old_label = found.numbers(_OLD_LABEL, 2)
        count = len(old_label)
        old_pack, old_number = found.numbers(_OLD_PACK, 4, count), found.numbers(_OLD_NUMBER, 4, count)
        label = found.numbers(_LABEL, 2, count)
        pack, number, offset, stored = (
            found.numbers(column, 4, count) for column in (_PACK, _NUMBER, _OFFSET, _STORED)
        )
        if count and (
            int(max(old_label.max(), label.max())) >= len(labels)
            or int(max(old_pack.max(), pack.max())) >= PACKS
            or int(max(old_number.max(), number.max())) >= limits.PACK_CHUNKS
            or int(offset.min()) < HEADER_BYTES
            or int(stored.max()) > limits.CHUNK_BYTES + 64
        ):
            raise ObjectDamaged(f"{what} names a chunk that cannot be")
        known = numpy.array([self._labels[one] for one in labels], numpy.uint64)
        shifted = (known[old_label] << numpy.uint64(_PACK_BITS)) | old_pack.astype(numpy.uint64)
        keys = (shifted << numpy.uint64(_NUMBER_BITS)) | old_number.astype(numpy.uint64)
        new_label = known[label].astype(numpy.uint32) if count else numpy.zeros(0, numpy.uint32)
        return keys, numpy.stack([new_label, pack, number, offset, stored], axis=1).astype(numpy.uint32)
