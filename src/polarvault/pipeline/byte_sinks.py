"""Where the bytes of a tar file go: a file, standard output, and compressors in front of either.

A sink has `write(views)`, after which the views may be reused, and `finish()`, after which everything has been handed
to the operating system. Compressed files stay ordinary: one gzip member, zstd and lz4 frames that every tool reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from polarvault.model.compression import Compression
from polarvault.storage import files
from polarvault.storage.writeback import start_aside

# Start writing to disk every so often, so that the fsync at the end has little left to do.
_WRITEBACK_BYTES = 16 << 20
_GZIP_CHUNK_BYTES = 512 << 10
_GZIP_WINDOW_BYTES = 32 << 10
_LZ4_CHUNK_BYTES = 4 << 20
_HOLE = bytes(1 << 20)

Buffer = memoryview | bytes


class ByteSink(Protocol):
    """Takes the bytes of one file in order."""

    def write(self, views: Sequence[Buffer]) -> None:
        """Take these bytes; the views may be reused when it returns."""

    def write_zeros(self, count: int) -> None:
        """Take that many zero bytes, cheaply where the sink can."""

    def finish(self) -> None:
        """Flush what is buffered and close."""

    def abandon(self) -> None:
        """Close after a failure, whatever is lost by it; safe to call at any time, also after `finish`."""


class FileBytes:
    """A new file; long runs of zeros become holes."""

    def __init__(self, path: str, *, mode: int, writeback: bool) -> None:
        self.path = path
        self._writeback = writeback
        self._position = self._started = 0
        try:
            self._descriptor = files.create_file(path, mode, os.O_WRONLY | os.O_EXCL)
        except OSError as problem:
            raise files.storage_failed(problem, "create file", path) from problem

    def write(self, views: Sequence[Buffer]) -> None:
        """Append the views."""
        try:
            self._position += files.write_all(self._descriptor, views)
        except OSError as problem:
            raise files.storage_failed(problem, "write to file", self.path) from problem
        if self._writeback and self._position - self._started >= _WRITEBACK_BYTES:
            start_aside(self._descriptor, self._started, self._position)
            self._started = self._position

    def write_zeros(self, count: int) -> None:
        """Extend the file by a hole."""
        self._position += count
        try:
            os.ftruncate(self._descriptor, self._position)
            os.lseek(self._descriptor, self._position, os.SEEK_SET)
        except OSError as problem:
            raise files.storage_failed(problem, "extend file", self.path) from problem

    def finish(self) -> None:
        """Close the file; making it durable is the business of whoever knows when all of it is there.

        An error of close() is one of writing: NFS and quotas tell of it only then.
        """
        # Given up first: a close that fails has closed it all the same (close(2)).
        descriptor, self._descriptor = self._descriptor, -1
        try:
            os.close(descriptor)
        except OSError as problem:
            raise files.storage_failed(problem, "close file", self.path) from problem

    def abandon(self) -> None:
        """Close the file; the failure before is the one to report."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class StandardOutput:
    """The process's standard output."""

    path = "standard output"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Opened for appending (>>), the position is not ours to move.
        appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode) and not appending

    def write(self, views: Sequence[Buffer]) -> None:
        """Write the views."""
        try:
            files.write_all(self._descriptor, views)
        except OSError as problem:
            raise files.storage_failed(problem, "write to", self.path) from problem

    def write_zeros(self, count: int) -> None:
        """Leave a hole where standard output is a file written from its start; a pipe has no holes."""
        if not self._is_file:
            write_zeros_plainly(self, count)
            return
        try:
            position = os.lseek(self._descriptor, count, os.SEEK_CUR)
            os.ftruncate(self._descriptor, position)
        except OSError as problem:
            raise files.storage_failed(problem, "extend", self.path) from problem

    def finish(self) -> None:
        """Leave the descriptor open: it is not ours."""

    def abandon(self) -> None:
        """Leave the descriptor open: it is not ours."""


def write_zeros_plainly(sink: ByteSink, count: int) -> None:
    """Write zeros as bytes."""
    while count:
        part = min(count, len(_HOLE))
        sink.write([_HOLE[:part]])
        count -= part


class ZstdBytes:
    """One zstd frame, compressed by the library's own threads."""

    def __init__(self, below: ByteSink, compression: Compression) -> None:
        import zstandard

        self._below = below
        parameters = zstandard.ZstdCompressionParameters.from_level(
            compression.level if compression.level is not None else 3,
            threads=compression.threads,
            **({"enable_ldm": True, "window_log": compression.window_log or 27} if compression.long else {}),
        )
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def write(self, views: Sequence[Buffer]) -> None:
        """Compress the views."""
        produced = [out for view in views if (out := self._compressor.compress(view))]
        if produced:
            self._below.write(produced)

    def write_zeros(self, count: int) -> None:
        """Compress zeros; the library does several GB of them a second."""
        write_zeros_plainly(self, count)

    def finish(self) -> None:
        """End the frame."""
        self._below.write([self._compressor.flush()])
        self._below.finish()

    def abandon(self) -> None:
        """Close what is below."""
        self._below.abandon()


class _ChunkedBytes(ABC):
    """Cuts its input into chunks, compresses them in a few threads, and writes the results in order."""

    def __init__(self, below: ByteSink, *, chunk_bytes: int, threads: int) -> None:
        self._below = below
        self._chunk_bytes = chunk_bytes
        self._chunk = bytearray()
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="compress")
        self._in_flight: deque[Future[bytes]] = deque()

    def write(self, views: Sequence[Buffer]) -> None:
        """Take the views; compress every chunk that is full."""
        for view in views:
            self._chunk += view
            if len(self._chunk) >= self._chunk_bytes:
                full, self._chunk = bytes(self._chunk), bytearray()
                self._submit(self._job(full, last=False))

    def write_zeros(self, count: int) -> None:
        """Compress zeros."""
        write_zeros_plainly(self, count)

    def finish(self) -> None:
        """Compress the rest, wait for the threads, close."""
        self._submit(self._job(bytes(self._chunk), last=True))
        while self._in_flight:
            self._below.write([self._in_flight.popleft().result()])
        self._pool.shutdown()
        self._below.write([self._trailer()])
        self._below.finish()

    def abandon(self) -> None:
        """End the threads, close what is below."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._below.abandon()

    def _submit(self, job: Callable[[], bytes]) -> None:
        self._in_flight.append(self._pool.submit(job))
        # Two chunks a thread keep the threads busy; more would only cost memory.
        while len(self._in_flight) > 2 * self._threads:
            self._below.write([self._in_flight.popleft().result()])

    @abstractmethod
    def _job(self, chunk: bytes, *, last: bool) -> Callable[[], bytes]:
        """Return what a thread has to do for the next chunk."""

    def _trailer(self) -> bytes:
        return b""


class GzipBytes(_ChunkedBytes):
    """One gzip member made of chunks that are deflated in parallel, each primed with the 32 kB before it.

    A single member matters: PostgreSQL's own gzip reader does not go on after the first.
    """

    def __init__(self, below: ByteSink, compression: Compression) -> None:
        super().__init__(below, chunk_bytes=_GZIP_CHUNK_BYTES, threads=compression.threads)
        self._level = compression.level if compression.level is not None else -1
        self._window = b""
        self._crc = 0
        self._size = 0
        below.write([b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"])

    def _job(self, chunk: bytes, *, last: bool) -> Callable[[], bytes]:
        window, level = self._window, self._level
        self._window = chunk[-_GZIP_WINDOW_BYTES:]
        self._crc = zlib.crc32(chunk, self._crc)
        self._size += len(chunk)

        def deflate() -> bytes:
            # Empty dictionaries are refused by zlib, so the first chunk goes without.
            if window:
                stream = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=window)
            else:
                stream = zlib.compressobj(level, zlib.DEFLATED, -15)
            # A sync flush ends on a byte boundary, so that the next chunk can simply follow.
            return stream.compress(chunk) + stream.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)

        return deflate

    def _trailer(self) -> bytes:
        return struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)


class Lz4Bytes(_ChunkedBytes):
    """lz4 frames of 4 MiB each, one after the other, as the lz4 format allows."""

    def __init__(self, below: ByteSink, compression: Compression) -> None:
        super().__init__(below, chunk_bytes=_LZ4_CHUNK_BYTES, threads=compression.threads)
        self._level = compression.level or 0

    def _job(self, chunk: bytes, *, last: bool) -> Callable[[], bytes]:
        import lz4.frame

        level = self._level
        return lambda: bytes(lz4.frame.compress(chunk, compression_level=level)) if chunk else b""


def compressed(below: ByteSink, compression: Compression) -> ByteSink:
    """Put the compressor in front of a sink; none needs none."""
    if compression.algorithm == "gzip":
        return GzipBytes(below, compression)
    if compression.algorithm == "lz4":
        return Lz4Bytes(below, compression)
    if compression.algorithm == "zstd":
        return ZstdBytes(below, compression)
    return below
