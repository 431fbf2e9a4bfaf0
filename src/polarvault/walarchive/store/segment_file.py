"""One WAL segment while it is being received: a plain file, or a compressed one.

Names are pg_receivewal's: SEGMENT.partial (.gz.partial, .lz4.partial) while it grows, no .partial once it is whole.
A plain file gets its full length at once and its tail stays a hole: recovery wants full-size segments, and writing
zeros would cost a gigabyte a segment on PolarDB (facts 7). A partial file of an earlier run is written over with the
same bytes, never truncated; a compressed one is replaced only when the new one holds more. So at every moment what had
been acknowledged to the server is readable.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

from polarvault.model.compression import Compression
from polarvault.model.segment import WalSegment
from polarvault.storage import files

PARTIAL = ".partial"
# A compressed partial that does not yet hold as much as the one it will replace.
REPLACING = ".new"
_WRITEBACK_BYTES = 8 << 20
_IOV_MAX = 1000
_RESERVE_BYTES = 4 << 20
# Small pieces compress badly and cost a call each; a sync flushes what has gathered here.
_GATHER_BYTES = 256 << 10


class SegmentFile(Protocol):
    """A segment that is being written, in order. Methods raise OSError; `path` is the file's present name."""

    segment: WalSegment
    path: str
    # The bytes of the segment that have been taken, from its start.
    position: int

    def write(self, views: Sequence[memoryview]) -> None:
        """Append WAL."""

    def flush(self) -> None:
        """Hand everything taken so far to the operating system, in a form that can be read back."""

    def sync(self) -> None:
        """Make what was flushed durable."""

    def settle(self, position: int) -> bool:
        """Give the file its proper partial name if it holds enough for that; True if a name changed."""

    def finish(self) -> str:
        """End and close a whole segment, still under its partial name, durable; return the whole segment's name."""

    def close(self) -> None:
        """End and close a segment that stays partial."""


def open_segment(
    directory: str, segment: WalSegment, compression: Compression, *, mode: int, sync: bool, reserve: bool
) -> SegmentFile:
    """Open a segment for writing from its start; raise OSError. reserve: see `PlainSegment`."""
    path = os.path.join(directory, segment.file_name + compression.suffix)
    if compression.algorithm == "none":
        return PlainSegment(path, segment, mode=mode, sync=sync, reserve=reserve)
    return CompressedSegment(path, segment, compression, mode=mode, sync=sync)


class PlainSegment:
    """A full-length sparse file.

    reserve: have disk blocks allocated some way ahead. When every write is followed by a sync, that saves the file
    system's journal most of the work: on ext4 a sync then takes 0.2 ms instead of 1 ms. Nothing is overwritten by it.
    """

    def __init__(self, whole_path: str, segment: WalSegment, *, mode: int, sync: bool, reserve: bool) -> None:
        self.segment = segment
        self.path = whole_path + PARTIAL
        self.position = 0
        self._whole_path = whole_path
        self._sync = sync
        self._writeback = 0
        self._reserved = 0 if reserve else segment.size_bytes
        # Never through a link: run by root, in a directory of another account, it could lead to any file.
        self._descriptor = files.create_file(self.path, mode)
        if os.fstat(self._descriptor).st_size != segment.size_bytes:
            os.ftruncate(self._descriptor, segment.size_bytes)

    def write(self, views: Sequence[memoryview]) -> None:
        """Append WAL; zeros at the end of a switched segment stay a hole."""
        if not (views[0][0] or views[-1][-1]) and self._stays_hole(views):
            self.position += sum(map(len, views))
            return
        if self._reserved < self.position + sum(map(len, views)):
            self._reserve()
        pending = list(views)
        while pending:
            written = os.pwritev(self._descriptor, pending[:_IOV_MAX], self.position)
            self.position += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if pending and written:
                # A short write is legal (a signal, a nearly full disk); the retry then reports the real error.
                pending[0] = pending[0][written:]
        if self._sync and self.position - self._writeback >= _WRITEBACK_BYTES:
            # Started early, so that the fsync at the segment's end finds little left to do.
            files.start_writeback(self._descriptor, self._writeback, self.position - self._writeback)
            self._writeback = self.position

    def flush(self) -> None:
        """Nothing is held back."""

    def sync(self) -> None:
        """Make the file's content durable."""
        os.fdatasync(self._descriptor)

    def settle(self, position: int) -> bool:
        """The name is right from the start."""
        return False

    def finish(self) -> str:
        """Close the whole segment."""
        self.close()
        return self._whole_path

    def close(self) -> None:
        """Close the partial segment."""
        try:
            if self._sync:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _reserve(self) -> None:
        length = min(_RESERVE_BYTES, self.segment.size_bytes - self.position)
        try:
            os.posix_fallocate(self._descriptor, self.position, length)
            self._reserved = self.position + length
        except OSError as problem:
            if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT):
                raise
            # Not on this file system, or not so much: do without. Whether the disk is full the write will tell.
            self._reserved = self.segment.size_bytes

    def _stays_hole(self, views: Sequence[memoryview]) -> bool:
        """Tell whether there is nothing but zeros to write, and nothing from an earlier run to write them over."""
        if any(bytes(view) != bytes(len(view)) for view in views):
            return False
        try:
            os.lseek(self._descriptor, self.position, os.SEEK_DATA)
        except OSError as problem:
            return problem.errno == errno.ENXIO
        return False


class CompressedSegment:
    """A compressed stream; what was flushed can be decoded although the stream has not ended."""

    def __init__(
        self, whole_path: str, segment: WalSegment, compression: Compression, *, mode: int, sync: bool
    ) -> None:
        self.segment = segment
        self.position = 0
        self._whole_path = whole_path
        self._partial_path = whole_path + PARTIAL
        self._sync = sync
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._compressor = compressor(compression)
        self._flushed = True
        # What an earlier run has acknowledged stays readable until there is as much again.
        self._replaces = _decoded_bytes(self._partial_path, segment.size_bytes)
        self.path = self._partial_path + (REPLACING if self._replaces else "")
        self._descriptor = files.create_file(self.path, mode, os.O_WRONLY | os.O_TRUNC)

    def write(self, views: Sequence[memoryview]) -> None:
        """Compress and append WAL."""
        for view in views:
            self._gathered.append(bytes(view))
            self._gathered_bytes += len(view)
            self.position += len(view)
        if self._gathered_bytes >= _GATHER_BYTES:
            self._compress()

    def flush(self) -> None:
        """Compress what has gathered, up to a point where a decoder can stop."""
        self._compress()
        if not self._flushed:
            self._append(self._compressor.sync_point())
            self._flushed = True

    def sync(self) -> None:
        """Make the file's content durable."""
        os.fdatasync(self._descriptor)

    def settle(self, position: int) -> bool:
        """Take the place of the earlier partial file once this one holds as much."""
        if self.path == self._partial_path or position < self._replaces:
            return False
        os.replace(self.path, self._partial_path)
        self.path = self._partial_path
        return True

    def finish(self) -> str:
        """End the stream of a whole segment."""
        self._end()
        if self.path != self._partial_path:
            os.replace(self.path, self._partial_path)
            self.path = self._partial_path
        return self._whole_path

    def close(self) -> None:
        """End the stream of a partial segment, so that any program can decode it."""
        self._end()
        if self.path != self._partial_path:
            if self.position >= self._replaces:
                os.replace(self.path, self._partial_path)
            else:
                os.unlink(self.path)

    def _end(self) -> None:
        try:
            self._compress()
            self._append(self._compressor.finish())
            if self._sync:
                os.fsync(self._descriptor)
        finally:
            # On a full disk, too: an open file would keep its space although somebody removed it.
            os.close(self._descriptor)

    def _compress(self) -> None:
        if self._gathered:
            content = b"".join(self._gathered)
            self._gathered, self._gathered_bytes = [], 0
            self._flushed = False
            self._append(self._compressor.compress(content))

    def _append(self, content: bytes) -> None:
        if content:
            files.write_all(self._descriptor, [content])


class Compressor(Protocol):
    """A streaming compressor of one file."""

    def compress(self, content: bytes) -> bytes:
        """Return what is ready."""

    def sync_point(self) -> bytes:
        """Return the bytes after which everything taken so far can be decoded."""

    def finish(self) -> bytes:
        """Return the end of the stream."""


class _Gzip:
    def __init__(self, level: int | None) -> None:
        # One member with a gzip header; its last four bytes are the size, which pg_receivewal looks at.
        self._stream = zlib.compressobj(-1 if level is None else level, zlib.DEFLATED, 31)

    def compress(self, content: bytes) -> bytes:
        return self._stream.compress(content)

    def sync_point(self) -> bytes:
        return self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._stream.flush(zlib.Z_FINISH)


class _Lz4:
    def __init__(self, level: int | None) -> None:
        import lz4.frame

        # auto_flush: every call returns whole blocks, so that each is a point where a decoder can stop.
        self._stream: Any = lz4.frame.LZ4FrameCompressor(compression_level=level or 0, auto_flush=True)
        self._begun = bytes(self._stream.begin())

    def compress(self, content: bytes) -> bytes:
        begun, self._begun = self._begun, b""
        return begun + bytes(self._stream.compress(content))

    def sync_point(self) -> bytes:
        begun, self._begun = self._begun, b""
        return begun

    def finish(self) -> bytes:
        return self.sync_point() + bytes(self._stream.flush())


class _Zstd:
    def __init__(self, level: int | None) -> None:
        import zstandard

        self._stream = zstandard.ZstdCompressor(level=3 if level is None else level).compressobj()
        self._block = zstandard.COMPRESSOBJ_FLUSH_BLOCK

    def compress(self, content: bytes) -> bytes:
        return self._stream.compress(content)

    def sync_point(self) -> bytes:
        return self._stream.flush(self._block)

    def finish(self) -> bytes:
        return self._stream.flush()


def compressor(compression: Compression) -> Compressor:
    """Return a fresh compressor."""
    if compression.algorithm == "gzip":
        return _Gzip(compression.level)
    return _Lz4(compression.level) if compression.algorithm == "lz4" else _Zstd(compression.level)


def _decoded_bytes(path: str, limit: int) -> int:
    """Return how much an earlier run's partial file holds; 0 if there is none."""
    if not os.path.exists(path):
        return 0
    from polarvault.walfiles.files import wal_file

    directory, name = os.path.split(path)
    return min(limit, sum(map(len, wal_file(directory, name, in_pg_wal=False).views())))
