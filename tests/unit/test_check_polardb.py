"""The judgements of `polarvault check` about PolarDB, from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polarvault.check.polardb.monitor import quote_literal
from polarvault.check.polardb.node import (
    PolarNodeFacts,
    ReplicaSettings,
    judge_polardb_node,
    judge_replica_settings,
    primary_address,
)
from polarvault.check.polardb.pages import TornPageFacts, judge_torn_pages
from polarvault.check.polardb.pfs import PfsFacts, judge_pfs
from polarvault.check.polardb.replicas import Applied, Progress, ReplicaFacts, ReplicaSlot, judge_replicas
from polarvault.check.polardb.storage import StorageFacts, fetch_member_bytes, judge_storage
from polarvault.check.polardb.tablespaces import SharedTablespace, judge_tablespaces
from polarvault.check.polardb.wal import WalCostFacts, WalsenderLimitFacts, judge_wal_costs, judge_walsender_limit
from polarvault.model.finding import Finding, Severity, worst
from polarvault.model.lsn import Lsn
from polarvault.model.pfs_address import PfsAddress

OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM
LEVEL = Applied(oldest=Lsn.parse("0/3000000"), behind_bytes=0, progress=Progress.LEVEL)
STUCK = Applied(oldest=Lsn.parse("0/2000000"), behind_bytes=1 << 24, progress=Progress.STUCK)
READER = ReplicaSlot(name="reader", active=True, node_type="REPLICA", applied=Lsn.parse("0/3000000"))
IDLE = ReplicaSlot(name="idle", active=False, node_type="UNKNOWN")
HEALTHY = ReplicaFacts(
    slots=[READER], has_monitor=True, applied=LEVEL, backup_waits=True, ignores_latency=False, possible=True
)


def one(findings: list[Finding]) -> Finding:
    (finding,) = findings
    if finding.severity is not OK:
        assert finding.meaning
        assert finding.advice
    return finding


# Replicas


@pytest.mark.parametrize(
    "facts",
    [
        HEALTHY,
        replace(HEALTHY, slots=[]),
        # Slots of receivers and backup tools, connected or not, hold nothing up.
        replace(HEALTHY, slots=[READER, IDLE]),
        replace(HEALTHY, slots=[ReplicaSlot(name="wal", active=False, node_type="STANDBY")]),
        # Without the log index there are no replicas.
        replace(HEALTHY, slots=[IDLE], has_monitor=False, applied=None, possible=False),
    ],
)
def test_nothing_is_wrong_with_replicas_that_keep_up_and_with_slots_of_others(facts: ReplicaFacts) -> None:
    assert one(judge_replicas(facts)).severity is OK


def test_the_slot_of_a_dead_replica_is_a_problem_where_a_backup_waits_and_a_warning_where_it_does_not() -> None:
    dead = replace(HEALTHY, slots=[READER, IDLE, ReplicaSlot(name="gone", active=False, node_type="REPLICA")])
    finding = one(judge_replicas(dead))
    assert (finding.severity, finding.subject) == (PROBLEM, "gone")
    assert "SELECT pg_drop_replication_slot('gone');" in (finding.advice or "").splitlines()
    assert one(judge_replicas(replace(dead, backup_waits=False))).severity is WARNING
    # Once something waits for a checkpoint, a backup waits behind it.
    waits = replace(dead, backup_waits=False, waiting=["polarvault (pid 7, 99 s)"])
    assert one(judge_replicas(waits)).severity is PROBLEM
    assert "pid 7" in one(judge_replicas(waits)).message
    ignored = judge_replicas(replace(dead, ignores_latency=True))
    assert [finding.severity for finding in ignored] == [WARNING, WARNING]


def test_a_connected_replica_that_stands_still_is_told_from_idle_slots_by_what_it_has_applied() -> None:
    standing = replace(READER, applied=STUCK.oldest)
    finding = one(judge_replicas(replace(HEALTHY, slots=[standing, IDLE], applied=STUCK)))
    assert (finding.severity, finding.subject) == (PROBLEM, '"reader"')
    assert "idle" not in finding.message
    assert "16.0 MB behind" in finding.message
    # It has applied more than the slowest has: then it is a slot that nobody uses.
    finding = one(judge_replicas(replace(HEALTHY, slots=[READER, IDLE], applied=STUCK)))
    assert (finding.severity, finding.subject) == (PROBLEM, '"idle"')
    # Roles without pg_monitor are not told: it may be either.
    finding = one(judge_replicas(replace(HEALTHY, slots=[replace(READER, applied=None), IDLE], applied=STUCK)))
    assert (finding.severity, finding.subject) == (PROBLEM, '"reader", "idle"')
    assert one(judge_replicas(replace(HEALTHY, applied=replace(STUCK, progress=Progress.MOVING)))).severity is WARNING


def test_without_the_extension_an_idle_slot_is_a_warning() -> None:
    finding = one(judge_replicas(replace(HEALTHY, slots=[IDLE], has_monitor=False, applied=None)))
    assert finding.severity is WARNING
    assert "CREATE EXTENSION polar_monitor;" in (finding.advice or "")


# Nodes


def test_a_replica_is_a_problem_and_its_primary_is_named() -> None:
    finding = one(judge_polardb_node(PolarNodeFacts(in_recovery=True, node_type="replica", primary=("db one", "5432"))))
    assert finding.severity is PROBLEM
    assert "polarvault check -h 'db one' -p 5432" in (finding.advice or "")


@pytest.mark.parametrize(
    ("in_recovery", "node_type", "severity"),
    [
        (False, "primary", OK),
        (True, "standby", OK),
        (True, "primary", WARNING),
        (True, None, WARNING),
        (True, "replica", PROBLEM),
    ],
)
def test_each_kind_of_node_has_its_verdict(in_recovery: bool, node_type: str | None, severity: Severity) -> None:
    assert one(judge_polardb_node(PolarNodeFacts(in_recovery=in_recovery, node_type=node_type))).severity is severity


def test_where_the_primary_is_comes_out_of_primary_conninfo() -> None:
    assert primary_address("host=db1 port=6000 user=x") == ("db1", "6000")
    assert primary_address("hostaddr=10.0.0.1") == ("10.0.0.1", "5432")
    assert primary_address("user=x") is None
    assert primary_address("not a conninfo") is None


def test_settings_that_kill_a_replica() -> None:
    assert judge_replica_settings(ReplicaSettings(archive_mode="on", restore_command="")) == []
    assert one(judge_replica_settings(ReplicaSettings(archive_mode="always", restore_command=None))).severity is PROBLEM
    assert one(judge_replica_settings(ReplicaSettings(archive_mode="off", restore_command="cp"))).severity is WARNING


# Storage


@pytest.mark.parametrize(
    ("datadir", "localfs", "said"),
    [
        ("file-dio:///srv/shared", True, "O_DIRECT"),
        ("file:///srv/shared", True, "file: read through the page cache"),
        ("/srv/shared", True, "a path without protocol"),
        ("file-dio://./shared", True, "relative to the data directory"),
        ("/disk/shared/", False, "in PFS"),
        ("pfsd:///disk/shared", None, "in PFS"),
    ],
)
def test_every_form_of_polar_datadir_is_understood(datadir: str, localfs: bool | None, said: str) -> None:
    findings = judge_storage(StorageFacts(datadir=datadir, localfs=localfs))
    assert worst(findings) is OK
    assert said in findings[0].message


def test_the_limit_of_fetch_is_36_characters_behind_file_dio() -> None:
    assert fetch_member_bytes("file-dio://" + "/" + "x" * 35) == 99
    fits, too_long = (
        judge_storage(StorageFacts(datadir="file-dio:///" + "x" * length, localfs=True))[1] for length in (35, 36)
    )
    assert "too long" not in fits.message
    assert "1 bytes too long" in too_long.message
    assert "47 at most" in too_long.message
    # The limit is of bytes, and without a protocol the path itself may be longer.
    assert fetch_member_bytes("/" + "ü" * 23) == 99


def test_what_lies_in_the_storage_is_told() -> None:
    facts = StorageFacts(datadir="file-dio:///s", localfs=True)
    assert [f.check for f in judge_storage(facts)] == ["polardb-storage", "polardb-fetch"]
    full = replace(facts, fullpage_snapshot=True, fullpage_bytes=1 << 30, leftover_label=True, target_inside="/s/b")
    found = {finding.check: finding for finding in judge_storage(full)}
    assert found["polardb-fullpage"].message.startswith("1.0 GB in polar_fullpage")
    assert found["polardb-backup-label"].severity is OK
    assert found["polardb-target"].severity is PROBLEM
    assert one(judge_storage(replace(facts, datadir=""))[:1]).severity is WARNING


# Tablespaces


@pytest.mark.parametrize(
    ("in_storage", "location", "has_protocol", "severity"),
    [
        (False, "/ts", True, WARNING),
        (None, "/ts", True, WARNING),
        (True, "/ts", True, PROBLEM),
        (True, None, True, PROBLEM),
        (True, "/ts", False, PROBLEM),
        (True, "pg_tblspc/16400", True, WARNING),
    ],
)
def test_tablespaces_by_who_made_their_link(
    in_storage: bool | None, location: str | None, has_protocol: bool, severity: Severity
) -> None:
    space = SharedTablespace(oid="16400", name="space", location=location, in_storage=in_storage)
    finding = one(judge_tablespaces([space], has_protocol=has_protocol, storage="/s"))
    assert (finding.severity, finding.subject) == (severity, "space")


def test_a_link_without_a_tablespace_is_found_too() -> None:
    stray = SharedTablespace(oid="16400", name=None, location=None, in_storage=True)
    finding = one(judge_tablespaces([stray], has_protocol=True, storage="/s"))
    assert (finding.severity, finding.subject) == (PROBLEM, "/s/pg_tblspc/16400")
    assert (finding.advice or "").endswith("rm /s/pg_tblspc/16400")
    assert one(judge_tablespaces([], has_protocol=True, storage="/s")).severity is OK


# Pages and WAL


@pytest.mark.parametrize(
    ("full_page_writes", "data_checksums", "on_pfs", "severity"),
    [
        ("on", "off", False, OK),
        ("off", "on", False, WARNING),
        ("off", "on", True, OK),
        ("off", "off", True, WARNING),
    ],
)
def test_torn_pages_by_settings_and_storage(
    full_page_writes: str, data_checksums: str, on_pfs: bool, severity: Severity
) -> None:
    facts = TornPageFacts(
        full_page_writes=full_page_writes, data_checksums=data_checksums, has_partial_write="on", on_pfs=on_pfs
    )
    assert one(judge_torn_pages(facts)).severity is severity


def test_what_switching_large_segments_by_the_clock_costs() -> None:
    ordinary = WalCostFacts(
        segment_bytes=16 << 20, archiving=True, archive_timeout_s=60, wal_keep_bytes=0, switch_in_backup=False
    )
    assert judge_wal_costs(ordinary) == []
    large = replace(ordinary, segment_bytes=1 << 30, archive_timeout_s=3600)
    assert one(judge_wal_costs(large)).severity is OK
    hasty = judge_wal_costs(replace(large, archive_timeout_s=60))
    assert [finding.check for finding in hasty] == ["polardb-segment-size", "polardb-archive-timeout"]
    assert "1.4 TB a day" in hasty[1].message
    assert worst(judge_wal_costs(replace(large, archive_timeout_s=60, archiving=False))) is OK


def test_a_wal_keep_size_below_one_segment_keeps_nothing() -> None:
    facts = WalCostFacts(
        segment_bytes=1 << 30, archiving=False, archive_timeout_s=0, wal_keep_bytes=512 << 20, switch_in_backup=True
    )
    segment, keep = judge_wal_costs(facts)
    assert "ends a WAL segment of 1.0 GB early" in segment.message
    assert keep.severity is WARNING
    assert "wal_keep_size = '1024MB'" in (keep.advice or "")


@pytest.mark.parametrize(
    ("limit", "is_superuser", "others", "severity"),
    [(0, True, 5, OK), (4, False, 2, OK), (3, False, 2, PROBLEM), (0, False, 0, PROBLEM)],
)
def test_two_walsenders_must_be_free_for_an_ordinary_role(
    limit: int, is_superuser: bool, others: int, severity: Severity
) -> None:
    facts = WalsenderLimitFacts(limit=limit, is_superuser=is_superuser, others=others)
    assert one(judge_walsender_limit(facts)).severity is severity


def test_paths_are_quoted_for_sql() -> None:
    assert quote_literal("/a'b") == "'/a''b'"
    assert quote_literal("/a\\b") == "E'/a\\\\b'"


# PFS


PFS_FACTS = PfsFacts(address=PfsAddress("loop1", "shared"), host_id="1", room=(20 << 30, 2000))


@pytest.mark.parametrize(
    ("room", "severity"),
    [
        ((20 << 30, 2000), Severity.OK), (None, Severity.OK), ((4 << 30, 2000), Severity.WARNING),
        ((20 << 30, 399), Severity.WARNING), ((512 << 20, 2000), Severity.PROBLEM), ((20 << 30, 49), Severity.PROBLEM),
    ],
)  # fmt: skip
def test_room_in_pfs_is_blocks_and_inodes(room: tuple[int, int] | None, severity: Severity) -> None:
    (finding,) = [one for one in judge_pfs(replace(PFS_FACTS, room=room)) if one.check == "pfs-room"]
    assert finding.severity is severity
    assert "does not tell" in finding.message if room is None else f"{room[1]} inodes free" in finding.message


def test_host_ids_and_doors_that_are_open_are_said() -> None:
    _, ids = judge_pfs(replace(PFS_FACTS, used_host_ids={1: "process 7", 3: "process 9"}))
    assert "polar_hostid is 1; in use on this machine: 1 (process 7), 3 (process 9)" in ids.message
    (*_, access) = judge_pfs(replace(PFS_FACTS, open_to_all=("/var/run/pfsd/loop1", "/dev/shm/pfsd")))
    assert access.severity is Severity.WARNING
    assert "/var/run/pfsd/loop1, /dev/shm/pfsd are open to all" in access.message
