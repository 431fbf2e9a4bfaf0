"""Undo server compression in a stream: one decoder per archive, chosen by the archive's name."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from polarvault.errors import RemoteProtocolError


class Decoder(Protocol):
    """Turns compressed bytes into plain ones."""

    def feed(self, views: Iterable[memoryview]) -> Iterable[memoryview]:
        """Return what these bytes decode to; plain bytes come back as the very list that was given."""


class _Plain:
    def feed(self, views: Iterable[memoryview]) -> Iterable[memoryview]:
        return views


class _Gzip:
    def __init__(self, what: str) -> None:
        self._what = what
        self._decoder = zlib.decompressobj(wbits=31)

    def feed(self, views: Iterable[memoryview]) -> Iterator[memoryview]:
        for view in views:
            rest: bytes | memoryview = view
            while rest:
                if self._decoder.eof:
                    self._decoder = zlib.decompressobj(wbits=31)
                try:
                    plain = self._decoder.decompress(rest)
                except zlib.error as problem:
                    raise RemoteProtocolError(f"{self._what} cannot be decompressed: {problem}") from problem
                if plain:
                    yield memoryview(plain)
                rest = self._decoder.unused_data if self._decoder.eof else b""


class _Zstd:
    def __init__(self, what: str) -> None:
        import zstandard

        self._what = what
        self._errors = zstandard.ZstdError
        # A window up to 2 GB: --long on the other side may have used one larger than the default limit.
        self._maker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._decoder = self._maker.decompressobj()

    def feed(self, views: Iterable[memoryview]) -> Iterator[memoryview]:
        for view in views:
            rest: bytes | memoryview = view
            while rest:
                if self._decoder.eof:
                    self._decoder = self._maker.decompressobj()
                try:
                    plain = self._decoder.decompress(rest)
                except self._errors as problem:
                    raise RemoteProtocolError(f"{self._what} cannot be decompressed: {problem}") from problem
                if plain:
                    yield memoryview(plain)
                rest = self._decoder.unused_data if self._decoder.eof else b""


class _Lz4:
    def __init__(self, what: str) -> None:
        import lz4.frame

        self._what = what
        self._maker = lz4.frame.LZ4FrameDecompressor
        self._decoder = self._maker()

    def feed(self, views: Iterable[memoryview]) -> Iterator[memoryview]:
        for view in views:
            rest: bytes | memoryview = view
            while rest:
                if self._decoder.eof:
                    self._decoder = self._maker()
                try:
                    plain = self._decoder.decompress(rest)
                except RuntimeError as problem:
                    raise RemoteProtocolError(f"{self._what} cannot be decompressed: {problem}") from problem
                if plain:
                    yield memoryview(plain)
                rest = (self._decoder.unused_data or b"") if self._decoder.eof else b""


def decoder_for(archive_name: str) -> Decoder:
    """Return the decoder that the archive's name calls for."""
    for suffix, maker in ((".gz", _Gzip), (".zst", _Zstd), (".lz4", _Lz4)):
        if archive_name.endswith(suffix):
            return maker(archive_name)
    return _Plain()


def plain_name(archive_name: str) -> str:
    """Return the archive's name without a compression suffix."""
    for suffix in (".gz", ".zst", ".lz4"):
        if archive_name.endswith(suffix):
            return archive_name[: -len(suffix)]
    return archive_name
