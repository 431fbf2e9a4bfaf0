"""Write one backup: members come in the order of the stream, their bytes in views that may be reused at once.

    writer = BackupWriter(...)
    for each member: begin(member); data(views) ...; end()
    attach(name, parts) for manifests and what else belongs to it
    commit(facts) -> Outcome          # makes the backup valid, last

Theory of operation. `data` copies into a buffer of 2 MiB, of which there is one more than the workers can have. A full
one goes to a worker (`work`), whose answer the feeding thread takes in order (`assembly`). Nothing that was written is
valid before the record is; a writer that is abandoned, or killed, leaves packs that the next backup adopts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from blake3 import blake3

from polarvault.errors import IntegrityError, ObjectMissing, RemoteProtocolError
from polarvault.model.names import name_problem, shown_name
from polarvault.repository.chunks.nearby import NearbyReader
from polarvault.repository.chunks.reader import ChunkReader
from polarvault.repository.chunks.writer import PackWriter
from polarvault.repository.format.chunks import (
    BUNDLED_BYTES,
    OVERLAYS,
    PAGE_BYTES,
    PIECE_BYTES,
    PIECE_PAGES,
    TABLE_BYTES,
    AnyRef,
    ChunkKind,
)
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import Buffer
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import RecordFacts
from polarvault.repository.index.files import FileKind, FileRow, cut_rows, encode_files, row_key, table_count
from polarvault.repository.index.reader import IndexReader
from polarvault.repository.index.root import FilesChunk, Part, encode_root, root_hash
from polarvault.repository.sums.definition import PageSums
from polarvault.repository.writing.assembly import Assembly, Counts
from polarvault.repository.writing.attachments import Attachments
from polarvault.repository.writing.objects import BackupObjects
from polarvault.repository.writing.parent import Parent
from polarvault.repository.writing.rows import OpenRow, Rows
from polarvault.repository.writing.work import (
    Adopt,
    Batch,
    Distrust,
    PieceSlice,
    SmallSlice,
    TableWork,
    Unread,
    Worker,
    whole_piece,
)
from polarvault.storage.objects.store import ObjectStore

_BUFFER_BYTES = 2 << 20
# Overlays that are merged lie in as many packs as there are of them, in each in the order of the files.
_WINDOW_BYTES, _KEPT_BYTES = 256 << 10, 2 << 20
# Of pieces of which nearly all has changed at some time the base is read as well: an index of a busy table has many.
_BASE_WINDOW_BYTES = 1 << 20
# Of files of a few bytes a buffer would hold a hundred thousand, and what is known of each takes more than they do.
_MOST_SLICES = 512


@dataclass(frozen=True, slots=True)
class Member:
    """A file, directory or symbolic link as it comes: path below the part, size in bytes, mtime in seconds."""

    part: int
    path: bytes
    kind: FileKind
    size: int = 0
    mode: int = 0o600
    mtime: int = 0
    link: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a backup that is valid cost. requests: how many objects were put."""

    label: str
    root_hash: bytes
    counts: Counts
    files: int
    packs: int
    requests: int
    unusable: tuple[str, ...] = ()
    """What of the parent's index is damaged; what it covers was stored anew."""


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """How a backup is written. threads: None for as many as there are cores; level: of zstd."""

    level: int = 1
    threads: int | None = None


class UnreadFile(Protocol):
    """A file that is open, and whose parts may be read by several threads at once."""

    def part(self, start: int, size: int) -> Unread:
        """Return a stretch; raise PolarvaultError where the backup has to stop."""


class BackupWriter:
    """Writes one backup; used by one thread. `abandon` after any failure."""

    def __init__(
        self,
        store: ObjectStore,
        codec: Codec,
        names: ClusterNames,
        label: str,
        *,
        parts: Sequence[Part],
        page_key: bytes,
        parent: Parent | None,
        parent_label: str | None,
        settings: WriterSettings | None = None,
        adopt: Adopt = lambda digest: None,
        distrust: Distrust = lambda ref: False,
        moves: Sequence[str] = (),
        lock_s: int | None = None,
    ) -> None:
        self.label = label
        self._store = store
        self._parts = tuple(parts)
        self._objects = BackupObjects(store, codec, names, label, moves=moves, lock_s=lock_s)
        self._parent, self.parent_label = parent, parent_label
        settings = settings or WriterSettings()
        threads = settings.threads or os.cpu_count() or 1
        self._index = parent.index if parent is not None else IndexReader(ChunkReader(store, codec, names))
        chunks = ChunkReader(store, codec, names)
        self._bases = NearbyReader(chunks, window_bytes=_BASE_WINDOW_BYTES, windows=2)
        self._merged = NearbyReader(chunks, window_bytes=_WINDOW_BYTES, windows=4 * OVERLAYS, kept_bytes=_KEPT_BYTES)
        self._packs = PackWriter(store, codec, names, label)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="piece")
        self._free = [bytearray() for _ in range(threads + 1)]
        self._worker = Worker(PageSums(page_key), level=settings.level, adopt=adopt, distrust=distrust)
        self._rows = Rows()
        self._small: dict[int, tuple[OpenRow, FileRow | None]] = {}
        self._assembly = Assembly(
            self._packs,
            self._worker,
            self._pool,
            index=self._index,
            give_back=self._free.append,
            small=self._place_small,
        )
        self._distrust = distrust
        self._batch = self._new_batch()
        self._attachments = Attachments(settings.level)
        self._next_row = 0
        # The member that is being received.
        self._row: OpenRow | None = None
        self._parent_row: FileRow | None = None
        self._left = 0
        self._at = 0
        self._by_pieces = False
        self._tables: list[TableWork] = []
        self._room = 0

    # Members

    def begin(self, member: Member, *, by_pieces: bool = False) -> None:
        """Take the next member; its bytes follow. by_pieces: or `keep_piece` instead of some of them."""
        if self._row is not None:
            raise ValueError("the member before has not ended")
        problem = name_problem(member.path.decode("utf-8", "surrogateescape"))
        if problem is not None or not 0 <= member.part < len(self._parts):
            shown = shown_name(member.path.decode("utf-8", "replace"))
            raise RemoteProtocolError(f"the backup has a member {shown} that no file can be: {problem}")
        row = OpenRow(member.part, member.path, member.kind, member.mode, member.size, member.mtime, member.link)
        self._row, self._left, self._at, self._room, self._tables = row, member.size, 0, 0, []
        self._parent_row = self._find_parent(row) if member.size else None
        self._by_pieces = by_pieces

    def parent_row(self, part: int, path: bytes) -> FileRow | None:
        """Return the row of a file in the parent; None if it is not there, or is no file."""
        if self._parent is None:
            return None
        number = self._parent.part_number(self._parts[part])
        found = None if number is None else self._parent.find(row_key(number, path))
        return found if found is not None and found.kind is FileKind.FILE else None

    def keep_piece(self, pages: Mapping[int, bytes]) -> bool:
        """Take the next piece of the member as the parent has it, but for some pages, without reading it.

        pages: whole ones, by their number in the piece. False: its bytes have to be given.
        """
        row, parent, at = self._row, self._parent_row, self._at
        if row is None or parent is None or row.size <= BUNDLED_BYTES or self._room:
            return False
        length = min(PIECE_BYTES, row.size - at)
        if min(PIECE_BYTES, parent.size - at) != length:
            return False
        work = self._table_at(row, at)
        slot = at % TABLE_BYTES // PIECE_BYTES
        count = -(-length // PAGE_BYTES)
        try:
            found = self._worker.unread(work, slot, pages, count, self._merged.read)
        except (IntegrityError, ObjectMissing):
            return False  # Whoever reads all of it says what is damaged.
        if found is None:
            return False
        outcome, sums = found
        work.sums[slot * PIECE_PAGES : slot * PIECE_PAGES + count] = sums
        self._at += length
        self._left -= length
        self._assembly.take_piece(work, slot, outcome, length)
        return True

    def parent_piece(self) -> bytearray | None:
        """Return the parent's piece at the place where the member is; None: `BackupReader.read` knows better.

        Nothing is taken: its bytes, changed, are to be given.
        """
        row, parent, at = self._row, self._parent_row, self._at
        if row is None or parent is None or parent.bundle is not None or at >= parent.size:
            return None
        known = self._table_at(row, at).parent
        slot = at % TABLE_BYTES // PIECE_BYTES
        if known is None or slot >= len(known.table.pieces):
            return None
        try:
            length = min(PIECE_BYTES, parent.size - at)
            return whole_piece(known.table.pieces[slot], length, self._bases.read, self._merged.read)
        except (IntegrityError, ObjectMissing):
            return None

    def keep_file(self) -> bool:
        """Take all of a small member as the parent has it, without reading it. False: its bytes have to be given."""
        row, parent = self._row, self._parent_row
        if row is None or parent is None or parent.bundle is None or parent.size != row.size or self._at or self._room:
            return False
        self._assembly.counts.read_bytes += row.size
        self._rows.add_bundled(row, parent.bundle, parent.offset, parent.hash)
        self._left = 0
        return True

    def _table_at(self, row: OpenRow, at: int) -> TableWork:
        number = at // TABLE_BYTES
        if number == len(self._tables):
            self._tables.append(self._begin_table(row, number))
        return self._tables[-1]

    def data(self, views: Iterable[Buffer]) -> None:
        """Take the next bytes of the member; the views may be reused when it returns."""
        for view in views:
            at, length = 0, len(view)
            if length > self._left:
                raise RemoteProtocolError(f"{self._shown()} is longer than its header says")
            while at < length:
                if not self._room:
                    self._open_slice()
                take = min(self._room, length - at)
                batch = self._batch
                batch.buffer[batch.filled : batch.filled + take] = view[at : at + take]
                batch.filled += take
                at += take
                self._at += take
                self._room -= take
                self._left -= take

    def fill(self, content: UnreadFile) -> None:
        """Take all bytes of the member from a file that nobody has read: the workers do, into their own buffers."""
        while self._left:
            self._open_slice()
            batch, length = self._batch, self._room
            batch.slices[-1].unread = content.part(self._at, length)
            batch.filled += length
            self._at += length
            self._left -= length
            self._room = 0

    def drain(self) -> None:
        """Return when the workers have read all files that were taken so far."""
        self._flush_batch()
        self._assembly.wait_for_buffers()

    def end(self) -> None:
        """The member is complete."""
        row = self._row
        if row is None:
            raise ValueError("no member has begun")
        if self._left:
            raise RemoteProtocolError(f"{self._shown()} lacks {self._left} bytes at its end")
        self._row = None
        if not row.size:
            self._rows.add_plain(row)
        elif self._tables:
            self._rows.add_long(row, [work.ref for work in self._tables])
            self._tables = []
        self._assembly.take_ended()

    def attach(self, name: str, parts: Iterable[Buffer]) -> None:
        """Keep a manifest, or another file that describes the backup and is no member of it."""
        self._attachments.add(name, parts)

    # The end

    def commit(self, facts: RecordFacts) -> Outcome:
        """Write the index, and last the record: on return the backup is valid and durable."""
        puts = self._store.counts().puts
        self._flush_batch()
        self._assembly.finish()
        files = self._write_files()
        written = self._packs.finish()
        self._pool.shutdown()
        live = self._assembly.usage.live
        self._objects.check_packs(written, live)
        raw = encode_root(self._parts, files)
        outcome = Outcome(
            self.label,
            root_hash(raw),
            replace(self._assembly.counts),
            len(self._rows),
            len(written),
            self._store.counts().puts - puts,
            (*(self._parent.unusable if self._parent is not None else ()), *self._assembly.unusable),
        )
        self._objects.put_attachments(self._attachments)
        self._objects.put_root(raw)
        self._objects.put_refs(written, live)
        self._objects.lock(live)
        self._objects.put_record(facts, outcome.root_hash, self.parent_label, asdict(outcome.counts))
        return outcome

    def abandon(self) -> None:
        """Stop after a failure. What was written stays, for the next backup to adopt; safe to call twice."""
        self._assembly.abandon()
        self._pool.shutdown(cancel_futures=True)
        self._packs.abandon()

    # Slices and buffers

    def _open_slice(self) -> None:
        """Make room for the next bytes of the member: a whole small file, or pieces of one table."""
        row = self._row
        assert row is not None
        if row.size <= BUNDLED_BYTES:
            self._room = row.size
            room = len(self._batch.buffer) - self._batch.filled
            if room < row.size or len(self._batch.slices) >= _MOST_SLICES:
                self._flush_batch()
            parent = self._parent_row
            number = self._next_row
            self._next_row += 1
            self._small[number] = row, parent
            evidence = parent.hash if parent is not None else None
            self._batch.slices.append(SmallSlice(self._batch.filled, row.size, number, evidence))
            return
        work = self._table_at(row, self._at)
        offset = self._at % TABLE_BYTES
        rest = min(PIECE_BYTES if self._by_pieces else TABLE_BYTES - offset, row.size - self._at)
        room = len(self._batch.buffer) - self._batch.filled
        if room < rest:
            room = room // PIECE_BYTES * PIECE_BYTES
        if not room:
            self._flush_batch()
            room = len(self._batch.buffer)
        self._room = min(room, rest)
        self._batch.slices.append(PieceSlice(self._batch.filled, self._room, work, offset // PIECE_BYTES))

    def _begin_table(self, row: OpenRow, number: int) -> TableWork:
        pages = _pages(row.size, number)
        parent = self._parent_row
        if parent is None or number >= len(parent.tables):
            return TableWork(None, None, parent_pages=0, pages=pages)
        try:
            stored = self._index.table(parent.tables[number])
        except (IntegrityError, ObjectMissing) as problem:
            # What is damaged is no evidence: this part of the file is stored as if there were no parent.
            self._assembly.unusable.append(problem.message)
            return TableWork(None, None, parent_pages=0, pages=pages)
        return TableWork(self._index, stored, parent_pages=_pages(parent.size, number), pages=pages)

    def _find_parent(self, row: OpenRow) -> FileRow | None:
        """Return the parent's row if it is of the same form and can be evidence."""
        if self._parent is None:
            return None
        part = self._parent.part_number(self._parts[row.part])
        found = None if part is None else self._parent.find(row_key(part, row.path))
        if found is None or found.kind is not FileKind.FILE:
            return None
        if (found.bundle is not None) != (row.size <= BUNDLED_BYTES) or bool(found.tables) != bool(
            table_count(row.size)
        ):
            return None
        if found.bundle is not None and (found.size != row.size or self._distrust(found.bundle)):
            return None
        return found

    def _new_batch(self) -> Batch:
        while not self._free:
            self._assembly.wait_for_one()
        buffer = self._free.pop()
        if not buffer:
            buffer.extend(bytes(_BUFFER_BYTES))
        return Batch(buffer)

    def _flush_batch(self) -> None:
        if self._batch.slices:
            self._assembly.submit(self._batch)
            self._batch = self._new_batch()

    def _place_small(self, number: int, bundle: AnyRef | None, offset: int, digest: bytes) -> None:
        row, parent = self._small.pop(number)
        if bundle is None:
            # Nothing was stored for it: it is as the parent has it.
            assert parent is not None
            assert parent.bundle is not None
            bundle, offset = parent.bundle, parent.offset
        self._rows.add_bundled(row, bundle, offset, digest)

    def _shown(self) -> str:
        assert self._row is not None
        return shown_name(self._row.path.decode("utf-8", "replace"))

    # The index

    def _write_files(self) -> list[FilesChunk]:
        kept = self._parent.files_chunks if self._parent is not None else {}
        usage = self._assembly.usage
        found = []
        for rows in cut_rows(iter(self._rows)):
            for row in rows:
                if row.bundle is not None:
                    usage.add(row.bundle, used=row.size, of=row.bundle.raw)
            raw = encode_files(rows)
            same = kept.get(blake3(raw).digest())
            ref = same.ref if same is not None else self._assembly.place_index(ChunkKind.FILES, raw)
            usage.add(ref)
            found.append(FilesChunk(ref, len(rows)))
        return found


def _pages(size: int, table: int) -> int:
    return -(-min(size - table * TABLE_BYTES, TABLE_BYTES) // PAGE_BYTES)
