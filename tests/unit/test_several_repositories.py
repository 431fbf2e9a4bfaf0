"""WAL of a cluster in two repositories: what one lacks or has damaged comes from the other, and nothing more."""

from __future__ import annotations

import random

import pytest

from polarvault.errors import ObjectDamaged
from polarvault.model.segment import WalSegment
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.repository.wal.several import RepositoriesWal
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import new_repository
from support.wal_segments import segment_content

MB = 1 << 20
SEGMENTS = [WalSegment(1, number, MB) for number in range(3, 8)]


class Place:
    """A repository in memory; may lose and damage ranges."""

    def __init__(self, seed: int) -> None:
        self.store = MemoryStore()
        repository = new_repository(WriteOnce(self.store), seed=seed)
        self.wal = RepositoryWal(
            repository.store, repository.codec, ClusterNames("shop"), system_identifier=77, segment_bytes=MB
        )
        self.source = RepositoryWalSource(self.wal, place=f"place {seed}", fetch_options=["--repo", str(seed)])

    def put(self, segment: WalSegment, cuts: list[int]) -> None:
        content = segment_content(segment)
        for begin, end in zip([0, *cuts], [*cuts, MB], strict=True):
            self.wal.put_range(1, segment.start + begin, content[begin:end])

    def object_names(self, segment: WalSegment) -> list[str]:
        return [one.name for one in self.store.list_objects() if segment.file_name in one.name]

    def damage(self, segment: WalSegment, which: int) -> None:
        name = sorted(self.object_names(segment))[which]
        content = bytearray(self.store.get(name, most_bytes=MB * 2))
        content[len(content) // 2] ^= 1
        self.store.delete(name)
        self.store.put_new(name, [bytes(content)])


@pytest.fixture
def places() -> tuple[Place, Place]:
    first, second = Place(1), Place(2)
    rng = random.Random(5)
    for place in (first, second):
        for segment in SEGMENTS:
            place.put(segment, sorted(rng.sample(range(1, MB), 3)))
    return first, second


def read(wal: RepositoriesWal, segment: WalSegment) -> bytes:
    (copy,) = wal.copies(segment.file_name)
    return b"".join(map(bytes, copy.views(piece_bytes=50_000)))


def test_each_range_comes_from_the_first_place_where_it_is_sound(places: tuple[Place, Place]) -> None:
    first, second = places
    wal = RepositoriesWal(first.source, [second.source])
    for segment, which in zip(SEGMENTS, (0, 1, 3, 2, 2), strict=True):
        first.damage(segment, which)
    for segment in SEGMENTS:
        assert read(wal, segment) == segment_content(segment)
        assert wal.copies(segment.file_name)[0].look_at_start().problem is None
    second.damage(SEGMENTS[3], 3)
    with pytest.raises(ObjectDamaged):
        read(wal, SEGMENTS[3])


def test_what_the_first_one_lacks_is_taken_from_the_next(places: tuple[Place, Place]) -> None:
    first, second = places
    for name in first.object_names(SEGMENTS[1]):
        first.store.delete(name)
    for name in sorted(first.object_names(SEGMENTS[2]))[2:]:
        first.store.delete(name)
    wal = RepositoriesWal(first.source, [second.source])
    for segment in SEGMENTS:
        assert read(wal, segment) == segment_content(segment)
    (held,) = wal.ranges(1, MB)
    assert (held.start, held.end) == (SEGMENTS[0].start, SEGMENTS[-1].end)
    assert wal.lack() is None
    assert list(wal.fetch_options()) == ["--repo", "1"]


def test_nothing_is_asked_of_the_next_as_long_as_the_first_has_it(places: tuple[Place, Place]) -> None:
    first, second = places
    wal = RepositoriesWal(first.source, [second.source])
    before = second.store.counts()
    for segment in SEGMENTS:
        assert read(wal, segment) == segment_content(segment)
    assert second.store.counts() == before
