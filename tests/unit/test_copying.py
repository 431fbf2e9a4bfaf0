"""A second place for a repository: whole backups or none, without the key, gone on with, by its own policy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polarvault.config.model import Retention
from polarvault.errors import RepositoryMismatch, RepositoryNotFound
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.copying import copy_repository
from polarvault.repository.states.states import NOTE, PIN, VERIFIED, States
from polarvault.retention.expire import ExpireRequest, expire
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.verify.stored.check import check_repository
from support.faulty_store import FaultyStore, Request
from support.repositories import NOW, Tree, back_up, facts, new_repository, reopened, restore, two_trees

SEGMENT = 16 << 20
SYSTEM = facts().system_identifier


def filled(*, encrypted: bool = False) -> tuple[Repository, dict[str, Tree]]:
    repository = new_repository(encrypted=encrypted)
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
    first, second = two_trees()
    full = back_up(repository, first).label
    part = back_up(repository, second, parent=full, minutes=10).label
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    for at in range(0, facts().stop_lsn + SEGMENT, SEGMENT):
        wal.put_range(1, at, bytes(SEGMENT))
    wal.put_file(2, "00000002.history", b"1\t0/3000000\tno recovery target specified\n")
    states = States(repository, "shop")
    for kind in (NOTE, PIN, VERIFIED):
        states.add(full, kind, now=NOW)
    return repository, {full: first, part: second}


def empty() -> ObjectStore:
    return WriteOnce(MemoryStore())


def opened(repository: Repository, store: ObjectStore) -> Repository:
    """Open a copy with the key of its original."""
    return Repository(store, repository.codec, repository.page_key, lambda count: bytes(count))


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_copy_is_whole_and_a_second_one_copies_nothing(encrypted: bool) -> None:
    repository, trees = filled(encrypted=encrypted)
    target = empty()
    report = copy_repository(repository.store, target)
    assert report.problems == []
    assert [word.partition("@")[2] for word in report.backups] == sorted(trees)
    copy = reopened(opened(repository, target)) if encrypted else Repository.open(target)
    for label, tree in trees.items():
        assert restore(copy, label) == tree
    assert check_repository(copy, read_data=True).problems == []
    # A verdict is about one place; marks are about the backup. WAL from before the first backup is of no use.
    assert {one.kind for one in States(copy, "shop").listed()} == {NOTE, PIN}
    assert min(one.first for one in copy.wal_of("shop").ranges(1)) == facts().start_lsn
    again = copy_repository(repository.store, target)
    assert (again.objects, again.problems) == (0, [])
    label = back_up(repository, two_trees()[0], parent=max(trees), minutes=20).label
    assert copy_repository(repository.store, target).backups == [f"shop@{label}"]


def test_another_repository_and_nothing_at_all_are_refused() -> None:
    repository, _ = filled()
    with pytest.raises(RepositoryMismatch, match="is the repository"):
        copy_repository(repository.store, new_repository(seed=99).store)
    with pytest.raises(RepositoryNotFound):
        copy_repository(empty(), empty())
    with pytest.raises(RepositoryNotFound, match="nothing of a cluster shoe"):
        copy_repository(repository.store, empty(), clusters=["shoe"])


def test_a_backup_that_cannot_be_whole_is_not_recorded_there_and_named() -> None:
    repository, trees = filled()
    full = min(trees)
    name = next(iter(repository.store.list_objects(f"clusters/shop/packs/{full}"))).name
    content = bytearray(repository.store.get(name, most_bytes=1 << 30))
    content[100] ^= 1
    repository.store.delete(name)
    repository.store.put_new(name, [bytes(content)])
    target = empty()
    report = copy_repository(repository.store, target)
    assert report.backups == []
    assert any(name in problem for problem in report.problems)
    assert Repository.open(target).labels("shop") == []


def test_what_the_other_place_has_expired_is_not_copied_again() -> None:
    repository, trees = filled()
    target = empty()
    copy_repository(repository.store, target)
    copy = Repository.open(target)
    # Its pin came along.
    States(copy, "shop").add(min(trees), "unpin", now=NOW)
    expire(copy, ExpireRequest("shop", Retention(keep=1), safety_s=0))
    assert copy.labels("shop") == [max(trees)]
    assert copy_repository(repository.store, target).backups == []
    assert copy.labels("shop") == [max(trees)]
    assert restore(copy, max(trees)) == trees[max(trees)]


class Killed(BaseException):
    """The process is gone."""


def numbers_of_requests(repository: Repository) -> Iterator[int]:
    target = FaultyStore(empty())
    copy_repository(repository.store, target, jobs=1)
    yield from range(1, len(target.requests) + 1, 2)


def test_killed_at_any_request_nothing_is_half_there_and_it_is_gone_on_with() -> None:
    repository, trees = filled()
    for number in numbers_of_requests(repository):
        inner = empty()

        def die(request: Request, at: int = number) -> None:
            if request.number == at:
                raise Killed

        with pytest.raises(Killed):
            copy_repository(repository.store, FaultyStore(inner, hook=die), jobs=1)
        partly = opened(repository, inner)
        for label in partly.labels("shop"):
            assert restore(partly, label) == trees[label]
        assert copy_repository(repository.store, inner).problems == []
        copy = Repository.open(inner)
        assert {label: restore(copy, label) for label in copy.labels("shop")} == trees
