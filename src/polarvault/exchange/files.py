"""The members of a stored backup in order, with their contents, as an archive's events; read ahead by several threads.

Each file is compared with the manifest as its bytes pass.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from polarvault.errors import IntegrityError, ObjectMissing
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind, TarEvent
from polarvault.repository.format.chunks import ChunkRef
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.backup_reader import BackupReader, Extent, unreadable

_BLOCK_BYTES = 4 << 20
# Blocks that are read, or wait to be taken: at most 64 MiB.
_AHEAD = 16
# Small files lie in the order in which the server sent them, and are asked for by name.
_KEPT_BUNDLES = 32
_KINDS = {
    FileKind.FILE: MemberKind.FILE,
    FileKind.DIRECTORY: MemberKind.DIRECTORY,
    FileKind.SYMLINK: MemberKind.SYMLINK,
}


class StoredFiles:
    """Reads the files of one backup; use it in a with statement, which ends its threads."""

    def __init__(self, reader: BackupReader, *, threads: int) -> None:
        self._reader = reader
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="export")
        self._lock = threading.Lock()
        self._bundles: OrderedDict[ChunkRef, memoryview] = OrderedDict()

    def __enter__(self) -> StoredFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def events(self, rows: Iterable[FileRow]) -> Iterator[tuple[FileRow, TarEvent]]:
        """Yield what a tar reader would yield of an archive that holds these rows."""
        waiting: deque[tuple[FileRow, int, Future[memoryview] | None]] = deque()
        for row, offset, length in _blocks(rows):
            waiting.append((row, offset, self._pool.submit(self._read, row, offset, length) if length else None))
            if len(waiting) == _AHEAD:
                yield from _events(*waiting.popleft())
        while waiting:
            yield from _events(*waiting.popleft())

    def _read(self, row: FileRow, offset: int, length: int) -> memoryview:
        if row.bundle is None:
            return memoryview(self._reader.read(row, offset, length))
        with self._lock:
            bundle = self._bundles.get(row.bundle)
            if bundle is not None:
                self._bundles.move_to_end(row.bundle)
        if bundle is None:
            try:
                bundle = self._reader.chunks.read(row.bundle)
            except (IntegrityError, ObjectMissing) as problem:
                raise unreadable(row, Extent(row, 0, row.offset, row.size), row.bundle, problem) from problem
            with self._lock:
                self._bundles[row.bundle] = bundle
                while len(self._bundles) > _KEPT_BUNDLES:
                    self._bundles.popitem(last=False)
        return bundle[row.offset : row.offset + row.size]


def _blocks(rows: Iterable[FileRow]) -> Iterator[tuple[FileRow, int, int]]:
    for row in rows:
        if row.kind is not FileKind.FILE or not row.size:
            yield row, 0, 0
            continue
        for offset in range(0, row.size, _BLOCK_BYTES):
            yield row, offset, min(_BLOCK_BYTES, row.size - offset)


def _events(row: FileRow, offset: int, future: Future[memoryview] | None) -> Iterator[tuple[FileRow, TarEvent]]:
    member = member_of(row)
    if not offset:
        yield row, MemberBegins(member)
    size = 0
    if future is not None:
        view = future.result()
        size = len(view)
        yield row, MemberData([view], size, offset)
    if offset + size == row.size or future is None:
        yield row, MemberEnds(member)


def member_of(row: FileRow) -> Member:
    """Return a row as a member of an archive; it has no header, so that a new one is made for it."""
    link = row.link.decode("utf-8", "surrogateescape")
    return Member(row.name, _KINDS[row.kind], row.size, row.mode, link, row.mtime, b"")
