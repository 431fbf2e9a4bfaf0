"""WAL in a repository: ranges of segments, and the files beside them. A segment is there when ranges cover it.

A range is one object and never changes; its name says which bytes it holds. Ranges may overlap, and must then agree.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from polarvault.errors import IntegrityError, ObjectDamaged, ObjectDiffers, ObjectMissing
from polarvault.model import limits
from polarvault.model.dataclass import dataclass
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment, is_segment_size
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import Buffer, Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.storage.objects.model import StoredObject
from polarvault.storage.objects.store import ObjectStore

# What a writer gathers for one object; readers take up to limits.WAL_RANGE_BYTES.
RANGE_BYTES = 16 << 20
_HEADER = struct.Struct("<QQIIII")
RANGE_HEADER_BYTES = _HEADER.size
RANGE_NAME = r"([0-9A-F]{16})-([0-9A-F]{16})"
"""What the last word of a range's name must match as a whole."""
_TIMELINE = r"[0-9A-F]{8}"
_FILE = r"[0-9A-F]{8}\.history|[0-9A-F]{24}(?:\.partial|\.[0-9A-F]{8}\.backup)"


@dataclass(frozen=True, slots=True, order=True)
class StoredRange:
    """Bytes of one segment that are in the repository: from first to before last."""

    segment: WalSegment
    first: Lsn
    last: Lsn


class RepositoryWal:
    """The WAL of one cluster under one system identifier; may be used by several threads."""

    def __init__(
        self, store: ObjectStore, codec: Codec, names: ClusterNames, *, system_identifier: int, segment_bytes: int
    ) -> None:
        if not is_segment_size(segment_bytes):
            raise ValueError(f"{segment_bytes} is no size of WAL segments")
        self._store, self._codec, self._names = store, codec, names
        self.system_identifier = system_identifier
        self.segment_bytes = segment_bytes
        self._of_thread = threading.local()

    def put_range(self, timeline_id: int, first: int, content: Buffer) -> StoredRange:
        """Write a range, which lies within one segment; durable on return. The same one again is a success.

        In an encrypted repository the same bytes make another object each time: what is there is read and compared.
        """

        def fill(view: memoryview) -> None:
            view[:] = content

        return self.put_filled(timeline_id, first, len(content), fill)

    def put_filled(
        self, timeline_id: int, first: int, length: int, fill: Callable[[memoryview], object]
    ) -> StoredRange:
        """Do the same with bytes that `fill` puts into the view that it is given, which saves copying them."""
        self._range(timeline_id, first, length)
        # Memory of that size is given back and zeroed anew each time, which takes a quarter of a push.
        buffer: bytearray = getattr(self._of_thread, "buffer", None) or bytearray()
        if len(buffer) < _HEADER.size + length:
            buffer = self._of_thread.buffer = bytearray(_HEADER.size + length)
        fill(memoryview(buffer)[_HEADER.size : _HEADER.size + length])
        return self.put_prepared(timeline_id, first, length, buffer)

    def put_prepared(self, timeline_id: int, first: int, length: int, buffer: bytearray) -> StoredRange:
        """Do the same with bytes that lie in a buffer behind RANGE_HEADER_BYTES, which are filled in."""
        found = self._range(timeline_id, first, length)
        _HEADER.pack_into(buffer, 0, self.system_identifier, first, timeline_id, self.segment_bytes, length, 0)
        with memoryview(buffer)[: RANGE_HEADER_BYTES + length] as view:
            self._put(Kind.WAL_RANGE, self._name(found), view)
        return found

    def _range(self, timeline_id: int, first: int, length: int) -> StoredRange:
        segment = WalSegment.holding(first, timeline_id, self.segment_bytes)
        if not 0 < length <= limits.WAL_RANGE_BYTES or first + length > segment.end:
            raise ValueError(f"{length} bytes from {Lsn(first)} are no range of one segment")
        return StoredRange(segment, Lsn(first), Lsn(first + length))

    def ranges(self, timeline_id: int) -> list[StoredRange]:
        """Return what is there of a timeline, by place."""
        folder = self._names.wal_timeline(self.system_identifier, timeline_id)
        return self._listed(timeline_id, folder)

    def segment_ranges(self, segment: WalSegment) -> list[StoredRange]:
        """Return what is there of a segment, by place."""
        folder = self._names.wal_timeline(self.system_identifier, segment.timeline_id)
        return self._listed(segment.timeline_id, f"{folder}/{segment.file_name}")

    def stored(self, timeline_id: int) -> list[tuple[StoredRange, StoredObject]]:
        """Return the same as `ranges`, with what the store says of each."""
        folder = self._names.wal_timeline(self.system_identifier, timeline_id)
        return sorted(self._with_objects(timeline_id, folder), key=lambda one: one[0])

    def stored_files(self, timeline_id: int) -> list[tuple[WalSegment, StoredObject]]:
        """Return the partial segments and the marks of backups of a timeline, each with the segment that it is of."""
        folder = self._names.wal_timeline(self.system_identifier, timeline_id)
        found = []
        for one in self._store.list_objects(folder):
            word = one.name.removeprefix(f"{folder}/")
            # A history is of no segment: what branches where stays known.
            if re.fullmatch(_FILE, word) and not word.endswith(".history"):
                with suppress(ValueError):
                    found.append((WalSegment.parse(word[:24], self.segment_bytes), one))
        return found

    def _listed(self, timeline_id: int, below: str) -> list[StoredRange]:
        return sorted(one for one, _ in self._with_objects(timeline_id, below))

    def _with_objects(self, timeline_id: int, below: str) -> Iterator[tuple[StoredRange, StoredObject]]:
        folder = self._names.wal_timeline(self.system_identifier, timeline_id)
        for one in self._store.list_objects(below):
            words = one.name.removeprefix(f"{folder}/").split("/")
            match = re.fullmatch(RANGE_NAME, words[-1]) if len(words) == 2 else None
            if match is None:
                continue
            try:
                segment = WalSegment.parse(words[0], self.segment_bytes)
            except ValueError as problem:
                raise ObjectDamaged(f'"{one.name}" is no WAL of this cluster: {problem}') from None
            first, last = Lsn(int(match[1], 16)), Lsn(int(match[2], 16))
            if segment.timeline_id != timeline_id or not segment.start <= first < last <= segment.end:
                raise ObjectDamaged(f'"{one.name}" does not lie in its segment')
            yield StoredRange(segment, first, last), one

    def timelines(self) -> list[int]:
        """Return the timelines of which there is anything."""
        folder = f"{self._names.wal}/{self.system_identifier}"
        return [int(word, 16) for word in self._store.list_folders(folder) if re.fullmatch(_TIMELINE, word)]

    def read_range(self, wanted: StoredRange) -> memoryview:
        """Return the bytes of a range; what it says of itself is compared with its name."""
        name = self._name(wanted)
        content = self._read(Kind.WAL_RANGE, name)
        if len(content) < _HEADER.size:
            raise ObjectDamaged(f'"{name}" ends within its header')
        segment = wanted.segment
        head = self.system_identifier, int(wanted.first), segment.timeline_id, segment.size_bytes
        length = int(wanted.last) - int(wanted.first)
        if _HEADER.unpack_from(content) != (*head, length, 0) or len(content) != _HEADER.size + length:
            raise ObjectDamaged(f'"{name}" holds other WAL than its name says')
        return content[_HEADER.size :]

    def read_segment(self, segment: WalSegment) -> tuple[bytes, Lsn]:
        """Return a segment's bytes from its start, and where what is there without a gap ends.

        Where ranges overlap they must agree: IntegrityError names both.
        """
        content = bytearray()
        origin: list[StoredRange] = []
        for one in self.ranges(segment.timeline_id):
            if one.segment != segment:
                continue
            at = int(one.first) - int(segment.start)
            if at > len(content):
                break
            part = self.read_range(one)
            shared = min(len(content) - at, len(part))
            if content[at : at + shared] != part[:shared]:
                raise IntegrityError(
                    f"two ranges of {segment.file_name} differ: {one.first}-{one.last} and an earlier one of "
                    f"{', '.join(f'{other.first}-{other.last}' for other in origin[-2:])}",
                    hint="two servers have written here; see which of them is the cluster",
                )
            content += part[shared:]
            origin.append(one)
        return bytes(content), Lsn(int(segment.start) + len(content))

    def read(self, timeline_id: int, start: int, length: int) -> bytes:
        """Return bytes from an LSN on; fewer where the ranges end, or leave a gap."""
        content = bytearray()
        while len(content) < length:
            segment = WalSegment.holding(start + len(content), timeline_id, self.segment_bytes)
            # One segment's ranges: a timeline may have a million.
            for one in self.segment_ranges(segment):
                at = start + len(content)
                if one.first > at or len(content) == length:
                    break
                if one.last > at:
                    content += self.read_range(one)[at - int(one.first) :][: length - len(content)]
            if start + len(content) < segment.end:
                break
        return bytes(content)

    def put_file(self, timeline_id: int, file_name: str, content: Buffer) -> None:
        """Write a timeline's history, a partial segment or the mark of a backup; the same again is a success."""
        if re.fullmatch(_FILE, file_name) is None:
            raise ValueError(f"{file_name!r} is no file of a WAL archive")
        name = self._names.wal_file(self.system_identifier, timeline_id, file_name)
        self._put(Kind.WAL_FILE, name, bytes(content))

    def read_file(self, timeline_id: int, file_name: str) -> bytes | None:
        """Return such a file, or None if there is none."""
        try:
            name = self._names.wal_file(self.system_identifier, timeline_id, file_name)
            return bytes(self._read(Kind.WAL_FILE, name))
        except ObjectMissing:
            return None

    def file_size(self, timeline_id: int, file_name: str) -> int | None:
        """Return what such a file takes in the store, or None if there is none."""
        try:
            name = self._names.wal_file(self.system_identifier, timeline_id, file_name)
            return self._store.stat(name).size_bytes
        except ObjectMissing:
            return None

    def missing(self, timeline_id: int, start: int, end: int) -> Iterator[tuple[Lsn, Lsn]]:
        """Yield what is missing between two LSNs of a timeline."""
        at = start
        for one in self.ranges(timeline_id):
            if one.last <= at:
                continue
            if one.first >= end:
                break
            if one.first > at:
                yield Lsn(at), one.first
            at = max(at, int(one.last))
        if at < end:
            yield Lsn(at), Lsn(end)

    def _name(self, one: StoredRange) -> str:
        return self._names.wal_range(
            self.system_identifier, one.segment.timeline_id, one.segment.file_name, one.first, one.last
        )

    def _put(self, kind: Kind, name: str, content: Buffer) -> None:
        document = [memoryview(part) for part in self._codec.document(kind, name, {}, content)]
        try:
            self._store.put_new(name, document)
        except ObjectDiffers:
            # Another writer has it already (a push beside a stream, a backup beside both): sealed with another salt,
            # or compressed by another version. Asked before, it may come between the answer and the writing.
            if self._read(kind, name) != content:
                raise IntegrityError(
                    f'"{name}" in {self._store.address} holds other bytes than are to be written',
                    hint="two servers have written here; see which of them is the cluster",
                ) from None

    def _read(self, kind: Kind, name: str) -> memoryview:
        most = limits.WAL_RANGE_BYTES + _HEADER.size
        # A frame of what does not compress is a little longer than what it holds.
        content = self._store.get(name, most_bytes=most + (1 << 20))
        # Not copied: of a range that would take a third of the time of reading it.
        return self._codec.read_document(kind, name, content, most_bytes=most).sealed


class WalWriter:
    """Cuts a stream of WAL into ranges. Durable is what `put` has been told of and `flush` has returned."""

    def __init__(self, wal: RepositoryWal, timeline_id: int, first: int) -> None:
        self._wal = wal
        self._timeline_id = timeline_id
        # Room for the header of the range, and what is gathered, so that it is written without another copy of it.
        self._buffer = bytearray(RANGE_HEADER_BYTES)
        self._first = first

    @property
    def end(self) -> Lsn:
        """Where the next bytes belong."""
        return Lsn(self._first + self._gathered)

    @property
    def _gathered(self) -> int:
        return len(self._buffer) - RANGE_HEADER_BYTES

    def put(self, content: Buffer) -> None:
        """Take the bytes that follow."""
        view = memoryview(content)
        while len(view):
            segment = WalSegment.holding(self._first, self._timeline_id, self._wal.segment_bytes)
            most = min(RANGE_BYTES, int(segment.end) - self._first)
            part = view[: most - self._gathered]
            self._buffer += part
            view = view[len(part) :]
            if self._gathered == most:
                self.flush()

    def flush(self) -> Lsn:
        """Write what is gathered; return up to where everything is durable."""
        if self._gathered:
            gathered = self._gathered
            self._wal.put_prepared(self._timeline_id, self._first, gathered, self._buffer)
            self._first += gathered
            del self._buffer[RANGE_HEADER_BYTES:]
        return Lsn(self._first)
