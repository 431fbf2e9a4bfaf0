"""Read the tar files of a backup: decompress as a stream with flat memory, or hop from header to header.

A tar that lacks its terminator is accepted, as PolarDB's base.tar lacks it; one that ends inside a member is not.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from polarvault.backupset.model import STANDARD_INPUT, Area, Part, compression_of
from polarvault.backupset.reading.foreign import HEAD_BYTES, refuse_foreign
from polarvault.backupset.reading.opening import open_file
from polarvault.errors import BackupUnusable, IntegrityError, PolarvaultError, RemoteProtocolError
from polarvault.model import limits
from polarvault.pgfiles.tar import BLOCK_BYTES, Member, MemberBegins, MemberData, TarEvent, TarReader
from polarvault.storage.files import storage_failed

_CHUNK_BYTES = 1 << 20
_ZEROS = memoryview(bytes(_CHUNK_BYTES))


def read_tar(part: Part) -> Iterator[TarEvent]:
    """Yield every event of a tar file; the data views are valid until the next event is asked for.

    Raises IntegrityError, naming the file, when the tar is cut or damaged.
    """
    reader = TarReader(f'"{part.path}"')
    try:
        for chunk in _decompressed(part):
            yield from reader.feed([chunk])
        reader.finish()
    except RemoteProtocolError as problem:
        raise _damaged(part, problem.message) from problem


def read_tar_stream(stream: BinaryIO, path: str = STANDARD_INPUT) -> Iterator[TarEvent]:
    """Yield every event of one tar from a stream that is read once and never rewound, as `read_tar` does.

    Compression by gzip, lz4 or zstd is told by the first bytes. path: what messages call it. Raises BackupUnusable for
    an encrypted stream, IntegrityError for one that is cut, damaged or empty.
    """
    head = b""
    try:
        # A pipe gives what there is.
        while len(head) < HEAD_BYTES and (more := stream.read(HEAD_BYTES - len(head))):
            head += more
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    refuse_foreign(path, head)
    part = Part(Area.LOCAL, path, is_tar=True, compression=compression_of(head))
    if not head:
        raise _damaged(part, "it is empty")
    reader = TarReader(what_to_call(path))
    try:
        for chunk in _plain_bytes(part, _Begun(head, stream)):
            yield from reader.feed([chunk])
        reader.finish()
    except RemoteProtocolError as problem:
        raise _damaged(part, problem.message) from problem


class _Begun:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._stream.read(size)

    def readinto(self, buffer: memoryview) -> int:
        if self._head:
            head = self.read(len(buffer))
            buffer[: len(head)] = head
            return len(head)
        return int(self._stream.readinto(buffer))  # type: ignore[attr-defined]


def what_to_call(path: str) -> str:
    """Return what messages call a tar."""
    return "standard input" if path == STANDARD_INPUT else f'"{path}"'


def scan_tar(part: Part, wants: Callable[[Member], bool]) -> Iterator[tuple[Member, bytes | None]]:
    """Yield every member with its content if `wants` says so, else None; seeks over what is not wanted if it can."""
    if part.compression is None:
        try:
            yield from _scan_seeking(part, wants)
        except OSError as problem:
            raise storage_failed(problem, "read", part.path) from problem
        except RemoteProtocolError as problem:
            raise _damaged(part, problem.message) from problem
        return
    pieces: list[bytes] | None = None
    for event in read_tar(part):
        if isinstance(event, MemberBegins):
            pieces = None
            if wants(event.member):
                try:
                    _check_small(event.member)
                except RemoteProtocolError as problem:
                    raise _damaged(part, problem.message) from problem
                pieces = []
        elif isinstance(event, MemberData):
            if pieces is not None:
                pieces += map(bytes, event.views)
        else:
            yield event.member, None if pieces is None else b"".join(pieces)


def find_members(part: Part) -> Iterator[tuple[Member, int]]:
    """Yield every member of a tar file that is not compressed, with the position of its payload in the file.

    The payload is not read. A member whose payload is cut is yielded, too, before IntegrityError is raised.
    """
    try:
        with open_file(part.path) as opened, open(opened.fileno(), "rb", buffering=1 << 16, closefd=False) as stream:
            yield from _hop(part, stream)
    except OSError as problem:
        raise storage_failed(problem, "read", part.path) from problem
    except RemoteProtocolError as problem:
        raise _damaged(part, problem.message) from problem


def _scan_seeking(part: Part, wants: Callable[[Member], bool]) -> Iterator[tuple[Member, bytes | None]]:
    with open_file(part.path) as opened, open(opened.fileno(), "rb", buffering=1 << 16, closefd=False) as stream:
        for member, position in _hop(part, stream):
            content = None
            if wants(member):
                _check_small(member)
                content = stream.read(member.size)
                if len(content) < member.size:
                    raise _cut(member, len(content))
                stream.seek(position)
            yield member, content


def _hop(part: Part, stream: BinaryIO) -> Iterator[tuple[Member, int]]:
    """Yield members and where their payload begins; the stream stands there, and has to again when this goes on."""
    reader = TarReader(f'"{part.path}"')
    file_size = os.fstat(stream.fileno()).st_size
    while header := stream.read(BLOCK_BYTES):
        for event in list(reader.feed([memoryview(header)])):
            if not isinstance(event, MemberBegins):
                continue
            member, position = event.member, stream.tell()
            yield member, position
            # Seeking past the end succeeds, so a cut tar has to be noticed here.
            if file_size - position < member.size:
                raise _cut(member, max(0, file_size - position))
            # A last member may lack its padding, as it may lack the terminator.
            stream.seek(member.size + member.padding, os.SEEK_CUR)
            # The reader only has to know that the payload went by.
            for _ in reader.feed(_zeros(member.size + member.padding)):
                pass
    reader.finish()


def _check_small(member: Member) -> None:
    """Refuse to read a file into memory that is a few kilobytes long in every backup, and much longer in this one."""
    if member.size > limits.SMALL_FILE_BYTES:
        raise RemoteProtocolError(f"{member.name!r} claims {member.size} bytes")


def _cut(member: Member, length: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"it ends inside {member.name!r}, {member.size - length} bytes short")


def _zeros(length: int) -> Iterator[memoryview]:
    while length:
        step = min(length, len(_ZEROS))
        yield _ZEROS[:step]
        length -= step


def _damaged(part: Part, why: str) -> PolarvaultError:
    if part.path == STANDARD_INPUT:
        return IntegrityError(
            f"the tar on standard input is damaged or incomplete: {why}",
            hint="see whether the command before the pipe ended well, and send it again",
        )
    try:
        with open_file(part.path) as stream:
            refuse_foreign(part.path, stream.read(HEAD_BYTES))
    except OSError:
        pass  # Whatever it is, what is wrong is known already.
    except BackupUnusable as foreign:
        return foreign
    return IntegrityError(
        f'tar file "{part.path}" is damaged or incomplete: {why}', hint="check the file's size and copy it again"
    )


def _decompressed(part: Part) -> Iterator[memoryview]:
    try:
        with open_file(part.path) as stream:
            yield from _plain_bytes(part, stream)
    except OSError as problem:
        raise storage_failed(problem, "read", part.path) from problem


def _plain_bytes(part: Part, stream: Any) -> Iterator[memoryview]:
    ways = {None: _plain, "gz": _gunzip, "lz4": _lz4, "zst": _zstd}
    try:
        yield from ways[part.compression](stream)
    except OSError as problem:
        raise storage_failed(problem, "read", part.path) from problem
    except (zlib.error, RuntimeError, EOFError) as problem:
        # zlib.error, lz4's RuntimeError; a zstandard error is turned into EOFError below.
        raise _damaged(part, f"it cannot be decompressed ({problem})") from problem


def _plain(stream: BinaryIO) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while count := stream.readinto(buffer):  # type: ignore[attr-defined]
        yield buffer[:count]


def _gunzip(stream: BinaryIO) -> Iterator[memoryview]:
    decoder = zlib.decompressobj(31)
    while chunk := stream.read(_CHUNK_BYTES):
        while chunk:
            if decoder.eof:
                # Several gzip members in a row, as parallel compressors write them; zeros after the end are padding.
                chunk = chunk.lstrip(b"\0")
                decoder = zlib.decompressobj(31) if chunk else decoder
                continue
            yield memoryview(decoder.decompress(chunk, _CHUNK_BYTES))
            chunk = decoder.unconsumed_tail or decoder.unused_data
    if not decoder.eof:
        raise EOFError("the gzip stream ends too early")


def _lz4(stream: BinaryIO) -> Iterator[memoryview]:
    import lz4.frame

    decoder, inside = lz4.frame.LZ4FrameDecompressor(), False
    while chunk := stream.read(_CHUNK_BYTES):
        while chunk:
            yield memoryview(decoder.decompress(chunk, max_length=_CHUNK_BYTES))
            while not (decoder.eof or decoder.needs_input):
                yield memoryview(decoder.decompress(b"", max_length=_CHUNK_BYTES))
            inside, chunk = not decoder.eof, decoder.unused_data or b""
            if decoder.eof:
                decoder = lz4.frame.LZ4FrameDecompressor()
    if inside:
        raise EOFError("the lz4 stream ends too early")


class _Sealed:
    """A zstd stream with a skippable frame behind it (RFC 8878, 3.1.2), so that a stream that was cut is an error.

    The decoder ends without a word where its input does. A frame that lacks something takes it from what follows: it is
    longer than a block can be, and no block, checksum or frame begins with these bytes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._is_sealed = False

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        if content or self._is_sealed:
            return content
        self._is_sealed = True
        length = 256 << 10
        return b"\x50\x2a\x4d\x18" + length.to_bytes(4, "little") + b"\xff" * length


def _zstd(stream: BinaryIO) -> Iterator[memoryview]:
    import zstandard

    # As much as --long uses. Whoever wrote the frame decides how much memory it takes; more has to be unpacked by hand.
    decoder = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW_BYTES)
    try:
        # All that is asked of the source is to read.
        sealed: Any = _Sealed(stream)
        with decoder.stream_reader(sealed, read_size=_CHUNK_BYTES, read_across_frames=True, closefd=False) as reader:
            while chunk := reader.read(_CHUNK_BYTES):
                yield memoryview(chunk)
    except zstandard.ZstdError as problem:
        raise EOFError(str(problem)) from problem
