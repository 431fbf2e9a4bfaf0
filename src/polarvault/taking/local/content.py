"""One file of the data directory, read by several threads: filled up, checked page by page, summed up on the way.

The server writes while we read. A page may be caught half old and half new: it is read again until it is right, or for
a tenth of a second, after which it is left to whoever looks it up in the WAL. A file that has become shorter reads as
zeros from there on, what was added is not seen: replay makes both right (server: sendFile in basebackup.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy

from polarvault.pgfiles.crc32c import combine
from polarvault.pgfiles.manifest import checksum
from polarvault.pgfiles.pages import PAGE_BYTES, BadPage, Kernel, load_kernel, relation_segment
from polarvault.pipeline.page_check import PageJudge
from polarvault.storage import files
from polarvault.storage.trees.model import TreeFile

_CAPACITY = 4096
# How long to wait before a page is read again. A write of a page takes microseconds; what is still wrong after all of
# these is not being written.
_WAITS_S = (0.0, 0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# Of more stubborn pages than these the rest are read again once each: they are damaged, and thousands would take hours.
_PATIENT_PAGES = 200


class PageReader:
    """Checks pages of files in reused buffers, by any number of threads."""

    def __init__(self, judge: PageJudge, *, relation_segment_bytes: int) -> None:
        self.judge = judge
        self._kernel: Kernel = load_kernel()
        self._blocks_per_segment = relation_segment_bytes // PAGE_BYTES
        self._own = threading.local()
        self._stubborn = 0

    def first_block(self, path: str, size: int) -> int | None:
        """Return the number of a file's first block in its fork; None if its pages have no checksums."""
        segment = relation_segment(path)
        if segment is None or size % PAGE_BYTES:
            return None
        return segment * self._blocks_per_segment

    def check(self, file: TreeFile, path: str, view: memoryview, offset: int, first_block: int) -> list[BadPage]:
        """Check the whole pages in view, which was read at offset; return those that are damaged."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        count = len(view) // PAGE_BYTES
        block = first_block + offset // PAGE_BYTES
        found = self._bad()
        wrong = self._kernel(address, count, block, count, PAGE_BYTES, ctypes.addressof(found), _CAPACITY)
        self.judge.count(count)
        damaged = []
        for index in found[: min(wrong, _CAPACITY)]:
            page = view[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
            if self._read_again(file, page, offset + index * PAGE_BYTES, block + index):
                continue
            bad = self.judge.judge(path, block + index, page)
            if bad is not None:
                damaged.append(bad)
        return damaged

    def _read_again(self, file: TreeFile, page: memoryview, offset: int, block: int) -> bool:
        """Read a page until it is right; tell whether it is."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        bad = (ctypes.c_int64 * 1)()
        for wait in _WAITS_S if self._stubborn < _PATIENT_PAGES else _WAITS_S[:1]:
            time.sleep(wait)
            fill(file, page, offset)
            if not self._kernel(address, 1, block, 1, PAGE_BYTES, ctypes.addressof(bad), 1):
                return True
        self._stubborn += 1
        return False

    def _bad(self) -> Any:
        found = getattr(self._own, "bad", None)
        if found is None:
            found = self._own.bad = (ctypes.c_int64 * _CAPACITY)()
        return found


def fill(file: TreeFile, view: memoryview, offset: int) -> None:
    """Read, and fill up with zeros what the file does not have any more."""
    got = file.read_into(offset, view)
    if got < len(view):
        view[got:] = bytes(len(view) - got)


@dataclass(frozen=True, slots=True)
class Reading:
    """What all files of a backup have in common.

    algorithm: of the manifest's checksums, None for none. pages: None where they are not checked. taken: told of bytes
    that were read, in any thread; looks: called in the feeding thread, may raise.
    """

    algorithm: str | None
    pages: PageReader | None
    taken: Callable[[int], None]
    looks: Callable[[], None]
    opened: set[SourceFile] = field(default_factory=set)
    """Those that have not been read to their end."""

    def checksum_of(self, content: bytes) -> str | None:
        """Return the checksum of a small file."""
        return None if self.algorithm is None else checksum(content, self.algorithm)


class SourceFile:
    """A file that is open. Implements `pipeline.contents.FileContent`. ended: told its checksum, in any thread."""

    def __init__(
        self, file: TreeFile, reading: Reading, *, path: str, shown: str, size: int, ended: Callable[[str | None], None]
    ) -> None:  # fmt: skip
        """`path`: in the data directory, tablespaces by their oid; shown: for messages."""
        self.size = size
        self.is_divisible = reading.algorithm in (None, "CRC32C")
        self.path, self.shown = path, shown
        self.file, self.reading = file, reading
        self._listeners = [ended]
        self._checksum: str | None = None
        self._first_block = reading.pages.first_block(path, size) if reading.pages is not None else None
        self._lock = threading.Lock()
        self._sums: list[tuple[int, int, int]] = []
        self._left = size
        self._wrong: list[BadPage] = []
        reading.opened.add(self)
        if not size:
            self._complete()

    def part(self, start: int, size: int) -> SourcePart:
        """Return a stretch."""
        self.reading.looks()
        return SourcePart(self, start, size)

    def clone_source(self) -> int | None:
        """Return a descriptor to clone, where no byte has to be seen."""
        if self.reading.algorithm is not None or self._first_block is not None:
            return None
        return getattr(self.file, "descriptor", None)

    def cloned(self) -> None:
        """Nothing is read."""
        self.reading.taken(self.size)
        for tell in self._listeners:
            tell(None)
        self.discard()

    def waiting(self) -> None:
        """See whether the backup goes on."""
        self.reading.looks()

    def when_read(self, tell: Callable[[str | None], None]) -> None:
        """Have somebody else told the checksum, too; of an empty file at once."""
        if not self.size:
            tell(self._checksum)
        else:
            self._listeners.append(tell)

    def discard(self) -> None:
        """Close it."""
        self.reading.opened.discard(self)
        self.file.close()

    def read(self, view: memoryview, offset: int) -> None:
        """Fill a buffer from there, check its pages."""
        try:
            fill(self.file, view, offset)
            if self._first_block is not None and self.reading.pages is not None:
                wrong = self.reading.pages.check(self.file, self.path, view, offset, self._first_block)
                if wrong:
                    with self._lock:
                        self._wrong += wrong
        except OSError as problem:
            raise files.storage_failed(problem, "read file", self.shown) from problem
        self.reading.taken(len(view))

    def part_ends(self, start: int, size: int, crc: int, digest: Any) -> None:
        """A stretch was read. crc: of it; digest: of hashlib, which only a file of one part has."""
        with self._lock:
            self._sums.append((start, size, crc))
            self._left -= size
            if self._left:
                return
        self._complete(digest)

    def _complete(self, digest: Any = None) -> None:
        algorithm, pages = self.reading.algorithm, self.reading.pages
        found: str | None = None
        if algorithm == "CRC32C":
            crc = 0
            for _, size, part in sorted(self._sums):
                crc = combine(crc, part, size)
            found = crc.to_bytes(4, "little").hex()
        elif algorithm is not None:
            found = (digest or hashlib.new(algorithm)).hexdigest()
        if pages is not None:
            pages.judge.file_ends(self.path, self._wrong)
        self._checksum = found
        for tell in self._listeners:
            tell(found)
        with contextlib.suppress(OSError):  # Nothing was written.
            self.discard()


class SourcePart:
    """A stretch of a file. Implements `pipeline.contents.ContentPart`."""

    def __init__(self, file: SourceFile, start: int, size: int) -> None:
        self._file = file
        self._start, self._size = start, size
        self._at = start
        algorithm = file.reading.algorithm
        self._sums = algorithm == "CRC32C"
        self._crc = 0
        self._digest = hashlib.new(algorithm) if algorithm is not None and not self._sums else None

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer with the next bytes."""
        self._file.read(buffer, self._at)
        self._at += len(buffer)
        if self._sums:
            # An array: the library takes no memoryview, and bytes would be a copy.
            self._crc = google_crc32c.extend(self._crc, numpy.frombuffer(buffer, numpy.uint8))
        elif self._digest is not None:
            self._digest.update(buffer)
        if self._at == self._start + self._size:
            self._file.part_ends(self._start, self._size, self._crc, self._digest)
