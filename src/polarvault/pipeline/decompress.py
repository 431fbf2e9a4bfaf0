"""Undo server compression in a stream: one decoder per archive, chosen by the archive's name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from polarvault.errors import RemoteProtocolError


class Decoder(Protocol):
    """Turns compressed bytes into plain ones."""

    def feed(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        """Yield what these bytes decode to, a part at a time, so that no more than a part need be in memory."""


class _Plain:
    def feed(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        yield views


class _Framed:
    """Feeds a library's decoder in pieces; frames or members may follow one another.

    The pieces bound memory: a few bytes of a run of zeros, such as PolarDB's polar_fullpage, decode to megabytes, and
    these decoders return all of it at once.
    """

    def __init__(self, what: str, make: Callable[[], Any], errors: type[Exception], *, piece_bytes: int) -> None:
        self._what = what
        self._make = make
        self._errors = errors
        self._piece_bytes = piece_bytes
        self._decoder = make()

    def feed(self, views: list[memoryview]) -> Iterator[list[memoryview]]:
        for view in views:
            for start in range(0, len(view), self._piece_bytes):
                yield from self._decode(view[start : start + self._piece_bytes])

    def _decode(self, piece: memoryview | bytes) -> Iterator[list[memoryview]]:
        while piece:
            if self._decoder.eof:
                self._decoder = self._make()
            try:
                plain = self._decoder.decompress(piece)
            except self._errors as problem:
                raise RemoteProtocolError(f"{self._what} cannot be decompressed: {problem}") from problem
            if plain:
                yield [memoryview(plain)]
            piece = (self._decoder.unused_data or b"") if self._decoder.eof else b""


def _gzip(what: str) -> _Framed:
    return _Framed(what, lambda: zlib.decompressobj(wbits=31), zlib.error, piece_bytes=8 << 10)


def _zstd(what: str) -> _Framed:
    import zstandard

    # A window up to 2 GB: --long on the other side may have used one larger than the default limit.
    maker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    # zstd packs 128 kB of zeros into 4 bytes: 256 bytes can mean 8 MB.
    return _Framed(what, lambda: maker.decompressobj(write_size=64 << 10), zstandard.ZstdError, piece_bytes=256)


def _lz4(what: str) -> _Framed:
    import lz4.frame

    return _Framed(what, lz4.frame.LZ4FrameDecompressor, RuntimeError, piece_bytes=32 << 10)


def decoder_for(archive_name: str) -> Decoder:
    """Return the decoder that the archive's name calls for."""
    for suffix, maker in ((".gz", _gzip), (".zst", _zstd), (".lz4", _lz4)):
        if archive_name.endswith(suffix):
            return maker(archive_name)
    return _Plain()


def plain_name(archive_name: str) -> str:
    """Return the archive's name without a compression suffix."""
    for suffix in (".gz", ".zst", ".lz4"):
        if archive_name.endswith(suffix):
            return archive_name[: -len(suffix)]
    return archive_name
