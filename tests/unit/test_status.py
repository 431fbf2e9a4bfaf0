"""How clusters stand: what counts, what is asked of a store for it, what is wrong, and how monitoring reads it."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from polarvault.config.model import ClusterConfiguration, Configuration, Limits, RepositoryConfiguration
from polarvault.errors import StoreForbidden
from polarvault.model.finding import Severity
from polarvault.model.lsn import Lsn
from polarvault.report.repository.monitoring import nagios_line, prometheus_text
from polarvault.report.repository.status import status_json, status_text
from polarvault.repository.catalogue.opening import OpenedRepository
from polarvault.repository.catalogue.overview import Overview, look_over
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.record import RecordFacts
from polarvault.repository.states.drills import DrillLog
from polarvault.repository.states.states import DAMAGED, DRILLED, TOMBSTONE, VERIFIED, States
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.repository.wal.times import last_commit
from polarvault.status.judge import judge
from polarvault.status.model import Level, Status, Target
from polarvault.status.run import look_at_status
from support.repositories import NOW, PARTS, new_repository
from support.wal_bytes import TRANSACTION, WalBuilder

SYSTEM = 77
SEGMENT = 1 << 20
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
AFTER = NOW + timedelta(minutes=30)


def begun(repository: Repository) -> RepositoryWal:
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
    return repository.wal("shop", SYSTEM, SEGMENT)


def back_up_at(repository: Repository, segment: int, *, minutes: float = 0, timeline: int = 1) -> str:
    """Record a backup without files that lies within one segment."""
    at, start = NOW + timedelta(minutes=minutes), Lsn(segment * SEGMENT + 0x100)
    writer = repository.begin_backup("shop", started=at, parts=PARTS)
    label = writer.commit(
        RecordFacts(at, at + timedelta(seconds=5), SYSTEM, timeline, start, Lsn(start + 0x1000), timeline, 180000)
    ).label
    repository.end_intents()
    return label


def put_segments(wal: RepositoryWal, *segments: int, timeline: int = 1) -> None:
    for segment in segments:
        wal.put_range(timeline, segment * SEGMENT, bytes(SEGMENT))


def committed(builder: WalBuilder, at: datetime) -> None:
    microseconds = (at - EPOCH) // timedelta(microseconds=1)
    builder.add_main(struct.pack("<q", microseconds), rmgr=TRANSACTION, info=0, xid=700)


def seen(repository: Repository, now: datetime = AFTER) -> Overview:
    found = look_over(repository, "shop", now)
    assert found is not None
    return found


def test_the_window_goes_from_the_oldest_backup_that_leads_there_to_the_end_of_the_wal() -> None:
    for encrypted in (False, True):
        repository = new_repository(encrypted=encrypted)
        assert look_over(repository, "shop", NOW) is None
        wal = begun(repository)
        for segment in range(1, 9):
            back_up_at(repository, segment * 2, minutes=segment)
        # Segment 7 is missing: what was backed up before leads to there and no further.
        put_segments(wal, *range(2, 7), *range(8, 20))
        found = seen(repository)
        assert found.reach is not None
        assert found.last is not None
        assert (found.backups, found.newer) == (8, [])
        assert found.last.facts.start_lsn == 16 * SEGMENT + 0x100
        assert (found.reach.end, found.reach.timeline_id, found.reach.backups) == (Lsn(20 * SEGMENT), 1, 5)
        assert found.reach.start == NOW + timedelta(minutes=4, seconds=5)
        # No commit is in this WAL: what is sure is the end of the backup.
        assert found.reach.time == NOW + timedelta(minutes=8, seconds=5)
        assert found.reach.gap is None
        assert found.first == NOW + timedelta(minutes=1)
        sizes = [one.size_bytes for one in repository.store.list_objects("clusters/shop")]
        assert found.stored_bytes == sum(sizes)
        assert 0 < found.wal_bytes < found.stored_bytes


def test_the_last_commit_in_the_wal_is_the_moment_that_can_be_restored() -> None:
    repository = new_repository()
    wal = begun(repository)
    back_up_at(repository, 1)
    builder = WalBuilder(segment_bytes=SEGMENT, system=SYSTEM)
    for second in range(60):
        committed(builder, NOW + timedelta(minutes=5, seconds=second))
        builder.add(bytes(4000))
    written = bytes(builder.content)
    # Cut anywhere, as a stream is; the rest of the segment is what a switch leaves.
    for start, end in ((0, 70_001), (70_001, len(written))):
        wal.put_range(1, SEGMENT + start, written[start:end])
    wal.put_range(1, SEGMENT + len(written), bytes(SEGMENT - len(written)))
    put_segments(wal, 2)
    found = seen(repository).reach
    assert found is not None
    assert (found.end, found.time) == (Lsn(3 * SEGMENT), NOW + timedelta(minutes=5, seconds=59))
    ranges = wal.ranges(1)
    for count in (5, 20, 59):
        lsn, end = builder.records[2 * count]
        assert last_commit(wal, ranges[:2], Lsn(end)) == NOW + timedelta(minutes=5, seconds=count)
        assert last_commit(wal, ranges[:2], Lsn(lsn)) == NOW + timedelta(minutes=5, seconds=count - 1)
    assert last_commit(wal, ranges, Lsn(builder.records[0][0])) is None


def test_slices_of_less_than_a_page_tell_the_time_as_well() -> None:
    repository = new_repository()
    wal = begun(repository)
    builder = WalBuilder(segment_bytes=SEGMENT, system=SYSTEM)
    ends = []
    for second in range(12):
        committed(builder, NOW + timedelta(seconds=second))
        builder.add(bytes(100))
        ends.append(len(builder.content))
    # As a stream writes them, a slice for each flush; the last ones hold nothing but a record that is no commit.
    for _ in range(3):
        builder.add(bytes(50))
        ends.append(len(builder.content))
    written = bytes(builder.content)
    for start, end in zip([0, *ends], ends, strict=False):
        wal.put_range(1, SEGMENT + start, written[start:end])
    assert len(written) < 8192
    assert last_commit(wal, wal.ranges(1), Lsn(SEGMENT + len(written))) == NOW + timedelta(seconds=11)
    assert last_commit(wal, wal.ranges(1), Lsn(SEGMENT + ends[4])) == NOW + timedelta(seconds=4)
    # What was merged lies over its parts.
    wal.put_range(1, SEGMENT, written)
    assert last_commit(wal, wal.ranges(1), Lsn(SEGMENT + ends[4])) == NOW + timedelta(seconds=4)
    # Cut anywhere, even within the record of the commit.
    other = new_repository()
    wal = begun(other)
    cuts = [*range(0, len(written), 77), len(written)]
    for start, end in pairwise(cuts):
        wal.put_range(1, SEGMENT + start, written[start:end])
    assert last_commit(wal, wal.ranges(1)[:16], Lsn(SEGMENT + cuts[16])) is not None


def test_a_commit_that_lies_far_back_is_found_within_two_mib_and_not_behind() -> None:
    repository = new_repository()
    wal = repository.wal("shop", SYSTEM, 16 << 20)
    builder = WalBuilder(segment_bytes=16 << 20, system=SYSTEM)
    committed(builder, NOW)
    while len(builder.content) < 1 << 20:
        builder.add(bytes(100_000))
    one = wal.put_range(1, builder.start, bytes(builder.content))
    assert last_commit(wal, [one], one.last) == NOW
    # Longer than everything that is looked at.
    while len(builder.content) < 4 << 20:
        builder.add(bytes(100_000))
    two = wal.put_range(1, builder.start, bytes(builder.content))
    assert last_commit(wal, [two], two.last) is None


def test_a_timeline_that_leads_on_counts_and_one_that_does_not_leaves_the_old_one() -> None:
    repository = new_repository()
    wal = begun(repository)
    back_up_at(repository, 1)
    put_segments(wal, 1, 2)
    wal.put_file(2, "00000002.history", b"1\t0/280000\tno recovery target specified\n")
    put_segments(wal, 2, 3, timeline=2)
    wal.put_file(3, "00000003.history", b"1\t0/980000\tno recovery target specified\n")
    put_segments(wal, 9, timeline=3)
    found = seen(repository).reach
    assert found is not None
    assert (found.timeline_id, found.end) == (2, Lsn(4 * SEGMENT))


def test_what_is_newer_and_not_good_is_named_and_the_good_one_counts() -> None:
    repository = new_repository()
    wal = begun(repository)
    good = back_up_at(repository, 1)
    damaged = back_up_at(repository, 2, minutes=1)
    lacking = back_up_at(repository, 9, minutes=2)
    unreadable = back_up_at(repository, 2, minutes=3)
    expired = back_up_at(repository, 2, minutes=4)
    put_segments(wal, 1, 2, 3)
    states = States(repository, "shop")
    states.add(good, VERIFIED, now=NOW)
    states.add(damaged, DAMAGED, now=NOW + timedelta(minutes=20))
    states.add(expired, TOMBSTONE, now=NOW)
    name = f"clusters/shop/backups/{unreadable}/record"
    content = bytearray(repository.store.get(name, most_bytes=1 << 20))
    content[100] ^= 1
    repository.store.delete(name)
    repository.store.put_new(name, [bytes(content)])
    found = seen(repository)
    assert found.last is not None
    assert found.verified is not None
    assert found.last.label == good
    assert [label for label, _ in found.newer] == [unreadable, lacking, damaged]
    assert found.newer[1][1] == "WAL that it needs is missing"
    assert found.newer[2][1] == "a verification found damage"
    assert (found.damaged, found.backups) == ([damaged], 4)
    assert (found.verified.label, found.verified.good) == (damaged, False)
    by_check = {one.check: one for one in judge("shop", "main", found, Limits(), AFTER)}
    assert by_check["backup-damaged"].severity is Severity.WARNING
    assert unreadable in judge("shop", "main", found, Limits(), AFTER)[0].message


def test_the_last_backup_is_the_one_that_latest_means_whatever_clocks_said() -> None:
    repository = new_repository()
    put_segments(begun(repository), *range(1, 9))
    for segment in (1, 2, 3):
        back_up_at(repository, segment, minutes=segment)
    # By a machine whose clock is an hour behind; and one that was imported later, of an older moment.
    behind = back_up_at(repository, 5, minutes=-60)
    back_up_at(repository, 1, minutes=-30)
    found = seen(repository)
    assert found.last is not None
    assert found.last.label == behind == repository.find_label("shop", "latest")
    assert found.reach is not None
    assert (found.reach.end, found.newer) == (Lsn(9 * SEGMENT), [])
    assert found.first == NOW - timedelta(hours=1)


def test_drills_are_remembered_and_the_last_five_are_kept() -> None:
    repository = new_repository(encrypted=True)
    wal = begun(repository)
    label = back_up_at(repository, 1)
    put_segments(wal, 1)
    assert seen(repository).drilled is None
    log = DrillLog(repository, "shop")
    for number in range(7):
        log.note(label, held=number != 6, verdict=f"drill {number}", restore_s=1.5)
    drilled = seen(repository).drilled
    assert drilled is not None
    assert (drilled.label, drilled.held, drilled.verdict, drilled.restore_s) == (label, False, "drill 6", 1.5)
    states = States(repository, "shop")
    assert len(states.listed("cluster")) == 5
    # What a stranger wrote is not believed, and ends nothing.
    states.add("cluster", DRILLED, now=NOW, finding={"label": "../x", "held": "yes", "restore_s": 10**400})
    drilled = seen(repository).drilled
    assert drilled is not None
    assert (drilled.label, drilled.held, drilled.restore_s) == ("", False, None)


@pytest.mark.parametrize("backups", [1, 200])
def test_few_requests_are_made_however_many_backups_there_are(backups: int) -> None:
    repository = new_repository()
    wal = begun(repository)
    for number in range(backups):
        label = back_up_at(repository, 1, minutes=number / 100)
        States(repository, "shop").add(label, VERIFIED, now=NOW)
    put_segments(wal, *range(1, 50))
    DrillLog(repository, "shop").note(label, held=True, verdict="held", restore_s=1)
    before = repository.store.counts()
    found = seen(repository)
    spent = repository.store.counts().since(before)
    assert found.reach is not None
    assert found.reach.backups == backups
    # In memory a listing is one request; in a bucket one for each 1000 objects. Read are the last record, the
    # generation, the last verdict and drill, up to 16 ranges of WAL, and by bisection seven or eight more records.
    assert (spent.lists, spent.stats, spent.puts, spent.deletes) == (1, 0, 0, 0)
    assert spent.gets <= (20 if backups == 1 else 28)


def limits(**given: int) -> Limits:
    return Limits(**{"max_backup_age_s": 0, "max_wal_lag_s": 0, "max_verify_age_s": 0} | given)


@pytest.mark.parametrize(
    ("own", "after_s", "check", "severity"),
    [
        (limits(max_backup_age_s=100), 99, None, None),
        (limits(max_backup_age_s=100), 101, "backup-age", Severity.WARNING),
        (limits(max_backup_age_s=100), 201, "backup-age", Severity.PROBLEM),
        (limits(max_wal_lag_s=100), 101, "wal-lag", Severity.WARNING),
        (limits(max_wal_lag_s=100), 201, "wal-lag", Severity.PROBLEM),
        (limits(max_verify_age_s=100), 1000, "verify-age", Severity.WARNING),
        (limits(max_verify_age_s=100), 90, None, None),
        (limits(max_drill_age_s=100), 1000, "drill-age", Severity.WARNING),
        (limits(), 10**8, None, None),
    ],
)
def test_limits(own: Limits, after_s: int, check: str | None, severity: Severity | None) -> None:
    repository = new_repository()
    put_segments(begun(repository), 1)
    back_up_at(repository, 1)
    now = NOW + timedelta(seconds=5 + after_s)
    found = judge("shop", "main", seen(repository, now), own, now)
    assert [(one.check, one.severity) for one in found] == ([] if check is None else [(check, severity)])
    assert all("--repo main" in (one.advice or "") for one in found)


def test_a_gap_behind_the_last_good_backup_is_a_problem() -> None:
    repository = new_repository()
    put_segments(begun(repository), 1, 3)
    back_up_at(repository, 1)
    (found,) = judge("shop", "main", seen(repository), limits(), AFTER)
    assert (found.check, found.severity) == ("wal-gap", Severity.PROBLEM)
    assert "from 0/200000 to 0/300000 on timeline 1" in found.message
    put_segments(begun(repository), 2)
    assert judge("shop", "main", seen(repository), limits(), AFTER) == []


def test_no_backup_and_a_failed_drill_are_problems() -> None:
    repository = new_repository()
    assert [one.check for one in judge("shop", "main", None, Limits(), NOW)] == ["no-backup"]
    put_segments(begun(repository), 1)
    assert [one.check for one in judge("shop", "main", seen(repository), Limits(), NOW)] == ["no-backup"]
    label = back_up_at(repository, 9)
    (found,) = judge("shop", "main", seen(repository), Limits(), NOW)
    assert (found.check, found.severity) == ("no-backup", Severity.PROBLEM)
    assert label in found.message
    put_segments(begun(repository), 9)
    DrillLog(repository, "shop").note(label, held=False, verdict="it did not start", restore_s=None)
    (failed,) = judge("shop", "main", seen(repository), limits(), NOW)
    assert failed.check == "drill-failed"
    assert "it did not start" in failed.message


# Several repositories


def place(name: str) -> RepositoryConfiguration:
    return RepositoryConfiguration(name, f"/srv/{name}")


def test_one_repository_that_is_away_and_one_that_refuses_hide_nothing() -> None:
    repository = new_repository()
    put_segments(begun(repository), 1)
    back_up_at(repository, 1)
    is_over = threading.Event()

    def opened(one: RepositoryConfiguration, environment: Mapping[str, str]) -> OpenedRepository:
        # As often as requests may be tried again is bounded by what is waited for.
        assert one.store.deadline_s <= 0.5
        if one.name == "hanging":
            is_over.wait()
        if one.name == "refusing":
            raise StoreForbidden("/srv/refusing: access denied", hint="see the key")
        return OpenedRepository(repository)

    configuration = Configuration(None, clusters={"shop": ClusterConfiguration("shop", limits=limits())})
    targets = [Target("shop", place("hanging")), Target("shop", place("main")), Target(None, place("refusing"))]
    targets += [Target("crm", place("main")), Target("typo", place("main"), configured=False)]
    found = look_at_status(configuration, targets, {}, now=AFTER, timeout_s=0.5, opener=opened)
    is_over.set()
    assert [(one.cluster, one.repository, one.level) for one in found.clusters] == [
        ("shop", "hanging", Level.UNKNOWN),
        ("shop", "main", Level.OK),
        ("", "refusing", Level.UNKNOWN),
        ("crm", "main", Level.CRITICAL),
        ("typo", "main", Level.UNKNOWN),
    ]
    assert found.level is Level.CRITICAL
    assert Status(AFTER, found.clusters[:3]).level is Level.UNKNOWN
    assert Status(AFTER, found.clusters[1:2]).level is Level.OK
    text = list(status_text(found))
    assert text[0] == "CRITICAL  crm in main: there is no backup"
    assert text[1] == "          do: polarvault backup crm --repo main"
    said = "\n".join(text)
    assert "UNKNOWN   shop in hanging: /srv/hanging has not answered within 0.5 s" in said
    assert "access denied" in said
    assert re.search(r"^shop +main +ok +", said, re.MULTILINE)
    document = status_json(found)
    assert document["status"] == "critical"
    assert document["clusters"][2]["error"]["id"] == "store-forbidden"


def test_all_clusters_of_a_repository_are_looked_at_where_none_is_named() -> None:
    repository = new_repository()
    put_segments(begun(repository), 1)
    back_up_at(repository, 1)
    found = look_at_status(
        Configuration(None), [Target(None, place("main"))], {}, now=AFTER, timeout_s=20,
        opener=lambda one, environment: OpenedRepository(repository),
    )  # fmt: skip
    assert [(one.cluster, one.level) for one in found.clusters] == [("shop", Level.OK)]
    empty = look_at_status(
        Configuration(None), [Target(None, place("main"))], {}, now=AFTER, timeout_s=20,
        opener=lambda one, environment: OpenedRepository(new_repository()),
    )  # fmt: skip
    assert empty.level is Level.UNKNOWN
    assert "holds no cluster" in "\n".join(status_text(empty))


def one_good_and_one_away() -> Status:
    repository = new_repository()
    put_segments(begun(repository), 1)
    label = back_up_at(repository, 1)
    States(repository, "shop").add(label, VERIFIED, now=NOW)
    DrillLog(repository, "shop").note(label, held=True, verdict="held", restore_s=2)

    def opened(one: RepositoryConfiguration, environment: Mapping[str, str]) -> OpenedRepository:
        if one.name != "main":
            raise StoreForbidden('/srv/"a|b": access\ndenied')
        return OpenedRepository(repository)

    configuration = Configuration(None, clusters={"shop": ClusterConfiguration("shop")})
    targets = [Target("shop", place("main")), Target("shop", RepositoryConfiguration("", '/srv/"a|b'))]
    return look_at_status(configuration, targets, {}, now=AFTER, timeout_s=20, opener=opened)


def test_nagios_gets_one_line_with_perfdata() -> None:
    line = nagios_line(one_good_and_one_away())
    words, _, data = line.partition(" | ")
    assert words == 'POLARVAULT UNKNOWN - shop in /srv/"a/b: /srv/"a/b": access?denied'
    assert data.split()[:3] == [
        "'shop_main_backup_age'=1795s;93600;187200;0",
        "'shop_main_wal_lag'=1795s;3600;7200;0",
        "'shop_main_window'=0s;;;0",
    ]
    assert all(re.fullmatch(r"'[^'=|]+'=\d+(s|B|);\d*;\d*;0", entry) for entry in data.split())
    good = one_good_and_one_away()
    assert nagios_line(Status(good.now, good.clusters[:1])).startswith(
        "POLARVAULT OK - 1 cluster, restorable until 30 min ago at least | "
    )


def test_prometheus_reads_every_line() -> None:
    lines = list(prometheus_text(one_good_and_one_away()))
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    helped = [line.split()[2] for line in lines if line.startswith("# HELP ")]
    assert typed == helped
    assert len(set(typed)) == len(typed)
    sample = re.compile(r'(\w+)(\{cluster="shop",repository="(?:[^"\\\n]|\\["\\n])*"\})? -?\d+(\.\d+)?')
    samples = [line for line in lines if not line.startswith("#")]
    assert all(sample.fullmatch(line) for line in samples)
    # A metric's samples stand together, behind its type.
    names = [line.split("{")[0].split()[0] for line in samples]
    assert list(dict.fromkeys(names)) == typed
    assert 'polarvault_repository_up{cluster="shop",repository="main"} 1' in lines
    assert r'polarvault_repository_up{cluster="shop",repository="/srv/\"a|b"} 0' in lines
    assert 'polarvault_status{cluster="shop",repository="main"} 0' in lines
    until = (NOW + timedelta(seconds=5)).timestamp()
    assert f'polarvault_restorable_until_timestamp_seconds{{cluster="shop",repository="main"}} {until:.0f}' in lines


def test_a_limit_that_is_off_is_nothing_to_compare_with() -> None:
    status = one_good_and_one_away()
    off = replace(status.clusters[0], limits=limits(max_backup_age_s=7))
    lines = [line for line in prometheus_text(Status(status.now, [off])) if "_max_" in line and line[0] != "#"]
    assert lines == ['polarvault_max_backup_age_seconds{cluster="shop",repository="main"} 7']
    assert "'shop_main_wal_lag'=1795s;;;0" in nagios_line(Status(status.now, [off]))


def test_it_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys; import polarvault.cli.commands.repository.status, polarvault.status.run, "
        "polarvault.report.repository.status, polarvault.report.repository.monitoring; "
        "print([m for m in ('numpy', 'rich', 'obstore', 'psycopg', 'llvmlite') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
