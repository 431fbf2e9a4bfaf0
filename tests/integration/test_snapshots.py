"""Snapshots of running servers: each is a backup, whatever made it, and nothing else is changed or left."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from support.clones import Clones, ask
from support.cluster import Cluster
from support.file_systems import HOOK
from support.polar_cluster import PolarCluster
from support.program import run_polarvault, start_polarvault
from support.snapshots import SUMS, Snapshots, datasets_of, disk_of
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize(("kind", "major"), [("xfs", 18), ("btrfs", 15), ("zfs", 18)])
def test_snapshots_under_load_are_backups(
    installation: Callable[[int], Binaries], workspace: Path, kind: str, major: int
) -> None:
    with disk_of(kind, workspace) as (disk, home):
        before = datasets_of(disk)
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        with Cluster.made(installation(major), home / "c") as source:
            source.add_tablespace("space")
            made = []
            with source.pgbench(clients=3):
                for number in range(4):
                    made.append(snapshots.create(source, "--name", f"s{number}"))
                    time.sleep(0.3)
            assert {one["provider"] for one in made} == {{"xfs": "reflink"}.get(kind, kind)}
            source.query("DELETE FROM in_space; DELETE FROM accounts")
            assert snapshots.states() == {f"s{number}": "whole" for number in range(4)}
            try:
                rows = []
                for one in made:
                    clone = clones.create(f"snapshot:{one['name']}", "--snapshots", snapshots.at)
                    [sums] = ask(clone, SUMS)
                    assert len(set(sums)) == 1
                    assert ask(clone, "SELECT count(*) FROM in_space") == [(5000,)]
                    assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
                    rows.append(ask(clone, "SELECT count(*) FROM pgbench_history")[0][0])
                    clones.remove_all()
                assert rows == sorted(rows)
                assert rows[-1] > rows[0]
                report = disk.path / "report"
                words = ("--scratch", disk.path, "--report", report, "--amcheck", "-N")
                run_polarvault("drill", made[0]["backup"], *words)
            finally:
                clones.remove_all()
            assert (
                "there is a snapshot"
                in snapshots.run("create", "-d", source.conninfo(), "--name", "s0", status=1)["error"]["message"]
            )
            snapshots.run("remove", *(one["name"] for one in made))
            assert snapshots.left() == []
            assert datasets_of(disk) == before


def test_several_file_systems_are_taken_with_a_connection(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with disk_of("xfs", workspace) as (disk, home), Cluster.made(installation(18), workspace / "c") as source:
        location = source.account.make_directory(home / "space")
        source.query(f"CREATE TABLESPACE far LOCATION '{location}'")
        source.query("CREATE TABLE in_far TABLESPACE far AS SELECT n FROM generate_series(1, 1000) n")
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        with source.pgbench():
            made = snapshots.create(source)
        assert made["provider"] == "copy"
        try:
            clone = clones.create(made["backup"])
            assert ask(clone, "SELECT count(*) FROM in_far") == [(1000,)]
            assert len(set(ask(clone, SUMS)[0])) == 1
        finally:
            clones.remove_all()


def test_a_standby_is_a_source_and_its_replay_goes_on(installation: Callable[[int], Binaries], workspace: Path) -> None:
    with disk_of("xfs", workspace) as (disk, home), Cluster.made(installation(18), workspace / "c") as primary:
        data = home / "standby"
        primary.run("pg_basebackup", "-d", primary.conninfo(), "-D", str(data), "-c", "fast", "-R")
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        with Cluster.adopt(installation(18), data, home / "run") as standby, primary.pgbench():
            standby.start()
            wait_until(lambda: standby.query("SELECT count(*) FROM pgbench_history")[0][0] > 50, "it follows")
            made = [snapshots.create(standby, "--name", f"s{number}") for number in range(3)]
            assert all(one["from_standby"] for one in made)
            seen = standby.query("SELECT pg_last_wal_replay_lsn()")
            wait_until(lambda: standby.query("SELECT pg_last_wal_replay_lsn()") > seen, "replay goes on")
            try:
                for one in made:
                    clone = clones.create(one["backup"])
                    assert len(set(ask(clone, SUMS)[0])) == 1
                    assert ask(clone, "SELECT pg_is_in_recovery()") == [(False,)]
            finally:
                clones.remove_all()


def test_following_a_standby_keeps_the_newest_and_ends_when_it_is_told(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with disk_of("xfs", workspace) as (disk, home), Cluster.made(installation(18), workspace / "c") as primary:
        data = home / "standby"
        primary.run("pg_basebackup", "-d", primary.conninfo(), "-D", str(data), "-c", "fast", "-R")
        snapshots = Snapshots(disk.path / "snapshots")
        with Cluster.adopt(installation(18), data, home / "run") as standby, primary.pgbench():
            standby.start()
            wait_until(lambda: standby.query("SELECT count(*) FROM pgbench_history")[0][0] > 10, "it follows")
            snapshots.create(standby, "--name", "mine")
            words = ("-d", standby.conninfo(), "--at", snapshots.at, "--every", "2s", "--keep", "2", "--name", "hourly")
            following = start_polarvault("snapshot", "follow", *words)
            try:
                wait_until(lambda: len(_of_follow(snapshots)) == 2, "two are taken", timeout_s=60)
                first = min(_of_follow(snapshots))
                wait_until(lambda: first not in _of_follow(snapshots), "the oldest goes", timeout_s=60)
                standby.query("SELECT pg_wal_replay_pause()")
                time.sleep(4)
            finally:
                following.send_signal(signal.SIGTERM)
                _, said = following.communicate(timeout=60)
            assert following.returncode == 0, said
            assert "pg_wal_replay_resume()" in said
            assert "archive_mode is" in said
            standby.query("SELECT pg_wal_replay_resume()")
            assert set(snapshots.states().values()) == {"whole"}
            assert len(_of_follow(snapshots)) == 2
            assert "mine" in snapshots.states()
            done = snapshots.run("follow", "-d", standby.conninfo(), "--name", "hourly", "--keep", "1", "--once")
            assert len(done["taken"]) == 1
            assert len(done["removed"]) == 2
            nobody = ("-d", "host=/nowhere", "--name", "hourly", "--once")
            assert snapshots.run("follow", *nobody, status=1)["failed"] == 1
            assert _of_follow(snapshots) == set(done["taken"])


def _of_follow(snapshots: Snapshots) -> set[str]:
    return {name for name, state in snapshots.states().items() if name.startswith("hourly-") and state == "whole"}


def test_what_is_cut_off_or_removed_by_others_is_seen(installation: Callable[[int], Binaries], workspace: Path) -> None:
    with disk_of("xfs", workspace) as (disk, home), Cluster.made(installation(18), home / "c") as source:
        snapshots = Snapshots(disk.path / "snapshots")
        words = ("snapshot", "create", "-d", source.conninfo(), "--at", snapshots.at)
        for delay_s in (0.4, 0.6, 0.8, 1.0):
            running = start_polarvault(*words)
            time.sleep(delay_s)
            running.send_signal(signal.SIGKILL)
            running.communicate()
        made = snapshots.create(source, "--name", "whole")
        assert set(snapshots.states().values()) == {"whole"}
        # No backup goes on at the server, and no slot is left.
        wait_until(lambda: source.slots() == [], "temporary slots are gone")
        shutil.rmtree(made["backup"])
        assert snapshots.states(status=1)["whole"] == "gone"
        snapshots.run("remove", "whole")
        somebodys = snapshots.at / "polarvault-snapshot-0123456789abcdef"
        somebodys.mkdir()
        (somebodys / "precious").write_text("x")
        snapshots.run("remove", "0123456789abcdef", status=1)
        assert (somebodys / "precious").exists()


def test_without_room_or_rights_nothing_is_left(installation: Callable[[int], Binaries], workspace: Path) -> None:
    with disk_of("xfs", workspace) as (disk, _), Cluster.made(installation(18), workspace / "c") as source:
        snapshots = Snapshots(disk.path / "snapshots")
        with (disk.path / "filler").open("wb", buffering=0) as stream:
            block = bytes(1 << 20)
            try:
                while True:
                    stream.write(block)
            except OSError:
                pass
        error = snapshots.run("create", "-d", source.conninfo(), status=1)["error"]
        assert error["id"] in ("disk-full", "wal-incomplete")
        assert snapshots.left() == []
        source.query("CREATE ROLE weak LOGIN REPLICATION")
        error = snapshots.run("create", "-d", f"{source.conninfo()} user=weak", status=1)["error"]
        assert error["id"] == "server-refused"
        assert error["hint"]
        assert snapshots.left() == []


def test_commands_of_the_configuration_make_them(installation: Callable[[int], Binaries], workspace: Path) -> None:
    workspace.chmod(0o755)
    hook, store = workspace / "storage", workspace / "store"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    store.mkdir()
    lines = [
        "[snapshots.san]", f'paths = ["{workspace / "home"}"]',
        *(
            f"{verb} = {json.dumps([str(hook), str(store), verb, *words])}"
            for verb, words in (
                ("create", ["{name}", "{source}"]), ("clone", ["{name}", "{snapshot}", "{target}"]), ("list", []),
                ("destroy", ["{name}"]),
            )
        ),
    ]  # fmt: skip
    configuration = workspace / "polarvault.toml"
    configuration.write_text("\n".join(lines))
    snapshots, clones = Snapshots(workspace / "snapshots"), Clones(workspace / "clones")
    (workspace / "home").mkdir()
    with Cluster.made(installation(18), workspace / "home" / "c") as source:
        made = snapshots.create(source, "--config", configuration, "--name", "s")
        assert made["provider"] == "commands"
        try:
            assert ask(clones.create(made["backup"]), "SELECT count(*) FROM accounts") == [(5000,)]
        finally:
            clones.remove_all()
        configuration.unlink()
        # What made it is written down with it.
        assert snapshots.states() == {"s": "whole"}
        words = ("create", "-d", source.conninfo(), "--config", workspace / "none")
        assert snapshots.run(*words, status=2)["error"]["id"] == "configuration"
        snapshots.run("remove", "s")
        assert snapshots.left() == []
        assert list(store.iterdir()) == []


@pytest.mark.polardb
@pytest.mark.parametrize("kind", ["xfs", "zfs"])
def test_both_halves_of_a_polardb_are_taken(polardb_installation: Binaries, workspace: Path, kind: str) -> None:
    with disk_of(kind, workspace) as (disk, home):
        snapshots, clones = Snapshots(disk.path / "snapshots"), Clones(disk.path / "clones")
        protocol = "file://" if kind == "zfs" else "file-dio://"
        with PolarCluster.made_polar(polardb_installation, home / "c", protocol=protocol) as source:
            with source.pgbench():
                made = [snapshots.create(source, "--name", f"s{number}") for number in range(2)]
            source.query("DELETE FROM accounts")
            try:
                for one in made:
                    assert one["is_polardb"]
                    clone = clones.create(f"snapshot:{one['name']}", "--snapshots", snapshots.at)
                    assert len(set(ask(clone, SUMS)[0])) == 1
                    assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
            finally:
                clones.remove_all()
            snapshots.run("remove", "s0", "s1")
            assert snapshots.left() == []
