"""`restore --delta`: what was there becomes what a restore into an empty directory makes, byte for byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polarvault.storage.occupants import RESTORE_MARK_NAME
from support.cluster import Cluster
from support.program import run_polarvault

pytestmark = pytest.mark.postgres


class Shop:
    """A server with two backups in a repository: `first`, and `second` after much has changed."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster = cluster
        self.workspace = workspace
        self.repository = workspace / "repository"
        run_polarvault("repo", "init", self.repository)
        self.cluster.query("CREATE TABLE gone AS SELECT n, repeat('g', 300) AS v FROM generate_series(1, 4000) n")
        self.space = self.cluster.add_tablespace("far")
        self.before = self.cluster.hashes()
        self.first = self.back_up()
        self.cluster.query(
            "DROP TABLE gone; CREATE TABLE more AS SELECT n, md5(n::text) FROM generate_series(1, 9000) n"
        )
        self.cluster.query("UPDATE accounts SET balance = balance + 1 WHERE id % 50 = 0")
        self.cluster.query("CREATE DATABASE other")
        self.second = self.back_up()

    def back_up(self) -> str:
        done = run_polarvault("backup", "shop", "--repo", self.repository, "-d", self.cluster.conninfo(), "--json")
        label: str = json.loads(done.stdout)["label"]
        return label

    def restore(self, label: str, target: Path, *options: str, check: bool = True) -> Any:
        return run_polarvault(
            "restore", f"shop@{label}", "--repo", self.repository, "-D", target, "-N", "--bindir",
            self.cluster.installation.directory, "-T", f"{self.space}={target}-far", *options, check=check,
        )  # fmt: skip


def content(target: Path) -> dict[str, tuple[str, bytes]]:
    """Return everything in a target and its tablespace; what names the place itself is called alike."""
    found = {}
    for root in (target, Path(f"{target}-far")):
        for path in root.rglob("*"):
            name = f"{root.name.removeprefix(target.name)}/{path.relative_to(root)}"
            status = path.lstat()
            if path.is_symlink():
                found[name] = ("link", os.fsencode(os.readlink(path).replace(str(target), "TARGET")))
            elif path.is_dir():
                found[name] = (f"directory {stat.S_IMODE(status.st_mode):o}", b"")
            else:
                text = path.read_bytes().replace(os.fsencode(str(target)), b"TARGET")
                found[name] = (f"file {stat.S_IMODE(status.st_mode):o} {status.st_uid}", text)
    return found


def assert_same(target: Path, other: Path) -> None:
    mine, theirs = content(target), content(other)
    assert mine.keys() == theirs.keys()
    assert [name for name, what in mine.items() if what != theirs[name]] == []


@pytest.fixture
def shop(make_cluster: Callable[..., Cluster], workspace: Path, request: pytest.FixtureRequest) -> Shop:
    cluster = make_cluster(getattr(request, "param", 15), wal_segment_mb=1)
    return Shop(cluster, workspace)


def spoil(target: Path, rng: random.Random) -> None:
    """Do to a data directory what disks, people and servers do."""
    files = sorted(path for path in target.glob("base/*/*") if path.is_file() and path.stat().st_size > 8192)
    for path in rng.sample(files, 12):
        with path.open("r+b") as stream:
            stream.seek(rng.randrange(path.stat().st_size))
            stream.write(b"\xa5")
    cut, grown, missing, linked, foreign, as_directory = rng.sample(files, 6)
    os.truncate(cut, cut.stat().st_size - 5000)
    with grown.open("ab") as stream:
        stream.write(bytes(20000))
    missing.unlink()
    os.link(linked, target.parent / "snapshot")
    outside = target.parent / "outside"
    outside.write_bytes(b"not ours")
    outside.chmod(0o666)
    foreign.unlink()
    foreign.symlink_to(outside)
    as_directory.unlink()
    (as_directory / "deep").mkdir(parents=True)
    (as_directory / "deep" / "file").write_bytes(b"x")
    (target / "base" / "99999").mkdir()
    (target / "base" / "99999" / "1259").write_bytes(b"a database that does not belong")
    (target / "standby.signal").write_bytes(b"")
    shutil.rmtree(target / "pg_twophase")
    next(target.glob("base/*/PG_VERSION")).chmod(0o644)
    for path in [target, *target.rglob("*")]:
        os.lchown(path, target.stat().st_uid, target.stat().st_gid)


@pytest.mark.parametrize("shop", [15, 18], indirect=True)
def test_what_was_there_becomes_the_backup_byte_for_byte(
    shop: Shop, workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    fresh, target = workspace / "fresh", workspace / "target"
    shop.restore(shop.first, fresh)
    shop.restore(shop.second, target)
    (Path(f"{target}-far") / "PG_9.6_201608131").mkdir()
    spoil(target, random.Random(shop.cluster.installation.major))
    snapshot = (workspace / "snapshot").read_bytes()
    planned = json.loads(shop.restore(shop.first, target, "--delta", "--plan", "--json").stdout)["delta"]
    before = content(target)
    done = json.loads(shop.restore(shop.first, target, "--delta", "--json").stdout)["delta"]
    assert before != content(target)
    # A tablespace's directory may be shared with clusters of other versions.
    (Path(f"{target}-far") / "PG_9.6_201608131").rmdir()
    assert_same(target, fresh)
    assert (workspace / "outside").read_bytes() == b"not ours"
    assert (workspace / "snapshot").read_bytes() == snapshot
    assert 0 < done["written_bytes"] < 0.5 * done["compared_bytes"]
    assert done["removed_files"] > 2
    assert {**planned, "compared_bytes": 0} == {**done, "compared_bytes": 0}
    # Again, after one that was cut off before it had made its link; nothing but WAL is left to do.
    for path in target.glob("pg_tblspc/*"):
        path.unlink()
    (Path(f"{target}-far") / RESTORE_MARK_NAME).touch()
    again = json.loads(shop.restore(shop.first, target, "--delta", "--json").stdout)["delta"]
    assert again["written_bytes"] < 100_000
    assert_same(target, fresh)
    restored = start_restored(shop.cluster.installation.major, target)
    assert restored.hashes() == shop.before
    restored.query("CREATE TABLE since AS SELECT 1")
    restored.stop()
    archive = target / "archive"
    archive.mkdir()
    (archive / "000000010000000000000001").write_bytes(b"somebody keeps it here")
    refused = shop.restore(shop.second, target, "--delta", "--wal", archive, check=False)
    assert f'"{archive}" lies in the target' in refused.stderr
    shutil.rmtree(archive)
    # Now it was a server's, on another timeline; its WAL is nowhere else.
    own = {path.name: path.read_bytes() for path in (target / "pg_wal").glob("00000002????????????????")}
    newer = workspace / "newer"
    shop.restore(shop.second, newer)
    said = shop.restore(shop.second, target, "--delta").stderr
    kept = target / "pg_wal" / "polarvault-before"
    assert f'it is kept in "{kept}"' in said
    last = max(path.name for path in kept.iterdir())
    assert all(path.read_bytes() == own[path.name] for path in kept.glob("00000002*"))
    assert last in own
    shop.restore(shop.second, target, "--delta")
    assert last in {path.name for path in kept.iterdir()}
    shutil.rmtree(kept)
    assert_same(target, newer)
