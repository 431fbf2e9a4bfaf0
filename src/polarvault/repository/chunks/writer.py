"""Write packs: chunks are collected in order, and full packs go to the store while the next one is filled.

Theory of operation. Chunks come compressed and hashed from worker threads. `add` gives each its place at once, because
sealing adds a known number of bytes. A full pack is sealed, hashed and written by one of two threads; `add` waits while
both are busy, so that at most three packs are in memory. A pack is durable when its thread has ended; `finish` waits
for all of them, and raises what went wrong with any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from polarvault.errors import StorageFailed
from polarvault.model import limits
from polarvault.repository.format.chunks import ChunkKind, ChunkRef
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.envelope import Encoder
from polarvault.repository.format.frame import HEADER_BYTES, Buffer, Header, Kind
from polarvault.repository.format.names import PACKS, ClusterNames
from polarvault.repository.format.packs import PackedChunk, Tail, encode_footer
from polarvault.storage.objects.store import ObjectStore

# Three are in memory, beside 100 MB for Python, numpy and the compiler: a backup takes 160 MB, an encrypted one 195;
# with 20 MiB and buffers of 4 MiB it was 200 and 230.
_PACK_BYTES = 16 << 20
_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A pack that is durable: its number, its size, and the first hash of its trailer."""

    number: int
    size_bytes: int
    digest: bytes


@dataclass(slots=True)
class _OpenPack:
    number: int
    envelopes: list[bytes] = field(default_factory=list)
    chunks: list[PackedChunk] = field(default_factory=list)
    size: int = HEADER_BYTES


def seal_pack(codec: Codec, kind: Kind, name: str, envelopes: list[bytes], chunks: list[PackedChunk]) -> list[Buffer]:
    """Return all parts of a pack object, the trailer's first hash last but one."""
    header: Header = codec.new_header(kind)
    sealing = codec.envelopes(name, header)
    # Given up one by one: of a pack that is sealed there are not two copies in memory.
    body: list[Buffer] = []
    for number in range(len(envelopes)):
        body.append(sealing.seal(number, envelopes[number]))
        envelopes[number] = b""
    raw = encode_footer(chunks)
    footer = sealing.seal(len(chunks), Encoder(1).encode(raw))
    body += [footer, Tail(len(footer), len(raw), len(chunks)).encode()]
    parts, _ = codec.close(name, header, body)
    return parts


class PackWriter:
    """Writes the data and the index packs of one backup."""

    def __init__(self, store: ObjectStore, codec: Codec, names: ClusterNames, label: str) -> None:
        self._store = store
        self._codec = codec
        self._names = names
        self._label = label
        self._open: dict[Kind, _OpenPack] = {}
        self._next = 0
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="pack")
        self._running: list[Future[WrittenPack]] = []
        self._free = threading.Semaphore(_IN_FLIGHT)
        self._written: list[WrittenPack] = []

    def add(self, kind: ChunkKind, envelope: bytes, *, raw: int, digest: bytes) -> ChunkRef:
        """Put an encoded chunk into its pack; return its place."""
        of = Kind.DATA_PACK if kind in (ChunkKind.PIECE, ChunkKind.PAGES, ChunkKind.BUNDLE) else Kind.INDEX_PACK
        pack = self._open.get(of) or self._begin(of)
        stored = len(envelope) + self._codec.sealer.overhead
        ref = ChunkRef(self._label, pack.number, len(pack.chunks), pack.size, stored, raw, digest)
        pack.envelopes.append(envelope)
        pack.chunks.append(PackedChunk(kind, pack.size, stored, raw, digest))
        pack.size += stored
        if pack.size >= _PACK_BYTES or len(pack.chunks) == limits.PACK_CHUNKS:
            self._close(of)
        return ref

    def finish(self) -> list[WrittenPack]:
        """Write what is open and wait until everything is durable; return all packs by number."""
        for kind in list(self._open):
            self._close(kind)
        for running in self._running:
            self._written.append(running.result())
        self._running = []
        self._pool.shutdown()
        return sorted(self._written, key=lambda pack: pack.number)

    def abandon(self) -> None:
        """Give up after a failure; what is being written now is waited for. Safe to call twice, and after `finish`."""
        self._open = {}
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, kind: Kind) -> _OpenPack:
        if self._next == PACKS:
            raise StorageFailed(f"the backup has {PACKS} packs, and more cannot be named", hint="split the cluster")
        pack = self._open[kind] = _OpenPack(self._next)
        self._next += 1
        return pack

    def _close(self, kind: Kind) -> None:
        pack = self._open.pop(kind)
        for done in self._ended():
            self._written.append(done.result())
        self._free.acquire()
        self._running.append(self._pool.submit(self._write, kind, pack))

    def _ended(self) -> Iterator[Future[WrittenPack]]:
        ended = [running for running in self._running if running.done()]
        self._running = [running for running in self._running if running not in ended]
        yield from ended

    def _write(self, kind: Kind, pack: _OpenPack) -> WrittenPack:
        try:
            name = self._names.pack(self._label, pack.number)
            parts = seal_pack(self._codec, kind, name, pack.envelopes, pack.chunks)
            self._store.put_new(name, [memoryview(part) for part in parts])
            return WrittenPack(pack.number, sum(map(len, parts)), bytes(parts[-2]))
        finally:
            with suppress(ValueError):
                self._free.release()
