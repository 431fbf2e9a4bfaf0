"""Backups out of a repository into files that stock tools read, and back: what comes out is what went in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polarvault.backupset.saved_configuration import (
    SavedConfiguration,
    read_configuration,
    saved_beside,
    write_configuration,
)
from polarvault.config.model import RepositoryConfiguration
from polarvault.repository.catalogue.opening import make_repository
from polarvault.repository.catalogue.repository import Generation
from support.cluster import Cluster
from support.program import run_polarvault
from support.repositories import back_up, facts, two_trees

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
    assert re.search(r"'[a-z0-9/_]+' cannot be read at block \d+: ", done.stderr), done.stderr
    assert not out.exists()


def stock_backup(shop: Shop, directory: Path, *options: str) -> Path:
    program = Path(shop.cluster.installation.directory) / "pg_basebackup"
    command = [program, "-D", directory, "-d", shop.cluster.conninfo(), "-c", "fast", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


def test_backups_of_pg_basebackup_become_backups_in_the_repository_and_come_out_again(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    shop = Shop(make_cluster(18), workspace)
    space = workspace / "space-of-plain"
    plain = stock_backup(shop, workspace / "stock", "-T", f"{shop.space}={space}")
    before = shop.cluster.hashes()
    # What basebackup --copy-configuration has put beside it.
    main = "/etc/postgresql/18/main/postgresql.conf"
    saved = SavedConfiguration(data_directory="/srv/data", places={"config_file": main}, files={main: b"port = 7"})
    Path(saved_beside(str(plain))).mkdir()
    write_configuration(saved_beside(str(plain)), saved, sync=False)
    first = shop.run_json("import", "shop", plain, "--note", "of another tool")
    # It is later than both, and of the same cluster: only what changed since is stored.
    assert first["parent"] == shop.labels[1]
    assert first["has_manifest"]
    assert first["stored_bytes"] < 2_000_000
    tars = stock_backup(shop, workspace / "stock-tars", "-Ft", "-z", "--manifest-checksums=SHA256")
    second = shop.run_json("import", "shop", tars)
    assert second["parent"] == first["label"]
    listed = shop.run_json("list", "shop")["clusters"][0]["backups"]
    assert {one["label"]: one["state"] for one in listed} == dict.fromkeys(
        [*shop.labels, first["label"], second["label"]], "good"
    )
    assert shop.run_json("verify", f"shop@{second['label']}")["verified"][0]["good"]
    for number, label in enumerate((first["label"], second["label"])):
        out, out_space = workspace / f"out{number}", workspace / f"out-space{number}"
        location = space if number == 0 else shop.space
        shop.run("export", f"shop@{label}", "-D", out, "-T", f"{location}={out_space}")
        assert "successfully verified" in shop.stock_verify(out)
        assert Path(saved_beside(str(out))).exists() == (number == 0)
    assert read_configuration(saved_beside(str(workspace / "out0"))) == saved
    copy = shop.started(out, mapping=("-T", f"{out_space}={workspace / 'far-of-copy'}"))
    try:
        assert copy.hashes() == before
    finally:
        copy.stop("immediate")


def test_a_backup_in_the_layout_of_barman_is_imported_with_the_wal_of_its_archive(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1)
    shop = Shop(cluster, workspace)
    server = workspace / "barman" / "main"
    backup = server / "base" / "20261126T100000"
    backup.mkdir(parents=True)
    stock = stock_backup(shop, backup / "data", "-T", f"{shop.space}={backup / 'tablespace'}")
    manifest = json.loads((stock / "backup_manifest").read_text())
    (needed,) = manifest["WAL-Ranges"]
    for segment in [one for one in (stock / "pg_wal").iterdir() if len(one.name) == 24]:
        folder = server / "wals" / segment.name[:16]
        folder.mkdir(parents=True, exist_ok=True)
        segment.rename(folder / segment.name)
    ((oid,),) = cluster.query("SELECT oid::int FROM pg_tablespace WHERE spcname = 'far'")
    info = {
        "status": "DONE", "timeline": "1", "end_xlog": needed["End-LSN"], "begin_time": "2026-11-26 10:00:00.5+00:00",
        "end_time": "2026-11-26 10:00:09+00:00", "tablespaces": f"[('far', {oid}, '{shop.space}')]",
        "compression": "None", "version": "150099",
    }  # fmt: skip
    (server / "meta").mkdir()
    (server / "meta" / "20261126T100000-backup.info").write_text(
        "".join(f"{name}={value}\n" for name, value in info.items())
    )
    # As Barman's own copies by rsync: without a manifest.
    (stock / "backup_manifest").unlink()
    found = shop.run_json("import", "shop", backup)
    assert found["label"].startswith("20261126T100000Z-")
    assert (found["has_manifest"], found["stop_lsn"]) == (False, needed["End-LSN"])
    shown = shop.run_json("show", f"shop@{found['label']}")
    assert shown["backup"]["server_version"] == 150099
    out = workspace / "out"
    shop.run("export", f"shop@{found['label']}", "-D", out, "-T", f"{shop.space}={workspace / 'out-space'}")
    assert "successfully verified" in shop.stock_verify(out)
    next((server / "wals").glob("*/*")).unlink()
    run_polarvault("repo", "init", workspace / "other")
    refused = run_polarvault("import", "shop", backup, "--repo", workspace / "other", check=False)
    assert refused.returncode == 1
    assert "--wal DIR" in refused.stderr


def test_tablespaces_inside_of_the_data_directory_go_in_and_out(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, settings={"allow_in_place_tablespaces": "on"})
    cluster.query("CREATE TABLESPACE inside LOCATION ''")
    cluster.query("CREATE TABLE in_it TABLESPACE inside AS SELECT n FROM generate_series(1, 5000) n")
    shop = Shop(cluster, workspace)
    before = cluster.hashes()
    stock = stock_backup(shop, workspace / "stock", "-T", f"{shop.space}={workspace / 'far'}")
    shop.run("import", "shop", stock)
    out, tars = workspace / "out", workspace / "tars"
    shop.run("export", "shop", "-D", out, "-T", f"{workspace / 'far'}={workspace / 'far1'}")
    assert "successfully verified" in shop.stock_verify(out)
    # As the server sent it: with an archive of its own.
    shop.run("export", f"shop@{shop.labels[1]}", "-D", tars, "-Ft")
    assert "successfully verified" in shop.stock_verify(tars, "-n")
    copy = shop.started(out, mapping=("-T", f"{workspace / 'far1'}={workspace / 'far-of-copy'}"))
    try:
        assert copy.hashes() == before
    finally:
        copy.stop("immediate")


def test_what_is_no_whole_backup_is_refused_and_nothing_is_recorded(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    shop = Shop(make_cluster(18), workspace)
    stock = stock_backup(shop, workspace / "stock", "-T", f"{shop.space}={workspace / 'space'}")

    def change(copy: Path) -> None:
        path = sorted((copy / "base/1").iterdir())[3]
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)

    def make_incremental(copy: Path) -> None:
        more = "INCREMENTAL FROM LSN: 0/3000028\nINCREMENTAL FROM TLI: 1\n"
        (copy / "backup_label").write_text((copy / "backup_label").read_text() + more)

    cases: dict[str, Callable[[Path], object]] = {
        "what the manifest lists: base/1/": change,
        "is missing": lambda copy: sorted((copy / "base/1").iterdir())[3].unlink(),
        "take away what was added": lambda copy: (copy / "base/1/99999").write_bytes(bytes(8192)),
        "pg_combinebackup": make_incremental,
        "no backup_label": lambda copy: (copy / "backup_label").unlink(),
        "--wal DIR": lambda copy: shutil.rmtree(copy / "pg_wal"),
        "the manifest of": lambda copy: os.truncate(copy / "backup_manifest", 5000),
    }
    for number, (words, spoil) in enumerate(cases.items()):
        copy = workspace / f"copy{number}"
        shutil.copytree(stock, copy, symlinks=True)
        spoil(copy)
        done = shop.run("import", "shop", copy, check=False)
        assert done.returncode in (1, 3)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        shutil.rmtree(copy)
    assert len(shop.run_json("list", "shop")["clusters"][0]["backups"]) == 2
    assert json.loads(run_polarvault("repo", "info", shop.path, "--json").stdout)["intents"] == []
    # Of another system identifier, and older than what is there: it would count as the later one.
    other = RepositoryConfiguration("", str(workspace / "other"))
    made = make_repository(other, os.environ, now=datetime.now(UTC)).repository
    made.ensure_generation("shop", Generation(facts().system_identifier, 180000, False, 16 << 20, 1 << 30, True))
    back_up(made, two_trees()[0], minutes=10_000_000)
    done = run_polarvault("import", "shop", stock, "--repo", other.address, check=False)
    assert done.returncode == 2
    assert "has backups of a later system identifier" in done.stderr
    run_polarvault("import", "shop-old", stock, "--repo", other.address)
