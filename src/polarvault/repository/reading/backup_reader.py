"""Read a backup: record, root, table of files; whole files, ranges, and everything in shares for a parallel restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from polarvault.errors import ObjectDamaged, PolarvaultError
from polarvault.model import limits
from polarvault.repository.chunks.reader import ChunkReader, open_pack, runs
from polarvault.repository.format.chunks import (
    PAGE_BYTES,
    PIECE_BYTES,
    TABLE_BYTES,
    ChunkKind,
    ChunkRef,
    Moved,
    placed,
)
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.documents import Fields, parse_json
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import BackupRecord
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.index.reader import IndexReader
from polarvault.repository.index.root import Root, parse_root, root_hash
from polarvault.repository.index.tables import ALL_PAGES, Piece, Table, newest_pages, page_runs
from polarvault.repository.moves.packs import Followed
from polarvault.repository.moves.reading import FoundMoves, existing, moved_chunks, read_moves
from polarvault.repository.reading.records import read_record
from polarvault.repository.reading.refs import UsedPack, read_refs, understood_moves
from polarvault.storage.objects.store import ObjectStore

# What one share covers at most: small enough that several fit into memory as indexes, large enough to read forward.
SHARE_BYTES = 64 << 20
_SHARE_ROWS = 4096
_STREAMED_PIECES = 32


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a chunk and where in a file they belong."""

    row: FileRow
    file_offset: int
    chunk_offset: int
    length: int


# Gets the bytes of an extent; each byte of a file comes exactly once, in any order.
Deliver = Callable[[FileRow, int, memoryview], None]
# Returns for each extent of a damaged chunk bytes to take instead, or why there are none; exactly: the same ones only,
# not others that a recovery makes the same.
Rescuer = Callable[[Sequence[Extent], bool], "Sequence[bytes | str]"]
# Gets every reference of an index as it stands there, and the one to the place at which its chunk is now.
Watch = Callable[[ChunkRef, ChunkRef], None]


class BackupReader:
    """One backup; may be used by several threads once it is open."""

    def __init__(
        self, store: ObjectStore, codec: Codec, names: ClusterNames, record: BackupRecord, root: Root,
        *, moves: FoundMoves, moved: Moved | None,
    ) -> None:  # fmt: skip
        self.record = record
        self.root = root
        self.moves = moves
        self.rescue: Rescuer | None = None
        """Where `deliver_extents` looks for what is damaged."""
        self._store, self._codec, self._names = store, codec, names
        self.chunks = ChunkReader(store, codec, names)
        self.index = IndexReader(self.chunks, moved)

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        codec: Codec,
        names: ClusterNames,
        label: str,
        *,
        watch: Watch | None = None,
    ) -> BackupReader:
        """Read record and root, and compare them; RepositoryNotFound if there is no such backup.

        What compaction has moved is found where it is now; an object of moves that is damaged is left out, so that only
        what it leads to cannot be read.
        """
        record = read_record(store, codec, names, label)
        name = names.backup(label, "root")
        document = codec.read_document(
            Kind.ROOT, name, store.get(name, most_bytes=limits.ROOT_BYTES), most_bytes=limits.ROOT_BYTES
        )
        if root_hash(document.sealed) != record.root_hash:
            raise ObjectDamaged(f'"{name}" is not the root that the record of the backup names')
        moves = read_moves(store, codec, names.cluster)
        moved = None
        if moves.moves or watch is not None:
            known = understood_moves(store, codec, names, label, moves)
            moved = _moved(moves, moves.followed_by(label, known, existing(store, names)), watch)
        root = parse_root(document.sealed, f'"{name}"', moved)
        return cls(store, codec, names, record, root, moves=moves, moved=moved)

    def packs(self) -> list[UsedPack]:
        """Return the packs that its `refs` names, its own and others'; some may have been replaced since."""
        return read_refs(self._store, self._codec, self._names, self.record.label).packs

    def rows(self) -> Iterator[FileRow]:
        """Yield all files, directories and links, sorted by part and path; a thousand are in memory."""
        for chunk in self.root.files:
            for row in self.index.files(chunk):
                if row.part >= len(self.root.parts):
                    raise ObjectDamaged(f"the backup {self.record.label} has a file of part {row.part}, which it lacks")
                yield row

    def read(self, row: FileRow, offset: int, length: int) -> bytes:
        """Return bytes of a file; those behind its end are not there. ObjectDamaged names file and block."""
        end = min(offset + length, row.size)
        if offset >= end:
            return b""
        result = bytearray(end - offset)
        extents = self._extents(row, offset, end)

        def put(row: FileRow, at: int, view: memoryview) -> None:
            first, last = max(at, offset), min(at + len(view), end)
            if first < last:
                result[first - offset : last - offset] = view[first - at : last - at]

        deliver_extents(self, extents, put, exactly=True)
        return bytes(result)

    def shares(self, wanted: Callable[[FileRow], bool] = lambda row: True) -> Iterator[Share]:
        """Yield the contents of the wanted files in shares that can be delivered in parallel; none of empty files.

        wanted is asked about every row, directories and links as well, in order.
        """
        gathered: list[FileRow] = []
        size = 0
        for row in self.rows():
            if not wanted(row) or row.kind is not FileKind.FILE or not row.size:
                continue
            if row.size > SHARE_BYTES:
                for start in range(0, row.size, SHARE_BYTES):
                    yield Share(self, [row], start)
                continue
            if gathered and (size + row.size > SHARE_BYTES or len(gathered) == _SHARE_ROWS):
                yield Share(self, gathered)
                gathered, size = [], 0
            gathered.append(row)
            size += row.size
        if gathered:
            yield Share(self, gathered)

    def stream(self, row: FileRow) -> Iterator[memoryview]:
        """Yield a file's bytes from first to last, at most 8 MiB at a time; for who cannot take them in any order.

        Raises ObjectDamaged that names the block.
        """
        if not row.size:
            return
        if row.bundle is not None:
            yield self._fill(0, {row.bundle: [Extent(row, 0, row.offset, row.size)]}, row.size)
            return
        for number, ref in enumerate(row.tables):
            table = self.index.table(ref).table
            self.check_pieces(row, number, table)
            for first in range(0, len(table.pieces), _STREAMED_PIECES):
                start = number * TABLE_BYTES + first * PIECE_BYTES
                extents: dict[ChunkRef, list[Extent]] = {}
                for place, piece in enumerate(table.pieces[first : first + _STREAMED_PIECES]):
                    add_piece(extents, row, start + place * PIECE_BYTES, piece)
                rest = min(row.size, (number + 1) * TABLE_BYTES) - start
                yield self._fill(start, extents, min(rest, _STREAMED_PIECES * PIECE_BYTES))

    def _fill(self, start: int, extents: dict[ChunkRef, list[Extent]], length: int) -> memoryview:
        content = bytearray(length)

        def put(row: FileRow, offset: int, view: memoryview) -> None:
            content[offset - start : offset - start + len(view)] = view

        deliver_extents(self, extents, put, exactly=True)
        return memoryview(content)

    def attachment(self, name: str) -> bytes | None:
        """Return what was attached under a name; None if nothing was."""
        return self.attachments().get(name)

    def attachments(self) -> dict[str, bytes]:
        """Return manifests and what else was attached, by name."""
        name = self._names.backup(self.record.label, "manifest")
        content = self._store.get(name, most_bytes=limits.PARSED_MANIFEST_BYTES)
        chunks = list(open_pack(self._codec, name, [Kind.MANIFEST], content))
        if not chunks or chunks[-1][0].kind is not ChunkKind.ATTACHMENTS:
            raise ObjectDamaged(f'"{name}" does not end with the list of what it holds')
        listed = Fields(parse_json(chunks.pop()[1], f'"{name}"'), f'"{name}"').items("attachments")
        found, at = {}, 0
        for one in listed:
            fields = Fields(one if isinstance(one, dict) else {}, f'"{name}"')
            count = fields.number("chunks", most=len(chunks) - at)
            content = b"".join(raw for _, raw in chunks[at : at + count])
            at += count
            if len(content) != fields.number("size") or blake3(content).hexdigest() != fields.text("blake3"):
                raise ObjectDamaged(f'"{name}" has an attachment that is not what its list says')
            found[fields.text("name")] = content
        return found

    def _extents(self, row: FileRow, first: int, end: int) -> dict[ChunkRef, list[Extent]]:
        """Return which chunks the bytes from first to before end are in."""
        if row.bundle is not None:
            return {row.bundle: [Extent(row, 0, row.offset, row.size)]}
        found: dict[ChunkRef, list[Extent]] = {}
        for table in range(first // TABLE_BYTES, -(-end // TABLE_BYTES)):
            self.add_table(found, row, table, first, end)
        return found

    def add_table(self, found: dict[ChunkRef, list[Extent]], row: FileRow, table: int, first: int, end: int) -> None:
        """Add the extents of one table of a file that lie between two offsets."""
        stored = self.index.table(row.tables[table]).table
        self.check_pieces(row, table, stored)
        for number, piece in enumerate(stored.pieces):
            start = table * TABLE_BYTES + number * PIECE_BYTES
            if start < end and start + PIECE_BYTES > first:
                add_piece(found, row, start, piece)

    def check_pieces(self, row: FileRow, number: int, table: Table) -> None:
        """Raise ObjectDamaged if a table has not as many pieces as the size of its file needs."""
        size = min(row.size - number * TABLE_BYTES, TABLE_BYTES)
        if len(table.pieces) != -(-size // PIECE_BYTES):
            raise ObjectDamaged(
                f"table {number} of {row.name!r} has {len(table.pieces)} pieces, and its {size} bytes need others"
            )


def _moved(moves: FoundMoves, followed: Followed, watch: Watch | None) -> Moved:
    resolve = moved_chunks(moves, followed).resolve
    if watch is None:
        return resolve

    def seen(ref: ChunkRef) -> ChunkRef:
        found = resolve(ref)
        watch(ref, found)
        return found

    return seen


def add_piece(
    found: dict[ChunkRef, list[Extent]], row: FileRow, start: int, piece: Piece, wanted: int = ALL_PAGES
) -> None:
    """Add where the pages of a piece are; the newest of each page, so that chunks may be read in any order.

    wanted: a bitmap of pages.
    """
    length = min(row.size - start, PIECE_BYTES)
    left, overlays = newest_pages(piece, -(-length // PAGE_BYTES))

    def add(ref: ChunkRef, page: int, place: int, count: int) -> None:
        size = min(count * PAGE_BYTES, length - page * PAGE_BYTES)
        found.setdefault(ref, []).append(Extent(row, start + page * PAGE_BYTES, place * PAGE_BYTES, size))

    for page, place, count in page_runs(ALL_PAGES, left & wanted, 0):
        add(placed(piece.base), page, place, count)
    for overlay, taken in overlays:
        for page, place, count in page_runs(overlay.bitmap, taken & wanted, overlay.first):
            add(placed(overlay.chunk), page, place, count)


def unreadable(row: FileRow, extent: Extent, ref: ChunkRef, problem: PolarvaultError) -> ObjectDamaged:
    """Return the error for damage that a file needs: it names file, block and chunk."""
    damaged = ObjectDamaged(
        f"{row.name!r} cannot be read at block {extent.file_offset // PAGE_BYTES}: {problem.message}",
        hint="restore an older backup, or get the pack back from another copy of the repository",
    )
    damaged.chunk = ref
    return damaged


def _cut(raw: memoryview, start: int, length: int, chunk: ChunkRef) -> memoryview:
    if start + length > len(raw):
        raise ObjectDamaged(
            f"chunk {chunk.number} of pack {chunk.label}/{chunk.pack:06} has {len(raw)} bytes, and a file needs more"
        )
    return raw[start : start + length]


class Share:
    """Contents of some files, or of a stretch of a large one, read in the order in which they lie in packs.

    start: where in its file the stretch begins, a multiple of a share's size; a table has a whole number of them.
    """

    def __init__(self, reader: BackupReader, rows: Sequence[FileRow], start: int = 0) -> None:
        self.rows = rows
        self._reader = reader
        self._start = start

    def deliver(self, deliver: Deliver, stop: Callable[[], bool] = lambda: False) -> None:
        """Hand out every byte once. On a damaged chunk raise ObjectDamaged that names the first file and block."""
        extents: dict[ChunkRef, list[Extent]] = {}
        for row in self.rows:
            if row.bundle is not None:
                extents.setdefault(row.bundle, []).append(Extent(row, 0, row.offset, row.size))
            else:
                end = min(row.size, self._start + SHARE_BYTES)
                self._reader.add_table(extents, row, self._start // TABLE_BYTES, self._start, end)
        deliver_extents(self._reader, extents, deliver, stop)


def deliver_extents(
    reader: BackupReader,
    extents: Mapping[ChunkRef, Sequence[Extent]],
    deliver: Deliver,
    stop: Callable[[], bool] = lambda: False,
    *,
    exactly: bool = False,
) -> None:
    """Hand out what chunks are needed for, in the order in which they lie; ObjectDamaged names file and block.

    exactly: only the very same bytes may replace damaged ones, because it is no recovering server that gets them.
    """
    for run in runs(list(extents)):
        if stop():
            return
        for ref, raw in reader.chunks.read_run(run):
            if isinstance(raw, PolarvaultError):
                for extent, content in zip(
                    extents[ref], _rescued(reader, extents[ref], ref, raw, exactly=exactly), strict=True
                ):
                    deliver(extent.row, extent.file_offset, content)
                continue
            for extent in extents[ref]:
                deliver(extent.row, extent.file_offset, _cut(raw, extent.chunk_offset, extent.length, ref))


def _rescued(
    reader: BackupReader, extents: Sequence[Extent], ref: ChunkRef, problem: PolarvaultError, *, exactly: bool
) -> list[memoryview]:
    found = reader.rescue(extents, exactly) if reader.rescue is not None else [""] * len(extents)
    for extent, content in zip(extents, found, strict=True):
        if isinstance(content, str):
            damaged = _damaged(reader, extent, ref, problem)
            damaged.message += f"; {content}" if content else ""
            raise damaged from problem
    return [memoryview(content) for content in found if not isinstance(content, str)]


def _damaged(reader: BackupReader, extent: Extent, ref: ChunkRef, problem: PolarvaultError) -> ObjectDamaged:
    damaged = unreadable(extent.row, extent, ref, problem)
    if reader.moves.problems:
        damaged.message += f"; what compaction has moved may be elsewhere, but {reader.moves.problems[0]}"
    return damaged
