"""Where received WAL goes: segment files in a directory, or members of pg_wal.tar.

Segments get their full length at once and their tail stays a hole: the server wants full-size files at recovery, and
writing zeros would cost a gigabyte a segment on PolarDB (facts 7). Both are `server.wal_stream.WalSink`s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import (
    TERMINATOR,
    MemberBegins,
    MemberData,
    TarEvent,
    TarReader,
    encode_header,
    encode_member,
)
from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.pipeline.decompress import decoder_for
from polarvault.storage import files
from polarvault.storage.below import Below

_READ_BYTES = 1 << 20


class WalDirectory:
    """Segment files in pg_wal; complete ones get a .done mark, so that a restored server does not archive them again.

    The last, incomplete one gets no mark: a server that goes on writing it has to archive it, and with the mark could
    remove it before it has.
    """

    def __init__(self, directory: str, *, file_mode: int, directory_mode: int, sync: bool) -> None:
        self.directory = directory
        self._mode = file_mode
        self._sync = sync
        self._descriptor = -1
        self._position = 0
        self._path = directory
        try:
            if not os.path.isdir(directory):
                files.make_directories(directory, directory_mode)
            # A descriptor of its own: what the base backup's archives name meanwhile changes nothing for the WAL.
            self._below = Below(directory)
            self._below.make_directory("archive_status", directory_mode)
        except OSError as problem:
            raise files.storage_failed(problem, "create directory", directory) from problem

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        """Write at the offset; open the segment's file first if need be."""
        try:
            if self._descriptor < 0:
                self._path = self._below.path(segment.file_name)
                self._descriptor = self._below.create(segment.file_name, self._mode, replace=True)
                os.ftruncate(self._descriptor, segment.size_bytes)
            # After the switch that ends a backup the rest of the segment is zeros, up to 1 GB: they stay a hole.
            if _is_zero(payload):
                payload, offset = payload[:0], offset + len(payload)
            while payload:
                written = os.pwrite(self._descriptor, payload, offset)
                payload, offset = payload[written:], offset + written
            self._position = offset
        except OSError as problem:
            raise files.storage_failed(problem, "write to file", self._path) from problem

    def segment_done(self, segment: WalSegment) -> None:
        """Make the segment durable; mark it as archived if it is complete."""
        if self._descriptor < 0:
            return
        try:
            if self._sync:
                # Content and name: a whole segment is acknowledged to the server, which may remove it then.
                os.fsync(self._descriptor)
                self._below.sync_directory()
            self._close()
            if self._position == segment.size_bytes:
                # Made durable with everything else of the backup.
                self._below.write(f"archive_status/{segment.file_name}.done", b"", self._mode, sync=False)
        except OSError as problem:
            raise files.storage_failed(problem, "make durable", self._path) from problem

    def add_history(self, file_name: str, content: bytes) -> None:
        """Write the history file and its mark; the caller has made sure that the name belongs to the timeline."""
        self._path = self._below.path(file_name)
        try:
            self._below.write(file_name, content, self._mode, sync=self._sync, replace=True)
            if self._sync:
                self._below.sync_directory()
            self._below.write(f"archive_status/{file_name}.done", b"", self._mode, sync=False, replace=True)
        except OSError as problem:
            raise files.storage_failed(problem, "write file", self._path) from problem

    def finish(self) -> None:
        """Close a file left open by an error."""
        try:
            if self._descriptor >= 0:
                self._close()
        except OSError as problem:
            raise files.storage_failed(problem, "close file", self._path) from problem

    def close(self) -> None:
        """Give the directory back; nothing can be read any more. Safe to call twice."""
        self._below.close()

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        """Read from the segment's file; nothing if there is none."""
        try:
            descriptor = self._below.open_regular(segment.file_name)
        except FileNotFoundError:
            return b""
        except OSError as problem:
            raise files.storage_failed(problem, "read file", self._below.path(segment.file_name)) from problem
        try:
            return os.pread(descriptor, length, offset)
        except OSError as problem:
            raise files.storage_failed(problem, "read file", self._below.path(segment.file_name)) from problem
        finally:
            os.close(descriptor)

    def _close(self) -> None:
        # Given up first: a close that fails has closed it all the same (close(2)).
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class WalTar:
    """Segments as members of one tar; the unfilled tail of the last is a hole where the file allows it."""

    # The last bytes of WAL, kept to check the end-of-backup record without reading the (compressed) tar back.
    _TAIL_BYTES = 256 << 10

    def __init__(self, below: ByteSink, path: str) -> None:
        self._below = below
        self._path = path
        self._open: WalSegment | None = None
        self._position = 0
        self._tail = bytearray()
        self._tail_end = 0

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        """Append to the segment's member; its header promises the full length from the start."""
        if self._open is None:
            self._below.write([encode_header(segment.file_name, segment.size_bytes, mtime=int(time.time()))])
            self._open, self._position = segment, 0
        if _is_zero(payload):
            self._below.write_zeros(len(payload))
        else:
            self._below.write([payload])
        self._position = offset + len(payload)
        self._tail += payload[-self._TAIL_BYTES :]
        del self._tail[: -self._TAIL_BYTES]
        self._tail_end = segment.start + self._position

    def segment_done(self, segment: WalSegment) -> None:
        """Fill the member up to the promised length; mark it as archived if it was complete."""
        if self._open is None:
            return
        self._open = None
        if missing := segment.size_bytes - self._position:
            self._below.write_zeros(missing)
        else:
            self._below.write([encode_member(f"archive_status/{segment.file_name}.done", b"", mtime=int(time.time()))])

    def add_history(self, file_name: str, content: bytes) -> None:
        """Add the history file and its mark."""
        for name, body in ((file_name, content), (f"archive_status/{file_name}.done", b"")):
            self._below.write([encode_member(name, body, mtime=int(time.time()))])

    def finish(self) -> None:
        """End the tar."""
        self._below.write([TERMINATOR])
        self._below.finish()

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        """Return bytes of the stream: the last ones from memory, older ones from the finished tar."""
        start = segment.start + offset - (self._tail_end - len(self._tail))
        if start >= 0:
            return bytes(self._tail[start : start + length])
        # The server sent much more after the end of the backup than is kept.
        return _read_member(self._path, segment.file_name, offset, length)


def _is_zero(payload: memoryview) -> bool:
    """Tell whether there is nothing but zeros; the first byte settles it for nearly all WAL."""
    return bool(payload) and payload[0] == 0 and bytes(payload) == bytes(len(payload))


def _read_member(path: str, name: str, offset: int, length: int) -> bytes:
    """Return bytes of one member of a tar file, compressed or not."""
    found = bytearray()
    wanted = False
    for event in _read_events(path):
        if isinstance(event, MemberBegins):
            wanted = event.member.name == name
        elif wanted and isinstance(event, MemberData) and event.offset < offset + length:
            plain = b"".join(event.views)
            found += plain[max(0, offset - event.offset) : max(0, offset + length - event.offset)]
            if len(found) >= length:
                break
    return bytes(found)


def _read_events(path: str) -> Iterator[TarEvent]:
    decoder, reader = decoder_for(path), TarReader(path)
    try:
        with files.open_regular(path) as source:
            while content := source.read(_READ_BYTES):
                for part in decoder.feed([memoryview(content)]):
                    yield from reader.feed(part)
    except OSError as problem:
        raise files.storage_failed(problem, "read", path) from problem
