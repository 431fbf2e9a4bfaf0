"""Undo server compression in a stream: one decoder per archive, chosen by the archive's name."""

from __future__ import annotations

import zlib

from polarvault.errors import PolarvaultError, RemoteProtocolError
from polarvault.model import limits

TYPE_CHECKING = False
if TYPE_CHECKING:  # `wal fetch` decodes too, and its start-up counts.
    from collections.abc import Callable, Iterator
    from typing import Any

# The largest there is.
_LZ4_BLOCK_BYTES = 4 << 20


class Decoder:
    """Turns compressed bytes into plain ones.

    position: compressed bytes decoded so far, short of the piece that failed. is_whole: what was fed ends where a frame
    or member ends, so nothing is missing.
    """

    position = 0
    is_whole = True

    def feed(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        """Yield what these bytes decode to, a part at a time, so that no more than a part need be in memory."""
        raise NotImplementedError

    def rest(self) -> Iterator[list[memoryview]]:
        """Yield what can be decoded of a stream that was cut and that the decoder has held back so far."""
        yield from ()


class _Plain(Decoder):
    def feed(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        yield views


class _Framed(Decoder):
    """Feeds a library's decoder in pieces; frames or members may follow one another.

    The pieces bound memory: a few bytes of a run of zeros, such as PolarDB's polar_fullpage, decode to megabytes, and
    these decoders return all of it at once.
    """

    def __init__(
        self,
        what: str,
        failed: type[PolarvaultError],
        make: Callable[[], Any],
        error: type[Exception],
        *,
        piece_bytes: int,
    ) -> None:
        self._what = what
        self._failed = failed
        self._make = make
        self._error = error
        self._piece_bytes = piece_bytes
        self._decoder = make()
        # An empty file is no compressed file: every format begins with a magic number.
        self.is_whole = False

    def feed(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        for view in views:
            for start in range(0, len(view), self._piece_bytes):
                piece = view[start : start + self._piece_bytes]
                yield from self._decode(piece)
                self.position += len(piece)
                self.is_whole = self._decoder.eof

    def _decode(self, piece: memoryview | bytes) -> Iterator[list[memoryview]]:
        while piece:
            if self._decoder.eof:
                self._decoder = self._make()
            try:
                plain = self._decoder.decompress(piece)
            except self._error as problem:
                raise self._failed(
                    f"{self._what} cannot be decompressed at byte {self.position} or shortly after: {problem}"
                ) from problem
            if plain:
                yield [memoryview(plain)]
            piece = (self._decoder.unused_data or b"") if self._decoder.eof else b""


class _Lz4(_Framed):
    def rest(self) -> Iterator[list[memoryview]]:
        # The library returns as much as it guessed that the bytes decode to; more comes with the next ones only.
        while not self._decoder.eof and (plain := self._decoder.decompress(b"", max_length=_LZ4_BLOCK_BYTES)):
            yield [memoryview(plain)]


def _gzip(what: str, failed: type[PolarvaultError]) -> _Framed:
    return _Framed(what, failed, lambda: zlib.decompressobj(wbits=31), zlib.error, piece_bytes=8 << 10)


def _zstd(what: str, failed: type[PolarvaultError]) -> _Framed:
    import zstandard

    maker = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW_BYTES)
    # zstd packs 128 kB of zeros into 4 bytes: 256 bytes can mean 8 MB.
    return _Framed(what, failed, lambda: maker.decompressobj(write_size=64 << 10), zstandard.ZstdError, piece_bytes=256)


def _lz4(what: str, failed: type[PolarvaultError]) -> _Framed:
    import lz4.frame

    return _Lz4(what, failed, lz4.frame.LZ4FrameDecompressor, RuntimeError, piece_bytes=32 << 10)


def decoder_for(
    archive_name: str, what: str | None = None, failed: type[PolarvaultError] = RemoteProtocolError
) -> Decoder:
    """Return the decoder that the name calls for; it raises `failed`, naming `what`, for bytes it cannot decode."""
    for suffix, maker in ((".gz", _gzip), (".zst", _zstd), (".lz4", _lz4)):
        if archive_name.endswith(suffix):
            return maker(archive_name if what is None else f'"{what}"', failed)
    return _Plain()


def plain_name(archive_name: str) -> str:
    """Return the archive's name without a compression suffix."""
    for suffix in (".gz", ".zst", ".lz4"):
        if archive_name.endswith(suffix):
            return archive_name[: -len(suffix)]
    return archive_name
