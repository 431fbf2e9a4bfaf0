"""The end of a pack: which chunks lie in it, so that it can be understood without the index."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.repository.format import columns
from polarvault.repository.format.chunks import ChunkKind
from polarvault.repository.format.frame import HEADER_BYTES

_TAIL = struct.Struct("<III4s")
_TAIL_MAGIC = b"PVPF"
TAIL_BYTES = _TAIL.size


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """One chunk of a pack: what it is, where its envelope lies in the object, and the hash of its raw bytes."""

    kind: ChunkKind
    offset: int
    stored: int
    raw: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Tail:
    """The last 16 bytes before the trailer: sizes of the footer, and how many chunks there are."""

    footer_stored: int
    footer_raw: int
    chunks: int

    def encode(self) -> bytes:
        """Return the bytes."""
        return _TAIL.pack(self.footer_stored, self.footer_raw, self.chunks, _TAIL_MAGIC)


def parse_tail(name: str, content: bytes | memoryview) -> Tail:
    """Parse a tail; raise ObjectDamaged."""
    stored, raw, chunks, magic = _TAIL.unpack(content)
    if magic != _TAIL_MAGIC or chunks > limits.PACK_CHUNKS or max(stored, raw) > limits.FOOTER_BYTES:
        raise ObjectDamaged(f'"{name}" does not end as a pack does')
    return Tail(stored, raw, chunks)


def encode_footer(chunks: Sequence[PackedChunk]) -> bytes:
    """Return a footer's raw bytes."""
    return columns.encode(
        {
            1: numpy.array([chunk.kind for chunk in chunks], numpy.uint8),
            2: numpy.array([chunk.stored for chunk in chunks], "<u4"),
            3: numpy.array([chunk.raw for chunk in chunks], "<u4"),
            4: numpy.frombuffer(b"".join(chunk.hash for chunk in chunks), numpy.uint8).reshape(len(chunks), 32),
        }
    )


def parse_footer(name: str, content: memoryview, *, count: int, end: int) -> list[PackedChunk]:
    """Parse a footer's raw bytes; the chunks must fill the pack from its header up to `end`."""
    what = f'the footer of "{name}"'
    found = columns.Columns(content, what)
    kinds = found.numbers(1, 1, count).tolist()
    stored, raw = (found.numbers(column, 4, count).tolist() for column in (2, 3))
    hashes = found.bytes_of(4, 32, count).tobytes()
    chunks, at = [], HEADER_BYTES
    for number, kind in enumerate(kinds):
        if kind not in list(ChunkKind) or raw[number] > limits.CHUNK_BYTES:
            raise ObjectDamaged(f"{what} has a chunk {number} that cannot be")
        digest = hashes[32 * number : 32 * number + 32]
        chunks.append(PackedChunk(ChunkKind(kind), at, stored[number], raw[number], digest))
        at += stored[number]
    if at != end:
        raise ObjectDamaged(f"{what} and the pack do not agree about where chunks lie")
    return chunks
