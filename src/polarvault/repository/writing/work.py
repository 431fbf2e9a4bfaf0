"""What worker threads do with a full buffer: sum its pages, compare them with the parent's, encode what is new.

Nothing here is shared between two buffers but what only grows or is read: the key, the parent's index, adopted chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy
from blake3 import blake3

from polarvault.errors import IntegrityError, ObjectDamaged, ObjectMissing
from polarvault.repository.format.chunks import (
    HASH_BYTES,
    OVERLAYS,
    PAGE_BYTES,
    PIECE_BYTES,
    PIECE_PAGES,
    ChunkRef,
    Pending,
    placed,
)
from polarvault.repository.format.envelope import Encoder
from polarvault.repository.index.reader import IndexReader
from polarvault.repository.index.tables import ALL_PAGES, Overlay, Piece, StoredTable, newest_pages, page_runs
from polarvault.repository.sums.definition import PageSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What was read is still in the processor's cache when it is checked.
_READ_BYTES = 256 << 10
# A piece of which more changed is stored anew: overlays of nearly all of it save nothing, and cost the reader.
_MOST_CHANGED = PIECE_PAGES * 3 // 4

Adopt: TypeAlias = Callable[[bytes], "ChunkRef | None"]
Distrust: TypeAlias = Callable[[ChunkRef], bool]
ReadChunk: TypeAlias = Callable[[ChunkRef], memoryview]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk ready for a pack, or the place of one that a killed backup left there."""

    envelope: bytes
    raw: int
    digest: bytes
    adopted: ChunkRef | None = None


@dataclass(frozen=True, slots=True)
class KeptPiece:
    """A piece of which no page has changed."""

    piece: Piece


@dataclass(frozen=True, slots=True)
class NewPiece:
    """A piece that is stored as a whole."""

    chunk: Encoded
    hash: bytes
    changed_pages: int


@dataclass(frozen=True, slots=True)
class ChangedPiece:
    """A piece of which some pages are stored, over the base and the overlays that stay."""

    base: ChunkRef
    kept: tuple[Overlay, ...]
    bitmap: int
    pages: bytes
    hash: bytes
    changed_pages: int


PieceOutcome: TypeAlias = "KeptPiece | NewPiece | ChangedPiece"


@dataclass(frozen=True, slots=True)
class SmallOutcome:
    """A small file: its hash, and its content if it is stored anew."""

    hash: bytes
    content: bytes | None


class TableWork:
    """One table in the making: what the parent has at its place, and what has been found out about each piece."""

    def __init__(self, index: IndexReader | None, parent: StoredTable | None, *, parent_pages: int, pages: int) -> None:
        self.ref = Pending()
        self.parent = parent
        self.pages = pages
        self.sums = numpy.empty((pages, 16), numpy.uint8)
        self.pieces: list[Piece | None] = [None] * (-(-pages // PIECE_PAGES))
        self.left = len(self.pieces)
        self._index = index
        self._parent_pages = parent_pages
        self._parent_sums: NDArray[numpy.uint8] | None = None
        self._lock = threading.Lock()
        self.problem: str | None = None
        """Why the parent's sums cannot be read: pieces that differ are then stored as a whole."""

    def parent_sums(self) -> NDArray[numpy.uint8] | None:
        """Return the parent's sums, None if they are damaged; read when the first difference is found."""
        with self._lock:
            if self._parent_sums is None and self.problem is None:
                assert self._index is not None
                assert self.parent is not None
                try:
                    self._parent_sums = self._index.sums(self.parent.table.sums, self._parent_pages)
                except (IntegrityError, ObjectMissing) as problem:
                    self.problem = problem.message
            return self._parent_sums


class Unread(Protocol):
    """Bytes that are read by the worker itself, in order, into the place in the buffer that waits for them."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer with the next bytes; raise PolarvaultError."""


@dataclass(slots=True)
class SmallSlice:
    """A whole small file in a buffer. parent: the hash that it had, None if that is no evidence."""

    start: int
    length: int
    row: int
    parent: bytes | None
    outcome: SmallOutcome | None = None
    unread: Unread | None = None


@dataclass(slots=True)
class PieceSlice:
    """Pieces of one table in a buffer, from `first` on."""

    start: int
    length: int
    table: TableWork
    first: int
    outcomes: list[PieceOutcome] = field(default_factory=list)
    unread: Unread | None = None


@dataclass(slots=True)
class Batch:
    """A buffer and what lies in it."""

    buffer: bytearray
    slices: list[SmallSlice | PieceSlice] = field(default_factory=list)
    filled: int = 0


class Worker:
    """Processes batches and encodes chunks; used by several threads at once."""

    def __init__(self, sums: PageSums, *, level: int, adopt: Adopt, distrust: Distrust) -> None:
        self._sums = sums
        self._level = level
        self._adopt = adopt
        self._distrust = distrust
        self._own = threading.local()

    def process(self, batch: Batch) -> Batch:
        """Fill in the outcomes of a batch."""
        view = memoryview(batch.buffer)
        for one in batch.slices:
            content = view[one.start : one.start + one.length]
            if one.unread is not None:
                for at in range(0, one.length, _READ_BYTES):
                    one.unread.read_into(content[at : at + _READ_BYTES])
                one.unread = None
            sums = self._sums.of(content)
            if isinstance(one, SmallSlice):
                digest = _hash(sums)
                one.outcome = SmallOutcome(digest, None if digest == one.parent else bytes(content))
            else:
                first_page = one.first * PIECE_PAGES
                one.table.sums[first_page : first_page + len(sums)] = sums
                one.outcomes = [
                    self._piece(
                        one.table,
                        one.first + number,
                        content[number * PIECE_BYTES : (number + 1) * PIECE_BYTES],
                        sums[number * PIECE_PAGES : (number + 1) * PIECE_PAGES],
                    )
                    for number in range(-(-one.length // PIECE_BYTES))
                ]
        return batch

    def encode(self, raw: bytes | bytearray | memoryview) -> Encoded:
        """Hash and compress a chunk, unless a killed backup has stored the same one."""
        digest = blake3(raw).digest()
        adopted = self._adopt(digest)
        if adopted is not None:
            return Encoded(b"", len(raw), digest, adopted)
        encoder = getattr(self._own, "encoder", None)
        if encoder is None:
            encoder = self._own.encoder = Encoder(self._level)
        return Encoded(encoder.encode(raw), len(raw), digest)

    def _piece(self, table: TableWork, number: int, content: memoryview, sums: NDArray[numpy.uint8]) -> PieceOutcome:
        digest = _hash(sums)
        everything = (1 << len(sums)) - 1
        parent = table.parent
        if parent is None or number >= len(parent.table.pieces) or self._is_damaged(parent.table.pieces[number]):
            return NewPiece(self.encode(content), digest, len(sums))
        piece = parent.table.pieces[number]
        if piece.hash == digest:
            return KeptPiece(piece)
        earlier = table.parent_sums()
        if earlier is None:
            return NewPiece(self.encode(content), digest, len(sums))
        changed = _changed(sums, earlier[number * PIECE_PAGES : (number + 1) * PIECE_PAGES])
        needed, kept = merge_overlays(piece.overlays, changed, everything)
        if needed.bit_count() > _MOST_CHANGED or needed == everything:
            return NewPiece(self.encode(content), digest, changed.bit_count())
        assert isinstance(piece.base, ChunkRef)
        return ChangedPiece(piece.base, kept, needed, _gather(content, needed), digest, changed.bit_count())

    def unread(
        self, table: TableWork, number: int, pages: Mapping[int, bytes], count: int, read: ReadChunk
    ) -> tuple[PieceOutcome, NDArray[numpy.uint8]] | None:
        """Return what becomes of a piece of which the parent has all but some pages, without reading it, and its sums.

        count: how many pages the piece has, in the parent as well. read: gets the chunks of overlays that are merged.
        None: it has to be read, or is no evidence.
        """
        parent = table.parent
        if parent is None or number >= len(parent.table.pieces) or self._is_damaged(parent.table.pieces[number]):
            return None
        earlier = table.parent_sums()
        if earlier is None:
            return None
        piece = parent.table.pieces[number]
        first = number * PIECE_PAGES
        sums = earlier[first : first + count].copy()
        for page, content in pages.items():
            sums[page] = self._sums.of(bytearray(content))[0]
        digest = _hash(sums)
        if digest == piece.hash:
            return KeptPiece(piece), sums
        changed = _changed(sums, earlier[first : first + count])
        needed, kept = merge_overlays(piece.overlays, changed, (1 << count) - 1)
        if needed.bit_count() > _MOST_CHANGED or not isinstance(piece.base, ChunkRef):
            return None
        merged = _overlaid(piece, needed & ~changed, read)
        content = b"".join(
            pages[page] if changed >> page & 1 else merged[page] for page in range(count) if needed >> page & 1
        )
        return ChangedPiece(piece.base, kept, needed, content, digest, changed.bit_count()), sums

    def _is_damaged(self, piece: Piece) -> bool:
        refs = [piece.base, *(overlay.chunk for overlay in piece.overlays)]
        return any(isinstance(ref, ChunkRef) and self._distrust(ref) for ref in refs)


def merge_overlays(overlays: tuple[Overlay, ...], changed: int, everything: int) -> tuple[int, tuple[Overlay, ...]]:
    """Return which pages are stored, and which overlays stay below them.

    An overlay of which nothing is left to see goes. When the list is full, all of them become one: their pages are
    stored again from the piece that is at hand.
    """
    kept: list[Overlay] = []
    covered = changed | ~everything
    for overlay in reversed(overlays):
        if overlay.bitmap & ~covered:
            kept.append(overlay)
        covered |= overlay.bitmap
    if len(kept) < OVERLAYS:
        return changed, tuple(reversed(kept))
    for overlay in kept:
        changed |= overlay.bitmap & everything
    return changed, ()


def whole_piece(piece: Piece, length: int, read_base: ReadChunk, read_overlay: ReadChunk) -> bytearray:
    """Return the bytes of a piece, put together from its base and what lies over it."""
    pages = -(-length // PAGE_BYTES)
    left, _ = newest_pages(piece, pages)
    content = bytearray(length)
    if left:
        base = read_base(placed(piece.base))
        for page, place, count in page_runs(ALL_PAGES, left, 0):
            end = min(length, (page + count) * PAGE_BYTES)
            content[page * PAGE_BYTES : end] = _part(base, place * PAGE_BYTES, end - page * PAGE_BYTES)
    for page, overlaid in _overlaid(piece, ((1 << pages) - 1) & ~left, read_overlay).items():
        end = min(length, (page + 1) * PAGE_BYTES)
        content[page * PAGE_BYTES : end] = _part(overlaid, 0, end - page * PAGE_BYTES)
    return content


def _overlaid(piece: Piece, wanted: int, read: ReadChunk) -> dict[int, memoryview]:
    """Return pages of a piece, each of which some overlay has; the newest one counts."""
    found = {}
    for overlay in reversed(piece.overlays):
        taken = overlay.bitmap & wanted
        wanted &= ~taken
        for page, place, count in page_runs(overlay.bitmap, taken, overlay.first):
            raw = read(placed(overlay.chunk))
            for number in range(count):
                found[page + number] = _part(raw, (place + number) * PAGE_BYTES, PAGE_BYTES)
    return found


def _part(raw: memoryview, start: int, length: int) -> memoryview:
    if start + length > len(raw):
        raise ObjectDamaged(f"a chunk has {len(raw)} bytes, and a piece needs more")
    return raw[start : start + length]


def _changed(sums: NDArray[numpy.uint8], earlier: NDArray[numpy.uint8]) -> int:
    shared = min(len(sums), len(earlier))
    bitmap = ((1 << len(sums)) - 1) & ~((1 << shared) - 1)
    for page in (sums[:shared] != earlier[:shared]).any(axis=1).nonzero()[0].tolist():
        bitmap |= 1 << page
    return bitmap


def _gather(content: memoryview, bitmap: int) -> bytes:
    pages = [content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] for page in range(PIECE_PAGES) if bitmap >> page & 1]
    return b"".join(pages).ljust(len(pages) * PAGE_BYTES, b"\0")


def _hash(sums: NDArray[numpy.uint8]) -> bytes:
    return blake3(sums.tobytes()).digest(length=HASH_BYTES)
