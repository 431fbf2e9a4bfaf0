"""How one chunk is stored: a byte that says how it is encoded, and the chunk itself or a zstd frame."""

from __future__ import annotations

import threading

import zstandard

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.repository.format.frame import Buffer

_RAW, _ZSTD = b"\0", b"\1"
# A frame that saves less than this is not worth the time to decode it.
_WORTH = 0.97


class Encoder:
    """Encodes chunks; one thread at a time."""

    def __init__(self, level: int) -> None:
        # The hash in the reference covers the content; zstd's own checksum would only cost time.
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)

    def encode(self, raw: Buffer) -> bytes:
        """Return the envelope's content."""
        frame = self._compressor.compress(raw)
        if len(frame) < _WORTH * len(raw):
            return _ZSTD + frame
        return unencoded(raw)


# A decoder may not be used by two threads at once, and making one takes a tenth of the time of decoding a chunk.
_OF_THREAD = threading.local()


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_OF_THREAD, "decompressor", None)
    if found is None:
        found = _OF_THREAD.decompressor = zstandard.ZstdDecompressor()
    return found


def unencoded(raw: Buffer) -> bytes:
    """Return the envelope's content for what would not become smaller."""
    return b"".join((_RAW, raw))


def decode(content: Buffer, *, most_bytes: int, what: str) -> memoryview:
    """Return the raw bytes; raise ObjectDamaged for what is none, or would be longer than most_bytes."""
    view = memoryview(content)
    kind = bytes(view[:1])
    if kind == _RAW:
        raw = view[1:]
        if len(raw) > most_bytes:
            raise ObjectDamaged(f"{what} has {len(raw)} bytes, and at most {most_bytes} are possible")
        return raw
    if kind != _ZSTD:
        raise ObjectDamaged(f"{what} is neither raw nor compressed")
    try:
        parameters = zstandard.get_frame_parameters(view[1:])
        # The decoder allocates what the frame claims, so that it is asked first.
        if parameters.content_size > most_bytes or parameters.window_size > max(most_bytes, limits.ZSTD_WINDOW_BYTES):
            raise ObjectDamaged(f"{what} claims {parameters.content_size} bytes, and at most {most_bytes} are possible")
        return memoryview(_decompressor().decompress(view[1:], allow_extra_data=False))
    except zstandard.ZstdError as problem:
        raise ObjectDamaged(f"{what} cannot be decompressed: {problem}") from problem
