"""Standbys and replicas of a real PolarDB: on storage of their own, and on the primary's, which stays untouched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.backups import back_up
from support.cluster import Cluster
from support.followers import Followers, followers_in
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.polardb

MakePolardb = Callable[..., PolarCluster]
# What a running primary changes by itself, even when nobody writes: WAL, its slots, its log index.
LIVELY = ("pg_wal", "pg_replslot", "pg_logindex", "polar_fullpage", "global/pg_control", "pg_stat")


@pytest.fixture
def followers(workspace: Path) -> Iterator[Followers]:
    """A maker of standbys and replicas that stops them afterwards."""
    with followers_in(workspace) as made:
        yield made


def two_halves(cluster: PolarCluster, workspace: Path, *options: str) -> Path:
    """Take a plain backup into workspace/backup and workspace/backup_shared."""
    back_up(cluster, workspace / "backup", "--polardata", str(workspace / "backup_shared"), *options)
    return workspace / "backup"


def follow_options(cluster: Cluster, slot: str) -> tuple[str, ...]:
    return ("--primary-conninfo", cluster.conninfo(), "--slot", slot, "--create-slot")


def wait_until_level(follower: Cluster, primary: Cluster) -> None:
    ((lsn,),) = primary.query("SELECT pg_current_wal_insert_lsn()")
    primary.query("SELECT pg_logical_emit_message(true, 'test', '')")
    wait_until(
        lambda: follower.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn])[0][0], "the follower is level"
    )


def value(server: Cluster, query: str, dbname: str = "postgres") -> Any:
    return server.query(query, dbname=dbname)[0][0]


def read(path: Path) -> bytes:
    """Return a file that another process may be about to write."""
    return path.read_bytes() if path.exists() else b""


def storage_listing(shared: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of every file of a shared half, but for what its primary touches all the time."""
    found = {}
    for path in shared.rglob("*"):
        name = str(path.relative_to(shared))
        if path.is_file() and not name.startswith(LIVELY):
            status = path.stat()
            found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def refused(backup: Path, workspace: Path, *options: str) -> str:
    """Try a replica that must be refused with nothing written; return what was said."""
    finished = run_polarvault("restore", backup, "-D", workspace / "refused", "--as", "replica", *options, check=False)
    assert finished.returncode in (1, 2), finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (workspace / "refused").exists()
    return finished.stderr


@pytest.mark.parametrize("form", ["-Fp", "-Ft", "-Ft -z"])
def test_a_standby_on_storage_of_its_own_streams_archives_and_is_promoted(
    make_polardb: MakePolardb, workspace: Path, followers: Followers, form: str
) -> None:
    primary = make_polardb()
    archive = primary.account.make_directory(workspace / "archive")
    backup = two_halves(primary, workspace) if form == "-Fp" else workspace / "backup"
    if form != "-Fp":
        back_up(primary, backup, *form.split())
    primary.query("CREATE TABLE after_the_backup AS SELECT generate_series(1, 1000) AS n")
    shared = workspace / "standby_shared"
    standby, result, said = followers.make(
        primary, backup, *follow_options(primary, "standby2"), "--polardata", str(shared), "--hostid", "7",
        "--archive", "always", "--archive-command", f"cp %p {archive}/%f",
    )  # fmt: skip
    follow = result["follow"]
    assert (follow["status"], follow["caught_up"], follow["slot"]["active"]) == ("streaming", True, True)
    assert result["server"]["node_type"] == "standby"
    assert "caught up" in said
    assert value(standby, "SHOW polar_datadir") == f"file-dio://{shared}"
    assert value(standby, "SHOW polar_hostid") == "7"
    assert value(standby, "SHOW archive_mode") == "always"
    wait_until_level(standby, primary)
    assert standby.hashes() == primary.hashes()
    segment = value(primary, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    primary.query("SELECT pg_switch_wal()")
    content = (primary.shared / "pg_wal" / segment).read_bytes()
    wait_until(lambda: read(archive / segment) == content, "the standby archives what it received", timeout_s=60)
    standby.promote()
    assert value(standby, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)") == "00000002"
    wait_until(lambda: (archive / "00000002.history").exists(), "the promotion is archived", timeout_s=60)
    standby.query("CREATE TABLE written_here AS SELECT 1")
    assert value(primary, "SELECT to_regclass('written_here')") is None


def test_a_stranger_found_out_only_after_unpacking_costs_nothing(make_polardb: MakePolardb, workspace: Path) -> None:
    ours, stranger = make_polardb(), make_polardb(fill=False)
    # PolarDB's own compressed tar says nowhere but deep inside which cluster it is of.
    backup = workspace / "backup"
    ours.run(
        "polar_basebackup", "-d", ours.conninfo(), "-c", "fast", "-N", "-D", str(backup), "-Ft", "-z",
        "-X", "stream",
    )  # fmt: skip
    # The stranger is further, so that only its identifier gives it away.
    for _ in range(3):
        stranger.query("SELECT pg_switch_wal()")
        stranger.query("SELECT pg_logical_emit_message(true, 'test', 'x')")
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--as", "standby", *follow_options(stranger, "s1"), check=False
    )
    assert finished.returncode == 1
    assert "another cluster" in finished.stderr
    assert "has been removed" in finished.stderr
    assert not (workspace / "r").exists()
    assert stranger.slots() == []


def test_a_standby_may_have_one_directory_and_come_from_a_standby(
    make_polardb: MakePolardb, workspace: Path, followers: Followers
) -> None:
    # A standby can be backed up only while full_page_writes is on at its primary (facts 5.2).
    primary = make_polardb(settings={"full_page_writes": "on"})
    backup = two_halves(primary, workspace)
    upstream, _, _ = followers.make(primary, backup, *follow_options(primary, "upstream"))
    copy = workspace / "of_a_standby"
    back_up(upstream, copy)
    merged, result, _ = followers.make(primary, copy, *follow_options(primary, "merged"), "--merge")
    assert result["follow"]["caught_up"] is True
    assert value(merged, "SHOW polar_enable_shared_storage_mode") == "off"
    primary.query("INSERT INTO accounts VALUES (1000001, 'late', 1)")
    wait_until_level(merged, primary)
    assert merged.hashes() == primary.hashes()


@pytest.mark.parametrize("form", ["plain", "lost", "tar", "tar.gz"])
def test_a_replica_is_made_of_the_local_half_alone_and_reads_what_the_primary_writes(
    make_polardb: MakePolardb, workspace: Path, followers: Followers, form: str
) -> None:
    primary = make_polardb()
    if form.startswith("tar"):
        backup = workspace / "backup"
        back_up(primary, backup, "-Ft", *(["-z"] if form == "tar.gz" else []))
        for path in backup.glob("data.tar*"):
            path.unlink()
    else:
        backup = two_halves(primary, workspace)
        if form == "lost":
            shutil.rmtree(workspace / "backup_shared")
    # Newer than the backup: its directory in the local half is made by the server.
    primary.query("CREATE DATABASE later")
    primary.query("CREATE TABLE in_later AS SELECT 42 AS n", dbname="later")
    primary.query("CHECKPOINT")
    replica, result, said = followers.make(primary, backup, *follow_options(primary, "ro1"), role="replica")
    assert result["server"]["node_type"] == "replica"
    assert result["follow"]["status"] == "streaming"
    assert result["follow"]["caught_up"] is True
    assert result["follow"]["databases"] == len(primary.query("SELECT oid FROM pg_database"))
    assert result["storage"] == f"file-dio://{primary.shared}"
    assert "caught up" in said
    primary.query("CREATE TABLE after_its_start AS SELECT generate_series(1, 1000) AS n")
    wait_until_level(replica, primary)
    assert replica.hashes() == primary.hashes()
    assert "after_its_start" in replica.hashes()
    assert value(replica, "SELECT n FROM in_later", "later") == 42
    primary.query("CREATE EXTENSION polar_monitor")
    wait_until_level(replica, primary)
    assert value(replica, "SELECT polar_node_type()") == "replica"
    assert value(primary, "SELECT polar_node_type()") == "primary"
    with pytest.raises(Exception, match="read-only"):
        replica.query("CREATE TABLE written_here AS SELECT 1")
    # Nothing of the other half came along, and what would make it a writer is gone.
    names = {path.name for path in replica.data.iterdir()}
    assert not names & {"backup_label", "standby.signal", "recovery.signal", "polar_shared_data"}
    assert not list((replica.data / "base").rglob("1259"))
    # It can be stopped and started like any server, and the primary does not notice.
    replica.restart()
    primary.query("INSERT INTO after_its_start VALUES (1001)")
    primary.query("CHECKPOINT")
    wait_until_level(replica, primary)
    assert replica.hashes() == primary.hashes()


def test_the_restore_of_a_replica_writes_nothing_to_the_storage(make_polardb: MakePolardb, workspace: Path) -> None:
    primary = make_polardb(settings={"checkpoint_timeout": "1h", "autovacuum": "off"})
    backup = two_halves(primary, workspace)
    primary.query("SELECT pg_create_physical_replication_slot('ro1', true)")
    primary.query("CHECKPOINT")
    wait_until(lambda: storage_listing(primary.shared) == storage_listing(primary.shared), "the primary is quiet")
    before = storage_listing(primary.shared)
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "replica", "--as", "replica", "--primary-conninfo", primary.conninfo(),
        "--slot", "ro1", "--bindir", primary.installation.directory, "--port", "29997",
    )  # fmt: skip
    assert "start it with" in finished.stdout
    assert (workspace / "replica" / "replica.signal").exists()
    assert not list((workspace / "replica").glob("*.polarvault"))
    assert storage_listing(primary.shared) == before
    # Half restored, even without the signal file, it is nothing that a server starts from.
    local = workspace / "replica"
    (local / "postgresql.conf").rename(local / "postgresql.conf.polarvault")
    (local / "replica.signal").unlink()
    started = primary.run("postgres", "-D", str(local), check=False, timeout_s=60)
    assert started.returncode != 0
    assert "postgresql.conf" in started.stderr
    assert storage_listing(primary.shared) == before


def test_a_replica_that_could_harm_or_never_work_is_refused(
    make_polardb: MakePolardb, polardb: PolarCluster, pg15: Cluster, workspace: Path
) -> None:
    primary = make_polardb()
    backup = two_halves(primary, workspace)
    slot = ("--slot", "ro1", "--create-slot")
    own = ("--primary-conninfo", primary.conninfo(), *slot)
    # Another cluster: its storage is elsewhere, and where it is not, its identifier differs.
    stranger = ("--primary-conninfo", polardb.conninfo(), *slot)
    assert "another cluster" in refused(backup, workspace, *stranger, "--polardata", str(polardb.shared))
    assert "PostgreSQL" in refused(backup, workspace, "--primary-conninfo", pg15.conninfo(), *slot)
    # A copy of the storage at another place, which the primary does not write to.
    assert f"--polardata {primary.shared}" in refused(
        backup, workspace, *own, "--polardata", str(workspace / "backup_shared")
    )
    for options, words in (
        (("--merge",), "--merge"),
        (("--archive", "always", "--archive-command", "cp %p /x/%f"), "PANIC"),
        (("--set", "polar_datadir=/elsewhere"), "polar_datadir"),
        (("--set", "restore_command=cp /x/%f %p"), "restore_command"),
        (("--shared-from", str(workspace / "backup_shared")), "local half alone"),
    ):
        assert words in refused(backup, workspace, *own, *options)
    assert "--slot" in refused(backup, workspace, "--primary-conninfo", primary.conninfo())
    assert "running primary" in refused(backup, workspace, *slot[:2])
    used = primary.account.make_directory(workspace / "used")
    (used / "precious").write_text("mine")
    finished = run_polarvault("restore", backup, "-D", used, "--as", "replica", *own, check=False)
    assert "not empty" in finished.stderr
    assert [path.name for path in used.iterdir()] == ["precious"]
    late = run_polarvault(
        "restore", backup, "-D", workspace / "late", "--as", "replica", *own,
        "--bindir", primary.installation.directory,
        # Only the server itself finds out, when everything else is in place.
        "--set", "shared_buffers=nonsense", check=False,
    )  # fmt: skip
    assert late.returncode == 4, late.stderr
    assert not (workspace / "late").exists()
    inside = run_polarvault("restore", backup, "-D", primary.shared / "r", "--as", "replica", *own, check=False)
    assert "which is a shared half of a PolarDB cluster" in inside.stderr
    assert primary.slots() == []
    assert polardb.slots() == []


def test_a_primary_whose_storage_has_moved_is_refused(make_polardb: MakePolardb, workspace: Path) -> None:
    primary = make_polardb()
    backup = two_halves(primary, workspace)
    # At the old path lies a copy with the same identifier.
    live, moved = primary.shared, primary.directory / "moved"
    primary.stop()
    shutil.copytree(live, moved)
    primary.account.own(moved)
    primary.configure({"polar_datadir": f"file-dio://{moved}"})
    primary.start()
    own = ("--primary-conninfo", primary.conninfo(), "--slot", "ro1", "--create-slot")
    assert f"--polardata {moved}" in refused(backup, workspace, *own)
    assert primary.slots() == []
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "planned", "--as", "replica", *own, "--polardata", moved, "--plan"
    )
    assert f"storage           file-dio://{moved}, the primary's own" in finished.stdout
    assert not (workspace / "planned").exists()


def test_a_backup_of_plain_postgresql_makes_no_replica(
    make_polardb: MakePolardb, pg15: Cluster, workspace: Path
) -> None:
    back_up(pg15, workspace / "plain")
    own = ("--primary-conninfo", pg15.conninfo(), "--slot", "ro1", "--create-slot")
    assert "holds data files next to the settings" in refused(workspace / "plain", workspace, *own)
    assert "ro1" not in pg15.slots()
