"""Repositories in trouble, with real servers: away in the middle, full, written by two, one name for two clusters."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polarvault.model.lsn import Lsn
from support.cluster import Cluster
from support.object_servers import BUCKET, ObjectServer
from support.program import run_polarvault, start_polarvault
from support.receiving import make_standby, wait_replayed
from support.servers import has_program
from support.small_disk import small_disk
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres
_NOISE = "CREATE TABLE noise AS SELECT n, md5(n::text) || md5((n * 7)::text) AS v FROM generate_series(1, {}) n"


class Site:
    """Clusters and one repository."""

    def __init__(self, workspace: Path, repo: str | Path, *options: str | Path) -> None:
        self.workspace = workspace
        self.how = ("--repo", repo, *options)

    def run(self, *words: Any, status: int = 0) -> dict[str, Any]:
        done = run_polarvault(*map(str, words), *self.how, "--json", check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def back_up(self, cluster: Cluster, *options: str, status: int = 0) -> dict[str, Any]:
        return self.run("backup", "shop", "-d", cluster.conninfo(), *options, status=status)

    def started(self, cluster: Cluster) -> subprocess.Popen[str]:
        """Begin a slow backup."""
        return start_polarvault(
            "backup",
            "shop",
            "-d",
            cluster.conninfo(),
            "--max-rate",
            "8M",
            "--checkpoint",
            "fast",
            *self.how,
            "--json",
            # Its progress is what tells where the backup is.
            "--source",
            "stream",
        )

    def hashes(self, cluster: Cluster, word: str, name: str) -> dict[str, tuple[int, str]]:
        """Restore a backup and return what is in it."""
        restored = Cluster(cluster.installation, self.workspace)
        restored.data = self.workspace / name
        self.run(
            "restore", word, "-D", restored.data, "--port", restored.port, "--bindir", cluster.installation.directory,
            "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off", "-N", "--start",
        )  # fmt: skip
        try:
            return restored.hashes()
        finally:
            restored.stop("immediate")

    def is_clean(self) -> bool:
        checked = self.run("repo", "check", "--read-data")
        return bool(checked["problems"] == [])


def _sends(cluster: Cluster, size_bytes: int) -> Callable[[], bool]:
    query = f"SELECT 1 FROM pg_stat_progress_basebackup WHERE backup_streamed > {size_bytes}"
    return lambda: bool(cluster.query(query))


def test_a_repository_that_is_gone_in_the_middle_ends_the_backup_and_the_next_one_goes_on(
    seaweedfs: ObjectServer, make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15)
    cluster.query(_NOISE.format(400_000))
    settings = seaweedfs.settings
    assert settings.endpoint is not None
    with TcpProxy(int(settings.endpoint.rpartition(":")[2])) as proxy:
        configuration = workspace / "polarvault.toml"
        configuration.write_text(
            f'[repository.main]\naddress = "s3://{BUCKET}/gone-{os.getpid()}"\n'
            f'endpoint = "http://127.0.0.1:{proxy.port}"\naccess_key = "{settings.access_key}"\n'
            f'secret_key = "{settings.secret_key}"\ndeadline = "2s"\n'
        )
        configuration.chmod(0o600)
        site = Site(workspace, "main", "--config", configuration)
        run_polarvault("repo", "init", "main", "--config", configuration)
        with site.started(cluster) as running:
            wait_until(_sends(cluster, 50 << 20), "the backup is in its middle")
            proxy.refuse()
            proxy.cut_now()
            out, said = running.communicate(timeout=120)
        assert running.returncode not in (0, None)
        assert "Traceback" not in said
        error = json.loads(out)["error"]
        assert "s3://" in error["message"] or "127.0.0.1" in error["message"]
        proxy.restart()
        assert site.run("list", "shop")["clusters"][0]["backups"] == []
        again = site.back_up(cluster)
        assert again["adopted_bytes"] > 0
        assert site.is_clean()
        assert site.hashes(cluster, "shop", "back") == cluster.hashes()


def test_a_full_disk_ends_the_backup_and_leaves_those_that_are_there(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15)
    disk = workspace / "disk"
    disk.mkdir()
    with small_disk(disk, "24m"):
        site = Site(workspace, disk / "repository")
        run_polarvault("repo", "init", disk / "repository")
        first = site.back_up(cluster)
        wanted = cluster.hashes()
        cluster.query(_NOISE.format(700_000))
        error = site.back_up(cluster, status=1)["error"]
        assert "full" in error["message"] or "No space left" in error["message"]
        listed = site.run("list", "shop")["clusters"][0]["backups"]
        assert [one["label"] for one in listed] == [first["label"]]
        assert site.hashes(cluster, "shop", "back") == wanted
        # What the broken one left goes with an expire, which a full disk has room for.
        time.sleep(1.2)  # Longer than the safety time.
        site.run("expire", "shop", "--keep", "2", "--safety-time", "1s")
        cluster.query("DROP TABLE noise")
        second = site.back_up(cluster)
        assert second["parent"] == first["label"]
        assert site.is_clean()


def test_two_backups_at_a_time_are_both_whole_or_one_is_refused(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15)
    cluster.query(_NOISE.format(200_000))
    site = Site(workspace, workspace / "repository")
    run_polarvault("repo", "init", workspace / "repository")
    with site.started(cluster) as one, site.started(cluster) as other:
        ended = [running.communicate(timeout=120) for running in (one, other)]
    results = [json.loads(out) for out, _ in ended]
    assert all("Traceback" not in said for _, said in ended)
    assert {one.returncode, other.returncode} <= {0, 1, 2}
    recorded = [found["label"] for found in results if found["exit_status"] == 0]
    assert recorded
    for label in recorded:
        assert site.run("verify", f"shop@{label}")["verified"][0]["good"] is True
    last = site.back_up(cluster)
    assert last["parent"] in recorded
    assert site.is_clean()
    assert site.hashes(cluster, "shop", "back") == cluster.hashes()


def test_two_clusters_of_one_name_keep_apart_and_so_do_those_before_and_after_an_upgrade(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    old, new = make_cluster(15), make_cluster(18)
    new.query("CREATE TABLE only_here AS SELECT 1 AS n")
    site = Site(workspace, workspace / "repository")
    run_polarvault("repo", "init", workspace / "repository")
    before = site.back_up(old)
    after = site.back_up(new)
    assert after["parent"] is None
    assert "its system identifier is" in after["reason"]
    # Taking turns: each builds on its own.
    assert site.back_up(old)["parent"] == before["label"]
    last = site.back_up(new)
    assert last["parent"] == after["label"]
    states = [one["state"] for one in site.run("list", "shop")["clusters"][0]["backups"]]
    assert states == ["good"] * 4
    assert site.hashes(old, f"shop@{before['label']}", "old") == old.hashes()
    assert site.hashes(new, "shop", "new") == new.hashes()
    site.run("expire", "shop", "--keep", "1", "--safety-time", "1s")
    (left,) = [one["label"] for one in site.run("list", "shop")["clusters"][0]["backups"] if one["state"] == "good"]
    assert left == last["label"]
    assert site.hashes(new, "shop", "kept") == new.hashes()


@pytest.mark.parametrize("major", [15, 18])
def test_a_standbys_backup_is_a_parent_and_has_parents(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    primary = make_cluster(major)
    if not has_program(primary.installation, "pg_basebackup"):
        pytest.skip(f"there is no pg_basebackup beside PostgreSQL {major}: {primary.installation.directory}")
    primary.query(_NOISE.format(20_000))
    site = Site(workspace, workspace / "repository")
    run_polarvault("repo", "init", workspace / "repository")
    first = site.back_up(primary)
    standby = make_standby(primary, workspace / "standby", slot="standby")
    try:
        for number, server in enumerate((standby, primary, standby)):
            primary.query(f"UPDATE noise SET v = v || '{number}' WHERE n % 100 = {number}")
            primary.query("CHECKPOINT")
            wait_replayed(standby, Lsn.parse(primary.query("SELECT pg_current_wal_lsn()")[0][0]))
            # A restartpoint: a standby's backup begins at the last one.
            standby.query("CHECKPOINT")
            found = site.back_up(server)
            assert found["parent"] == first["label"], found["reason"]
            assert site.hashes(primary, "shop", f"back{number}") == primary.hashes()
            first = found
    finally:
        standby.remove()
    assert site.is_clean()
