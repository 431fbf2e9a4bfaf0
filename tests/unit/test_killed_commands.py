"""Backups, init and changes of keys killed at every request to the store: what is recorded is whole, the next goes on.

Expire and compaction, and copies, are killed in the same way in their own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from polarvault.errors import RepositoryNotFound
from polarvault.repository.catalogue.repository import Repository, read_identity
from polarvault.repository.catalogue.stored_keys import StoredKeys
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.keys.ring import KeyRing
from polarvault.repository.keys.sealing import DataKey
from polarvault.repository.keys.wrapped import Secret, WrappedKey, unlock
from polarvault.repository.reading.verify import verify_backup, verify_objects
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.verify.stored.check import check_repository
from support.crossing import with_wal
from support.faulty_store import FaultyStore, Request
from support.repositories import FILE_KEY, Tree, back_up, new_repository, restore, seeded, two_trees

OTHER_KEY = bytes(reversed(FILE_KEY))


class Killed(BaseException):
    """The process is gone."""


def opened(store: WriteOnce | FaultyStore, key: bytes = FILE_KEY) -> Repository:
    def unlocked(repository_id: bytes, keys: list[WrappedKey]) -> Mapping[int, DataKey]:
        return unlock(keys, Secret(file_key=key, origin="a test"), repository_id=repository_id, address="memory:")

    return Repository.open(store, unlock=unlocked)


def ring(repository: Repository) -> KeyRing:
    identifier = repository.codec.repository_id
    return KeyRing(StoredKeys(repository.store, identifier, repository.codec), identifier, "memory:")


def killed_everywhere(
    prepare: Callable[[], WriteOnce], command: Callable[[FaultyStore], object], judge: Callable[[WriteOnce], None]
) -> int:
    """Run a command again and again, killed before and after each request; return how many points that were."""
    counted = FaultyStore(prepare())
    command(counted)
    for number in range(1, len(counted.requests) + 1):
        inner = prepare()

        def die(request: Request, at: int = number) -> None:
            if request.number == at:
                raise Killed

        with pytest.raises(Killed):
            command(FaultyStore(inner, hook=die))
        judge(inner)
    return len(counted.requests)


def assert_sound(repository: Repository, known: Mapping[str, Tree]) -> None:
    with ThreadPoolExecutor(1) as pool:
        for label in repository.labels("shop"):
            reader = repository.open_backup("shop", label)
            assert list(verify_backup(reader, repository.page_key, pool)) == []
            assert list(verify_objects(repository.store, repository.codec, ClusterNames.of("shop"), label)) == []
            assert label not in known or restore(repository, label) == known[label]
    assert check_repository(repository, read_data=True).problems == []


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("incremental", [False, True])
def test_a_backup_that_is_killed_is_none_or_whole_and_the_next_adopts_what_is_there(
    encrypted: bool, incremental: bool
) -> None:
    first, second = two_trees()
    known: dict[str, Tree] = {}

    def prepare() -> WriteOnce:
        inner = WriteOnce(MemoryStore())
        repository = with_wal(new_repository(inner, encrypted=encrypted))
        if incremental:
            known[back_up(repository, first).label] = first
        return inner

    def parent(repository: Repository) -> str | None:
        return next(iter(repository.labels("shop")), None)

    def command(store: FaultyStore) -> None:
        repository = opened(store)
        back_up(repository, second, parent=parent(repository), minutes=5, threads=1)

    def judge(inner: WriteOnce) -> None:
        repository = opened(inner)
        assert_sound(repository, known)
        packs = sum(one.size_bytes for one in inner.list_objects("clusters/shop/packs"))
        outcome = back_up(repository, second, parent=parent(repository), minutes=9, threads=1)
        assert_sound(repository, {**known, outcome.label: second})
        more = sum(one.size_bytes for one in inner.list_objects("clusters/shop/packs")) - packs
        # Data packs that were there are not written again.
        assert more < 40_000 or not outcome.counts.adopted_bytes

    assert killed_everywhere(prepare, command, judge) > 15


def test_an_init_that_is_killed_has_made_a_repository_or_can_be_repeated() -> None:
    def command(store: FaultyStore) -> None:
        new_repository(store, encrypted=True)

    def judge(inner: WriteOnce) -> None:
        with suppress(RepositoryNotFound):
            opened(inner)
            return
        new_repository(inner, seed=7, encrypted=True)
        repository = with_wal(opened(inner))
        first, _ = two_trees()
        label = back_up(repository, first).label
        assert_sound(opened(inner), {label: first})

    assert killed_everywhere(lambda: WriteOnce(MemoryStore()), command, judge) >= 5


@pytest.mark.parametrize("step", ["add", "remove"])
def test_a_change_of_keys_that_is_killed_locks_nobody_out(step: str) -> None:
    first, _ = two_trees()
    known: dict[str, Tree] = {}
    other = Secret(file_key=OTHER_KEY, origin="another test")

    def add(store: WriteOnce | FaultyStore) -> None:
        repository = opened(store)
        keys = ring(repository)
        data_keys = keys.unlock(Secret(file_key=FILE_KEY, origin="a test"))
        keys.add(data_keys, other, recipient="other", random=seeded(5))

    def prepare() -> WriteOnce:
        inner = WriteOnce(MemoryStore())
        known[back_up(with_wal(new_repository(inner, encrypted=True)), first).label] = first
        if step == "remove":
            add(inner)
        return inner

    def command(store: FaultyStore) -> None:
        if step == "add":
            add(store)
        else:
            ring(opened(store)).remove("test")

    def judge(inner: WriteOnce) -> None:
        identifier = read_identity(inner, expected_id=None, encrypted=True)[0].repository_id
        names = {key.recipient for key in KeyRing(StoredKeys(inner, identifier), identifier, "memory:").read()}
        assert names
        for key, name in ((FILE_KEY, "test"), (OTHER_KEY, "other")):
            if name in names:
                assert_sound(opened(inner, key), known)

    assert killed_everywhere(prepare, command, judge) >= 3
