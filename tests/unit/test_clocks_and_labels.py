"""Machines whose clocks disagree, and labels that meet: which backup is the last, which the parent, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from polarvault.backup.parent import ServerState, choose_parent
from polarvault.errors import IntegrityError, ObjectDiffers
from polarvault.model.lsn import Lsn
from polarvault.repository.catalogue.latest import latest_label
from polarvault.repository.catalogue.repository import Repository
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import NOW, PARTS, Tree, facts, feed, new_repository, reopened, restore, two_trees

SYSTEM = facts().system_identifier


class DatedStore(MemoryStore):
    """Has a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        super().put_new(name, views, from_reserve=from_reserve)
        self._objects[name] = self._objects[name][0], self.now


class Site:
    """A repository, and machines that back up into it with the time that they think it is."""

    def __init__(self) -> None:
        self.store = DatedStore()
        self.repository: Repository = new_repository(WriteOnce(self.store))

    def take(self, minutes: int, *, clock_h: float = 0, lsn: int = 0, system: int = SYSTEM, timeline: int = 1) -> str:
        """Take a backup so many minutes later than NOW; clock_h: by how many hours the machine's clock is wrong."""
        self.store.now = NOW + timedelta(minutes=minutes)
        started = self.store.now + timedelta(hours=clock_h)
        writer = self.repository.begin_backup("shop", started=started, parts=PARTS)
        feed(writer, two_trees()[0])
        stop = Lsn(facts().start_lsn + (lsn or minutes) * 1000)
        known = replace(
            facts(), started=started, finished=started, system_identifier=system, stop_lsn=stop,
            timeline_id=timeline, stop_timeline_id=timeline,
        )  # fmt: skip
        label = writer.commit(known).label
        self.repository.end_intents()
        return label

    @property
    def latest(self) -> str:
        return reopened(self.repository).find_label("shop", "latest")

    def parent(self, *, system: int = SYSTEM) -> str | None:
        server = ServerState(system, 1, Lsn(1 << 40), "", False, 0)
        records = [
            replace(one, facts=replace(one.facts, details={"data_checksums": False, "relation_segment_bytes": 0}))
            for one in self.repository.records("shop")
        ]
        return choose_parent(records, server, full=False).label


@pytest.mark.parametrize("hours", [-24, 24, -24 * 400])
def test_the_last_backup_is_the_last_one_whatever_the_clock_of_its_machine_said(hours: int) -> None:
    site = Site()
    for minutes in (10, 20, 30):
        right = site.take(minutes)
    assert site.latest == right
    wrong = site.take(40, clock_h=hours)
    assert wrong < right or hours > 0
    assert (site.latest, site.parent()) == (wrong, wrong)
    # The next one is taken by a machine whose clock is right.
    right = site.take(50)
    assert (site.latest, site.parent()) == (right, right)


def test_after_an_upgrade_lsns_begin_anew_and_the_last_backup_is_the_new_clusters() -> None:
    site = Site()
    for minutes in (10, 20):
        old = site.take(minutes, lsn=minutes * 1000)
    new = site.take(30, lsn=3, system=SYSTEM + 1, clock_h=-24)
    assert (site.latest, site.parent(system=SYSTEM + 1)) == (new, new)
    assert site.parent() == old
    # Both stay, each with its own history.
    assert restore(site.repository, old) == restore(site.repository, new) == two_trees()[0]


def test_backups_of_one_second_are_told_apart_by_their_wal() -> None:
    site = Site()
    first, second = site.take(10, lsn=2), site.take(10, lsn=1)
    assert first[:16] == second[:16]
    assert site.latest == first


def test_of_a_copied_repository_the_last_label_counts_when_all_came_at_once() -> None:
    site = Site()
    labels = [site.take(minutes) for minutes in range(10, 40, 10)]
    moment = NOW + timedelta(days=9)
    for name, (content, _) in list(site.store._objects.items()):
        site.store._objects[name] = content, moment
    assert site.latest == labels[-1]


def test_a_record_that_is_damaged_hides_no_later_backup_and_is_not_passed_over_for_an_older_one() -> None:
    site = Site()
    labels = [site.take(10), site.take(20), site.take(30, clock_h=-24)]
    times = {label: NOW + timedelta(minutes=number) for number, label in enumerate(labels)}

    def without(lost: str) -> str:
        def record(label: str) -> object:
            if label == lost:
                raise IntegrityError(f"{label} is damaged")
            return site.repository.record("shop", label)

        return latest_label(times, record)  # type: ignore[arg-type]

    assert without(labels[0]) == labels[2]
    for lost in labels[1:]:
        with pytest.raises(IntegrityError, match=lost):
            without(lost)


def test_a_label_that_is_taken_already_is_refused_and_what_is_there_stays() -> None:
    site = Site()
    label = site.take(10)
    tree: Tree = {(0, b"base/5/1"): b"other" * 90_000}
    started: datetime = site.store.now
    writer = site.repository.begin_backup("shop", started=started, parts=PARTS, label=label)
    feed(writer, tree)
    with pytest.raises(ObjectDiffers):
        writer.commit(facts(10))
    writer.abandon()
    site.repository.end_intents()
    assert restore(reopened(site.repository), label) == two_trees()[0]
    assert reopened(site.repository).labels("shop") == [label]
