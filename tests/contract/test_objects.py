"""What every store of named byte objects does, whichever it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex

import pytest

from polarvault.errors import IntegrityError, ObjectDiffers, ObjectExists, ObjectMissing, ObjectTruncated
from polarvault.storage.objects.address import parse_address
from polarvault.storage.objects.cloud.azure import open_azure
from polarvault.storage.objects.cloud.google import open_google
from polarvault.storage.objects.cloud.s3 import open_s3
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.settings import StoreSettings
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.write_once import WriteOnce, prove_write_once
from support.bucket_server import BucketServer
from support.object_servers import AZURITE_MISSING, BUCKET, ObjectServer, azurite, azurite_program


def _local(tmp_path: Path, request: pytest.FixtureRequest) -> ObjectStore:
    LocalStore.make_root(str(tmp_path / "made" / "repository"))
    return LocalStore(str(tmp_path / "made" / "repository"))


def _memory(tmp_path: Path, request: pytest.FixtureRequest) -> ObjectStore:
    return MemoryStore()


def _s3(tmp_path: Path, request: pytest.FixtureRequest) -> ObjectStore:
    server: ObjectServer = request.getfixturevalue("seaweedfs")
    return open_s3(parse_address(f"s3://{BUCKET}/{token_hex(8)}/repository"), server.settings, {})


def _google(tmp_path: Path, request: pytest.FixtureRequest) -> ObjectStore:
    server: BucketServer = request.getfixturevalue("bucket")
    return open_google(
        parse_address("gs://polarvault/some/folder"), StoreSettings(), {"STORAGE_EMULATOR_HOST": server.endpoint}
    )


def _azure(tmp_path: Path, request: pytest.FixtureRequest) -> ObjectStore:
    server: ObjectServer = request.getfixturevalue("azurite_server")
    return open_azure(parse_address(f"az://{BUCKET}/{token_hex(8)}"), server.settings, {})


@pytest.fixture(scope="module")
def azurite_server() -> Iterator[ObjectServer]:
    """Azure's emulator."""
    if azurite_program() is None:
        pytest.skip(AZURITE_MISSING)
    with azurite() as server:
        yield server


STORES = [
    pytest.param(_local, id="local"),
    pytest.param(_memory, id="memory"),
    pytest.param(_google, id="google"),
    pytest.param(_s3, id="s3", marks=pytest.mark.slow),
    pytest.param(_azure, id="azure", marks=pytest.mark.slow),
]


@pytest.fixture(params=STORES)
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """A store without wrappers, empty."""
    make: Callable[[Path, pytest.FixtureRequest], ObjectStore] = request.param
    store = make(tmp_path, request)
    yield store
    store.close()


@pytest.fixture
def store(bare: ObjectStore) -> ObjectStore:
    """The same store as commands get it."""
    return WriteOnce(bare)


def _names(store: ObjectStore, folder: str = "", after: str = "") -> list[str]:
    return sorted(one.name for one in store.list_objects(folder, after=after))


def test_an_object_is_written_from_views_and_read_back(store: ObjectStore) -> None:
    content = bytes(range(256)) * 100
    store.put_new("clusters/shop/packs/a/000001", [b"head", memoryview(content)[3:], b""])
    assert store.get("clusters/shop/packs/a/000001", most_bytes=1 << 20) == b"head" + content[3:]


def test_an_object_may_be_empty(store: ObjectStore) -> None:
    store.put_new("features/none", [])
    assert store.get("features/none", most_bytes=0) == b""
    assert store.stat("features/none").size_bytes == 0


def test_a_bare_store_refuses_a_second_object_of_the_name_and_keeps_the_first(bare: ObjectStore) -> None:
    bare.put_new("states/1", [b"first"])
    with pytest.raises(ObjectExists, match="states/1"):
        bare.put_new("states/1", [b"second"])
    assert bare.get("states/1", most_bytes=100) == b"first"


def test_the_same_bytes_again_are_a_success(store: ObjectStore) -> None:
    store.put_new("states/1", [b"one", b"two"])
    store.put_new("states/1", [b"onet", b"wo"])
    assert store.get("states/1", most_bytes=100) == b"onetwo"


@pytest.mark.parametrize("other", [b"second", b"longer than the first", b""])
def test_other_bytes_under_a_name_are_an_error_that_names_both(store: ObjectStore, other: bytes) -> None:
    store.put_new("states/1", [b"first!"])
    with pytest.raises(ObjectDiffers) as caught:
        store.put_new("states/1", [other])
    assert "states/1" in caught.value.message
    assert store.address in caught.value.message
    assert "6 bytes" in caught.value.message
    assert f"{len(other)} bytes" in caught.value.message
    assert store.get("states/1", most_bytes=100) == b"first!"


def test_of_many_writers_at_a_time_exactly_one_writes_the_object(bare: ObjectStore) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        start.wait()
        try:
            bare.put_new("states/contested", [b"writer %d" % number * 1000])
            outcomes.append(f"writer {number}")
        except ObjectExists:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert bare.get("states/contested", most_bytes=1 << 20) == outcomes[0].encode() * 1000


def test_ranges_come_in_the_order_asked_for(store: ObjectStore) -> None:
    content = bytes(number % 251 for number in range(2_000_000))
    store.put_new("packs/1", [content])
    ranges = [(1_999_990, 10), (0, 1), (5, 0), (100, 50_000), (120, 30), (900_000, 1000)]
    assert [bytes(part) for part in store.get_ranges("packs/1", ranges)] == [
        content[offset : offset + length] for offset, length in ranges
    ]
    assert store.get_ranges("packs/1", []) == []


@pytest.mark.parametrize("wanted", [(0, 11), (5, 6), (10, 1), (1 << 40, 1)])
def test_a_range_beyond_the_end_is_an_error_and_never_less_than_asked_for(
    store: ObjectStore, wanted: tuple[int, int]
) -> None:
    store.put_new("packs/1", [b"0123456789"])
    with pytest.raises(ObjectTruncated, match="packs/1") as caught:
        store.get_ranges("packs/1", [(0, 5), wanted])
    assert "10 bytes" in caught.value.message


def test_an_object_that_is_too_long_is_not_read(store: ObjectStore) -> None:
    store.put_new("polarvault.json", [b"x" * 1000])
    before = store.counts().received_bytes
    with pytest.raises(IntegrityError, match="has 1000 bytes, and what it should be has at most 999"):
        store.get("polarvault.json", most_bytes=999)
    assert store.counts().received_bytes == before


def test_what_is_missing_is_named_with_the_store(store: ObjectStore) -> None:
    for ask in (
        lambda: store.get("keys/none", most_bytes=10),
        lambda: store.get_ranges("keys/none", [(0, 1)]),
        lambda: store.stat("keys/none"),
    ):
        with pytest.raises(ObjectMissing) as caught:
            ask()
        assert "keys/none" in caught.value.message
        assert store.address in caught.value.message
        assert caught.value.hint


def test_size_and_time_come_from_the_store(store: ObjectStore) -> None:
    before = datetime.now(UTC)
    store.put_new("keys/1", [b"content"])
    found = store.stat("keys/1")
    assert (found.name, found.size_bytes) == ("keys/1", 7)
    # Whole seconds with some; a day off would be a time zone.
    assert abs(found.modified - before) < timedelta(minutes=10)
    assert found.modified.tzinfo is not None
    (listed,) = store.list_objects("keys")
    assert (listed.name, listed.size_bytes) == ("keys/1", 7)
    assert abs(listed.modified - found.modified) < timedelta(seconds=2)


def test_a_folder_is_listed_with_all_below_it_and_nothing_beside_it(store: ObjectStore) -> None:
    for name in ("a/b/1", "a/b/2", "a/b-c/3", "a/bc/4", "a/b/c/d/5", "b/6", "7"):
        store.put_new(name, [name.encode()])
    assert _names(store, "a/b") == ["a/b/1", "a/b/2", "a/b/c/d/5"]
    assert _names(store) == sorted(["a/b/1", "a/b/2", "a/b-c/3", "a/bc/4", "a/b/c/d/5", "b/6", "7"])
    assert _names(store, "a") == ["a/b-c/3", "a/b/1", "a/b/2", "a/b/c/d/5", "a/bc/4"]
    assert _names(store, "none/such") == []
    assert _names(store, "b/6") == []


@pytest.mark.parametrize("after", ["a/b/2", "a/b-c", "a/b/c", "a/b0", "zzz", "7"])
def test_a_listing_goes_on_after_a_name(store: ObjectStore, after: str) -> None:
    names = ["7", "a/b-c/3", "a/b/1", "a/b/2", "a/b/c/d/5", "a/bc/4", "b/6"]
    for name in names:
        store.put_new(name, [b"x"])
    assert _names(store, "", after) == [name for name in names if name > after]


def test_folders_in_a_folder_are_listed(store: ObjectStore) -> None:
    for name in ("clusters/shop/packs/1", "clusters/shop-2/packs/1", "clusters/bank/wal/1", "clusters/file", "keys/1"):
        store.put_new(name, [b"x"])
    assert store.list_folders("clusters") == ["bank", "shop", "shop-2"]
    assert store.list_folders() == ["clusters", "keys"]
    assert store.list_folders("clusters/none") == []
    store.delete("clusters/bank/wal/1")
    # A folder that is empty now may be shown for a while, or for ever.
    assert set(store.list_folders("clusters")) | {"bank"} == {"bank", "shop", "shop-2"}


def test_more_objects_than_a_page_of_any_store_are_listed(store: ObjectStore) -> None:
    names = [f"states/x/{number:06d}-pin" for number in range(1100)]
    threads = [
        threading.Thread(target=lambda part=part: [store.put_new(name, [b"x"]) for name in part])  # type: ignore[misc]
        for part in (names[first::8] for first in range(8))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _names(store, "states") == names
    assert _names(store, "states", names[1050]) == names[1051:]


def test_what_is_deleted_is_gone_and_its_name_free(store: ObjectStore) -> None:
    store.put_new("intents/1", [b"x"])
    store.delete("intents/1")
    store.delete("intents/1")
    store.delete("intents/none/there")
    assert _names(store) == []
    with pytest.raises(ObjectMissing):
        store.stat("intents/1")
    store.put_new("intents/1", [b"y"])
    assert store.get("intents/1", most_bytes=1) == b"y"


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.incoming", "a b", "ä", "a\nb", "a" * 801]
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(store: ObjectStore, name: str) -> None:
    before = store.counts()
    for ask in (
        lambda: store.put_new(name, [b"x"]),
        lambda: store.get(name, most_bytes=1),
        lambda: store.get_ranges(name, [(0, 1)]),
        lambda: store.stat(name),
        lambda: store.delete(name),
    ):
        with pytest.raises(IntegrityError, match="cannot be the name of an object"):
            ask()
    asked = store.counts().since(before)
    assert asked.puts == asked.deletes == asked.received_bytes == 0


def test_requests_and_bytes_are_counted(store: ObjectStore) -> None:
    store.put_new("a/1", [b"x" * 1000])
    before = store.counts()
    store.put_new("a/2", [b"x" * 3000])
    store.get("a/2", most_bytes=3000)
    store.get_ranges("a/1", [(0, 10), (500, 10)])
    store.stat("a/1")
    list(store.list_objects("a"))
    store.list_folders()
    store.delete("a/2")
    counts = store.counts().since(before)
    assert (counts.puts, counts.stats, counts.lists, counts.deletes) == (1, 1, 2, 1)
    # Ranges that lie close together are one request.
    assert counts.gets == 2
    assert counts.sent_bytes == 3000
    assert counts.received_bytes == 3000 + 510


def test_retention_may_be_asked_for_everywhere(store: ObjectStore) -> None:
    store.put_new("packs/1", [b"x"])
    store.extend_retention("packs/1", datetime.now(UTC) + timedelta(seconds=1))
    assert store.get("packs/1", most_bytes=1) == b"x"


def test_a_closed_store_may_be_closed_again(store: ObjectStore) -> None:
    store.close()
    store.close()


def test_a_store_proves_that_it_replaces_nothing(store: ObjectStore) -> None:
    prove_write_once(store, "probes/1")
    assert _names(store) == []
