"""Read chunks from packs: one range each, opened, decoded and compared with the hash that names it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from polarvault.errors import IntegrityError, ObjectDamaged, ObjectMissing, ObjectTruncated, PolarvaultError
from polarvault.repository.format.chunks import ChunkRef
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.envelope import decode
from polarvault.repository.format.frame import HEADER_BYTES, Header, Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.packs import TAIL_BYTES, PackedChunk, parse_footer, parse_tail
from polarvault.repository.format.sealing import Envelopes
from polarvault.storage.objects.store import ObjectStore

_PACKS = (Kind.DATA_PACK, Kind.INDEX_PACK)
_RUN_BYTES = 8 << 20
# Opened packs whose keys are kept: a restore goes from pack to pack.
_KNOWN_PACKS = 4096


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a pack in memory: object name, where it begins, its bytes, and what opens its envelopes."""

    name: str
    offset: int
    content: memoryview
    envelopes: Envelopes

    def holds(self, ref: ChunkRef) -> bool:
        """Tell whether a chunk of this pack lies within."""
        return self.offset <= ref.offset and ref.offset + ref.stored <= self.offset + len(self.content)


class ChunkReader:
    """Reads chunks of one cluster; may be used by several threads."""

    def __init__(self, store: ObjectStore, codec: Codec, names: ClusterNames) -> None:
        self._store = store
        self._codec = codec
        self._names = names
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, int], Envelopes] = {}
        self._sizes: dict[str, int] = {}

    def read(self, ref: ChunkRef) -> memoryview:
        """Return the raw bytes of a chunk; raise ObjectDamaged that names pack, chunk and offset."""
        known, (stored,) = self._fetch([ref], [(ref.offset, ref.stored)])
        return self._raw(self._names.pack(ref.label, ref.pack), known, ref, stored)

    def read_run(self, refs: Sequence[ChunkRef]) -> Iterator[tuple[ChunkRef, memoryview | PolarvaultError]]:
        """Yield the raw bytes of chunks of one pack, or what is wrong with them: IntegrityError, ObjectMissing.

        They are fetched together and decoded when they are asked for, so that the bytes of one are still in the
        processor's cache when they are used.
        """
        name = self._names.pack(refs[0].label, refs[0].pack)
        try:
            known, found = self._fetch(refs, [(ref.offset, ref.stored) for ref in refs])
        except (IntegrityError, ObjectMissing):
            # One of them: each for itself tells which.
            for ref in refs:
                yield ref, self._read_or_problem(ref)
            return
        for ref, stored in zip(refs, found, strict=True):
            try:
                raw: memoryview | PolarvaultError = self._raw(name, known, ref, stored)
            except IntegrityError:
                # Once more: what was damaged on its way is not damaged where it lies.
                raw = self._read_or_problem(ref)
            yield ref, raw

    def _read_or_problem(self, ref: ChunkRef) -> memoryview | PolarvaultError:
        try:
            return self.read(ref)
        except (IntegrityError, ObjectMissing) as problem:
            return problem

    def copy_run(self, refs: Sequence[ChunkRef]) -> Iterator[tuple[ChunkRef, bytes]]:
        """Yield chunks of one pack as they are encoded, each proved as `read` does; for who writes them elsewhere."""
        name = self._names.pack(refs[0].label, refs[0].pack)
        known, found = self._fetch(refs, [(ref.offset, ref.stored) for ref in refs])
        for ref, stored in zip(refs, found, strict=True):
            self._raw(name, known, ref, stored)
            yield ref, bytes(known.open(ref.number, stored))

    def read_ahead(self, ref: ChunkRef, length: int) -> Window:
        """Return what lies in a pack from a chunk on, to its end if that comes first, for chunks that follow soon."""
        name = self._names.pack(ref.label, ref.pack)
        # Written once: the size that it has does not change.
        size = self._sizes.get(name) or self._sizes.setdefault(name, self._store.stat(name).size_bytes)
        length = max(ref.stored, min(length, size - ref.offset))
        known, (content,) = self._fetch([ref], [(ref.offset, length)])
        return Window(name, ref.offset, content, known)

    def from_window(self, window: Window, ref: ChunkRef) -> memoryview:
        """Return the raw bytes of a chunk that a window holds."""
        start = ref.offset - window.offset
        return self._raw(window.name, window.envelopes, ref, window.content[start : start + ref.stored])

    def _fetch(self, refs: Sequence[ChunkRef], ranges: Sequence[tuple[int, int]]) -> tuple[Envelopes, list[memoryview]]:
        label, pack = refs[0].label, refs[0].pack
        name = self._names.pack(label, pack)
        known = self._opened.get((label, pack))
        try:
            found = self._store.get_ranges(name, ranges if known else [(0, HEADER_BYTES), *ranges])
        except (ObjectMissing, ObjectTruncated) as problem:
            raise type(problem)(
                f"{problem.message} (chunks {refs[0].number} to {refs[-1].number})", hint=problem.hint
            ) from problem
        if known is None:
            header = self._codec.open_header(name, _PACKS, found.pop(0))
            known = self._codec.envelopes(name, header)
            with self._lock:
                if len(self._opened) >= _KNOWN_PACKS:
                    self._opened.clear()
                self._opened[label, pack] = known
        return known, found

    def _raw(self, name: str, envelopes: Envelopes, ref: ChunkRef, stored: memoryview) -> memoryview:
        what = f'chunk {ref.number} of "{name}" at offset {ref.offset}'
        raw = decode(envelopes.open(ref.number, stored), most_bytes=ref.raw, what=what)
        if blake3(raw).digest() != ref.hash:
            raise ObjectDamaged(f"{what} is damaged: its content and its hash do not agree")
        return raw

    def footer(self, label: str, pack: int, size_bytes: int) -> list[PackedChunk]:
        """Return what lies in a pack, by its own footer; the object as a whole is not read."""
        name = self._names.pack(label, pack)
        header = self._codec.open_header(name, _PACKS, self._store.get_ranges(name, [(0, HEADER_BYTES)])[0])
        end = size_bytes - header.trailer_bytes - TAIL_BYTES
        if end < HEADER_BYTES:
            raise ObjectDamaged(f'"{name}" ends too early')
        tail = parse_tail(name, self._store.get_ranges(name, [(end, TAIL_BYTES)])[0])
        start = end - tail.footer_stored
        if start < HEADER_BYTES:
            raise ObjectDamaged(f'"{name}" claims a footer that is longer than itself')
        (stored,) = self._store.get_ranges(name, [(start, tail.footer_stored)])
        return read_footer(self._codec, name, header, stored, tail.footer_raw, tail.chunks, start)


def read_footer(
    codec: Codec, name: str, header: Header, stored: memoryview, raw_size: int, count: int, end: int
) -> list[PackedChunk]:
    """Open and parse a footer."""
    opened = codec.envelopes(name, header).open(count, stored)
    raw = decode(opened, most_bytes=raw_size, what=f'the footer of "{name}"')
    return parse_footer(name, raw, count=count, end=end)


def open_pack(
    codec: Codec, name: str, kinds: Sequence[Kind], content: bytes
) -> Iterator[tuple[PackedChunk, memoryview]]:
    """Yield every chunk of a whole pack object with its raw bytes, all of it checked: trailer, footer, each chunk."""
    header, body = codec.open(name, kinds, content)
    if len(body) < TAIL_BYTES:
        raise ObjectDamaged(f'"{name}" ends too early')
    tail = parse_tail(name, body[-TAIL_BYTES:])
    start = len(body) - TAIL_BYTES - tail.footer_stored
    if start < 0:
        raise ObjectDamaged(f'"{name}" claims a footer that is longer than itself')
    end = HEADER_BYTES + start
    footer = read_footer(codec, name, header, body[start:-TAIL_BYTES], tail.footer_raw, tail.chunks, end)
    envelopes = codec.envelopes(name, header)
    for number, chunk in enumerate(footer):
        at = chunk.offset - HEADER_BYTES
        what = f'chunk {number} of "{name}" at offset {chunk.offset}'
        raw = decode(envelopes.open(number, body[at : at + chunk.stored]), most_bytes=chunk.raw, what=what)
        if len(raw) != chunk.raw or blake3(raw).digest() != chunk.hash:
            raise ObjectDamaged(f"{what} is damaged: its content and its hash do not agree")
        yield chunk, raw


def runs(refs: Sequence[ChunkRef]) -> Iterator[list[ChunkRef]]:
    """Yield chunks in the order in which they lie, as many of one pack together as are worth one fetch."""
    run: list[ChunkRef] = []
    for ref in sorted(set(refs), key=lambda ref: ref.place):
        if run and (
            (ref.label, ref.pack) != (run[0].label, run[0].pack) or ref.offset + ref.stored - run[0].offset > _RUN_BYTES
        ):
            yield run
            run = []
        run.append(ref)
    if run:
        yield run
