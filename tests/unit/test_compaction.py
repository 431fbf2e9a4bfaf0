"""Compaction in memory: what lives is moved, everything is read as before, killed and crossed at every request."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

import polarvault.retention.compact
from polarvault.config.model import Retention
from polarvault.repository.catalogue.intents import RESTORE
from polarvault.repository.catalogue.rebuild import rebuild
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.copying import copy_repository
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.moves.reading import read_moves
from polarvault.repository.reading.verify import verify_backup, verify_objects
from polarvault.repository.states.states import PIN, States
from polarvault.retention.expire import ExpireReport, ExpireRequest, expire
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.verify.stored.check import check_repository
from support.crossing import crossed, with_wal
from support.faulty_store import FaultyStore, Request
from support.repositories import NOW, PARTS, Tree, back_up, facts, feed, new_repository, reopened, restore

KEEP_ONE = ExpireRequest("shop", Retention(keep=1), safety_s=0)
PIECE = 256 << 10


def grown(seed: int, rounds: int) -> list[Tree]:
    """Return what a cluster is from backup to backup: a few pages and small files change each time."""
    chance = random.Random(seed)
    tree: Tree = {(0, b"base/5/%d" % number): chance.randbytes(5 * PIECE + number) for number in range(3)}
    tree |= {(0, b"base/6/%d" % number): chance.randbytes(3000) for number in range(40)}
    found = [tree]
    for _ in range(rounds - 1):
        tree = dict(tree)
        for key in chance.sample(sorted(tree), 4):
            content = bytearray(tree[key])
            for _ in range(3):
                at = chance.randrange(len(content))
                content[at : at + 100] = chance.randbytes(len(content[at : at + 100]))
            tree[key] = bytes(content)
        tree[0, b"base/7/%d" % chance.randrange(10**6)] = chance.randbytes(chance.randrange(1, 2 * PIECE))
        if chance.random() < 0.4:
            tree.pop(chance.choice(sorted(tree)))
        found.append(tree)
    return found


def chain(repository: Repository, trees: list[Tree], *, start: int = 0) -> dict[str, Tree]:
    made: dict[str, Tree] = {}
    parent = None
    for number, tree in enumerate(trees):
        parent = back_up(repository, tree, parent=parent, minutes=start + 10 * number, threads=1).label
        made[parent] = tree
    return made


def assert_whole(repository: Repository, known: dict[str, Tree]) -> None:
    """Every living backup is what it was, and nothing that it needs is missing or damaged."""
    with ThreadPoolExecutor(1) as pool:
        for label in repository.living_labels("shop"):
            reader = repository.open_backup("shop", label)
            assert list(verify_backup(reader, repository.page_key, pool)) == []
            assert list(verify_objects(repository.store, repository.codec, ClusterNames.of("shop"), label)) == []
            if label in known:
                assert restore(repository, label) == known[label]
    found = check_repository(repository, read_data=True)
    assert [one for one in found.problems if "/wal/" not in one.name] == []


def stored(repository: Repository) -> int:
    return sum(one.size_bytes for one in repository.store.list_objects("clusters/shop/packs"))


def moves(repository: Repository) -> int:
    return len(read_moves(repository.store, repository.codec, "shop").moves)


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_lives_is_moved_and_the_rest_goes_with_the_next_run(encrypted: bool) -> None:
    repository = with_wal(new_repository(encrypted=encrypted))
    made = chain(repository, grown(1, 10))
    last = list(made)[-1]
    before = stored(repository)
    dry = expire(repository, replace(KEEP_ONE, dry_run=True))
    assert (dry.compacted.packs, moves(repository), stored(repository)) == (dry.compacted.packs, 0, before)
    report = expire(repository, replace(KEEP_ONE, compact_below=0.95))
    assert report.compacted.problem == ""
    assert report.compacted.packs > 2
    assert moves(repository) == 1
    if encrypted:
        repository = reopened(repository)
    assert_whole(repository, made)
    young = expire(repository, replace(KEEP_ONE, safety_s=3600))
    assert young.removed.packs == 0
    after = expire(repository, KEEP_ONE)
    assert after.removed.packs == report.compacted.packs
    assert stored(repository) < before
    assert_whole(repository, made)
    # Moved chunks are a parent's as well as others: nothing that is there is stored again.
    outcome = back_up(repository, made[last], parent=last, minutes=200)
    assert outcome.counts.stored_bytes < 5_000
    assert_whole(repository, made | {outcome.label: made[last]})
    assert expire(repository, KEEP_ONE).compacted.packs == 0


def test_a_backup_that_began_before_keeps_what_it_refers_to() -> None:
    repository = with_wal(new_repository())
    trees = grown(2, 8)
    made = chain(repository, trees[:-1])
    parent = list(made)[-1]
    writing = Repository.open(repository.store)
    writer = writing.begin_backup("shop", started=NOW + timedelta(minutes=99), parts=PARTS, parent=parent)
    report = expire(repository, replace(KEEP_ONE, compact_below=0.95))
    assert report.compacted.packs
    # Its parent goes as well, and more is removed, while it is being written.
    other = back_up(repository, trees[0], minutes=100).label
    for _ in range(2):
        expire(repository, KEEP_ONE)
    assert repository.living_labels("shop") == [other]
    feed(writer, trees[-1])
    writer.attach("backup_manifest", [b"{}"])
    label = writer.commit(facts(110)).label
    writing.end_intents()
    known = made | {label: trees[-1], other: trees[0]}
    for _ in range(3):
        assert_whole(repository, known)
        expire(repository, ExpireRequest("shop", Retention(keep=9), safety_s=0, compact_below=0.95))
    assert_whole(repository, known)


def test_who_reads_by_old_places_goes_on_reading() -> None:
    repository = with_wal(new_repository())
    made = chain(repository, grown(3, 6))
    last = list(made)[-1]
    with repository.intents.declared(RESTORE, "shop", label=last):
        reader = repository.open_backup("shop", last)
        for _ in range(3):
            expire(repository, replace(KEEP_ONE, compact_below=0.95))
        assert moves(repository)
        with ThreadPoolExecutor(1) as pool:
            assert list(verify_backup(reader, repository.page_key, pool)) == []
    expire(repository, KEEP_ONE)
    assert_whole(repository, made)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_moves_that_gather_are_merged_and_copies_follow(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(polarvault.retention.compact, "_MERGED_MOVES", 2)
    chance = random.Random(seed)
    repository = with_wal(new_repository(seed=seed))
    elsewhere = WriteOnce(MemoryStore())
    known: dict[str, Tree] = {}
    most = 0
    for number, tree in enumerate(grown(seed, 24)):
        living = repository.living_labels("shop")
        parent = chance.choice(living[-2:]) if living else None
        label = back_up(repository, tree, parent=parent, minutes=10 * number, threads=1).label
        known[label] = tree
        if chance.random() < 0.15:
            States(repository, "shop").add(label, PIN, now=NOW)
        if chance.random() < 0.7:
            keep = Retention(keep=chance.randrange(1, 4))
            report = expire(
                repository, ExpireRequest("shop", keep, safety_s=0, compact_below=chance.choice((0.6, 0.95)))
            )
            assert report.compacted.problem == ""
        most = max(most, moves(repository))
        assert_whole(repository, known)
        if number % 3 == 2:
            assert copy_repository(repository.store, elsewhere, jobs=1).problems == []
            copy = Repository.open(elsewhere)
            if chance.random() < 0.6:
                expire(
                    copy, ExpireRequest("shop", Retention(keep=chance.randrange(1, 6)), safety_s=0, compact_below=0.8)
                )
            assert_whole(copy, known)
    assert 1 < most < 8


def test_refs_that_are_lost_keep_nobody_from_what_was_moved_and_are_made_again() -> None:
    repository = with_wal(new_repository())
    trees = grown(6, 9)
    made = chain(repository, trees[:-1])
    for _ in range(2):
        expire(repository, replace(KEEP_ONE, compact_below=0.95))
    (kept,) = repository.labels("shop")
    later = back_up(repository, trees[-1], parent=kept, minutes=300).label
    known = made | {later: trees[-1]}
    for label in (kept, later):
        repository.store.delete(f"clusters/shop/backups/{label}/refs")
        assert restore(repository, label) == known[label]
    after = back_up(repository, trees[0], parent=later, minutes=400).label
    assert restore(repository, after) == trees[0]
    assert [one.problem for one in rebuild(repository)] == ["", ""]
    for _ in range(3):
        assert_whole(repository, known | {after: trees[0]})
        expire(repository, ExpireRequest("shop", Retention(keep=2), safety_s=0, compact_below=0.95))
    assert_whole(repository, known | {after: trees[0]})


class Killed(BaseException):
    """The process is gone."""


def prepared(inner: WriteOnce, seed: int) -> tuple[Repository, dict[str, Tree]]:
    plain = with_wal(new_repository(inner, seed=seed))
    return plain, chain(plain, grown(5, 4))


@pytest.mark.slow
def test_killed_at_any_request_it_leaves_everything_readable_and_is_repeated() -> None:
    request = replace(KEEP_ONE, compact_below=0.95)
    inner = WriteOnce(MemoryStore())
    prepared(inner, 1)
    counted = FaultyStore(inner)
    expire(Repository.open(counted), request)
    requests = len(counted.requests)
    for number in range(1, requests + 1):
        inner = WriteOnce(MemoryStore())
        plain, made = prepared(inner, number)

        def die(request: Request, at: int = number) -> None:
            if request.number == at:
                raise Killed

        with pytest.raises(Killed):
            expire(Repository.open(FaultyStore(inner, hook=die)), request)
        assert_whole(plain, made)
        tree = grown(5, 5)[-1]
        label = back_up(plain, tree, parent=plain.living_labels("shop")[-1], minutes=60, threads=1).label
        for intent in plain.intents.listed():
            plain.intents.end(intent.id)
        for _ in range(3):
            expire(plain, request)
        assert plain.labels("shop") == [label]
        assert_whole(plain, {label: tree})
        unused = check_repository(plain, read_data=False).unused
        assert unused == 0


def a_backup(repository: Repository) -> str:
    living = repository.living_labels("shop")
    return back_up(repository, grown(5, 5)[-1], parent=living[-1], minutes=60, threads=1).label


def two_expires(repository: Repository) -> ExpireReport:
    expire(repository, replace(KEEP_ONE, compact_below=0.95))
    return expire(repository, replace(KEEP_ONE, compact_below=0.95))


@pytest.mark.slow
@pytest.mark.parametrize("other", [a_backup, two_expires])
def test_in_every_order_of_their_steps_what_is_recorded_stays_whole(other: Callable[[Repository], object]) -> None:
    seed = 0
    for first, second in (("other", "expire"), ("expire", "other")):
        for start in range(1, 90, 12):
            for stretch in (3, 11, 25, 47, 99):
                seed += 1
                jobs: dict[str, Callable[[Repository], object]] = {"other": other, "expire": two_expires}
                inner = WriteOnce(MemoryStore())
                plain, _ = prepared(inner, seed)
                crossed(inner, [(first, start), (second, stretch), (first, 999)], jobs, seed)
                assert plain.living_labels("shop")
                assert_whole(plain, {})
                two_expires(plain)
                assert_whole(plain, {})
