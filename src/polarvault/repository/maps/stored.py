"""The block maps of one cluster under one system identifier, by timeline and segment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from polarvault.errors import ObjectDiffers, ObjectMissing
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import Buffer, Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.maps.format import decode, encode, only_a_gap
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.storage.objects.model import StoredObject
from polarvault.storage.objects.store import ObjectStore
from polarvault.wal.block_maps.model import BlockMap, Gap, merged

_TIMELINE = re.compile(r"[0-9A-F]{8}\Z")


def maps_beside(wal: RepositoryWal, repository: Repository, cluster: str) -> RepositoryMaps:
    """Return the maps of a cluster's WAL."""
    return RepositoryMaps(
        repository.store,
        repository.codec,
        ClusterNames.of(cluster),
        system_identifier=wal.system_identifier,
        segment_bytes=wal.segment_bytes,
    )


class RepositoryMaps:
    """Reads and writes them; may be used by several threads."""

    def __init__(
        self, store: ObjectStore, codec: Codec, names: ClusterNames, *, system_identifier: int, segment_bytes: int
    ) -> None:
        self._store, self._codec, self._names = store, codec, names
        self._system_identifier, self._segment_bytes = system_identifier, segment_bytes

    def timelines(self) -> list[int]:
        """Return the timelines of which there is a map."""
        folder = f"{self._names.maps}/{self._system_identifier}"
        return sorted(int(word, 16) for word in self._store.list_folders(folder) if _TIMELINE.match(word))

    def stored(self, timeline_id: int) -> Iterator[tuple[WalSegment, StoredObject]]:
        """Yield the segments that have a map, and what the store says of each; other names do not matter."""
        for one in self._store.list_objects(self._names.maps_of(self._system_identifier, timeline_id)):
            try:
                segment = WalSegment.parse(one.name.rpartition("/")[2], self._segment_bytes)
            except ValueError:
                continue
            if segment.timeline_id == timeline_id:
                yield segment, one

    def put(self, segment: WalSegment, block_map: BlockMap) -> None:
        """Write a map; durable on return. One that is there already, and can be read, stays."""
        name = self._name(segment)
        document = self._codec.document(Kind.MAP, name, {}, encode(block_map))
        try:
            self._store.put_new(name, [memoryview(part) for part in document])
        except ObjectDiffers:
            # Somebody else has made it, sealed with another salt or compressed by another version.
            self.read(segment)

    def read(self, segment: WalSegment) -> BlockMap:
        """Return a map; raise ObjectMissing, or ObjectDamaged for what is none."""
        name = self._name(segment)
        # A frame of what does not compress is a little longer than what it holds.
        content = self._store.get(name, most_bytes=limits.MAP_BYTES + (1 << 20))
        return read_map(self._codec, name, content, segment)

    def remove(self, segment: WalSegment) -> None:
        """Remove a map, to make it again."""
        self._store.delete(self._name(segment))

    def changes(self, segments: Sequence[WalSegment]) -> BlockMap:
        """Return what the WAL of segments changes that follow one another (over timelines, too), as one map.

        A segment without a map is a gap. IntegrityError for one that is damaged: `repo rebuild` makes it again.
        """
        found: list[BlockMap] = []
        for segment in segments:
            try:
                found.append(self.read(segment))
            except ObjectMissing:
                start = found[-1].end if found else segment.start
                gap = Gap(start, f"there is no map of {segment.file_name}")
                found.append(only_a_gap(start, Lsn(max(start, segment.end)), gap))
        return merged(found)

    def _name(self, segment: WalSegment) -> str:
        return f"{self._names.maps_of(self._system_identifier, segment.timeline_id)}/{segment.file_name}"


def read_map(codec: Codec, name: str, content: Buffer, segment: WalSegment | None = None) -> BlockMap:
    """Read an object that must be a map."""
    sealed = codec.read_document(Kind.MAP, name, content, most_bytes=limits.MAP_BYTES).sealed
    return decode(sealed, f'"{name}"', segment)
