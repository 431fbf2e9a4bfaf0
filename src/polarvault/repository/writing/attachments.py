"""What describes a backup and is no member of it: manifests, configuration. One pack of its own, `manifest`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from polarvault.repository.chunks.writer import seal_pack
from polarvault.repository.format.chunks import ATTACHMENT_BYTES, ChunkKind
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.documents import encode_json
from polarvault.repository.format.envelope import Encoder
from polarvault.repository.format.frame import HEADER_BYTES, Buffer, Kind
from polarvault.repository.format.packs import PackedChunk
from polarvault.repository.writing.work import Encoded


class Attachments:
    """Gathers them, compressed. level: of zstd."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._kept: list[tuple[str, list[Encoded], int, str]] = []

    def add(self, name: str, parts: Iterable[Buffer]) -> None:
        """Keep one under a name."""
        encoder = Encoder(self._level)
        whole, size = blake3(), 0
        chunks: list[Encoded] = []
        for piece in _pieces(parts, ATTACHMENT_BYTES):
            whole.update(piece)
            size += len(piece)
            chunks.append(Encoded(encoder.encode(piece), len(piece), blake3(piece).digest()))
        self._kept.append((name, chunks, size, whole.hexdigest()))

    def seal(self, codec: Codec, object_name: str) -> list[Buffer]:
        """Return the object that holds all of them, and last the list of what it holds."""
        envelopes: list[bytes] = []
        chunks: list[PackedChunk] = []
        at = HEADER_BYTES
        listed = []

        def add(kind: ChunkKind, one: Encoded) -> None:
            nonlocal at
            stored = len(one.envelope) + codec.sealer.overhead
            envelopes.append(one.envelope)
            chunks.append(PackedChunk(kind, at, stored, one.raw, one.digest))
            at += stored

        for name, encoded, size, digest in self._kept:
            listed.append({"name": name, "size": size, "blake3": digest, "chunks": len(encoded)})
            for one in encoded:
                add(ChunkKind.ATTACHMENT, one)
        raw = encode_json({"attachments": listed})
        add(ChunkKind.ATTACHMENTS, Encoded(Encoder(self._level).encode(raw), len(raw), blake3(raw).digest()))
        return seal_pack(codec, Kind.MANIFEST, object_name, envelopes, chunks)


def _pieces(parts: Iterable[Buffer], length: int) -> Iterator[bytes]:
    gathered = bytearray()
    for part in parts:
        gathered += part
        while len(gathered) >= length:
            yield bytes(gathered[:length])
            del gathered[:length]
    if gathered:
        yield bytes(gathered)
