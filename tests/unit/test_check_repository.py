"""What a probe says of a store and its role, and how room, WAL and the next expire are judged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from polarvault.check.repository.archive import ArchiveFacts, judge_archive
from polarvault.check.repository.policy import check_policy
from polarvault.check.repository.store import judge_room, judge_store, read_room, read_store
from polarvault.config.model import Retention
from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.wrapper import Wrapper
from polarvault.storage.objects.write_once import WriteOnce
from support.crossing import with_wal
from support.faulty_store import Failure, Fault, FaultyStore
from support.repositories import back_up, new_repository, two_trees

MIB = 1 << 20


def judged(store: ObjectStore) -> dict[str, Finding]:
    return {one.check: one for one in judge_store(read_store(store), "main")}


def test_a_store_that_is_well_has_nothing_of_the_probe_left() -> None:
    store = WriteOnce(MemoryStore())
    found = judged(store)
    assert {one.severity for one in found.values()} == {Severity.OK}
    assert found.keys() == {"repository-rights", "repository-clock"}
    assert list(store.list_objects()) == []


def test_a_role_that_may_not_remove_is_fine_and_the_probe_is_named() -> None:
    inner = MemoryStore()
    found = judged(WriteOnce(FaultyStore(inner, [Fault("delete", Failure.FORBIDDEN, times=-1)])))
    assert found["repository-rights"].is_ok
    (left,) = inner.list_objects()
    assert left.name in found["repository-rights"].message
    assert left.name.startswith("probe-")


@pytest.mark.parametrize("operation", ["put_new", "get", "stat"])
def test_a_role_that_may_not_write_or_read_is_a_problem(operation: str) -> None:
    inner = MemoryStore()
    found = judged(WriteOnce(FaultyStore(inner, [Fault(operation, Failure.FORBIDDEN, times=-1)])))
    assert found["repository-rights"].severity is Severity.PROBLEM
    assert "refused" in found["repository-rights"].message
    # Whatever was written is gone.
    assert list(inner.list_objects()) == []


class Replacing(Wrapper):
    """Ignores the condition, as some that speak S3's protocol do."""

    def put_new(self, name: str, views: object, *, from_reserve: bool = False) -> None:
        self._inner.delete(name)
        self._inner.put_new(name, views)  # type: ignore[arg-type]


def test_a_store_that_replaces_is_a_problem() -> None:
    found = judged(WriteOnce(Replacing(MemoryStore())))
    assert found["repository-write-once"].severity is Severity.PROBLEM


@pytest.mark.parametrize(("ahead_s", "said"), [(60, "60.0 s ahead of"), (-60, "behind"), (3, "agrees")])
def test_the_stores_clock_is_compared(ahead_s: int, said: str) -> None:
    found = judged(WriteOnce(MemoryStore(clock=lambda: datetime.now(UTC) + timedelta(seconds=ahead_s))))
    # The number is exact but for the time that the probe takes.
    assert said.removeprefix("60.0 s ") in found["repository-clock"].message
    assert found["repository-clock"].is_ok is (ahead_s == 3)


@pytest.mark.parametrize(
    ("available", "week", "cluster", "severity"),
    [
        (100, 49, None, Severity.OK),
        (100, 51, None, Severity.WARNING),
        (100, 101, None, Severity.PROBLEM),
        (100, None, 99, Severity.OK),
        (100, None, 101, Severity.WARNING),
        (100, None, None, Severity.OK),
        (0, 0, None, Severity.OK),
    ],
)
def test_room(available: int, week: int | None, cluster: int | None, severity: Severity) -> None:
    (found,) = judge_room(
        "main", available * MIB, week_bytes=week and week * MIB, cluster_bytes=cluster and cluster * MIB
    )
    assert found.severity is severity


def test_a_bucket_has_room() -> None:
    assert read_room("s3://bucket/folder") is None
    assert (read_room("/") or 0) > 0


def archived(**more: object) -> ArchiveFacts:
    facts: dict[str, object] = {
        "system_identifier": 7, "known": (7,), "timeline_id": 1, "segment_bytes": 16 * MIB,
        "server_lsn": Lsn(100 * MIB), "end": Lsn(96 * MIB), "archived": "000000010000000000000005", "held": True,
    }  # fmt: skip
    return ArchiveFacts(**(facts | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "check", "severity", "said"),
    [
        (archived(), "repository-wal", Severity.OK, "4.0 MB behind the server"),
        # What was pushed as a whole segment may end behind what the server has flushed.
        (archived(end=Lsn(112 * MIB)), "repository-wal", Severity.OK, "0 bytes behind"),
        (archived(end=Lsn(64 * MIB)), "repository-wal", Severity.WARNING, "36.0 MB behind"),
        (archived(held=False), "repository-wal", Severity.PROBLEM, "and it is not here"),
        (archived(held=None, archived=None, end=None), "repository-wal", Severity.WARNING, "no WAL of timeline 1"),
        (archived(known=(8,)), "repository-cluster", Severity.WARNING, "system identifier 8"),
        (archived(known=()), "repository-cluster", Severity.OK, "nothing of shop yet"),
    ],
)
def test_wal(facts: ArchiveFacts, check: str, severity: Severity, said: str) -> None:
    found = judge_archive("shop", "main", facts)[-1]
    assert (found.check, found.severity) == (check, severity)
    assert said in found.message


def test_the_next_expire_is_told_and_nothing_is_removed() -> None:
    repository = with_wal(new_repository())
    (no_policy,) = check_policy("shop", "main", repository, Retention(), may_write=True)
    assert no_policy.severity is Severity.WARNING
    (nothing,) = check_policy("shop", "main", repository, Retention(keep=1), may_write=True)
    assert "no backup yet" in nothing.message
    for minutes in range(3):
        back_up(repository, two_trees()[minutes % 2], minutes=minutes)
    before = {one.name for one in repository.store.list_objects()}
    (found,) = check_policy("shop", "main", repository, Retention(keep=1), may_write=True)
    assert found.is_ok
    assert "keeps 1 backups and removes 2" in found.message
    assert {one.name for one in repository.store.list_objects()} == before
    (elsewhere,) = check_policy("shop", "main", repository, Retention(keep=1), may_write=False)
    assert elsewhere.is_ok
    assert "may not remove" in elsewhere.message
