"""WAL in a repository: ranges cover a segment, overlap, agree, and are never taken for what they are not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from polarvault.errors import IntegrityError, ObjectDamaged, ObjectDiffers, RepositoryMismatch
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.wal.ranges import RANGE_BYTES, RepositoryWal, WalWriter
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.wrapper import Wrapper
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import new_repository

SEGMENT = 16 << 20
START = 5 * SEGMENT


def wal_of(*, encrypted: bool = False, segment_bytes: int = SEGMENT) -> RepositoryWal:
    repository = new_repository(encrypted=encrypted)
    return RepositoryWal(
        repository.store, repository.codec, ClusterNames("shop"), system_identifier=77, segment_bytes=segment_bytes
    )


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("segment_bytes", [1 << 20, 16 << 20, 64 << 20])
def test_a_stream_is_read_back_segment_by_segment(encrypted: bool, segment_bytes: int) -> None:
    wal = wal_of(encrypted=encrypted, segment_bytes=segment_bytes)
    stream = random.Random(1).randbytes(3 << 20) * 8
    start = 3 * segment_bytes + 40_000
    writer = WalWriter(wal, 2, start)
    for at in range(0, len(stream), 777_777):
        writer.put(stream[at : at + 777_777])
        if at % 3 == 0:
            assert writer.flush() == writer.end
    assert writer.flush() == start + len(stream)
    assert wal.timelines() == [2]
    ranges = wal.ranges(2)
    assert max(one.last - one.first for one in ranges) <= RANGE_BYTES
    assert b"".join(map(wal.read_range, ranges)) == stream
    assert list(wal.missing(2, start, start + len(stream))) == []
    assert list(wal.missing(2, start - 5, start + len(stream) + 7)) == [
        (start - 5, start),
        (start + len(stream), start + len(stream) + 7),
    ]


def test_ranges_may_overlap_and_must_agree() -> None:
    wal = wal_of()
    content = random.Random(2).randbytes(SEGMENT)
    segment = WalSegment.holding(START, 1, SEGMENT)
    for first, last in ((0, 5_000_000), (4_000_000, 9_000_000), (4_500_000, 6_000_000), (10_000_000, SEGMENT)):
        wal.put_range(1, START + first, content[first:last])
    assert wal.read_segment(segment) == (content[:9_000_000], START + 9_000_000)
    assert list(wal.missing(1, START, START + SEGMENT)) == [(START + 9_000_000, START + 10_000_000)]
    wal.put_range(1, START + 8_000_000, content[8_000_000:10_000_000])
    assert wal.read_segment(segment) == (content, START + SEGMENT)
    wal.put_range(1, START + 8_000_000, b"other")
    with pytest.raises(IntegrityError, match="two ranges of 000000010000000000000005 differ"):
        wal.read_segment(segment)


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_same_range_again_is_a_success_and_another_is_not(encrypted: bool) -> None:
    wal = wal_of(encrypted=encrypted)
    one = wal.put_range(1, START, b"some WAL")
    assert wal.put_range(1, START, b"some WAL") == one
    with pytest.raises((IntegrityError, ObjectDiffers)):
        wal.put_range(1, START, b"same WAL")
    wal.put_file(2, "00000002.history", b"1\t0/5000000\tno reason\n")
    wal.put_file(2, "00000002.history", b"1\t0/5000000\tno reason\n")
    assert wal.read_file(2, "00000002.history") == b"1\t0/5000000\tno reason\n"
    assert wal.read_file(3, "00000003.history") is None
    assert wal.ranges(2) == []


class Overtaken(Wrapper):
    """Something happens between the decision to write an object and its writing."""

    meanwhile: Callable[[], object] | None = None

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            # Another thread: each has a buffer of its own.
            with ThreadPoolExecutor(1) as other:
                other.submit(act).result()
        super().put_new(name, views, from_reserve=from_reserve)


@pytest.mark.parametrize("encrypted", [False, True])
def test_two_that_write_the_same_at_the_same_moment_both_succeed(encrypted: bool) -> None:
    """A push, a stream and a backup do; what they seal is never the same."""
    store = Overtaken(WriteOnce(MemoryStore()))
    repository = new_repository(store, encrypted=encrypted)
    generation = Generation(77, 180000, False, SEGMENT, 1 << 30, True)
    store.meanwhile = lambda: repository.ensure_generation("shop", generation)
    repository.ensure_generation("shop", generation)
    store.meanwhile = lambda: repository.ensure_generation("other", replace(generation, wal_segment_bytes=1 << 20))
    with pytest.raises(RepositoryMismatch, match=r"wal_segment_bytes 16777216, and .* says 1048576"):
        repository.ensure_generation("other", generation)
    wal = repository.wal_of("shop")
    store.meanwhile = lambda: wal.put_range(1, START, b"some WAL")
    one = wal.put_range(1, START, b"some WAL")
    assert bytes(wal.read_range(one)) == b"some WAL"
    store.meanwhile = lambda: wal.put_range(1, START + 8, b"that of one")
    with pytest.raises((IntegrityError, ObjectDiffers)):
        wal.put_range(1, START + 8, b"of another.")
    assert wal.read(1, START, 100) == b"some WALthat of one"
    history = b"1\t0/5000000\tno reason\n"
    store.meanwhile = lambda: wal.put_file(2, "00000002.history", history)
    wal.put_file(2, "00000002.history", history)


def test_what_is_no_range_is_refused() -> None:
    wal = wal_of()
    for first, content in ((START, b""), (START + SEGMENT - 1, b"ab")):
        with pytest.raises(ValueError, match="no range"):
            wal.put_range(1, first, content)
    with pytest.raises(ValueError, match="no file"):
        wal.put_file(1, "../x", b"")


def test_a_range_under_another_name_is_found() -> None:
    repository = new_repository()
    names = ClusterNames("shop")
    wals = [
        RepositoryWal(repository.store, repository.codec, names, system_identifier=number, segment_bytes=SEGMENT)
        for number in (77, 78)
    ]
    one = wals[0].put_range(1, START, b"some WAL")
    inner = repository.store.get(wals[0]._name(one), most_bytes=1000)
    repository.store.put_new(wals[1]._name(one), [inner])
    with pytest.raises(ObjectDamaged, match="do not agree"):
        wals[1].read_range(one)
    misplaced = names.wal_range(77, 1, "000000010000000000000005", START - 1, START + 4)
    repository.store.put_new(misplaced, [inner])
    with pytest.raises(ObjectDamaged, match="does not lie in its segment"):
        wals[0].ranges(1)
