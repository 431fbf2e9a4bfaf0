"""Chunks: their kinds, their sizes, and what refers to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.repository.format.columns import Columns
from polarvault.repository.format.frame import HEADER_BYTES
from polarvault.repository.format.names import LABEL_BYTES, PACKS, check_label

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_BYTES = 8192
PIECE_BYTES = 256 << 10
PIECE_PAGES = PIECE_BYTES // PAGE_BYTES
TABLE_PIECES = 4096
TABLE_BYTES = TABLE_PIECES * PIECE_BYTES
BUNDLED_BYTES = 64 << 10
BUNDLE_BYTES = 1 << 20
ATTACHMENT_BYTES = 1 << 20
OVERLAYS = 7
HASH_BYTES = 16
_LABELS, _LABEL, _PACK, _NUMBER, _OFFSET, _STORED, _RAW, _HASH = range(32, 40)


class ChunkKind(IntEnum):
    """What a chunk holds."""

    PIECE = 1
    PAGES = 2
    BUNDLE = 3
    TABLE = 4
    SUMS = 5
    FILES = 6
    ATTACHMENT = 7
    ATTACHMENTS = 8


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """Where a chunk is: pack, number in it, offset and stored size; raw size and BLAKE3 of the raw bytes."""

    label: str
    pack: int
    number: int
    offset: int
    stored: int
    raw: int
    hash: bytes

    @property
    def place(self) -> tuple[str, int, int]:
        """What tells it from every other chunk of the cluster, and orders chunks as they lie."""
        return self.label, self.pack, self.number


@dataclass(slots=True, eq=False)
class Pending:
    """A chunk that is being stored: its reference is there as soon as it has a place in a pack."""

    ref: ChunkRef | None = None


AnyRef: TypeAlias = "ChunkRef | Pending"
# Tells where a chunk is now that a reference names.
Moved: TypeAlias = "Callable[[ChunkRef], ChunkRef]"


def placed(ref: AnyRef) -> ChunkRef:
    """Return the reference of a chunk that has a place."""
    found = ref.ref if isinstance(ref, Pending) else ref
    assert found is not None, "a chunk has no place yet"
    return found


class References:
    """The list of chunks that an index chunk refers to, in the making: each chunk once, in the order of first use."""

    def __init__(self) -> None:
        self._positions: dict[ChunkRef, int] = {}

    def position(self, ref: AnyRef) -> int:
        """Return the position of a chunk, which is added if it is new."""
        return self._positions.setdefault(placed(ref), len(self._positions))

    def columns(self) -> dict[int, NDArray[Any]]:
        """Return the columns that hold the list."""
        refs = list(self._positions)
        labels = {label: number for number, label in enumerate(dict.fromkeys(ref.label for ref in refs))}
        hashes = numpy.frombuffer(b"".join(ref.hash for ref in refs), numpy.uint8).reshape(len(refs), 32)
        return {
            _LABELS: numpy.frombuffer("".join(labels).encode(), numpy.uint8),
            _LABEL: _array((labels[ref.label] for ref in refs), "<u2"),
            _PACK: _array((ref.pack for ref in refs), "<u4"),
            _NUMBER: _array((ref.number for ref in refs), "<u4"),
            _OFFSET: _array((ref.offset for ref in refs), "<u4"),
            _STORED: _array((ref.stored for ref in refs), "<u4"),
            _RAW: _array((ref.raw for ref in refs), "<u4"),
            _HASH: hashes,
        }


def _array(numbers: Iterable[int], kind: str) -> NDArray[Any]:
    return numpy.fromiter(numbers, kind)


def parse_references(columns: Columns, what: str, moved: Moved | None = None) -> list[ChunkRef]:
    """Return the list of chunks of an index chunk; raise ObjectDamaged for places that cannot be."""
    joined = columns.blob(_LABELS)
    if len(joined) % LABEL_BYTES:
        raise ObjectDamaged(f"{what} has labels of a wrong length")
    text = joined.decode("ascii", "replace")
    labels = [check_label(text[at : at + LABEL_BYTES]) for at in range(0, len(text), LABEL_BYTES)]
    label = columns.numbers(_LABEL, 2)
    count = len(label)
    numbers = [columns.numbers(column, 4, count) for column in (_PACK, _NUMBER, _OFFSET, _STORED, _RAW)]
    hashes = columns.bytes_of(_HASH, 32, count).tobytes()
    packs, numbered, offsets, stored, raw = numbers
    if count and (
        int(label.max()) >= len(labels)
        or int(packs.max()) >= PACKS
        or int(numbered.max()) >= limits.PACK_CHUNKS
        or int(offsets.min()) < HEADER_BYTES
        or int(stored.max()) > limits.CHUNK_BYTES + 64
        or int(raw.max()) > limits.CHUNK_BYTES
    ):
        raise ObjectDamaged(f"{what} refers to a chunk that cannot be")
    rows = zip(label.tolist(), *(column.tolist() for column in numbers), strict=True)
    refs = [
        ChunkRef(labels[of], pack, number, offset, kept, size, hashes[32 * index : 32 * index + 32])
        for index, (of, pack, number, offset, kept, size) in enumerate(rows)
    ]
    return refs if moved is None else [moved(ref) for ref in refs]


def referred(refs: Sequence[ChunkRef], position: int, what: str) -> ChunkRef:
    """Return one of the list; raise ObjectDamaged for a position behind its end."""
    if not 0 <= position < len(refs):
        raise ObjectDamaged(f"{what} refers to chunk {position} of {len(refs)}")
    return refs[position]
