"""Content in pieces that begin at WAL pages, so that whoever reads it can go on at the next page behind damage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from polarvault.model.dataclass import dataclass
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.pages import PAGE_BYTES

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a file: a plain segment, or one in a tar or in a temporary file that is open."""

    path: str
    start: int
    size_bytes: int
    stream: BinaryIO | None = None

    def pieces(self, skip_bytes: int = 0, *, piece_bytes: int = _PIECE_BYTES) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content, as `wal.source.WalCopy` says."""
        buffer = memoryview(bytearray(piece_bytes))
        try:
            stream = self.stream or open_regular(self.path)
            try:
                yield from self._read(stream.fileno(), buffer, skip_bytes // PAGE_BYTES * PAGE_BYTES)
            finally:
                if self.stream is None:
                    stream.close()
        except OSError as problem:
            raise storage_failed(problem, "read", self.path) from problem

    def _read(self, descriptor: int, buffer: memoryview, skip_bytes: int) -> Iterator[tuple[int, memoryview]]:
        offset, length = 0, PAGE_BYTES if skip_bytes else len(buffer)
        while offset < self.size_bytes:
            wanted = buffer[: min(length, self.size_bytes - offset)]
            count = _read_fully(descriptor, wanted, self.start + offset)
            if count:
                yield offset, wanted[:count]
            if count < len(wanted):
                return
            offset = max(offset + count, skip_bytes)
            length = len(buffer)


def _read_fully(descriptor: int, buffer: memoryview, position: int) -> int:
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], position + done)):
        done += count
    return done


def in_pieces(views: Iterable[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """Collect views of any length into pieces of a megabyte; only the last one is shorter."""
    buffer, filled, offset = memoryview(bytearray(_PIECE_BYTES)), 0, 0
    for view in views:
        taken = 0
        while taken < len(view):
            count = min(len(view) - taken, _PIECE_BYTES - filled)
            buffer[filled : filled + count] = view[taken : taken + count]
            filled += count
            taken += count
            if filled == _PIECE_BYTES:
                yield offset, buffer
                offset, filled = offset + filled, 0
    if filled:
        yield offset, buffer[:filled]
