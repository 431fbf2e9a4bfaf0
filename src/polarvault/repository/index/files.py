"""The table of files: rows sorted by part and path, in chunks of about a thousand, as columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy
from blake3 import blake3

from polarvault.errors import ObjectDamaged
from polarvault.model.names import name_problem, shown_name
from polarvault.repository.format import columns
from polarvault.repository.format.chunks import (
    BUNDLE_BYTES,
    BUNDLED_BYTES,
    HASH_BYTES,
    TABLE_BYTES,
    ChunkRef,
    Moved,
    References,
    parse_references,
    referred,
)

_LEAST_ROWS, _MOST_ROWS, _CUT = 64, 8192, 1024
_MOST_TEXT_BYTES = 1 << 20
_SIGN = 1 << 63


class FileKind(IntEnum):
    """What a row is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file, directory or link of a backup.

    path: bytes as the server sent them, relative to its part. bundle, offset, hash: of a file of 1 byte to 64 KiB.
    tables: of a longer one, one for each GiB that was begun.
    """

    part: int
    path: bytes
    kind: FileKind
    mode: int
    size: int
    mtime: int
    link: bytes = b""
    bundle: ChunkRef | None = None
    offset: int = 0
    hash: bytes = b""
    tables: tuple[ChunkRef, ...] = ()

    @property
    def key(self) -> bytes:
        """What rows are sorted by."""
        return row_key(self.part, self.path)

    @property
    def name(self) -> str:
        """The path as text; bytes that are no UTF-8 survive."""
        return self.path.decode("utf-8", "surrogateescape")


def row_key(part: int, path: bytes) -> bytes:
    """Return what tells a file of a backup from the others."""
    return part.to_bytes(2, "big") + path


def table_count(size: int) -> int:
    """Return how many tables a file of a size has."""
    return -(-size // TABLE_BYTES) if size > BUNDLED_BYTES else 0


def cut_rows(rows: Iterator[FileRow]) -> Iterator[list[FileRow]]:
    """Yield the rows of each chunk; where a chunk ends depends on the paths alone, so that most stay as they were."""
    gathered: list[FileRow] = []
    text = 0
    for row in rows:
        length = len(row.path) + len(row.link) + 2
        if gathered and text + length > _MOST_TEXT_BYTES:
            yield gathered
            gathered, text = [], 0
        gathered.append(row)
        text += length
        is_cut = len(gathered) >= _LEAST_ROWS and _number_of(row) % _CUT == 0
        if is_cut or len(gathered) == _MOST_ROWS:
            yield gathered
            gathered, text = [], 0
    if gathered:
        yield gathered


def _number_of(row: FileRow) -> int:
    return int.from_bytes(blake3(row.part.to_bytes(2, "little") + row.path).digest(length=4), "little")


def encode_files(rows: Sequence[FileRow]) -> bytes:
    """Return a files chunk."""
    refs = References()
    bundled = [row for row in rows if row.bundle is not None]
    bundles = [refs.position(row.bundle) for row in bundled if row.bundle is not None]
    tables = [refs.position(ref) for row in rows for ref in row.tables]
    hashes = numpy.frombuffer(b"".join(row.hash for row in bundled), numpy.uint8).reshape(len(bundled), HASH_BYTES)
    return columns.encode(
        {
            1: numpy.array([row.part for row in rows], "<u2"),
            2: numpy.frombuffer(b"".join(row.path + b"\0" for row in rows), numpy.uint8),
            3: numpy.array([row.kind for row in rows], numpy.uint8),
            4: numpy.array([row.mode for row in rows], "<u4"),
            5: numpy.array([row.size for row in rows], "<u8"),
            6: numpy.array([row.mtime % (1 << 64) for row in rows], "<u8"),
            7: numpy.frombuffer(
                b"".join(row.link + b"\0" for row in rows if row.kind is FileKind.SYMLINK), numpy.uint8
            ),
            8: numpy.array(bundles, "<u4"),
            9: numpy.array([row.offset for row in bundled], "<u4"),
            10: hashes,
            11: numpy.array(tables, "<u4"),
            **refs.columns(),
        }
    )


def parse_files(content: memoryview, what: str, moved: Moved | None = None) -> list[FileRow]:
    """Return the rows of a files chunk; raise ObjectDamaged for anything that no backup has."""
    found = columns.Columns(content, what)
    refs = parse_references(found, what, moved)
    parts = found.numbers(1, 2).tolist()
    count = len(parts)
    if count > _MOST_ROWS:
        raise ObjectDamaged(f"{what} has {count} rows")
    paths = _texts(found.blob(2), count, what)
    kinds = found.numbers(3, 1, count).tolist()
    if not set(kinds) <= {1, 2, 3}:
        raise ObjectDamaged(f"{what} has files of an unknown kind")
    modes, sizes, times = (found.numbers(column, size, count).tolist() for column, size in ((4, 4), (5, 8), (6, 8)))
    links = iter(_texts(found.blob(7), kinds.count(FileKind.SYMLINK), what))
    is_bundled = [kind == FileKind.FILE and 0 < size <= BUNDLED_BYTES for kind, size in zip(kinds, sizes, strict=True)]
    bundles = iter(found.numbers(8, 4, sum(is_bundled)).tolist())
    offsets = iter(found.numbers(9, 4, sum(is_bundled)).tolist())
    hashes = iter(found.bytes_of(10, HASH_BYTES, sum(is_bundled)))
    tables = found.numbers(11, 4).tolist()
    rows, at = [], 0
    for number, part in enumerate(parts):
        kind, size = FileKind(kinds[number]), sizes[number]
        _check_row(paths[number], kind, size, what)
        link = next(links) if kind is FileKind.SYMLINK else b""
        bundle, offset, digest = None, 0, b""
        own = table_count(size) if kind is FileKind.FILE else 0
        if is_bundled[number]:
            bundle, offset = referred(refs, next(bundles), what), next(offsets)
            digest = next(hashes).tobytes()
            if bundle.raw > BUNDLE_BYTES or offset + size > bundle.raw:
                raise ObjectDamaged(
                    f"{what} places {shown_name(paths[number].decode(errors='replace'))} outside of its bundle"
                )
        if own > len(tables) - at:
            raise ObjectDamaged(f"{what} has fewer tables than its files need")
        mine = tuple(referred(refs, position, what) for position in tables[at : at + own])
        at += own
        mtime = times[number] - (1 << 64) if times[number] >= _SIGN else times[number]
        rows.append(FileRow(part, paths[number], kind, modes[number], size, mtime, link, bundle, offset, digest, mine))
    if at != len(tables):
        raise ObjectDamaged(f"{what} has more tables than its files need")
    if any(one.key >= other.key for one, other in itertools.pairwise(rows)):
        raise ObjectDamaged(f"{what} has rows that are not sorted")
    return rows


def _check_row(path: bytes, kind: FileKind, size: int, what: str) -> None:
    text = path.decode("utf-8", "surrogateescape")
    problem = name_problem(text)
    if problem is not None:
        raise ObjectDamaged(f"{what} has the name {shown_name(text)}, which no file can have: {problem}")
    if size >= _SIGN or (size and kind is not FileKind.FILE):
        raise ObjectDamaged(f"{what} gives {shown_name(text)} a size that it cannot have")


def _texts(blob: bytes, count: int, what: str) -> list[bytes]:
    texts = blob.split(b"\0")
    if texts.pop() or len(texts) != count:
        raise ObjectDamaged(f"{what} has names that are not as many as its rows")
    return texts
