"""Read files once, in parallel: checksums for the manifest and page checksums from the same bytes.

A thread takes a piece of a file at a time, the largest files first. A large file with CRC-32C is several pieces, so
that one of PolarDB's relation files, which can have 128 GB, keeps every thread busy; the other algorithms cannot be put
together from parts. The members of an uncompressed tar are read in the same way, each from its place in the tar.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from polarvault.pgfiles.crc32c import combine
from polarvault.pgfiles.digest import new_digest
from polarvault.pgfiles.pages import PAGE_BYTES, BadPage, Kernel, load_kernel, page_checksum, read_page_header

# A multiple of the page size. Small enough to be still in the processor's cache when it is looked at.
_CHUNK_BYTES = 512 << 10
_PIECE_BYTES = 256 << 20
# More bad pages than these are counted, not kept.
KEPT_PAGES = 1000
_PAGES_PER_CHUNK = _CHUNK_BYTES // PAGE_BYTES
_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class FileTask:
    """A file to be read.

    name: as findings show it. offset: where it begins in the tar at path; None: it is a file of its own, and is read to
    its end, whatever its size was said to be. algorithm: of its checksum, None: not wanted. first_block: the block
    number of its first page, None: its pages are not checked. open_file: returns a descriptor, instead of opening path.
    """

    name: str
    path: str
    size: int
    offset: int | None = None
    algorithm: str | None = None
    first_block: int | None = None
    open_file: Callable[[], int] | None = None


@dataclass(slots=True)
class FileReading:
    """What reading a file has found; size is the bytes read, problem what stopped it."""

    task: FileTask
    size: int = 0
    checksum: str | None = None
    checked_pages: int = 0
    bad_count: int = 0
    bad_pages: list[BadPage] = field(default_factory=list)
    problem: OSError | None = None


def read_files(
    tasks: Sequence[FileTask],
    *,
    jobs: int,
    kernel_loaded: threading.Event,
    on_tick: Callable[[int], None],
    piece_bytes: int = _PIECE_BYTES,
) -> Generator[FileReading, None, None]:
    """Yield a reading for each task, in the order in which they are finished.

    kernel_loaded: set once the page kernel may be used; another thread compiles it meanwhile. on_tick: called now and
    then with the bytes read so far. piece_bytes: what one thread reads of a file, whole pages. Closing the iterator
    stops the threads.
    """
    readers = _Readers(tasks, kernel_loaded, piece_bytes)
    threads = [threading.Thread(target=readers.run, name=f"reader {n}", daemon=True) for n in range(max(1, jobs))]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            while True:
                try:
                    finished = readers.finished.get(timeout=_TICK_S)
                    break
                except queue.Empty:
                    on_tick(readers.bytes_read)
            if isinstance(finished, BaseException):
                raise finished
            on_tick(readers.bytes_read)
            yield finished
    finally:
        readers.stopped = True
        for thread in threads:
            thread.join()


class _Readers:
    """What the threads share: pieces not yet taken, and readings that are finished."""

    def __init__(
        self, tasks: Sequence[FileTask], kernel_loaded: threading.Event, piece_bytes: int = _PIECE_BYTES
    ) -> None:
        self.finished: queue.SimpleQueue[FileReading | BaseException] = queue.SimpleQueue()
        self.stopped = False
        self.bytes_read = 0
        self._kernel_loaded = kernel_loaded
        self._lock = threading.Lock()
        self._pieces = iter(
            (pieces, number)
            for pieces in (_Pieces(task, piece_bytes) for task in sorted(tasks, key=lambda task: -task.size))
            for number in range(pieces.count)
        )

    def run(self) -> None:
        """Read pieces until there are no more; a thread's body."""
        try:
            kernel: Kernel | None = None
            while not self.stopped:
                with self._lock:
                    piece = next(self._pieces, None)
                if piece is None:
                    return
                pieces, number = piece
                if kernel is None and pieces.task.first_block is not None:
                    self._kernel_loaded.wait()
                    kernel = load_kernel()
                reading = self._read(pieces, number, kernel)
                with self._lock:
                    whole = pieces.add(number, reading)
                if whole is not None:
                    self.finished.put(whole)
        except BaseException as failure:  # The main thread raises it again.
            self.finished.put(failure)

    def _read(self, pieces: _Pieces, number: int, kernel: Kernel | None) -> FileReading:
        task = pieces.task
        reading = FileReading(task)
        offset = number * pieces.bytes
        left = pieces.length(number)
        try:
            descriptor = task.open_file() if task.open_file is not None else os.open(task.path, os.O_RDONLY)
        except OSError as problem:
            reading.problem = problem
            return reading
        digest = new_digest(task.algorithm)
        check = None if task.first_block is None or kernel is None else PageReader(reading, kernel, offset)
        try:
            while not self.stopped and reading.size < left:
                wanted = min(_CHUNK_BYTES, left - reading.size)
                chunk = os.pread(descriptor, wanted, (task.offset or 0) + offset + reading.size)
                if not chunk:
                    break
                if digest is not None:
                    digest.update(chunk)
                if check is not None:
                    check.accept(chunk)
                reading.size += len(chunk)
                self.bytes_read += len(chunk)
        except OSError as problem:
            reading.problem = problem
        finally:
            os.close(descriptor)
        reading.checksum = None if digest is None else digest.hexdigest()
        return reading


class _Pieces:
    """The pieces of one file."""

    def __init__(self, task: FileTask, piece_bytes: int) -> None:
        self.task = task
        self.bytes = piece_bytes
        can_split = task.algorithm in (None, "CRC32C")
        self.count = max(1, -(-task.size // piece_bytes)) if can_split else 1
        self._readings: dict[int, FileReading] = {}

    def length(self, number: int) -> int:
        """Return the bytes of one piece; the last one of a file goes to its end, wherever that is."""
        if number < self.count - 1:
            return self.bytes
        return sys.maxsize if self.task.offset is None else self.task.size - number * self.bytes

    def add(self, number: int, reading: FileReading) -> FileReading | None:
        """Take the reading of one piece; return that of the file when it was the last one."""
        self._readings[number] = reading
        if len(self._readings) < self.count:
            return None
        whole = self._readings[0]
        for part in (self._readings[n] for n in range(1, self.count)):
            if whole.checksum is not None and part.checksum is not None:
                crc = combine(_crc(whole.checksum), _crc(part.checksum), part.size)
                whole.checksum = _crc_text(crc)
            whole.size += part.size
            whole.checked_pages += part.checked_pages
            whole.bad_count += part.bad_count
            whole.bad_pages += part.bad_pages[: KEPT_PAGES - len(whole.bad_pages)]
            whole.problem = whole.problem or part.problem
        return whole


class PageReader:
    """Checks the pages in consecutive chunks of a file."""

    def __init__(self, reading: FileReading, kernel: Kernel, offset: int = 0) -> None:
        self._reading = reading
        self._kernel = kernel
        self._block = (reading.task.first_block or 0) + offset // PAGE_BYTES
        self._bad = (ctypes.c_int64 * _PAGES_PER_CHUNK)()
        self._rest = b""

    def accept(self, chunk: bytes) -> None:
        """Take the next bytes."""
        # A read may return less than was asked for, and so end within a page.
        content = self._rest + chunk if self._rest else chunk
        count = len(content) // PAGE_BYTES
        self._rest = content[count * PAGE_BYTES :]
        if not count:
            return
        address = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0
        stride = count * PAGE_BYTES
        bad_address = ctypes.addressof(self._bad)
        wrong = self._kernel(address, count, self._block, count, stride, bad_address, _PAGES_PER_CHUNK)
        for index in self._bad[:wrong]:
            if len(self._reading.bad_pages) < KEPT_PAGES:
                page = content[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
                self._reading.bad_pages.append(bad_page(page, self._block + index))
        self._reading.bad_count += wrong
        self._reading.checked_pages += count
        self._block += count


def bad_page(page: bytes, block: int) -> BadPage:
    """Describe a page whose checksum is wrong."""
    lsn, stored, _ = read_page_header(page)
    return BadPage(block, page_checksum(page, block), stored, lsn)


def read_in_this_thread(task: FileTask) -> FileReading:
    """Read one file without other threads; the page kernel must have been loaded if its pages are to be checked."""
    loaded = threading.Event()
    loaded.set()
    readers = _Readers([task], loaded)
    readers.run()
    found = readers.finished.get()
    if isinstance(found, BaseException):
        raise found
    return found


def _crc(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "little")


def _crc_text(crc: int) -> str:
    return crc.to_bytes(4, "little").hex()
