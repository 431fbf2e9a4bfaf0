"""Put together what the workers found, in the order of the stream: chunks into packs, pieces into tables.

Theory of operation. One queue holds the running jobs in order: buffers that are being processed, and pages chunks and
bundles that are being encoded. What ends is taken from its left end only, by the thread that feeds. Changed pages of
several pieces, and small files, are gathered until a chunk of them is full; until that chunk has its place in a pack,
tables and rows hold a `Pending` in its stead. A table is written when everything that it refers to has a place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from polarvault.repository.chunks.writer import PackWriter
from polarvault.repository.format.chunks import (
    BUNDLE_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    AnyRef,
    ChunkKind,
    ChunkRef,
    Pending,
)
from polarvault.repository.index.reader import IndexReader
from polarvault.repository.index.sums import PATCHES, encode_patch, encode_sums
from polarvault.repository.index.tables import Overlay, Piece, Table, encode_table
from polarvault.repository.index.tables import encode_patch as encode_table_patch
from polarvault.repository.writing.usage import Usage
from polarvault.repository.writing.work import (
    Batch,
    ChangedPiece,
    Encoded,
    KeptPiece,
    NewPiece,
    PieceOutcome,
    SmallOutcome,
    SmallSlice,
    TableWork,
    Worker,
)

# Pieces of finished tables that wait for a pages chunk; then the chunk goes as it is.
_MOST_WAITING_PIECES = 16_384
_PAGES_BYTES = PIECE_BYTES


@dataclass(slots=True)
class Counts:
    """What became of the bytes of a backup."""

    read_bytes: int = 0
    changed_bytes: int = 0
    """Of pages, and of small files, that the parent does not have."""
    new_bytes: int = 0
    """Raw bytes of the data chunks that were made: pieces as a whole, pages that were merged."""
    adopted_bytes: int = 0
    """Of those what a killed backup had stored already."""
    stored_bytes: int = 0
    """What data and index chunks take in packs."""
    chunks: int = 0


@dataclass(slots=True)
class _Gathered:
    pending: Pending
    content: bytearray


@dataclass(slots=True)
class _Waiting:
    work: TableWork
    sums: tuple[ChunkRef, ...]


@dataclass(frozen=True, slots=True)
class _Encoding:
    kind: ChunkKind
    future: Future[Encoded]
    pending: Pending


class Assembly:
    """Owned by the thread that feeds; only jobs run elsewhere."""

    def __init__(
        self,
        packs: PackWriter,
        worker: Worker,
        pool: Executor,
        *,
        index: IndexReader,
        give_back: Callable[[bytearray], None],
        small: Callable[[int, AnyRef | None, int, bytes], None],
    ) -> None:
        """`give_back` gets buffers that are free; `small` is told where a small file lies, None: as before."""
        self.counts = Counts()
        self.usage = Usage()
        self.unusable: list[str] = []
        """What of the parent could not be read."""
        self._packs = packs
        self._worker = worker
        self._pool = pool
        self._index = index
        self._give_back = give_back
        self._small = small
        self._queue: deque[Future[Batch] | _Encoding] = deque()
        self._pages = _Gathered(Pending(), bytearray())
        self._bundle = _Gathered(Pending(), bytearray())
        self._waiting: deque[_Waiting] = deque()
        self._waiting_pieces = 0

    def submit(self, batch: Batch) -> None:
        """Take a full buffer."""
        self._queue.append(self._pool.submit(self._worker.process, batch))

    def take_piece(self, work: TableWork, number: int, outcome: PieceOutcome, length: int) -> None:
        """Take a piece of a table that no worker had to look at."""
        self.counts.read_bytes += length
        work.pieces[number] = self._piece(outcome)
        work.left -= 1
        if not work.left:
            self._finish_table(work)

    def take_ended(self) -> None:
        """Take what has ended, without waiting."""
        while self._queue and self._future(self._queue[0]).done():
            self._take_first()

    def wait_for_one(self) -> None:
        """Wait for the oldest job."""
        self._take_first()

    def wait_for_buffers(self) -> None:
        """Wait until no buffer is being processed."""
        while any(not isinstance(job, _Encoding) for job in self._queue):
            self._take_first()

    def finish(self) -> None:
        """Wait for everything; on return every chunk and every table has its place."""
        while self._queue:
            self._take_first()
        self._flush_pages()
        self._flush_bundle()
        while self._queue:
            self._take_first()
        self._place_tables()
        assert not self._waiting, "a table still waits for a chunk"

    def abandon(self) -> None:
        """Give up what has not begun."""
        for job in self._queue:
            self._future(job).cancel()

    def place(self, kind: ChunkKind, encoded: Encoded) -> ChunkRef:
        """Put a chunk into its pack, unless a killed backup did."""
        is_data = kind in (ChunkKind.PIECE, ChunkKind.PAGES, ChunkKind.BUNDLE)
        if is_data:
            self.counts.new_bytes += encoded.raw
        if encoded.adopted is not None:
            self.counts.adopted_bytes += encoded.raw
            return encoded.adopted
        self.counts.chunks += 1
        ref = self._packs.add(kind, encoded.envelope, raw=encoded.raw, digest=encoded.digest)
        self.counts.stored_bytes += ref.stored
        return ref

    def place_index(self, kind: ChunkKind, raw: bytes) -> ChunkRef:
        """Encode and place a chunk of the index."""
        return self.place(kind, self._worker.encode(raw))

    @staticmethod
    def _future(job: Future[Batch] | _Encoding) -> Future[Batch] | Future[Encoded]:
        return job.future if isinstance(job, _Encoding) else job

    def _take_first(self) -> None:
        job = self._queue.popleft()
        if isinstance(job, _Encoding):
            job.pending.ref = self.place(job.kind, job.future.result())
            self._place_tables()
            return
        batch = job.result()
        for one in batch.slices:
            self.counts.read_bytes += one.length
            if isinstance(one, SmallSlice):
                assert one.outcome is not None
                self._take_small(one.row, one.outcome)
                continue
            for number, outcome in enumerate(one.outcomes):
                one.table.pieces[one.first + number] = self._piece(outcome)
            one.table.left -= len(one.outcomes)
            if not one.table.left:
                self._finish_table(one.table)
        self._give_back(batch.buffer)

    def _take_small(self, row: int, outcome: SmallOutcome) -> None:
        content = outcome.content
        if content is None:
            self._small(row, None, 0, outcome.hash)
            return
        self.counts.changed_bytes += len(content)
        if len(self._bundle.content) + len(content) > BUNDLE_BYTES:
            self._flush_bundle()
        self._small(row, self._bundle.pending, len(self._bundle.content), outcome.hash)
        self._bundle.content += content

    def _piece(self, outcome: PieceOutcome) -> Piece:
        if isinstance(outcome, KeptPiece):
            return outcome.piece
        self.counts.changed_bytes += outcome.changed_pages * PAGE_BYTES
        if isinstance(outcome, NewPiece):
            return Piece(self.place(ChunkKind.PIECE, outcome.chunk), outcome.hash)
        return self._changed_piece(outcome)

    def _changed_piece(self, outcome: ChangedPiece) -> Piece:
        if not outcome.bitmap:
            # The file was cut at the end of a page: what is left of the piece is as it was.
            return Piece(outcome.base, outcome.hash, outcome.kept)
        if len(self._pages.content) + len(outcome.pages) > _PAGES_BYTES:
            self._flush_pages()
        first = len(self._pages.content) // PAGE_BYTES
        self._pages.content += outcome.pages
        overlay = Overlay(self._pages.pending, outcome.bitmap, first)
        return Piece(outcome.base, outcome.hash, (*outcome.kept, overlay))

    def _flush_pages(self) -> None:
        if self._pages.content:
            self._encode(ChunkKind.PAGES, self._pages)
            self._pages = _Gathered(Pending(), bytearray())

    def _flush_bundle(self) -> None:
        if self._bundle.content:
            self._encode(ChunkKind.BUNDLE, self._bundle)
            self._bundle = _Gathered(Pending(), bytearray())

    def _encode(self, kind: ChunkKind, gathered: _Gathered) -> None:
        future = self._pool.submit(self._worker.encode, gathered.content)
        self._queue.append(_Encoding(kind, future, gathered.pending))

    def _finish_table(self, work: TableWork) -> None:
        parent = work.parent
        pieces = work.pieces
        if parent is not None and len(pieces) == len(parent.table.pieces):
            unchanged = all(one is other for one, other in zip(pieces, parent.table.pieces, strict=True))
            if unchanged:
                work.ref.ref = parent.ref
                self._count_table(parent.ref, parent.whole_ref, parent.table)
                return
        self._waiting.append(_Waiting(work, self._sums(work)))
        self._waiting_pieces += len(pieces)
        self._place_tables()
        if self._waiting_pieces > _MOST_WAITING_PIECES:
            self._flush_pages()

    def _sums(self, work: TableWork) -> tuple[ChunkRef, ...]:
        """Store the sums of a table: what changed, or all of them; return the list of their chunks."""
        parent_sums = work.parent_sums() if work.parent is not None else None
        if work.problem is not None:
            self.unusable.append(work.problem)
        if work.parent is None or parent_sums is None:
            return (self.place_index(ChunkKind.SUMS, encode_sums(work.sums)),)
        earlier = work.parent.table.sums
        below, compared = earlier, parent_sums
        if len(earlier) > PATCHES:
            below = earlier[:1]
            compared = self._index.sums(below, len(parent_sums))
        patch = encode_patch(work.sums, compared)
        if patch is None:
            return (self.place_index(ChunkKind.SUMS, encode_sums(work.sums)),)
        return (*below, self.place_index(ChunkKind.SUMS, patch))

    def _place_tables(self) -> None:
        while self._waiting and _is_placed(self._waiting[0].work):
            waiting = self._waiting.popleft()
            self._waiting_pieces -= len(waiting.work.pieces)
            table = Table([piece for piece in waiting.work.pieces if piece is not None], waiting.sums)
            parent, content = waiting.work.parent, None
            if parent is not None:
                content = encode_table_patch(table, parent.whole_ref, parent.whole)
            whole_ref = parent.whole_ref if parent is not None and content is not None else None
            ref = waiting.work.ref.ref = self.place_index(ChunkKind.TABLE, content or encode_table(table))
            self._count_table(ref, whole_ref or ref, table)

    def _count_table(self, ref: ChunkRef, whole_ref: ChunkRef, table: Table) -> None:
        self.usage.add(ref)
        if whole_ref is not ref:
            self.usage.add(whole_ref)
        self.usage.add_table(table)


def _is_placed(work: TableWork) -> bool:
    """Tell whether everything that a table refers to has a place; only its newest overlays can lack one."""
    for piece in work.pieces:
        assert piece is not None
        if piece.overlays and isinstance(piece.overlays[-1].chunk, Pending) and piece.overlays[-1].chunk.ref is None:
            return False
    return True
