"""Backups whose files are read from the server's directory: the same as those that the server sends."""

from __future__ import annotations

import functools
import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.backups import back_up, backup_listing, left_behind
from support.cluster import PASSWORD, Cluster
from support.polar_cluster import PolarCluster
from support.program import program_environment, run_polarvault, start_polarvault
from support.receiving import make_standby
from support.two_sources import differences
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def add_odd_files(server: Cluster) -> None:
    """Files that a backup leaves out, at the places where they count, and some that it must not."""
    data = server.data
    ((database,),) = server.query("SELECT oid FROM pg_database WHERE datname = 'postgres'")
    made = [
        *(
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "current_logfiles",
            "backup_label.old",
            "backup_manifest",
        ),
        *("tablespace_map", ".DS_Store", "a note of the DBA", "pgsql_tmp.note", "pg_internal.init.7"),
        *(
            "base/pgsql_tmp/pgsql_tmp1.0",
            "own/.DS_Store",
            "pg_stat_tmp/global.tmp",
            "pg_replslot/left",
            "own/pg_notify/x",
        ),
        *(
            f"base/{database}/t3_16999",
            f"base/{database}/t3_16999_fsm",
            f"base/{database}/t3_x",
            f"base/{database}/77_old",
        ),
        *(f"base/{database}/999999", f"base/{database}/999999_init", f"base/{database}/999999.1"),
        *("own/pg_control", "own/t1_2", "own/base/5/t3_4", "pg_subtrans/0099", "own/empty"),
    ]
    for name in made:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name.endswith("empty") else bytes(8192))
    (data / "own/nothing").mkdir()
    server.account.own(data)


def settle(server: Cluster) -> None:
    """Have nothing left to write that a backup would see."""
    server.query("VACUUM (FREEZE)")
    server.query("CHECKPOINT")


@pytest.mark.parametrize(
    "options", [["-Fp"], ["-Fp", "--manifest-checksums", "SHA256", "--manifest-force-encode"]], ids=" ".join
)
def test_both_sources_are_equal(any_pg: Cluster, workspace: Path, options: list[str]) -> None:
    server = Cluster.made(any_pg.installation, workspace / "server")
    try:
        location = server.add_tablespace("space")
        add_odd_files(server)
        settle(server)
        for source in ("stream", "local"):
            place = workspace / source
            mapping = ["-T", f"{location}={workspace / source}-space"]
            back_up(server, place, "--source", source, *options, *mapping)
            assert run_polarvault("verifybackup", place).returncode == 0
        assert differences(workspace / "stream/backup_manifest", workspace / "local/backup_manifest") == {}
        assert backup_listing(workspace / "local") == backup_listing(workspace / "stream")
        assert backup_listing(workspace / "local-space") == backup_listing(workspace / "stream-space")
    finally:
        server.remove()


def test_tars_of_both_sources_are_equal(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    server = make_cluster(18)
    server.add_tablespace("space")
    add_odd_files(server)
    settle(server)
    for source in ("stream", "local"):
        back_up(server, workspace / source, "--source", source, "-Ft", "-Z", "client-zstd:1")
    assert differences(workspace / "stream/backup_manifest", workspace / "local/backup_manifest") == {}
    assert backup_listing(workspace / "local") == backup_listing(workspace / "stream")


def test_a_copy_under_load_starts(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    server = make_cluster(18, settings={"max_wal_size": "64MB", "checkpoint_timeout": "30s"})
    with server.pgbench(scale=5):
        back_up(server, workspace / "copy", "--source", "local")
    assert run_polarvault("verifybackup", workspace / "copy").returncode == 0
    restored = start_restored(18, workspace / "copy")
    assert restored.query("SELECT sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts") == [
        (True,)
    ]


class TestRefusals:
    """What is not this server's directory is never read, and a backup whose session ends is none."""

    def test_another_account_gets_the_stream_and_is_told_why(self, pg18: Cluster, workspace: Path) -> None:
        if os.geteuid():
            pytest.skip("only root can be somebody else")
        target = workspace / "copy"
        # The directory of the socket is closed to others.
        conninfo = f"host=127.0.0.1 port={pg18.port} user=postgres dbname=postgres"
        words = ["basebackup", "-d", conninfo, "-c", "fast", "-N", "-D", str(target)]
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        workspace.chmod(0o777)
        run = functools.partial(
            subprocess.run, env=program_environment({"PGPASSWORD": PASSWORD}), cwd="/", capture_output=True, text=True,
            timeout=120, check=False, **account,
        )  # fmt: skip
        refused = run([sys.executable, "-m", "polarvault", *words, "--source", "local"])
        assert refused.returncode == 1
        assert "cannot be read as nobody" in refused.stderr
        assert "run the command as the account of the server" in refused.stderr
        assert not target.exists()
        taken = run([sys.executable, "-m", "polarvault", *words, "--source", "auto"])
        assert taken.returncode == 0, taken.stderr
        assert "source: the server's stream, because" in taken.stderr

    @pytest.mark.parametrize(
        ("checkpoint", "why"),
        [(True, "pg_control is not this server's"), (False, "is a copy, not the server's own directory")],
    )
    def test_a_copy_at_the_path_is_not_the_server(
        self, make_cluster: Callable[..., Cluster], workspace: Path, *, checkpoint: bool, why: str
    ) -> None:
        if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
            pytest.skip("needs root, and a mount namespace of its own")
        server = make_cluster(18)
        copy = workspace / "copied"
        subprocess.run(["cp", "-a", server.data, copy], check=True)
        if checkpoint:
            server.query("CHECKPOINT")
        # As in a container: the same path, and something else there.
        words = ["basebackup", "-d", server.conninfo(), "-c", "fast", "-N", "-D", str(workspace / "copy")]
        script = f'mount --bind {copy} {server.data} && exec {sys.executable} -m polarvault "$@"'
        refused = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *words, "--source", "local"],
            env=program_environment(), cwd="/", capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert refused.returncode == 1, refused.stderr
        assert why in refused.stderr
        assert not (workspace / "copy").exists()

    def test_an_older_start_is_another_server(self, make_cluster: Callable[..., Cluster], workspace: Path) -> None:
        server = make_cluster(18)
        lock = server.data / "postmaster.pid"
        lines = lock.read_text().splitlines(keepends=True)
        original = "".join(lines)
        lines[2] = f"{int(lines[2]) - 3600}\n"
        lock.write_text("".join(lines))
        try:
            refused = back_up(server, workspace / "copy", "--source", "local", check=False)
        finally:
            lock.write_text(original)
        assert "postmaster.pid is another server's" in refused.stderr

    def test_a_session_that_dies_ends_the_backup(self, make_cluster: Callable[..., Cluster], workspace: Path) -> None:
        server = make_cluster(18)
        running = start_polarvault(
            "basebackup", "-d", server.conninfo(), "-c", "fast", "-N", "-D", workspace / "copy", "--source", "local",
            "-r", "2M",
        )  # fmt: skip
        held = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_control_checkpoint%'"
            " AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: server.query(held)[0][0] and (workspace / "copy/base").exists(), "the backup runs")
        server.query(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid IN ({held.replace('count(*)', 'pid')})"
        )
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 1
        assert "the session that held the backup on the server has ended" in errors
        assert not (workspace / "copy").exists()
        assert left_behind(server) == ([], 0)


class TestIntoARepository:
    """`backup` takes the files where it can."""

    def test_the_restored_backup_of_either_source_is_the_same(
        self, make_cluster: Callable[..., Cluster], workspace: Path
    ) -> None:
        server = make_cluster(16)
        server.add_tablespace("space")
        settle(server)
        repository = workspace / "repository"
        run_polarvault("repo", "init", repository)
        taken = {}
        for source in ("stream", "auto"):
            words = [
                "backup",
                "shop",
                "--repo",
                repository,
                "-d",
                server.conninfo(),
                "--source",
                source,
                "--full",
                "-v",
            ]
            taken[source] = run_polarvault(*words)
        assert f"source: the files of {server.data} themselves" in taken["auto"].stderr
        listed = json.loads(run_polarvault("list", "shop", "--repo", repository, "--json").stdout)
        labels = sorted(set(re.findall(r"\d{8}T\d{6}Z", json.dumps(listed))))
        assert len(labels) == 2
        for label in labels:
            assert run_polarvault("verify", f"shop@{label}", "--repo", repository).returncode == 0
            words = ["export", f"shop@{label}", "--repo", repository, "-D", workspace / label]
            run_polarvault(*words, "-T", f"{server.directory}/tablespace_space={workspace / label}-space")
        first, second = (workspace / label / "backup_manifest" for label in labels)
        assert differences(first, second) == {}


def is_fleeting(name: str) -> bool:
    """Tell whether the server changes a file by itself, or for each backup: page images, its own note of the label."""
    return "polar_fullpage/" in name or name.endswith("polar_non_exclusive_backup_label")


def lasting(listing: dict[str, Any]) -> dict[str, Any]:
    """Return a listing without what is fleeting, in tar files as well."""
    return {
        name: lasting(value) if isinstance(value, dict) else value
        for name, value in listing.items()
        if not is_fleeting(name)
    }


@pytest.mark.polardb
class TestPolarDB:
    """Both halves, each at its place."""

    @pytest.mark.parametrize("options", [["-Fp"], ["-Fp", "--keep-all"], ["-Ft"]], ids=" ".join)
    def test_both_sources_are_equal(self, polardb: PolarCluster, workspace: Path, options: list[str]) -> None:
        settle(polardb)
        for source in ("stream", "local"):
            back_up(polardb, workspace / source, "--source", source, *options)
        stream, local = workspace / "stream", workspace / "local"
        # The description of the backup has its time.
        own = {"polarvault_backup.json", "backup_manifest.server"}
        # Between the two a backup ended, with a transaction of its own (its message flushes the WAL).
        own.add("pg_xact/0000")
        shared = "backup_manifest.shared" if "-Ft" in options else "polar_shared_data/backup_manifest"
        for manifest in ("backup_manifest", shared):
            found = differences(stream / manifest, local / manifest, at_least=10)
            assert {name for name in found if not is_fleeting(name)} <= own
        assert lasting(backup_listing(local)) == lasting(backup_listing(stream))

    def test_a_backup_under_load_restores(self, make_polardb: Callable[..., PolarCluster], workspace: Path) -> None:
        server = make_polardb()
        with server.pgbench(scale=2):
            back_up(server, workspace / "copy", "--source", "local")
        assert run_polarvault("verifybackup", workspace / "copy").returncode == 0
        restored = Cluster(server.installation, workspace)
        restored.data = workspace / "restored"
        run_polarvault(
            "restore", workspace / "copy", "-D", restored.data, "--port", str(restored.port), "-N", "--start",
            "--bindir", server.installation.directory, "--set", f"unix_socket_directories={workspace}",
        )  # fmt: skip
        try:
            sums = "SELECT sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts"
            assert restored.query(sums) == [(True,)]
        finally:
            restored.stop("immediate")


class TestStandby:
    """A backup of a standby, and one that its promotion ends."""

    def test_a_backup_of_a_standby_starts(
        self, pg18: Cluster, workspace: Path, start_restored: Callable[..., Cluster]
    ) -> None:
        standby = make_standby(pg18, workspace / "standby", slot="local_source")
        try:
            back_up(standby, workspace / "copy", "--source", "local")
            assert run_polarvault("verifybackup", workspace / "copy").returncode == 0
            assert "BACKUP FROM: standby\n" in (workspace / "copy/backup_label").read_text()
            (workspace / "copy/standby.signal").unlink()
            (workspace / "copy/postgresql.auto.conf").write_text("")
            assert start_restored(18, workspace / "copy").hashes() == pg18.hashes()
        finally:
            standby.remove()
            pg18.query("SELECT pg_drop_replication_slot('local_source')")

    @pytest.mark.parametrize("what", ["promoted", "restarted"])
    def test_a_server_that_changes_ends_the_backup(self, pg18: Cluster, workspace: Path, what: str) -> None:
        standby = make_standby(pg18, workspace / "standby", slot="local_source")
        try:
            running = start_polarvault(
                "basebackup", "-d", standby.conninfo(), "-c", "fast", "-N", "-D", workspace / "copy",
                "--source", "local", "-r", "1M", "-X", "none",
            )  # fmt: skip
            wait_until((workspace / "copy/base").exists, "the backup runs")
            if what == "promoted":
                standby.query("SELECT pg_promote()")
            else:
                standby.restart()
            _, errors = running.communicate(timeout=100)
            assert running.returncode == 1
            expected = "it was promoted while the backup was taken" if what == "promoted" else "has ended"
            assert expected in errors
            assert not (workspace / "copy").exists()
        finally:
            standby.remove()
            pg18.query("SELECT pg_drop_replication_slot('local_source')")
