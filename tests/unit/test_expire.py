"""Expire in memory: what goes, what stays; in every order of steps with a backup; killed at every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from polarvault.config.model import Retention
from polarvault.errors import PolarvaultError, RepositoryNewer, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.intents import RESTORE, Intents
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import IMPORTED_FROM
from polarvault.repository.reading.verify import verify_backup, verify_objects
from polarvault.repository.states.states import PIN, States
from polarvault.retention.expire import ExpireReport, ExpireRequest, expire
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.crossing import SEGMENT, SYSTEM, crossed, with_wal
from support.faulty_store import Failure, Fault, FaultyStore, Request
from support.repositories import NOW, PARTS, Tree, back_up, facts, feed, new_repository, reopened, restore, two_trees

KEEP_ONE = ExpireRequest("shop", Retention(keep=1), safety_s=0)
WITHOUT_COMPACTION = replace(KEEP_ONE, compact_below=0)


def trees(count: int) -> list[Tree]:
    first, second = two_trees()
    found = [first, second]
    for number in range(2, count):
        found.append(first | {(0, b"base/5/2"): bytes([number]) * 300_000, (0, b"base/9/%d" % number): b"x" * 100_000})
    return found


def chain(repository: Repository, count: int = 3) -> list[tuple[str, Tree]]:
    """Take backups, each the parent of the next."""
    made: list[tuple[str, Tree]] = []
    for number, tree in enumerate(trees(count)):
        parent = made[-1][0] if made else None
        made.append((back_up(repository, tree, parent=parent, minutes=10 * number).label, tree))
    return made


def check(repository: Repository, known: dict[str, Tree]) -> None:
    """Every backup that is recorded is whole, and what it was."""
    with ThreadPoolExecutor(2) as pool:
        for label in repository.labels("shop"):
            if label in repository.expired_labels("shop"):
                continue
            assert list(verify_backup(repository.open_backup("shop", label), repository.page_key, pool)) == []
            if label in known:
                assert restore(repository, label) == known[label]
            else:
                restore(repository, label)


def assert_sound(repository: Repository) -> None:
    for label in repository.labels("shop"):
        assert list(verify_objects(repository.store, repository.codec, ClusterNames.of("shop"), label)) == []


def packs(repository: Repository) -> set[str]:
    return {one.name for one in repository.store.list_objects("clusters/shop/packs")}


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_no_backup_uses_goes_and_the_rest_stays_whole(encrypted: bool) -> None:
    repository = with_wal(new_repository(encrypted=encrypted))
    made = chain(repository)
    before = packs(repository)
    dry = expire(repository, ExpireRequest("shop", Retention(keep=1), dry_run=True, safety_s=0))
    assert packs(repository) == before
    assert [verdict.is_kept for _, verdict in dry.backups] == [False, False, True]
    report = expire(repository, WITHOUT_COMPACTION)
    assert [verdict.reasons for _, verdict in report.backups] == [verdict.reasons for _, verdict in dry.backups]
    assert (report.removed.backups, report.removed.packs) == (dry.removed.backups, dry.removed.packs)
    assert report.removed.backups == 2
    assert report.removed.packs > 0
    assert report.removed.wal_ranges == 1
    assert repository.labels("shop") == [made[-1][0]]
    check(repository, dict(made))
    assert_sound(repository)
    # Nothing more goes; of what is gone the tombstones are left.
    States(repository, "shop").add(made[1][0], PIN, now=NOW)
    again = expire(repository, WITHOUT_COMPACTION)
    assert {one.name.rpartition("-")[2] for one in repository.store.list_objects("clusters/shop/states")} <= {
        "tombstone", *(["pin"] if any(made[1][0] in name for name in packs(repository)) else [])
    }  # fmt: skip
    assert (again.removed.backups, again.removed.packs, again.removed.wal_ranges) == (0, 0, 0)
    after = back_up(reopened(repository) if encrypted else repository, trees(4)[3], parent=made[-1][0], minutes=60)
    check(repository, {after.label: trees(4)[3]})


def test_files_beside_the_wal_go_with_it() -> None:
    """Marks of backups and partial segments would stay for ever; a history tells what branched where."""
    repository = with_wal(new_repository())
    chain(repository)
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    first, needed = (WalSegment.holding(at, 1, SEGMENT) for at in (0, facts().start_lsn))
    for segment in (first, needed):
        for suffix in (".partial", ".00000028.backup"):
            wal.put_file(1, segment.file_name + suffix, b"said")
    wal.put_file(2, "00000002.history", b"1\t0/500000\tpromoted\n")
    dry = expire(repository, ExpireRequest("shop", Retention(keep=1), dry_run=True, safety_s=0))
    assert dry.removed.wal_files == 2
    careful = expire(repository, ExpireRequest("shop", Retention(keep=1), safety_s=86_400, compact_below=0))
    assert careful.removed.wal_files == 0
    assert len(wal.stored_files(1)) == 4
    report = expire(repository, WITHOUT_COMPACTION)
    assert report.removed.wal_files == 2
    assert {segment for segment, _ in wal.stored_files(1)} == {needed}
    assert wal.read_file(2, "00000002.history") is not None
    assert expire(repository, WITHOUT_COMPACTION).removed.wal_files == 0


def test_young_packs_stay_and_their_labels_are_adopted_by_nobody() -> None:
    repository = with_wal(new_repository())
    made = chain(repository)
    report = expire(repository, ExpireRequest("shop", Retention(keep=1), safety_s=3600))
    assert (report.removed.backups, report.removed.packs) == (2, 0)
    assert report.removed.young > 0
    # The same content again: it is not taken from packs that are about to go.
    outcome = back_up(repository, made[0][1], minutes=60)
    assert outcome.counts.adopted_bytes == 0
    expire(repository, KEEP_ONE)
    check(repository, {outcome.label: made[0][1]})


def test_pins_intents_and_the_last_good_backup_are_respected() -> None:
    repository = with_wal(new_repository())
    made = chain(repository, 4)
    States(repository, "shop").add(made[0][0], PIN, now=NOW)
    with repository.intents.declared(RESTORE, "shop", label=made[1][0]):
        report = expire(repository, KEEP_ONE)
        assert [one.labels for one in report.in_use] == [{made[1][0]}]
        restore(repository, made[1][0])
    assert set(repository.living_labels("shop")) == {made[0][0], made[3][0]}
    assert set(repository.labels("shop")) == {made[0][0], made[1][0], made[3][0]}
    report = expire(repository, KEEP_ONE)
    assert set(repository.labels("shop")) == {made[0][0], made[3][0]}
    check(repository, dict(made))


def test_without_a_policy_or_with_an_unknown_command_nothing_is_removed() -> None:
    repository = with_wal(new_repository())
    chain(repository)
    with pytest.raises(UsageError, match="no policy"):
        expire(repository, ExpireRequest("shop", Retention()))
    Intents(repository.store, repository.codec).declare("mount", "shop")
    before = packs(repository)
    with pytest.raises(RepositoryNewer, match="mount"):
        expire(repository, KEEP_ONE)
    assert packs(repository) == before


def test_what_a_backup_uses_that_cannot_be_known_keeps_everything() -> None:
    repository = with_wal(new_repository())
    made = chain(repository)
    name = f"clusters/shop/backups/{made[-1][0]}/refs"
    content = bytearray(repository.store.get(name, most_bytes=1 << 20))
    content[60] ^= 1
    repository.store.delete(name)
    repository.store.put_new(name, [bytes(content)])
    before = packs(repository)
    with pytest.raises(PolarvaultError, match="nothing is removed"):
        expire(repository, KEEP_ONE)
    assert packs(repository) == before
    assert len(repository.labels("shop")) == 3


def test_a_store_that_lets_nothing_go_loses_nothing_and_says_so() -> None:
    store = FaultyStore(WriteOnce(MemoryStore()))
    repository = with_wal(new_repository(store))
    made = chain(repository)
    store.faults.append(Fault("delete", Failure.FORBIDDEN, times=-1, names="clusters/*"))
    report = expire(repository, KEEP_ONE)
    assert report.removed.refused
    assert report.removed.backups == 0
    store.faults.clear()
    for label, tree in made:
        assert restore(repository, label) == tree
    assert repository.living_labels("shop") == [made[-1][0]]
    assert expire(repository, KEEP_ONE).removed.backups == 2
    check(repository, dict(made))


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.slow
def test_killed_at_any_request_it_leaves_every_living_backup_whole_and_is_repeated() -> None:
    requests = _requests_of_expire()
    assert requests > 20
    for number in range(1, requests + 1):
        inner = WriteOnce(MemoryStore())
        plain = with_wal(new_repository(inner, seed=number))
        made = chain(plain)

        def die(request: Request, at: int = number) -> None:
            if request.number == at:
                raise Killed

        store = FaultyStore(inner, hook=die)
        with pytest.raises(Killed):
            expire(Repository.open(store), KEEP_ONE)
        check(plain, dict(made))
        tree = trees(4)[3]
        parent = plain.living_labels("shop")[-1]
        label = back_up(plain, tree, parent=parent, minutes=60).label
        # Its intent names this process, which lives: somebody says that it is over.
        for intent in plain.intents.listed():
            plain.intents.end(intent.id)
        expire(plain, KEEP_ONE)
        assert plain.labels("shop") == [label]
        check(plain, {label: tree})
        assert_sound(plain)


def _requests_of_expire() -> int:
    inner = WriteOnce(MemoryStore())
    chain(with_wal(new_repository(inner)))
    store = FaultyStore(inner)
    opened = Repository.open(store)
    before = len(store.requests)
    expire(opened, KEEP_ONE)
    assert before < len(store.requests)
    return len(store.requests)


def together(turns: list[tuple[str, int]], jobs: dict[str, Callable[[Repository], object]], seed: int) -> Repository:
    """Run jobs at the same repository, in turns; return it, opened without them."""
    inner = WriteOnce(MemoryStore())
    plain = with_wal(new_repository(inner, seed=seed))
    chain(plain)
    crossed(inner, turns, jobs, seed)
    return plain


def a_backup(repository: Repository) -> str:
    """Take a backup as the command does: the parent is chosen, then the intent is written."""
    living = repository.living_labels("shop")
    tree = trees(4)[3]
    return back_up(repository, tree, parent=living[0], minutes=60, threads=1).label


def an_expire(repository: Repository) -> ExpireReport:
    return expire(repository, KEEP_ONE)


@pytest.mark.slow
def test_in_every_order_of_their_steps_a_backup_and_an_expire_leave_every_recorded_backup_whole() -> None:
    # The parent that the backup has chosen is one that goes. Two changes of turn: any beginning of the one, any
    # stretch of the other, and then the rest of both.
    counts = {"backup": 45, "expire": 45}
    seed = 0
    for first, second in (("backup", "expire"), ("expire", "backup")):
        for start in range(1, counts[first], 3):
            for stretch in (2, 6, 9, 12, 15, 20, 27, 99):
                seed += 1
                plain = together(
                    [(first, start), (second, stretch), (first, 999)], {"backup": a_backup, "expire": an_expire}, seed
                )
                living = plain.living_labels("shop")
                assert len(living) in (1, 2)
                check(plain, {})
                last = max(plain.records("shop"), key=lambda one: one.facts.finished)
                assert restore(plain, last.label)


def test_an_intent_of_a_process_that_is_gone_is_ended_by_its_own_host() -> None:
    repository = with_wal(new_repository())
    chain(repository)
    number = repository.intents.declare(RESTORE, "shop", label=repository.labels("shop")[0])
    assert not repository.intents.read(number).is_over()
    over = repository.intents.read(number)
    # The same number, and another process: what began at another time is not the one that wrote it.
    assert not over.is_over()
    from dataclasses import replace

    place = over.process.rpartition(":")[0]
    assert place
    assert replace(over, process=f"{place}:1").is_over()
    assert replace(over, pid=2**22 + 1).is_over()
    # Another machine of the same name, another container, a program that did not say: nobody knows.
    for unknown in (
        replace(over, process=f"{place}:1", host="elsewhere"), replace(over, process="another-boot:7:1"),
        replace(over, process="", pid=2**22 + 1),
    ):  # fmt: skip
        assert not unknown.is_over()


class Dated(MemoryStore):
    """Says when objects were written as a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        super().put_new(name, views, from_reserve=from_reserve)
        content, _ = self._objects[name]
        self._objects[name] = content, self.now


def test_a_generation_that_was_made_again_does_not_become_the_latest() -> None:
    store = Dated()
    repository = new_repository(WriteOnce(store))
    labels = {}
    for number, system in enumerate((SYSTEM, SYSTEM + 1)):
        store.now = NOW + timedelta(days=number)
        repository.ensure_generation("shop", Generation(system, 180000, False, SEGMENT, 1 << 30, True))
        wal = repository.wal("shop", system, SEGMENT)
        for at in range(facts().start_lsn, facts().stop_lsn + SEGMENT, SEGMENT):
            wal.put_range(1, at, bytes(SEGMENT))
        labels[system] = taken(repository, system, minutes=number)
    store.now = NOW + timedelta(days=5)
    name = ClusterNames("shop").generation(SYSTEM)
    store.delete(name)
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
    kept = [one.label for one, verdict in expire(repository, KEEP_ONE).backups if verdict.is_kept]
    assert kept == [labels[SYSTEM + 1]]


def test_an_imported_backup_is_as_old_as_it_says_and_no_younger_than_its_record() -> None:
    store = Dated()
    repository = with_wal(new_repository(WriteOnce(store)))
    # All are recorded on one day; three were imported, one of them from a machine whose clock is ahead.
    store.now = NOW
    ages = [timedelta(days=70), timedelta(days=40), -timedelta(days=9)]
    labels = [taken(repository, SYSTEM, minutes=number, finished=NOW - age) for number, age in enumerate(ages)]
    labels.append(taken(repository, SYSTEM, minutes=5))
    report = expire(repository, ExpireRequest("shop", Retention(window_s=86_400, monthly=2), safety_s=0))
    reasons = {one.label: " ".join(verdict.reasons) for one, verdict in report.backups if verdict.is_kept}
    assert reasons[labels[1]].startswith("the window of 1 day begins with it")
    assert "in the window" in reasons[labels[2]]
    assert labels[0] not in reasons


def taken(repository: Repository, system: int, *, minutes: int, finished: datetime | None = None) -> str:
    """Take a backup of a system; finished: of one that was imported."""
    writer = repository.begin_backup("shop", started=NOW + timedelta(minutes=minutes), parts=PARTS)
    feed(writer, two_trees()[0])
    known = replace(facts(minutes), system_identifier=system, stop_lsn=Lsn(facts().stop_lsn - 100 + minutes))
    if finished is not None:
        known = replace(known, finished=finished, details={IMPORTED_FROM: "/backup"})
    label = writer.commit(known).label
    repository.end_intents()
    return label
