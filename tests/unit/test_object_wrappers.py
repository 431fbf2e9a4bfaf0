"""The wrappers around stores: what is tried again, what "exists" means, how fast bytes may pass."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from polarvault.errors import (
    IntegrityError,
    ObjectDiffers,
    ObjectMissing,
    StorageFailed,
    StoreForbidden,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from polarvault.storage.objects.address import Scheme, StoreAddress, parse_address
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.ranges import JoinedRange, join_ranges
from polarvault.storage.objects.retrying import Retrying
from polarvault.storage.objects.throttled import Throttled
from polarvault.storage.objects.write_once import WriteOnce
from support.faulty_store import Failure, Fault, FaultyStore, Request

BROKEN = [Failure.UNREACHABLE, Failure.SERVER_ERROR, Failure.TIMEOUT, Failure.ANSWER_LOST]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def _safe(faulty: FaultyStore, clock: Clock, deadline_s: float = 60) -> WriteOnce:
    return WriteOnce(Retrying(faulty, deadline_s=deadline_s, clock=clock.read, sleep=clock.sleep, uneven=lambda: 1.0))


@pytest.mark.parametrize("failure", [*BROKEN, Failure.EXISTS_BY_MISTAKE])
@pytest.mark.parametrize("times", [1, 3])
def test_a_write_that_failed_is_repeated_until_the_object_is_there_once(failure: Failure, times: int) -> None:
    memory = MemoryStore()
    faulty = FaultyStore(memory, [Fault("put_new", failure, times=times)])
    _safe(faulty, Clock()).put_new("packs/1", [b"content"])
    assert memory.get("packs/1", most_bytes=100) == b"content"


@pytest.mark.parametrize("failure", [*BROKEN, Failure.TRUNCATED])
@pytest.mark.parametrize("operation", ["get", "get_ranges", "stat", "list_objects", "list_folders", "delete"])
def test_every_other_request_is_repeated_too(failure: Failure, operation: str) -> None:
    memory = MemoryStore()
    memory.put_new("packs/1", [b"content"])
    store = _safe(FaultyStore(memory, [Fault(operation, failure, times=2)]), Clock())
    asked = {
        "get": lambda: store.get("packs/1", most_bytes=100),
        "get_ranges": lambda: store.get_ranges("packs/1", [(3, 2)])[0],
        "stat": lambda: store.stat("packs/1").size_bytes,
        "list_objects": lambda: [one.name for one in store.list_objects()],
        "list_folders": lambda: store.list_folders(),
        "delete": lambda: store.delete("packs/1"),
    }
    expected = {
        "get": b"content", "get_ranges": b"te", "stat": 7, "list_objects": ["packs/1"], "list_folders": ["packs"],
        "delete": None,
    }  # fmt: skip
    assert asked[operation]() == expected[operation]


@pytest.mark.parametrize(
    ("failure", "error"), [(Failure.FORBIDDEN, StoreForbidden), (Failure.FULL, StoreFull)], ids=["forbidden", "full"]
)
def test_what_would_fail_again_is_not_repeated(failure: Failure, error: type[StorageFailed]) -> None:
    faulty, clock = FaultyStore(MemoryStore(), [Fault("*", failure, times=-1)]), Clock()
    store = _safe(faulty, clock)
    with pytest.raises(error):
        store.put_new("packs/1", [b"x"])
    with pytest.raises(error):
        store.get("packs/1", most_bytes=1)
    assert clock.slept == []
    assert len(faulty.requests) == 2


def test_a_missing_object_is_not_looked_for_again() -> None:
    clock = Clock()
    with pytest.raises(ObjectMissing):
        _safe(FaultyStore(MemoryStore()), clock).get("packs/1", most_bytes=1)
    assert clock.slept == []


def test_at_the_deadline_the_last_error_says_how_long_it_was_tried() -> None:
    faulty, clock = FaultyStore(MemoryStore(), [Fault("put_new", Failure.TIMEOUT, times=-1)]), Clock()
    store = _safe(faulty, clock, deadline_s=60)
    assert store.list_folders() == []
    with pytest.raises(StoreUnreachable, match="packs/1") as caught:
        store.put_new("packs/1", [b"x"])
    assert 45 < clock.now <= 60
    assert "tried for" in (caught.value.detail or "")
    # Waits grow, and stay short enough to notice that the store is back.
    assert clock.slept == sorted(clock.slept)
    assert max(clock.slept) <= 10
    assert len(faulty.requests) < 15


def test_a_store_that_never_answered_is_given_up_soon() -> None:
    clock = Clock()
    store = _safe(FaultyStore(MemoryStore(), [Fault("*", Failure.UNREACHABLE, times=-1)]), clock, deadline_s=600)
    with pytest.raises(StoreUnreachable):
        store.get("polarvault.json", most_bytes=1)
    assert clock.now <= 10
    memory = MemoryStore()
    memory.put_new("a/1", [b"x"])
    clock = Clock()
    store = _safe(FaultyStore(memory, [Fault("*", Failure.UNREACHABLE, nth=2, times=-1)]), clock, deadline_s=600)
    store.get("a/1", most_bytes=1)
    with pytest.raises(StoreUnreachable):
        store.get("a/1", most_bytes=1)
    assert clock.now > 500


def test_a_listing_that_breaks_off_goes_on_where_it_was() -> None:
    memory = MemoryStore()
    names = [f"states/{number:03d}" for number in range(50)]
    for name in names:
        memory.put_new(name, [b"x"])
    faulty = FaultyStore(
        memory, [Fault("next", Failure.TIMEOUT, nth=10, times=2), Fault("next", Failure.TIMEOUT, nth=40)]
    )
    assert [one.name for one in _safe(faulty, Clock()).list_objects("states")] == names


def test_other_bytes_are_an_error_even_when_the_first_answer_was_lost() -> None:
    memory = MemoryStore()
    memory.put_new("states/1", [b"theirs"])
    faulty = FaultyStore(memory, [Fault("put_new", Failure.UNREACHABLE)])
    with pytest.raises(ObjectDiffers, match="6 bytes") as caught:
        _safe(faulty, Clock()).put_new("states/1", [b"ours", b"!!"])
    # Both are named: sizes are the same, so the hashes have to tell.
    assert caught.value.message.count("BLAKE3") == 2
    assert memory.get("states/1", most_bytes=10) == b"theirs"


def test_a_store_that_says_exists_and_shows_nothing_ends_in_an_error() -> None:
    faulty = FaultyStore(MemoryStore(), [Fault("put_new", Failure.EXISTS_BY_MISTAKE, times=-1)])
    with pytest.raises(StorageFailed, match="shows no such object"):
        _safe(faulty, Clock()).put_new("states/1", [b"x"])


def test_an_object_that_is_too_long_to_be_compared_is_not_read() -> None:
    memory = MemoryStore()
    memory.put_new("states/1", [b"x" * 1000])
    faulty = FaultyStore(memory)
    with pytest.raises(ObjectDiffers, match="1000 bytes"):
        WriteOnce(faulty).put_new("states/1", [b"x"])
    assert [operation for operation, _ in faulty.requests] == ["put_new", "stat"]


def test_the_hook_is_called_around_every_request() -> None:
    seen: list[Request] = []
    store = FaultyStore(MemoryStore(), hook=seen.append)
    store.put_new("a/1", [b"x"])
    store.delete("a/1")
    assert [(one.number, one.moment, one.operation, one.name) for one in seen] == [
        (1, "before", "put_new", "a/1"), (1, "after", "put_new", "a/1"),
        (2, "before", "delete", "a/1"), (2, "after", "delete", "a/1"),
    ]  # fmt: skip


def test_a_fault_may_wait_for_a_number_of_bytes() -> None:
    store = FaultyStore(MemoryStore(), [Fault("put_new", Failure.FULL, at_byte=1000, times=-1)])
    for number in range(9):
        store.put_new(f"packs/{number}", [b"x" * 100])
    with pytest.raises(StoreFull):
        store.put_new("packs/9", [b"x" * 100])


# Bandwidth


def test_no_more_than_the_limit_passes_on_the_average() -> None:
    clock = Clock()
    store = Throttled(MemoryStore(), bytes_per_s=1000, clock=clock.read, sleep=clock.sleep)
    for number in range(11):
        store.put_new(f"packs/{number}", [b"x" * 500])
    assert clock.now == pytest.approx(5.0)
    for number in range(11):
        store.get(f"packs/{number}", most_bytes=500)
    assert clock.now == pytest.approx(10.0)
    for number in range(11):
        store.get_ranges(f"packs/{number}", [(0, 250), (250, 250)])
    assert clock.now == pytest.approx(15.5)


def test_the_two_directions_do_not_share_their_limit() -> None:
    clock = Clock()
    store = Throttled(MemoryStore(), bytes_per_s=1000, clock=clock.read, sleep=clock.sleep)
    store.put_new("packs/1", [b"x" * 60_000])
    store.get("packs/1", most_bytes=60_000)
    assert clock.now == 0


def test_threads_share_one_limit() -> None:
    waits: list[float] = []
    store = Throttled(MemoryStore(), bytes_per_s=1000, clock=lambda: 0.0, sleep=waits.append)
    threads = [threading.Thread(target=store.put_new, args=(f"packs/{number}", [b"x" * 1000])) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == [1.0, 2.0, 3.0, 4.0]


# Ranges


def test_ranges_that_lie_close_together_are_read_together() -> None:
    assert join_ranges([(100, 50), (0, 10), (300_000, 5)]) == [
        JoinedRange(0, 150, (1, 0)),
        JoinedRange(300_000, 5, (2,)),
    ]
    assert join_ranges([(0, 100), (10, 20)]) == [JoinedRange(0, 100, (0, 1))]
    assert join_ranges([]) == []


def test_a_joined_read_stays_below_eight_mebibytes_unless_one_range_is_longer() -> None:
    reads = join_ranges([(number << 20, 1 << 20) for number in range(20)])
    assert [read.length for read in reads] == [8 << 20, 8 << 20, 4 << 20]
    assert [read.length for read in join_ranges([(0, 40 << 20), (40 << 20, 1)])] == [40 << 20, 1]


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/backups", StoreAddress(Scheme.FILE, "/srv/backups")),
        ("file:/srv/backups/", StoreAddress(Scheme.FILE, "/srv/backups")),
        ("file:///srv/backups", StoreAddress(Scheme.FILE, "/srv/backups")),
        ("s3://bucket", StoreAddress(Scheme.S3, "bucket")),
        ("s3:bucket/a/b/", StoreAddress(Scheme.S3, "bucket", "a/b")),
        ("gs://bucket/a", StoreAddress(Scheme.GOOGLE, "bucket", "a")),
        ("AZ://container/a", StoreAddress(Scheme.AZURE, "container", "a")),
        ("/srv/with:colon", StoreAddress(Scheme.FILE, "/srv/with:colon")),
    ],
)
def test_addresses(text: str, expected: StoreAddress) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("https://bucket.s3.amazonaws.com/x", "does not begin with"),
        ("s3://", "names no bucket"),
        ("s3://ab/", "names no bucket"),
        ("s3://bucket/../x", "the folder may hold"),
        ("s3://key:secret@bucket/x", "no credentials"),
        ("s3://bucket/x?region=eu", "no options"),
        ("file://host/srv", "another machine"),
        ("file:", "names no directory"),
    ],
)
def test_addresses_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_address(text)
    assert "secret" not in caught.value.message


def test_errors_that_hide_damage_are_not_raised_as_something_that_is_tried_again() -> None:
    assert not issubclass(IntegrityError, StoreUnreachable)
    assert not issubclass(ObjectDiffers, StorageFailed)


def test_libraries_of_clouds_are_not_loaded_for_a_directory(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from polarvault.storage.objects.opening import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "store.put_new('a/1', [b'x'])\n"
        "print(sorted({'obstore', 'numpy', 'blake3', 'psycopg', 'urllib.request'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
