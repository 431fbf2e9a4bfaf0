"""Backups out of a repository into files that stock tools read, and back: what comes out is what went in."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.program import run_polarvault

pytestmark = pytest.mark.postgres


class Shop:
    """A server with a tablespace, and a repository with a full and an incremental backup of it."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster, self.workspace = cluster, workspace
        self.path = workspace / "repository"
        run_polarvault("repo", "init", self.path)
        cluster.query("CREATE TABLE plain AS SELECT n, md5(n::text) AS v FROM generate_series(1, 40000) n")
        self.space = cluster.add_tablespace("far")
        self.labels = [self.back_up()]
        cluster.query("UPDATE plain SET v = 'changed' WHERE n % 50 = 0; CREATE TABLE later AS SELECT 1 AS one")
        self.labels.append(self.back_up())

    def run(self, command: str, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_polarvault(command, *words, "--repo", self.path, check=check)

    def run_json(self, command: str, *words: str | Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(command, *words, "--json").stdout)
        return found

    def back_up(self) -> str:
        return str(self.run_json("backup", "shop", "-d", self.cluster.conninfo())["label"])

    def stock_verify(self, directory: Path, *options: str) -> str:
        program = Path(self.cluster.installation.directory) / "pg_verifybackup"
        done = subprocess.run([program, *options, directory], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def started(self, directory: Path, *, mapping: tuple[str, ...] = ()) -> Cluster:
        """Restore from the files, and start."""
        target = self.workspace / f"{directory.name}-restored"
        copy = Cluster(self.cluster.installation, self.workspace)
        copy.data = target
        run_polarvault(
            "restore", directory, "-D", target, "--port", str(copy.port), "--bindir", copy.installation.directory,
            "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off", "-N", "--start", *mapping,
        )  # fmt: skip
        return copy


def test_an_exported_backup_is_one_of_pg_basebackup_in_both_forms(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    shop = Shop(make_cluster(18), workspace)
    before = shop.cluster.hashes()
    plain, tars, space = workspace / "plain", workspace / "tars", workspace / "plain-space"
    mapping = f"{shop.space}={space}"
    found = shop.run_json("export", "shop", "-D", plain, "-T", mapping)
    assert (found["backup"], found["format"], found["has_manifest"]) == (f"shop@{shop.labels[1]}", "plain", True)
    assert "successfully verified" in shop.stock_verify(plain)
    assert not (plain / "tablespace_map").exists()
    assert {one.name for one in tars.parent.glob("plain*")} == {"plain", "plain-space"}
    shop.run("export", f"shop@{shop.labels[0]}", "-D", tars, "-Ft")
    assert {one.name for one in tars.iterdir()} >= {"base.tar", "pg_wal.tar", "backup_manifest"}
    assert "successfully verified" in shop.stock_verify(tars, "-n")
    run_polarvault("verifybackup", tars)
    copy = shop.started(plain, mapping=("-T", f"{space}={workspace / 'space-of-copy'}"))
    try:
        assert copy.hashes() == before
    finally:
        copy.stop("immediate")
    copy = shop.started(tars, mapping=("-T", f"{shop.space}={workspace / 'space-of-tars'}"))
    try:
        assert copy.query("SELECT to_regclass('later') IS NULL, count(*) FROM plain WHERE v = 'changed'") == [(True, 0)]
    finally:
        copy.stop("immediate")
    refused = shop.run("export", "shop", "-D", plain, check=False)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr
    assert "successfully verified" in shop.stock_verify(plain)


def test_a_damaged_backup_leaves_nothing_that_looks_exported(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    shop = Shop(make_cluster(15), workspace)
    packs = sorted((shop.path / "clusters/shop/packs" / shop.labels[0]).iterdir())
    content = bytearray(packs[0].read_bytes())
    content[len(content) // 3] ^= 8
    packs[0].chmod(0o600)
    packs[0].write_bytes(content)
    out = workspace / "out"
    done = shop.run("export", f"shop@{shop.labels[0]}", "-D", out, "-Ft", check=False)
    assert done.returncode == 3
    assert "is damaged" in done.stderr
    assert not out.exists()
