"""Verify a backup: every chunk read, opened, decoded and hashed; content against page sums; packs against refs.

Damage is a result here and belongs to a chunk, and through it to files and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from blake3 import blake3

from polarvault.errors import IntegrityError, ObjectMissing, PolarvaultError, RepositoryNewer
from polarvault.model import limits
from polarvault.repository.chunks.reader import runs
from polarvault.repository.format.chunks import (
    HASH_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    PIECE_PAGES,
    TABLE_BYTES,
    ChunkRef,
)
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import DIGEST_BYTES, Kind, parse_header
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.moves.reading import existing, read_moves
from polarvault.repository.reading.backup_reader import BackupReader, Extent, add_piece
from polarvault.repository.reading.refs import read_refs
from polarvault.repository.sums.definition import PageSums
from polarvault.storage.objects.store import ObjectStore

_GROUP_PIECES = 32
_BUNDLED_ROWS = 4096
_TABLE_PAGES = TABLE_BYTES // PAGE_BYTES
# A flipped bit can make an object look newer than the program.
_WRONG = (IntegrityError, ObjectMissing, RepositoryNewer)


@dataclass(frozen=True, slots=True)
class FoundDamage:
    """Something that is wrong: in words, the chunk if it is one, and the file and block that it is needed for."""

    message: str
    chunk: ChunkRef | None = None
    path: str = ""
    block: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """Small files, or one table of a longer file."""

    rows: Sequence[FileRow]
    table: int | None = None


def verify_backup(
    reader: BackupReader, page_key: bytes, pool: Executor, *, is_drawn: Callable[[], bool] | None = None
) -> Iterator[FoundDamage]:
    """Yield everything that is wrong with the content of a backup; record and root were compared when it was opened.

    is_drawn: asked for each part (some thousand small files, or a GiB of a long one), whether it is read.
    """
    sums = PageSums(page_key)
    try:
        jobs = [job for job in _jobs(reader) if is_drawn is None or is_drawn()]
    except _WRONG as problem:
        yield FoundDamage(problem.message)
        return
    for found in pool.map(lambda job: list(_verify_job(reader, job, sums)), jobs):
        yield from found


def _jobs(reader: BackupReader) -> Iterator[_Job]:
    small: list[FileRow] = []
    for row in reader.rows():
        if row.kind is not FileKind.FILE or not row.size:
            continue
        if row.bundle is None:
            yield from (_Job([row], number) for number in range(len(row.tables)))
            continue
        small.append(row)
        if len(small) == _BUNDLED_ROWS:
            yield _Job(small)
            small = []
    if small:
        yield _Job(small)


def _verify_job(reader: BackupReader, job: _Job, sums: PageSums) -> Iterator[FoundDamage]:
    if job.table is None:
        yield from _verify_small(reader, job.rows, sums)
        return
    row = job.rows[0]
    try:
        yield from _verify_table(reader, row, job.table, sums)
    except _WRONG as problem:
        yield FoundDamage(problem.message, row.tables[job.table], row.name, job.table * _TABLE_PAGES)


def _verify_small(reader: BackupReader, rows: Sequence[FileRow], sums: PageSums) -> Iterator[FoundDamage]:
    by_bundle: dict[ChunkRef, list[Extent]] = {}
    for row in rows:
        assert row.bundle is not None
        by_bundle.setdefault(row.bundle, []).append(Extent(row, 0, row.offset, row.size))
    for ref, content in _read(reader, by_bundle):
        for extent in by_bundle[ref]:
            if isinstance(content, str):
                yield FoundDamage(content, ref, extent.row.name, 0)
                continue
            own = bytearray(content[extent.chunk_offset : extent.chunk_offset + extent.length])
            if _hash(sums.of(own).tobytes()) != extent.row.hash:
                yield FoundDamage("its content and its page sums do not agree", ref, extent.row.name, 0)


def _verify_table(reader: BackupReader, row: FileRow, number: int, sums: PageSums) -> Iterator[FoundDamage]:
    stored = reader.index.table(row.tables[number])
    reader.check_pieces(row, number, stored.table)
    size = min(row.size - number * TABLE_BYTES, TABLE_BYTES)
    kept = reader.index.sums(stored.table.sums, -(-size // PAGE_BYTES))
    for first in range(0, len(stored.table.pieces), _GROUP_PIECES):
        pieces = stored.table.pieces[first : first + _GROUP_PIECES]
        start = number * TABLE_BYTES + first * PIECE_BYTES
        content = bytearray(min(row.size - start, len(pieces) * PIECE_BYTES))
        extents: dict[ChunkRef, list[Extent]] = {}
        for place, piece in enumerate(pieces):
            add_piece(extents, row, start + place * PIECE_BYTES, piece)
        lost: set[int] = set()
        for ref, raw in _read(reader, extents):
            for extent in extents[ref]:
                at = extent.file_offset - start
                problem = raw if isinstance(raw, str) else None
                if problem is None and extent.chunk_offset + extent.length > len(raw):
                    problem = "the chunk is too short for the pages that it must have"
                if problem is not None or isinstance(raw, str):
                    lost.add(at // PIECE_BYTES)
                    yield FoundDamage(problem or "", ref, row.name, extent.file_offset // PAGE_BYTES)
                    continue
                content[at : at + extent.length] = raw[extent.chunk_offset : extent.chunk_offset + extent.length]
        mine = sums.of(content)
        for place, piece in enumerate(pieces):
            page = (first + place) * PIECE_PAGES
            known = kept[page : page + PIECE_PAGES].tobytes()
            block = number * _TABLE_PAGES + page
            if _hash(known) != piece.hash:
                yield FoundDamage("page sums and the hash of their piece do not agree", None, row.name, block)
            elif place not in lost and mine[place * PIECE_PAGES : (place + 1) * PIECE_PAGES].tobytes() != known:
                yield FoundDamage("the content and its page sums do not agree", None, row.name, block)


def _read(reader: BackupReader, wanted: dict[ChunkRef, list[Extent]]) -> Iterator[tuple[ChunkRef, memoryview | str]]:
    """Yield the chunks as they lie, each with its raw bytes or with what is wrong with it."""
    for run in runs(list(wanted)):
        for ref, raw in reader.chunks.read_run(run):
            yield ref, raw.message if isinstance(raw, PolarvaultError) else raw


def _hash(sums: bytes) -> bytes:
    return blake3(sums).digest(length=HASH_BYTES)


def verify_objects(
    store: ObjectStore, codec: Codec, names: ClusterNames, label: str, *, is_drawn: Callable[[], bool] | None = None
) -> Iterator[FoundDamage]:
    """Yield what is wrong with the objects of a backup as objects: hashes, sizes, packs that `refs` names.

    Packs that it wrote are read whole, if is_drawn says so; those of other backups must be there, and are compared with
    their own.
    """
    for part, kind in (("record", Kind.RECORD), ("root", Kind.ROOT), ("manifest", Kind.MANIFEST)):
        name = names.backup(label, part)
        yield from _verify_object(store, codec, name, [kind], None)
    try:
        refs = read_refs(store, codec, names, label)
    except _WRONG as problem:
        yield FoundDamage(problem.message)
        return
    moves = read_moves(store, codec, names.cluster)
    followed = moves.followed_by(label, refs.moves, existing(store, names))
    own = {(one.label, one.number): one.digest for one in refs.packs}
    for pack in sorted(followed.needed(refs.named), key=lambda pack: (pack[0] != label, pack)):
        name = names.pack(*pack)
        digest = own.get(pack)
        if digest is not None and (is_drawn is None or is_drawn()):
            yield from _verify_object(store, codec, name, [Kind.DATA_PACK, Kind.INDEX_PACK], digest)
            continue
        try:
            store.stat(name)
        except _WRONG as problem:
            yield FoundDamage(problem.message)


def _verify_object(
    store: ObjectStore, codec: Codec, name: str, kinds: list[Kind], digest: bytes | None
) -> Iterator[FoundDamage]:
    try:
        content = store.get(name, most_bytes=limits.PARSED_MANIFEST_BYTES)
        codec.open(name, kinds, content)
        end = len(content) - parse_header(name, content).trailer_bytes
        if digest is not None and content[end : end + DIGEST_BYTES] != digest:
            yield FoundDamage(f'"{name}" is another pack than the one that refs names')
    except _WRONG as problem:
        yield FoundDamage(problem.message)
