"""Snapshots without a connection: only of one moment, consistent from the end of their WAL on, else refused."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from support.clones import Clones, ask
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.snapshots import SUMS, Snapshots, disk_of
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def alone(snapshots: Snapshots, source: Cluster, *words: object) -> dict[str, Any]:
    """Take a snapshot of the files of a server."""
    found: dict[str, Any] = snapshots.run("create", "-D", source.data, *words)["snapshot"]
    return found


def refused(snapshots: Snapshots, source: Cluster, *words: object) -> str:
    """Return why a snapshot is refused, of which nothing may be left."""
    before = snapshots.left()
    error = snapshots.run("create", "-D", source.data, *words, status=1)["error"]
    assert error["id"] == "snapshot-refused", error
    assert error["hint"]
    assert snapshots.left() == before
    return str(error["message"])


@contextmanager
def _standby(primary: Cluster, home: Path, **settings: str) -> Iterator[Cluster]:
    data = home / "standby"
    primary.run("pg_basebackup", "-d", primary.conninfo(), "-D", str(data), "-c", "fast", "-R")
    with (data / "postgresql.auto.conf").open("a") as stream:
        stream.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    with Cluster.adopt(primary.installation, data, home / "run") as standby:
        standby.start()
        yield standby


@pytest.mark.parametrize(("kind", "major"), [("btrfs", 15), ("zfs", 18)])
def test_of_a_primary_it_is_consistent_from_the_end_of_its_wal_on(
    installation: Callable[[int], Binaries], workspace: Path, kind: str, major: int
) -> None:
    with disk_of(kind, workspace) as (disk, home):
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        archive = workspace / "archive"
        settings = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}
        with Cluster.made(installation(major), home / "c", settings=settings) as source:
            source.account.make_directory(archive)
            source.query("CHECKPOINT")
            early = str(source.query("SELECT pg_current_wal_insert_lsn()")[0][0])
            made = []
            with source.pgbench(clients=3):
                for number in range(3):
                    time.sleep(0.5)
                    made.append(alone(snapshots, source, "--name", f"s{number}"))
                later = str(source.query("SELECT pg_current_wal_insert_lsn()")[0][0])
                time.sleep(0.5)
            source.query("SELECT pg_switch_wal()")
            wait_until(lambda: len(list(archive.iterdir())) > 0, "WAL is archived")
            source.query("DELETE FROM accounts")
            assert not any(one["connected"] for one in made)
            assert all(one["is_atomic"] for one in made)
            try:
                rows = []
                for one in made:
                    clone = clones.create(one["backup"])
                    assert len(set(ask(clone, SUMS)[0])) == 1
                    assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
                    rows.append(ask(clone, "SELECT count(*) FROM pgbench_history")[0][0])
                    clones.remove_all()
                assert rows == sorted(rows)
                # Later moments are reached, earlier ones are not.
                clone = clones.create(made[0]["backup"], "--wal", archive, "--target-lsn", later)
                assert Lsn.parse(clone["lsn"]) >= Lsn.parse(made[0]["stop_lsn"])
                assert len(set(ask(clone, SUMS)[0])) == 1
                clones.remove_all()
                start, end = Lsn.parse(made[2]["start_lsn"]), Lsn.parse(made[2]["stop_lsn"])
                for target in (early, str(Lsn((start + end) // 2))):
                    words = ("--wal", archive, "--target-lsn", target)
                    assert clones.refused(made[2]["backup"], *words)["id"] == "target-unreachable"
            finally:
                clones.remove_all()
            snapshots.run("remove", *(one["name"] for one in made))
            assert snapshots.left() == []


def test_what_is_not_of_one_moment_is_refused(installation: Callable[[int], Binaries], workspace: Path) -> None:
    with disk_of("xfs", workspace) as (disk, home), Cluster.made(installation(18), home / "c") as source:
        assert "is not: each file is of another moment" in refused(Snapshots(disk.path / "snapshots"), source)
    with disk_of("btrfs", workspace) as (disk, home), Cluster.made(installation(18), home / "c") as source:
        snapshots = Snapshots(disk.path / "snapshots")
        location = source.account.make_directory(workspace / "space")
        source.query(f"CREATE TABLESPACE far LOCATION '{location}'")
        assert "of one moment" in refused(snapshots, source)
        source.query("DROP TABLESPACE far")
        # pg_wal elsewhere: without it nobody could tell where the copy is consistent.
        source.stop()
        wal = source.data / "pg_wal"
        subprocess.run(["mv", str(wal), str(workspace / "wal")], check=True)
        wal.symlink_to(workspace / "wal")
        source.start()
        assert str(workspace / "wal") in refused(snapshots, source)
        error = snapshots.run("create", "-D", source.data, "-d", "x", status=2)["error"]
        assert error["hint"]


def test_pg_wal_in_another_dataset_of_the_pool_goes_with_it(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with disk_of("zfs", workspace) as (disk, home):
        subprocess.run(["zfs", "create", f"{disk.dataset}/wal"], check=True)
        with Cluster.made(installation(18), home / "c", start=False) as source:
            source.account.own(disk.path / "wal")
            wal = source.data / "pg_wal"
            subprocess.run(["mv", str(wal), str(disk.path / "wal" / "pg_wal")], check=True)
            wal.symlink_to(disk.path / "wal" / "pg_wal")
            source.start()
            source.fill()
            snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
            with source.pgbench():
                made = alone(snapshots, source)
            try:
                clone = clones.create(made["backup"])
                assert len(set(ask(clone, SUMS)[0])) == 1
            finally:
                clones.remove_all()
            snapshots.run("remove", made["id"])
            assert snapshots.left() == []


def test_a_standby_is_consistent_from_where_it_had_got_to(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with disk_of("btrfs", workspace) as (disk, home), Cluster.made(installation(18), workspace / "c") as primary:
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        with _standby(primary, home, checkpoint_timeout="30min") as standby, primary.pgbench():
            wait_until(lambda: standby.query("SELECT count(*) FROM pgbench_history")[0][0] > 50, "it follows")
            made = alone(snapshots, standby, "--name", "running")
            assert made["from_standby"]
            try:
                clone = clones.create(made["backup"])
                assert len(set(ask(clone, SUMS)[0])) == 1
                clones.remove_all()
                standby.stop()
                alone(snapshots, standby, "--name", "stopped")
                clone = clones.create("snapshot:stopped", "--snapshots", snapshots.at)
                assert len(set(ask(clone, SUMS)[0])) == 1
            finally:
                clones.remove_all()
            # Killed, it is neither running nor stopped.
            standby.start()
            standby.kill()
            assert "in archive recovery" in refused(snapshots, standby)


def test_a_promoted_standby_is_refused_until_its_first_checkpoint(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with disk_of("btrfs", workspace) as (disk, home), Cluster.made(installation(18), workspace / "c") as primary:
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        slow = {"checkpoint_timeout": "30min", "checkpoint_completion_target": "0.9", "shared_buffers": "64MB"}
        with _standby(primary, home, **slow) as standby:
            with primary.pgbench(scale=3):
                wait_until(lambda: standby.query("SELECT count(*) FROM pgbench_history")[0][0] > 50, "it follows")
            standby.promote()
            # Its first checkpoint is spread over half an hour.
            message = refused(snapshots, standby)
            assert "first checkpoint has not ended" in message
            standby.query("CHECKPOINT")
            made = alone(snapshots, standby)
            try:
                assert len(set(ask(clones.create(made["backup"]), SUMS)[0])) == 1
            finally:
                clones.remove_all()


def test_what_is_neither_running_nor_stopped_is_refused(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with disk_of("btrfs", workspace) as (disk, home), Cluster.made(installation(15), home / "c") as source:
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        source.stop()
        made = alone(snapshots, source)
        try:
            assert ask(clones.create(made["backup"]), "SELECT count(*) FROM accounts") == [(5000,)]
        finally:
            clones.remove_all()
        words = ["bash", "-c", 'exec -a pg_rewind sh -c "sleep 60" "$0"', f"--target-pgdata={source.data}"]
        rewinding = subprocess.Popen(words, start_new_session=True)
        try:
            wait_until(lambda: b"pg_rewind" in _command_line(rewinding.pid), "it is called pg_rewind")
            assert "pg_rewind" in refused(snapshots, source)
        finally:
            rewinding.kill()
            rewinding.wait()
        label = source.data / "backup_label"
        label.write_text("START WAL LOCATION: 0/1000028 (file 000000010000000000000001)\n")
        assert "backup_label" in refused(snapshots, source)
        label.unlink()
        source.start()
        source.kill()
        assert "in production, and no server was running" in refused(snapshots, source)


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.polardb
def test_both_halves_of_a_polardb_on_one_file_system(polardb_installation: Binaries, workspace: Path) -> None:
    with disk_of("zfs", workspace) as (disk, home):
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        with PolarCluster.made_polar(polardb_installation, home / "c", protocol="file://") as source:
            with source.pgbench():
                made = alone(snapshots, source)
            assert made["is_polardb"]
            assert made["shared"]
            source.query("DELETE FROM accounts")
            try:
                clone = clones.create(made["backup"])
                assert len(set(ask(clone, SUMS)[0])) == 1
                assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
            finally:
                clones.remove_all()
            snapshots.run("remove", made["id"])
            assert snapshots.left() == []
