"""Tables: where the pieces of up to one GiB of a file are. A table is whole, or a patch on a whole one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from polarvault.errors import ObjectDamaged
from polarvault.repository.format import columns
from polarvault.repository.format.chunks import (
    HASH_BYTES,
    OVERLAYS,
    PIECE_PAGES,
    TABLE_PIECES,
    AnyRef,
    ChunkRef,
    Moved,
    References,
    parse_references,
    placed,
    referred,
)

_NONE = 0xFFFFFFFF
ALL_PAGES = (1 << PIECE_PAGES) - 1


@dataclass(frozen=True, slots=True)
class Overlay:
    """Pages of a piece that a later backup replaced: bit n is page n; the first one lies at `first` in the chunk."""

    chunk: AnyRef
    bitmap: int
    first: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece: its base, its hash (over the page sums), and its overlays, oldest first."""

    base: AnyRef
    hash: bytes
    overlays: tuple[Overlay, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """What a table says. sums: a whole sums chunk and its patches."""

    pieces: list[Piece]
    sums: tuple[ChunkRef, ...]


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table of a backup: as it is, and the whole one below it, which a new patch can build on."""

    ref: ChunkRef
    table: Table
    whole_ref: ChunkRef
    whole: Table


def encode_table(table: Table) -> bytes:
    """Return a whole table."""
    return _encode(table, None, None, range(len(table.pieces)))


def encode_patch(table: Table, whole_ref: ChunkRef, whole: Table) -> bytes | None:
    """Return a table as a patch on a whole one; None if more than half of it would be replaced."""
    shared = min(len(table.pieces), len(whole.pieces))
    slots = [slot for slot in range(shared) if not _same(table.pieces[slot], whole.pieces[slot])]
    slots += range(shared, len(table.pieces))
    if 2 * len(slots) > len(table.pieces):
        return None
    return _encode(table, whole_ref, whole, slots)


def _same(one: Piece, other: Piece) -> bool:
    return one is other or (
        one.hash == other.hash
        and _ref(one.base) == _ref(other.base)
        and [(_ref(o.chunk), o.bitmap, o.first) for o in one.overlays]
        == [(_ref(o.chunk), o.bitmap, o.first) for o in other.overlays]
    )


def _ref(ref: AnyRef) -> ChunkRef:
    return placed(ref)


def _encode(table: Table, whole_ref: ChunkRef | None, whole: Table | None, slots: Sequence[int]) -> bytes:
    refs = References()
    below = _NONE if whole_ref is None else refs.position(whole_ref)
    sums = [refs.position(ref) for ref in table.sums]
    bases, hashes, counts = [], [], []
    chunks, bitmaps, firsts = [], [], []
    for slot in slots:
        piece = table.pieces[slot]
        kept = whole is not None and slot < len(whole.pieces) and _ref(whole.pieces[slot].base) == _ref(piece.base)
        bases.append(_NONE if kept else refs.position(piece.base))
        hashes.append(piece.hash)
        counts.append(len(piece.overlays))
        for overlay in piece.overlays:
            chunks.append(refs.position(overlay.chunk))
            bitmaps.append(overlay.bitmap)
            firsts.append(overlay.first)
    replaced = {} if whole_ref is None else {2: numpy.array(slots, "<u2")}
    return columns.encode(
        {
            1: numpy.array([len(table.pieces), below], "<u4"),
            **replaced,
            3: numpy.array(bases, "<u4"),
            4: numpy.frombuffer(b"".join(hashes), numpy.uint8).reshape(len(hashes), HASH_BYTES),
            5: numpy.array(counts, numpy.uint8),
            6: numpy.array(chunks, "<u4"),
            7: numpy.array(bitmaps, "<u4"),
            8: numpy.array(firsts, numpy.uint8),
            9: numpy.array(sums, "<u4"),
            **refs.columns(),
        }
    )


class ParsedTable:
    """A table as it was read; `below` is the whole table that it patches, None if it is whole itself."""

    def __init__(self, content: memoryview, what: str, moved: Moved | None = None) -> None:
        """Parse; raise ObjectDamaged."""
        self._what = what
        found = columns.Columns(content, what)
        self._refs = parse_references(found, what, moved)
        count, below = found.numbers(1, 4, 2).tolist()
        if count > TABLE_PIECES:
            raise ObjectDamaged(f"{what} claims {count} pieces")
        self._count = count
        self.below = None if below == _NONE else referred(self._refs, below, what)
        self._slots = list(range(count)) if self.below is None else found.numbers(2, 2).tolist()
        rows = len(self._slots)
        rising = all(one < other for one, other in zip(self._slots, self._slots[1:], strict=False))
        if not rising or (rows and self._slots[-1] >= count):
            raise ObjectDamaged(f"{what} replaces pieces that it does not have")
        self._bases = found.numbers(3, 4, rows).tolist()
        self._hashes = found.bytes_of(4, HASH_BYTES, rows).tobytes()
        self._counts = found.numbers(5, 1, rows).tolist()
        overlays = sum(self._counts)
        if rows and max(self._counts) > OVERLAYS:
            raise ObjectDamaged(f"{what} has a piece with more than {OVERLAYS} overlays")
        chunks = found.numbers(6, 4, overlays).tolist()
        bitmaps = found.numbers(7, 4, overlays).tolist()
        firsts = found.numbers(8, 1, overlays).tolist()
        self._overlays = []
        for chunk, bitmap, first in zip(chunks, bitmaps, firsts, strict=True):
            if first + bitmap.bit_count() > PIECE_PAGES or not bitmap:
                raise ObjectDamaged(f"{what} has an overlay of pages that no chunk can have")
            self._overlays.append(Overlay(referred(self._refs, chunk, what), bitmap, first))
        sums = found.numbers(9, 4).tolist()
        if not 1 <= len(sums) <= OVERLAYS + 1:
            raise ObjectDamaged(f"{what} refers to {len(sums)} chunks of sums")
        self._sums = tuple(referred(self._refs, position, what) for position in sums)

    def whole(self) -> Table:
        """Return a table that is whole."""
        return self.over(Table([], ()))

    def over(self, below: Table) -> Table:
        """Return the table that this one makes of the one that it patches."""
        pieces: list[Piece | None] = list(below.pieces[: self._count])
        pieces += [None] * (self._count - len(pieces))
        at = 0
        for row, slot in enumerate(self._slots):
            base: AnyRef
            if self._bases[row] == _NONE:
                under = pieces[slot]
                if under is None:
                    raise ObjectDamaged(f"{self._what} takes piece {slot} from a table that does not have it")
                base = under.base
            else:
                base = referred(self._refs, self._bases[row], self._what)
            overlays = tuple(self._overlays[at : at + self._counts[row]])
            at += self._counts[row]
            pieces[slot] = Piece(base, self._hashes[HASH_BYTES * row : HASH_BYTES * (row + 1)], overlays)
        whole = [piece for piece in pieces if piece is not None]
        if len(whole) != self._count:
            raise ObjectDamaged(f"{self._what} lacks {self._count - len(whole)} of its pieces")
        return Table(whole, self._sums)


def newest_pages(piece: Piece, pages: int) -> tuple[int, list[tuple[Overlay, int]]]:
    """Return which of the first `pages` pages the base still has, and which of each overlay, as bitmaps."""
    left = (1 << pages) - 1
    found = []
    for overlay in reversed(piece.overlays):
        taken = overlay.bitmap & left
        left &= ~taken
        found.append((overlay, taken))
    return left, found[::-1]


def page_runs(bitmap: int, taken: int, first: int) -> list[tuple[int, int, int]]:
    """Return (page in the piece, page in the chunk, how many) of the pages `taken` of an overlay's bitmap."""
    runs: list[tuple[int, int, int]] = []
    place = first
    for page in range(PIECE_PAGES):
        if bitmap >> page & 1:
            if taken >> page & 1:
                last = runs[-1] if runs else None
                if last and last[0] + last[2] == page and last[1] + last[2] == place:
                    runs[-1] = (last[0], last[1], last[2] + 1)
                else:
                    runs.append((page, place, 1))
            place += 1
    return runs
