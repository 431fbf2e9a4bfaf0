"""Standbys made by `restore --as standby`: they stream, catch up, report their lag, and are refused where they must."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.backups import back_up_with_postgres
from support.cluster import PASSWORD, Cluster
from support.followers import Followers, followers_in
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

MakeCluster = Callable[..., Cluster]
MAJORS = (13, 15, 18, 19)
SMALL_SEGMENTS: dict[str, Any] = {"wal_segment_mb": 1, "settings": {"max_wal_size": "2MB", "min_wal_size": "2MB"}}


@pytest.fixture
def followers(workspace: Path) -> Iterator[Followers]:
    """A maker of standbys that stops them afterwards."""
    with followers_in(workspace) as made:
        yield made


def back_up(cluster: Cluster, target: Path, *options: str) -> Path:
    """Take a backup with PostgreSQL's own tool: restore must not depend on ours."""
    back_up_with_postgres(cluster, target, *options)
    return target


def changes(result: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    return {change["name"]: (change["from"], change["to"]) for change in result["settings"]}


def wait_until_level(standby: Cluster, primary: Cluster) -> None:
    ((lsn,),) = primary.query("SELECT pg_current_wal_lsn()")
    wait_until(
        lambda: standby.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn])[0][0], "the standby is level"
    )


def refused(cluster: Cluster, backup: Path, workspace: Path, *options: str, **how: Any) -> str:
    """Try a restore that must be refused with nothing written anywhere; return what it said."""
    before = cluster.slots()
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "refused", "--as", "standby", *options, check=False, **how
    )
    assert finished.returncode in (1, 2), finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (workspace / "refused").exists()
    assert cluster.slots() == before
    return finished.stderr


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_a_standby_catches_up_under_load_reports_its_lag_and_is_promoted(
    make_cluster: MakeCluster, workspace: Path, followers: Followers, major: int, form: str
) -> None:
    primary = make_cluster(major)
    with primary.pgbench(rate_per_s=200):
        backup = back_up(primary, workspace / "backup", form)
        standby, result, said = followers.make(
            primary, backup, "--primary-conninfo", primary.tcp_conninfo(), "--slot", "standby2", "--create-slot"
        )
    follow = result["follow"]
    assert (follow["status"], follow["caught_up"]) == ("streaming", True)
    assert follow["sender"] == f"127.0.0.1:{primary.port}"
    assert 0 <= follow["lag_bytes"] < 16 << 20
    assert follow["slot"]["name"] == "standby2"
    assert follow["slot"]["active"] is True
    assert follow["slot"]["wal_status"] == "reserved"
    assert "caught up" in said
    assert "without a slot" not in said
    # Recognisable on the primary by the slot's name, once the questions of the restore have ended there.
    senders = "SELECT application_name, state FROM pg_stat_replication"
    wait_until(lambda: primary.query(senders) == [("standby2", "streaming")], "it streams under this name")
    wait_until_level(standby, primary)
    assert standby.hashes() == primary.hashes()
    standby.promote()
    assert standby.query("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)") == [("00000002",)]
    standby.query("CREATE TABLE written_here AS SELECT 1")


def test_without_a_slot_it_streams_and_the_danger_is_named(
    pg15: Cluster, workspace: Path, followers: Followers
) -> None:
    before = pg15.slots()
    _, result, said = followers.make(pg15, back_up(pg15, workspace / "backup"), "--primary-conninfo", pg15.conninfo())
    assert "without a slot the primary may remove WAL" in said
    assert result["follow"]["slot"] is None
    assert "primary_slot_name" not in changes(result)
    assert pg15.slots() == before


@pytest.mark.parametrize("major", [17, 18])
def test_a_standby_that_synchronises_slots_gets_the_database_that_it_needs(
    make_cluster: MakeCluster, workspace: Path, followers: Followers, major: int
) -> None:
    primary = make_cluster(major, settings={"wal_level": "logical"})
    backup = back_up(primary, workspace / "backup")
    primary.query("SELECT pg_create_logical_replication_slot('kept', 'pgoutput', failover => true)")
    conninfo = re.sub(r"dbname=\S+", "", primary.conninfo())
    options = ["--set", "sync_replication_slots=on", "--primary-conninfo", conninfo]
    with_slot = ["--slot", "standby", "--create-slot"]
    standby, result, said = followers.make(primary, backup, *options, *with_slot, "--set", "hot_standby_feedback=on")
    assert "dbname=postgres" in (changes(result)["primary_conninfo"][1] or "")
    assert "slots are synchronised only with" not in said
    synced = "SELECT synced FROM pg_replication_slots WHERE slot_name = 'kept'"

    def is_synced() -> bool:
        # What the primary still needs has to move on before a copy of the slot can be made.
        primary.query("SELECT pg_log_standby_snapshot()")
        primary.query("SELECT count(*) FROM pg_logical_slot_get_binary_changes('kept', NULL, NULL,"
                      " 'proto_version', '1', 'publication_names', 'none')")  # fmt: skip
        return standby.query(synced) == [(True,)]

    primary.query("CREATE PUBLICATION none")
    wait_until(is_synced, "the slot is there on the standby")
    _, finished = followers.attempt(primary, backup, *options)
    assert "slots are synchronised only with --slot: add it" in finished.stderr
    assert "slots are synchronised only with hot_standby_feedback = on: add it" in finished.stderr


def test_an_existing_slot_is_used_and_one_that_cannot_be_is_refused(
    make_cluster: MakeCluster, workspace: Path, followers: Followers
) -> None:
    primary = make_cluster(18, settings={"wal_level": "logical"})
    backup = back_up(primary, workspace / "backup")
    primary.query("SELECT pg_create_physical_replication_slot('good', true)")
    primary.query("SELECT pg_create_logical_replication_slot('decoding', 'pgoutput')")
    conninfo = ("--primary-conninfo", primary.conninfo())
    followers.make(primary, backup, *conninfo, "--slot", "good")
    said = refused(primary, backup, workspace, *conninfo, "--slot", "good")
    assert 'slot "good" is in use by another server' in said
    assert "is a logical slot" in refused(primary, backup, workspace, *conninfo, "--slot", "decoding")
    said = refused(primary, backup, workspace, *conninfo, "--slot", "none")
    assert 'no slot "none" (its physical slots: good)' in said
    assert "--create-slot" in said
    assert "exists on the primary already" in refused(
        primary, backup, workspace, *conninfo, "--slot", "good", "--create-slot"
    )


def test_a_slot_that_was_made_is_dropped_when_the_restore_fails(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    port = str(Cluster(pg15.installation, workspace).port)
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--as", "standby", "--bindir", pg15.installation.directory,
        "--primary-conninfo", pg15.conninfo(), "--slot", "pv_failed", "--create-slot", "--port", port, "--start",
        # Only the server itself finds out, when everything else is in place.
        "--set", "shared_buffers=nonsense", check=False,
    )  # fmt: skip
    assert finished.returncode == 4, finished.stderr
    assert not (workspace / "r").exists()
    assert "pv_failed" not in pg15.slots()
    # It had been there, not merely never been asked for.
    assert 'CREATE_REPLICATION_SLOT "pv_failed"' in pg15.log_text()


def test_another_cluster_and_another_version_are_refused(
    make_cluster: MakeCluster, pg15: Cluster, pg18: Cluster, workspace: Path
) -> None:
    backup = back_up(pg15, workspace / "backup")
    stranger = make_cluster(15, fill=False)
    said = refused(stranger, backup, workspace, "--primary-conninfo", stranger.conninfo())
    assert "another cluster" in said
    assert str(stranger.query("SELECT system_identifier FROM pg_control_system()")[0][0]) in said
    said = refused(pg18, backup, workspace, "--primary-conninfo", pg18.conninfo())
    assert "version 15" in said
    assert "PostgreSQL 18" in said


def test_a_restored_primary_archives_only_where_it_was_told_to(
    pg15: Cluster, workspace: Path, followers: Followers
) -> None:
    own = pg15.account.make_directory(workspace / "own_archive")
    backup = back_up(pg15, workspace / "backup")
    assert "--archive-command" in refused(pg15, backup, workspace, "--archive", "always")
    assert "PolarDB" in refused(pg15, backup, workspace, "--hostid", "3")
    options = ("--archive", "on", "--archive-command", f"cp %p {own}/%f")
    server, result, _ = followers.make(pg15, backup, *options, role="primary")
    assert result["follow"] is None
    assert server.query("SHOW archive_mode") == [("on",)]
    server.query("SELECT pg_switch_wal()")
    wait_until(lambda: (own / "00000002.history").exists(), "it archives", timeout_s=60)


def test_a_primary_that_does_not_let_us_in_says_what_to_change(make_cluster: MakeCluster, workspace: Path) -> None:
    primary = make_cluster(15, fill=False)
    backup = back_up(primary, workspace / "backup")
    primary.query("CREATE ROLE plain LOGIN PASSWORD 'x'; CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'x'")
    role = primary.tcp_conninfo(user="plain")
    assert "ALTER ROLE plain REPLICATION" in refused(primary, backup, workspace, "--primary-conninfo", role)
    primary.set_hba("host replication streamer 127.0.0.1/32 reject", auth="scram-sha-256")
    said = refused(primary, backup, workspace, "--primary-conninfo", primary.tcp_conninfo(user="streamer"))
    assert "host replication streamer 127.0.0.1/32 scram-sha-256" in said
    hba = primary.data / "pg_hba.conf"
    everything = hba.read_text()
    hba.write_text("local all all trust\n")
    primary.reload()
    said = refused(primary, backup, workspace, "--primary-conninfo", primary.tcp_conninfo(user="streamer"))
    assert "no pg_hba.conf entry for replication connection" in said
    assert "host replication streamer 127.0.0.1/32 scram-sha-256" in said
    hba.write_text(everything)
    primary.reload()
    said = refused(primary, backup, workspace, "--primary-conninfo", primary.tcp_conninfo(password="wrong"))
    assert "password authentication failed" in said
    assert "wrong" not in said
    said = refused(primary, backup, workspace, "--primary-conninfo", primary.tcp_conninfo())
    assert "--primary-conninfo" in said
    assert ".pgpass" in said
    primary.stop()
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--as", "standby", "--primary-conninfo", primary.tcp_conninfo(),
        check=False,
    )  # fmt: skip
    assert "Connection refused" in finished.stderr
    assert "--set primary_conninfo" in finished.stderr
    assert not (workspace / "r").exists()


def test_a_password_is_written_only_if_it_was_given_and_never_shown(
    make_cluster: MakeCluster, workspace: Path, followers: Followers
) -> None:
    primary = make_cluster(18, fill=False, auth="scram-sha-256")
    backup = back_up(primary, workspace / "backup")
    standby, finished = followers.attempt(
        primary, backup, "--primary-conninfo", primary.tcp_conninfo(password=PASSWORD), "--slot", "s1", "--create-slot"
    )
    assert finished.returncode == 0, finished.stderr
    assert PASSWORD not in finished.stdout + finished.stderr
    assert PASSWORD in standby.query("SHOW primary_conninfo")[0][0]
    # The command may find the password where the server will not: then the server's own log tells why it waits.
    other, finished = followers.attempt(
        primary, backup, "--primary-conninfo", primary.tcp_conninfo(), environment={"PGPASSWORD": PASSWORD}
    )
    assert finished.returncode == 4
    assert "the password came from PGPASSWORD" in finished.stderr
    assert "does not stream" in finished.stderr
    assert "no password supplied" in finished.stderr
    assert PASSWORD not in (other.data / "postgresql.conf").read_text()
    assert other.is_running()


def test_wal_that_the_primary_has_removed_is_missed_before_anything_is_written(
    make_cluster: MakeCluster, workspace: Path, followers: Followers
) -> None:
    archive = workspace / "archive"
    primary = make_cluster(15, fill=False, **SMALL_SEGMENTS)
    primary.account.make_directory(archive)
    settings = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f", "max_slot_wal_keep_size": "1MB"}
    primary.configure(settings)
    primary.restart()
    backup = back_up(primary, workspace / "backup")
    primary.query("SELECT pg_create_physical_replication_slot('late', true)")
    first = sorted(path.name for path in (backup / "pg_wal").iterdir() if len(path.name) == 24)[-1]
    for _ in range(8):
        primary.query("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 900000)); SELECT pg_switch_wal()")

    def is_removed() -> bool:
        # Not before it has been archived.
        primary.query("CHECKPOINT")
        return not (primary.data / "pg_wal" / first).exists()

    wait_until(is_removed, "the segment is removed")
    conninfo = ("--primary-conninfo", primary.conninfo())
    said = refused(primary, backup, workspace, *conninfo)
    # Or the one after it, if the last in the backup is full: then the standby starts there.
    assert re.search(r"requested WAL segment [0-9A-F]{24} has already been removed", said)
    assert "--wal DIR" in said
    assert 'slot "late" is lost' in refused(primary, backup, workspace, *conninfo, "--slot", "late")
    for supply in (("--wal", str(archive)), ("--set", f'restore_command=cp {archive}/%f "%p"')):
        standby, result, said = followers.make(primary, backup, *conninfo, *supply)
        assert "the WAL archive has to supply it" in said
        assert result["follow"]["caught_up"] is True
        assert standby.query("SHOW archive_mode") == [("off",)]


@pytest.mark.parametrize("major", [15, 18])
def test_a_promoted_primary_is_followed_to_its_timeline_and_a_diverged_one_refused(
    make_cluster: MakeCluster, workspace: Path, followers: Followers, major: int
) -> None:
    first = make_cluster(major)
    backup = back_up(first, workspace / "backup")
    second, _, _ = followers.make(first, backup, "--primary-conninfo", first.conninfo())
    first.query("CREATE TABLE before_the_switch AS SELECT generate_series(1, 100) n")
    wait_until_level(second, first)
    second.promote()
    second.query("CREATE TABLE after_the_switch AS SELECT generate_series(1, 100) n")
    standby, result, _ = followers.make(first, backup, "--primary-conninfo", second.conninfo())
    assert result["follow"]["caught_up"] is True
    wait_until_level(standby, second)
    assert standby.hashes() == second.hashes()
    # The old primary goes on, and a later backup of it lies beyond the point where the histories part.
    first.query("CREATE TABLE lost_branch AS SELECT generate_series(1, 100) n; CHECKPOINT")
    later = back_up(first, workspace / "later")
    said = refused(second, later, workspace, "--primary-conninfo", second.conninfo())
    assert "left timeline 1 at" in said
    assert "take a new backup" in said
    newer = back_up(second, workspace / "newer")
    assert "left it behind" in refused(first, newer, workspace, "--primary-conninfo", first.conninfo())


@pytest.mark.parametrize("major", [15, 18])
def test_archiving_from_a_cascade_of_standbys_never_reaches_the_source_s_archive(
    make_cluster: MakeCluster, workspace: Path, followers: Followers, major: int
) -> None:
    sources, own = workspace / "sources_archive", workspace / "own_archive"
    primary = make_cluster(major, wal_segment_mb=1)
    for directory in (sources, own):
        primary.account.make_directory(directory)
    primary.configure({"archive_mode": "on", "archive_command": f"cp %p {sources}/%f"})
    primary.restart()
    backup = back_up(primary, workspace / "backup")
    # The source itself archives nothing from here on, so that whatever appears there comes from a standby.
    archived = primary.data / "pg_wal" / "archive_status"
    wait_until(lambda: not list(archived.glob("*.ready")), "everything is archived")
    primary.configure({"archive_command": "/bin/false"})
    primary.reload()
    before = sorted(path.name for path in sources.iterdir())
    upstream, result, _ = followers.make(primary, backup, "--primary-conninfo", primary.conninfo())
    assert changes(result)["archive_mode"] == ("on", "off")
    assert upstream.query("SHOW archive_command")[0][0] in ("", "(disabled)")
    standby, result, _ = followers.make(
        primary, backup, "--primary-conninfo", upstream.conninfo(), "--slot", "below", "--create-slot",
        "--archive", "always", "--archive-command", f"cp %p {own}/%f",
    )  # fmt: skip
    assert changes(result)["archive_mode"] == ("on", "always")
    assert upstream.slots() == ["below"]
    written = primary.query("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0]
    primary.query("INSERT INTO accounts SELECT n, 'x', n FROM generate_series(100001, 110000) n")
    primary.query("SELECT pg_switch_wal()")
    content = (primary.data / "pg_wal" / written).read_bytes()
    wait_until(
        lambda: (own / written).exists() and (own / written).read_bytes() == content,
        "the standby archives what it received", timeout_s=60,
    )  # fmt: skip
    wait_until_level(standby, primary)
    assert standby.hashes() == primary.hashes()
    standby.promote()
    wait_until(lambda: (own / "00000002.history").exists(), "the promotion is archived", timeout_s=60)
    assert sorted(path.name for path in sources.iterdir()) == before


def test_what_hot_standby_needs_is_raised_to_the_primary_s(
    make_cluster: MakeCluster, workspace: Path, followers: Followers
) -> None:
    primary = make_cluster(15, fill=False, settings={"max_connections": "30", "max_prepared_transactions": "2"})
    backup = back_up(primary, workspace / "backup")
    primary.configure({"max_connections": "50", "max_prepared_transactions": "20"})
    primary.restart()
    standby, result, _ = followers.make(primary, backup, "--primary-conninfo", primary.conninfo())
    assert changes(result)["max_connections"] == ("30", "50")
    assert standby.query("SHOW max_prepared_transactions") == [("20",)]


def test_a_backup_of_a_standby_becomes_another_standby_and_the_plan_makes_no_slot(
    pg15: Cluster, workspace: Path, followers: Followers
) -> None:
    conninfo = ("--primary-conninfo", pg15.conninfo())
    upstream, _, _ = followers.make(pg15, back_up(pg15, workspace / "backup"), *conninfo)
    copy = back_up(upstream, workspace / "of_a_standby")
    planned = run_polarvault(
        "restore", copy, "-D", workspace / "planned", "--as", "standby", *conninfo, "--slot", "pv_plan",
        "--create-slot", "--port", "29998", "--plan",
    )  # fmt: skip
    assert "follows           PostgreSQL 15" in planned.stdout
    assert "pv_plan, to be made on the primary" in planned.stdout
    assert "pv_plan" not in pg15.slots()
    standby, result, _ = followers.make(pg15, copy, *conninfo)
    assert result["follow"]["caught_up"] is True
    assert standby.hashes() == pg15.hashes()
