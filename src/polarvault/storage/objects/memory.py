"""Objects in memory, for tests; retention works, so that what is locked can be tried without a bucket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from polarvault.errors import ObjectExists, ObjectMissing, ObjectTruncated, StoreForbidden, StoreFull
from polarvault.storage.objects.model import Meter, RequestCounts, StoredObject, check_folder, check_object_name
from polarvault.storage.objects.ranges import cut_ranges, join_ranges
from polarvault.storage.objects.refusals import too_long


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """Objects in a dictionary. clock: the store's own. capacity_bytes: what fits in; the last kB is the reserve."""

    def __init__(self, *, clock: Callable[[], datetime] = _now, capacity_bytes: int = 1 << 62) -> None:
        self._clock = clock
        self._capacity = capacity_bytes
        self._meter = Meter()
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._locked_until: dict[str, datetime] = {}

    @property
    def address(self) -> str:
        """Not one that can be opened."""
        return "memory:"

    def counts(self) -> RequestCounts:
        """Return what has been asked of the store so far."""
        return self._meter.read()

    def close(self) -> None:
        """Keep everything."""

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object; ObjectExists if something has the name."""
        check_object_name(name)
        content = b"".join(views)
        self._meter.add(puts=1)
        with self._lock:
            if name in self._objects:
                raise ObjectExists(f'"{name}" is there already in {self.address}')
            used = sum(len(kept) for kept, _ in self._objects.values())
            if used + len(content) > self._capacity - (0 if from_reserve else 1024):
                raise StoreFull(
                    f'could not write "{name}" to {self.address}: no space left', hint="a store in memory is for tests"
                )
            self._objects[name] = content, self._clock()
        self._meter.add(sent_bytes=len(content))

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object."""
        self._meter.add(gets=1)
        content = self._content(name)
        if len(content) > most_bytes:
            raise too_long(name, self.address, len(content), most_bytes)
        self._meter.add(received_bytes=len(content))
        return content

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length)."""
        content = self._content(name)
        found = [memoryview(b"")] * len(ranges)
        for read in join_ranges(ranges):
            self._meter.add(gets=1, received_bytes=read.length)
            if read.offset + read.length > len(content):
                raise ObjectTruncated(
                    f'"{name}" in {self.address} has {len(content)} bytes, '
                    f"and {read.length} from {read.offset} on were to be read",
                    hint="get the object back from another copy",
                )
            part = memoryview(content)[read.offset : read.offset + read.length]
            for number, cut in cut_ranges(ranges, read, part):
                found[number] = cut
        return found

    def stat(self, name: str) -> StoredObject:
        """Return size and time of an object."""
        self._meter.add(stats=1)
        self._content(name)
        content, modified = self._objects[name]
        return StoredObject(name, len(content), modified)

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield every object below a folder, sorted by name."""
        check_folder(folder)
        self._meter.add(lists=1)
        start = f"{folder}/" if folder else ""
        for name, (content, modified) in sorted(self._objects.items()):
            if name.startswith(start) and name > after:
                yield StoredObject(name, len(content), modified)

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the last words of the folders directly in a folder."""
        check_folder(folder)
        self._meter.add(lists=1)
        start = f"{folder}/" if folder else ""
        rests = [name.removeprefix(start) for name in list(self._objects) if name.startswith(start)]
        return sorted({rest.partition("/")[0] for rest in rests if "/" in rest})

    def delete(self, name: str) -> None:
        """Remove an object; a success if there is none."""
        check_object_name(name)
        self._meter.add(deletes=1)
        with self._lock:
            until = self._locked_until.get(name)
            if until is not None and self._clock() < until:
                raise StoreForbidden(
                    f'"{name}" in {self.address} is locked until {until:%Y-%m-%d %H:%M:%S} UTC',
                    hint="wait until its lock has ended",
                )
            self._objects.pop(name, None)
            self._locked_until.pop(name, None)

    def extend_retention(self, name: str, until: datetime) -> None:
        """See that nobody can remove an object before a time; never shortens."""
        self._content(name)
        with self._lock:
            self._locked_until[name] = max(until, self._locked_until.get(name, until))

    def _content(self, name: str) -> bytes:
        check_object_name(name)
        try:
            return self._objects[name][0]
        except KeyError:
            raise ObjectMissing(f'there is no "{name}" in {self.address}', hint="see what removed it") from None
