"""Verifying backups in a repository, checking all of one, making `refs` again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from polarvault.errors import RepositoryNotFound
from polarvault.repository.catalogue.intents import RESTORE
from polarvault.repository.catalogue.listing import Catalogue
from polarvault.repository.catalogue.reading import reading
from polarvault.repository.catalogue.rebuild import Rebuilt, rebuild
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.catalogue.summary import read_summary
from polarvault.repository.format.chunks import ChunkRef, placed
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.refs import read_refs
from polarvault.repository.reading.verify import FoundDamage
from polarvault.repository.states.states import NOTE, TOMBSTONE, States, standings
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.verify.stored.backup import VerifiedBackup, remember, verify_stored
from polarvault.verify.stored.check import check_repository
from support.faulty_store import Failure, Fault, FaultyStore
from support.repositories import NOW, PARTS, back_up, facts, feed, new_repository, restore, two_trees

SEGMENT = 16 << 20
SYSTEM = facts().system_identifier


def filled(*, encrypted: bool = False) -> tuple[Repository, str, str]:
    """Return a repository with everything in it that there is, and the labels of its two backups."""
    repository = new_repository(encrypted=encrypted)
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
    first, second = two_trees()
    full = back_up(repository, first).label
    part = back_up(repository, second, parent=full, minutes=10).label
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    wal.put_range(1, facts().start_lsn, b"no WAL at all" * 100)
    wal.put_file(2, "00000002.history", b"1\t0/3000000\tno recovery target specified\n")
    States(repository, "shop").add(full, NOTE, now=NOW, text="a note")
    repository.intents.declare(RESTORE, "shop", label=full)
    return repository, full, part


def flip(repository: Repository, name: str, at: int, mask: int = 1) -> bytes:
    """Change one bit; return the object as it was."""
    content = repository.store.get(name, most_bytes=1 << 30)
    changed = bytearray(content)
    changed[at] ^= mask
    repository.store.delete(name)
    repository.store.put_new(name, [bytes(changed)])
    return content


@pytest.mark.parametrize("encrypted", [False, True])
def test_any_bit_that_flips_in_any_object_is_found(encrypted: bool) -> None:
    repository = filled(encrypted=encrypted)[0]
    assert check_repository(repository, read_data=True).problems == []
    rng = random.Random(encrypted)
    objects = sorted(repository.store.list_objects(), key=lambda one: one.name)
    kinds: dict[str, list[str]] = {}
    for one in objects:
        kinds.setdefault("/".join(one.name.split("/")[2:3]) + one.name.split("/")[-1][:6], []).append(one.name)
    names = [name for found in kinds.values() for name in found]
    for number in range(200):
        name = names[number % len(names)]
        size = repository.store.stat(name).size_bytes
        content = flip(repository, name, rng.randrange(size), 1 << rng.randrange(8))
        found = check_repository(repository, read_data=True)
        assert found.problems, name
        repository.store.delete(name)
        repository.store.put_new(name, [content])
    assert check_repository(repository, read_data=True).problems == []


@pytest.mark.parametrize("part", ["root", "refs", "manifest"])
def test_what_is_missing_is_named_with_the_backups_that_need_it(part: str) -> None:
    repository, full, second = filled()
    packs = sorted(one.name for one in repository.store.list_objects(f"clusters/shop/packs/{full}"))
    repository.store.delete(packs[0])
    repository.store.delete(f"clusters/shop/backups/{second}/{part}")
    found = check_repository(repository, read_data=False)
    by_name = {one.name: one for one in found.problems}
    assert by_name[f"clusters/shop/backups/{second}/{part}"].backups == (f"shop@{second}",)
    concerned = set(by_name[packs[0]].backups)
    assert concerned == ({f"shop@{full}"} if part == "refs" else {f"shop@{full}", f"shop@{second}"})
    assert len(found.intents) == 1


def test_refs_are_made_again_as_they_were() -> None:
    repository, full, part = filled(encrypted=True)
    names = ClusterNames.of("shop")
    before = {label: read_refs(repository.store, repository.codec, names, label) for label in (full, part)}
    repository.store.delete(names.backup(full, "refs"))
    flip(repository, names.backup(part, "refs"), 60)
    expected = [Rebuilt(names.backup(full, "refs")), Rebuilt(names.backup(part, "refs"))]
    assert sorted(rebuild(repository), key=lambda one: one.name) == sorted(expected, key=lambda one: one.name)
    for label, refs in before.items():
        assert read_refs(repository.store, repository.codec, names, label) == refs
    assert list(rebuild(repository)) == []


def test_a_damaged_object_stays_where_nothing_can_take_its_place_and_others_are_made_again() -> None:
    repository, full, part = filled()
    names = ClusterNames.of("shop")
    flip(repository, names.backup(full, "refs"), 60)
    damaged = repository.store.get(names.backup(full, "refs"), most_bytes=1 << 20)
    repository.store.delete(names.backup(full, "root"))
    repository.store.delete(names.backup(part, "refs"))
    made = {one.name: one.problem for one in rebuild(repository)}
    assert made[names.backup(part, "refs")] == ""
    assert names.backup(full, "root") in made[names.backup(full, "refs")]
    assert repository.store.get(names.backup(full, "refs"), most_bytes=1 << 20) == damaged


def test_what_a_cluster_is_can_be_had_from_its_records() -> None:
    details = {"wal_segment_bytes": SEGMENT, "relation_segment_bytes": 1 << 30, "data_checksums": True}
    repository = new_repository()
    generation = Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True)
    repository.ensure_generation("shop", generation)
    writer = repository.begin_backup("shop", started=NOW, parts=PARTS)
    feed(writer, two_trees()[0])
    writer.commit(replace(facts(), details=details))
    name = ClusterNames.of("shop").generation(SYSTEM)
    assert check_repository(repository, read_data=False).problems == []
    for spoil in (repository.store.delete, lambda name: flip(repository, name, 70)):
        spoil(name)
        assert [one.name for one in check_repository(repository, read_data=False).problems] == [name]
        assert list(rebuild(repository)) == [Rebuilt(name)]
        assert repository.generation("shop", SYSTEM) == generation


def test_a_pack_that_is_cut_is_found_without_reading_data() -> None:
    repository, full, _ = filled()
    name = sorted(one.name for one in repository.store.list_objects(f"clusters/shop/packs/{full}"))[0]
    content = repository.store.get(name, most_bytes=1 << 30)
    repository.store.delete(name)
    repository.store.put_new(name, [content[:-1]])
    (problem,) = check_repository(repository, read_data=False).problems
    assert (problem.name, f"shop@{full}" in problem.backups) == (name, True)


def test_a_sample_takes_no_damage_back_and_every_damaged_chunk_is_remembered() -> None:
    repository, full, _ = filled()
    reader = repository.open_backup("shop", full)
    every = {placed(piece.base) for row in reader.rows() for ref in row.tables for piece in
             reader.index.table(ref).table.pieces}  # fmt: skip
    found = VerifiedBackup("shop", full, 1.0, [FoundDamage("wrong", one) for one in every], [], [])
    remember(repository, found)
    state = Catalogue(repository, "shop").find(full)
    assert state.state == "damaged"
    remember(repository, VerifiedBackup("shop", full, 0.05, [], [], []))
    assert Catalogue(repository, "shop").find(full).state == "damaged"
    many = [FoundDamage("wrong", ChunkRef(full, 0, number, 48, 10, 10, bytes(32))) for number in range(300)]
    remember(repository, VerifiedBackup("shop", full, 1.0, many, [], []))
    verdict = standings(States(repository, "shop").listed(full))[full].verdict
    assert verdict is not None
    written = States(repository, "shop").read(verdict)
    assert written is not None
    assert len(written.finding["chunks"]) == 300
    remember(repository, VerifiedBackup("shop", full, 1.0, [], [], []))
    assert not standings(States(repository, "shop").listed(full))[full].is_damaged


def test_damage_is_named_by_file_and_block_remembered_and_stored_anew() -> None:
    repository, full, part = filled()
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    for at in range(facts().start_lsn, facts().stop_lsn + SEGMENT, SEGMENT):
        wal.put_range(1, at, bytes(SEGMENT))
    reader = repository.open_backup("shop", full)
    row = next(row for row in reader.rows() if row.name == "base/5/2")
    piece = reader.index.table(row.tables[0]).table.pieces[1]
    flip(repository, f"clusters/shop/packs/{full}/{piece.base.pack:06}", piece.base.offset + 10)
    found = verify_stored(repository, "shop", full)
    assert not found.is_good
    assert {(one.path, one.block) for one in found.damage if one.path} == {("base/5/2", 32)}
    # The incremental has the same page from it.
    assert found.concerned == [part]
    listed = {one.label: one.state for one in Catalogue(repository, "shop").backups()}
    assert listed == {full: "damaged", part: "damaged"}
    again = back_up(repository, two_trees()[1], parent=part, minutes=20)
    assert again.counts.new_bytes > 0
    assert restore(repository, again.label) == two_trees()[1]
    # Only the WAL, which is none, is wrong with it.
    verified = verify_stored(repository, "shop", again.label)
    assert [one for one in verified.damage if one.path] == []


def test_a_sample_reads_less_and_says_so() -> None:
    store = FaultyStore(WriteOnce(MemoryStore()))
    repository = new_repository(store)
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
    label = back_up(repository, two_trees()[0]).label
    before = len(store.requests)
    verify_stored(repository, "shop", label, sample=1e-9)
    little = len(store.requests) - before
    found = verify_stored(repository, "shop", label)
    assert little < len(store.requests) - before - little
    assert found.sampled == 1


def test_a_reader_that_may_not_write_reads_all_the_same() -> None:
    store = FaultyStore(WriteOnce(MemoryStore()))
    repository = new_repository(store)
    label = back_up(repository, two_trees()[0]).label
    store.faults.append(Fault("put_new", Failure.FORBIDDEN, times=-1))
    with reading(Repository.open(store), RESTORE, "shop", label) as is_known:
        assert is_known is False
    store.faults.clear()
    with reading(repository, RESTORE, "shop", label) as is_known:
        assert is_known is True
        assert [intent.labels for intent in repository.intents.listed()] == [{label}]
    assert repository.intents.listed() == []


def test_what_has_expired_is_not_called_unfinished_and_a_cluster_without_backups_is_said_to_be_one() -> None:
    repository, full, part = filled()
    for label in (full, part):
        States(repository, "shop").add(label, TOMBSTONE, now=NOW)
        repository.store.delete(ClusterNames.of("shop").backup(label, "record"))
    (cluster,) = read_summary(repository).clusters
    assert (cluster.labels, cluster.unfinished) == ((), 0)
    with pytest.raises(RepositoryNotFound, match="there is no backup of shop in memory:") as raised:
        repository.find_label("shop", "latest")
    assert raised.value.hint == "take one: polarvault backup shop"
    with pytest.raises(RepositoryNotFound) as raised:
        repository.find_label("shep", "2026")
    assert raised.value.hint == "it has backups of: shop"
