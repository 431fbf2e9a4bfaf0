"""What waits for the repositories of `wal stream`, and what becomes of it when something is wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polarvault.config.model import RepositoryConfiguration
from polarvault.errors import IntegrityError, StorageFailed, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.opening import make_repository
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.store.status_file import read_status
from polarvault.walarchive.streaming.leftovers import upload_leftovers
from polarvault.walarchive.streaming.places import Place, Places
from polarvault.walarchive.streaming.spool import Spool
from polarvault.walarchive.streaming.store import RepositoryStore, StreamSettings
from polarvault.walarchive.streaming.writer import StreamWriter
from support.memory_wal import MB
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content

SEGMENT = WalSegment(1, 7, MB)
CONTENT = segment_content(SEGMENT)
GENERATION = Generation(SYSTEM_IDENTIFIER, 180000, False, MB, 1 << 30, True)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    for name in ("repository", "state"):
        (tmp_path / name).mkdir()
    place = RepositoryConfiguration("", str(tmp_path / "repository"))
    made = make_repository(place, {}, now=datetime.now(UTC)).repository
    made.ensure_generation("shop", GENERATION)
    return made


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(str(tmp_path / "spool"), "shop", MB)
    yield made
    made.close()


def stored(
    tmp_path: Path, repository: Repository, spool: Spool, *, is_there: Callable[[], bool] = lambda: True
) -> RepositoryStore:
    def open_all() -> list[Repository]:
        if not is_there():
            raise StorageFailed("the repository is away")
        return [repository]

    return RepositoryStore(
        Places("shop", open_all), GENERATION, spool=spool, state_path=str(tmp_path / "state"),
        settings=StreamSettings(slice_bytes=100_000), stop=StopRequest(), on_note=lambda text: None,
    )  # fmt: skip


def opened(store: RepositoryStore) -> StreamWriter:
    writer = store.open(
        segment_size_bytes=MB, group_access=False, wake=lambda: None, on_segment=lambda segment: None
    )  # fmt: skip
    writer.begin(SEGMENT.start, 1)
    return writer


def test_slices_that_wait_keep_no_descriptor(tmp_path: Path, repository: Repository, spool: Spool) -> None:
    back = threading.Event()
    store = stored(tmp_path, repository, spool, is_there=back.is_set)
    writer = opened(store)
    before = len(os.listdir("/proc/self/fd"))
    # A server that is not idle makes a slice every few seconds, and a repository may be away for days.
    for at in range(0, 20_000, 100):
        writer.write([memoryview(CONTENT)[at : at + 100]])
        writer.sync()
    assert len(store.uploader.slices()) == 200
    assert len(os.listdir("/proc/self/fd")) < before + 20
    back.set()
    assert store.uploader.wait(store.uploader.is_empty, 60)
    store.close()
    assert repository.wal_of("shop").read(1, SEGMENT.start, 20_000) == CONTENT[:20_000]


def test_what_is_damaged_in_the_spool_ends_receiving_and_stays(
    tmp_path: Path, repository: Repository, spool: Spool
) -> None:
    back = threading.Event()
    store = stored(tmp_path, repository, spool, is_there=back.is_set)
    writer = opened(store)
    for at in range(0, 30_000, 10_000):
        writer.write([memoryview(CONTENT)[at : at + 10_000]])
        writer.sync()
    files = sorted((tmp_path / "spool/shop/stream").glob("*.slice"))
    content = files[1].read_bytes()
    files[1].write_bytes(content[:5000] + b"!" + content[5001:])
    back.set()
    assert not store.uploader.wait(store.uploader.is_empty, 60)
    with pytest.raises(IntegrityError, match=files[1].name):
        writer.flushed  # noqa: B018
    store.close()
    assert [file.exists() for file in files] == [False, True, True]
    # Nothing goes on behind a gap that nobody has heard of.
    assert [(one.first, one.last) for one in repository.wal_of("shop").ranges(1)] == [
        (SEGMENT.start, SEGMENT.start + 10_000)
    ]


def test_ranges_that_others_have_merged_and_removed_are_looked_for_again(
    tmp_path: Path, repository: Repository
) -> None:
    wal = repository.wal_of("shop")
    for at in range(0, 3000, 1000):
        wal.put_range(1, SEGMENT.start + at, CONTENT[at : at + 1000])
    place = Place(wal, repository, "shop")
    place.put(1, SEGMENT.start, CONTENT[:1000])
    wal.put_range(1, SEGMENT.start, CONTENT[:3000])
    for one in (SEGMENT.start, SEGMENT.start + 1000, SEGMENT.start + 2000):
        (found,) = (tmp_path / "repository").rglob(f"{int(one):016X}-{one + 1000:016X}")
        found.unlink()
    with suppress(StorageFailed):
        place.put(1, Lsn(SEGMENT.start + 1000), CONTENT[1000:4000])
    place.put(1, Lsn(SEGMENT.start + 1000), CONTENT[1000:4000])
    assert wal.read(1, SEGMENT.start, 4000) == CONTENT[:4000]


def test_a_damaged_range_of_others_does_not_keep_wal_from_arriving(
    tmp_path: Path, repository: Repository, spool: Spool
) -> None:
    wal = repository.wal_of("shop")
    wal.put_range(1, SEGMENT.start, CONTENT[:1000])
    (found,) = (tmp_path / "repository").rglob(f"{int(SEGMENT.start):016X}-*")
    found.chmod(0o600)
    found.write_bytes(found.read_bytes()[:-1] + b"!")
    store = stored(tmp_path, repository, spool)
    writer = opened(store)
    writer.begin(Lsn(SEGMENT.start + 1000), 1)
    for at in range(1000, MB, 100_000):
        writer.write([memoryview(CONTENT)[at : at + 100_000]])
        writer.sync()
    assert store.uploader.wait(store.uploader.is_empty, 60)
    assert store.uploader.failed is None
    store.close()
    assert wal.read(1, SEGMENT.start + 1000, MB - 1000) == CONTENT[1000:]


def test_a_spool_of_a_cluster_with_other_segments_is_refused(
    tmp_path: Path, repository: Repository, spool: Spool
) -> None:
    one = spool.begin(SYSTEM_IDENTIFIER, 16 * MB, 1, Lsn(2 * MB - 10))
    one.append([memoryview(b"of two segments here")])
    one.sync()
    with pytest.raises(UsageError, match="segments of 16777216 bytes"):
        stored(tmp_path, repository, spool)
    with pytest.raises(UsageError, match="segments of 16777216 bytes"):
        upload_leftovers(Places("shop", lambda: [repository]), spool)
    assert len(spool.waiting()) == 1


def test_a_request_that_hangs_is_told_of_before_it_fails(tmp_path: Path, repository: Repository, spool: Spool) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hangs() -> bool:
        asked.set()
        return answer.wait(60)

    store = stored(tmp_path, repository, spool, is_there=hangs)
    writer = opened(store)
    writer.write([memoryview(CONTENT)[:1000]])
    writer.sync()
    assert asked.wait(60)
    assert told(tmp_path, store)["away_since"] is None
    assert store.uploader.begun is not None
    store.uploader.begun -= 100
    found = told(tmp_path, store)
    assert (found["away_since"], found["message"]) == (store.uploader.begun, "a request has not been answered yet")
    answer.set()
    assert store.uploader.wait(store.uploader.is_empty, 60)
    assert told(tmp_path, store)["away_since"] is None
    store.close()


def told(tmp_path: Path, store: RepositoryStore) -> dict[str, Any]:
    lock = store.lock()
    try:
        lock.tell({"state": "streaming"})
        found: dict[str, Any] = read_status(str(tmp_path / "state"))["upload"]
    finally:
        lock.release()
    return found
