"""Backups of which PostgreSQL 17 and later sends what changed: what is restored is what the server has."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.index.files import FileKind
from polarvault.repository.index.root import PartArea
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from support.backups import run_program
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import has_program

SETTINGS = {"summarize_wal": "on", "autovacuum": "off", "wal_level": "replica"}
# Of two copies of a server that rests these differ, or mean nothing to a restored one.
_VOLATILE = (
    "backup_label", "backup_manifest", "global/pg_control", "polarvault_backup", "pg_wal/", "pg_stat", "pg_logical/",
)  # fmt: skip


def backed_up(cluster: Cluster, path: Path, *options: str) -> dict[str, Any]:
    done = run_polarvault("backup", "shop", "--repo", path, "-d", cluster.conninfo(), "--json", *options)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_equal(cluster: Cluster, path: Path, label: str, directory: Path) -> int:
    """Compare a backup with a full copy of the resting server; return how many files of maps have lost bits."""
    run_polarvault(
        "basebackup", "-D", directory, "-d", cluster.conninfo(), "-c", "fast",
        *(word for space, place in tablespaces(cluster) for word in ("-T", f"{place}={directory}-{space}")),
    )  # fmt: skip
    return assert_same_files(path, label, directory)


def assert_same_files(path: Path, label: str, directory: Path) -> int:
    """Compare a backup with a directory; return how many files of maps have lost bits."""
    reader = Repository.open(WriteOnce(LocalStore(str(path)))).open_backup("shop", label)
    lost = 0
    names = set()
    for row in reader.rows():
        part = reader.root.parts[row.part]
        root = directory if part.area is PartArea.LOCAL else directory / "pg_tblspc" / str(part.oid)
        if row.kind is not FileKind.FILE or row.name.startswith(_VOLATILE):
            continue
        names.add((row.part, row.name))
        mine, theirs = b"".join(map(bytes, reader.stream(row))), (root / row.name).read_bytes()
        if row.name.endswith("_vm") and mine != theirs:
            # Bits may be missing, and none may be there that the server does not have.
            assert len(mine) <= len(theirs) or not any(mine[len(theirs) :])
            pages = [(mine[at : at + 8192], theirs[at : at + 8192]) for at in range(0, len(mine), 8192)]
            assert all(one == other or not any(one) for one, other in pages), row.name
            lost += 1
        else:
            assert mine == theirs, row.name
    assert len(names) > 900
    return lost


def tablespaces(cluster: Cluster) -> list[tuple[str, str]]:
    rows = cluster.query("SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000")
    return [(name, place) for name, place in rows]


class Chain:
    """The backups that pg_basebackup takes of the same server: a full one, and what changed since."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self._cluster, self._workspace = cluster, workspace
        self._parts: list[Path] = []

    def back_up(self) -> None:
        """Take the next one."""
        target = self._workspace / f"part{len(self._parts)}"
        earlier = [f"--incremental={self._parts[-1] / 'backup_manifest'}"] if self._parts else []
        spaces = [f"--tablespace-mapping={place}={target}-{name}" for name, place in tablespaces(self._cluster)]
        self._run("pg_basebackup", "-D", target, "-d", self._cluster.conninfo(), "-c", "fast", *earlier, *spaces)
        self._parts.append(target)

    def put_together(self, target: Path) -> Path:
        """Have pg_combinebackup make a full one of all of them."""
        last = self._parts[-1]
        spaces = [f"--tablespace-mapping={last}-{name}={target}-{name}" for name, _ in tablespaces(self._cluster)]
        self._run("pg_combinebackup", "--no-sync", "-o", target, *spaces, *self._parts)
        return target

    def _run(self, program: str, *words: str | Path) -> None:
        finished = run_program(self._cluster.installation, program, *map(str, words))
        assert finished.returncode == 0, finished.stderr


def remove_copies(workspace: Path, name: str) -> None:
    """Remove a copy and its tablespaces, which would take much room together."""
    for found in workspace.glob(f"{name}*"):
        shutil.rmtree(found)


def fill(cluster: Cluster) -> None:
    cluster.query(
        "CREATE TABLE plain AS SELECT n AS id, n % 7 AS grp, repeat('x', 500) AS filler "
        "FROM generate_series(1, 20000) n"
    )
    cluster.query("CREATE INDEX ON plain (id)")
    cluster.query("CREATE TABLE emptied (n int)")
    cluster.add_tablespace("far")
    cluster.query("CREATE TABLE moving AS SELECT n FROM generate_series(1, 20000) n")
    cluster.query("CREATE UNLOGGED TABLE lost AS SELECT 1 AS n")


def churn(cluster: Cluster, rng: random.Random, number: int) -> None:
    steps: list[Callable[[], Any]] = [
        lambda: cluster.query(f"UPDATE plain SET grp = grp + 1 WHERE id % {rng.randrange(40, 90)} = 0"),
        lambda: cluster.query("DELETE FROM plain WHERE id > 15000"),
        lambda: cluster.query("INSERT INTO plain SELECT n, n, repeat('y', 500) FROM generate_series(15001, 19000) n"),
        lambda: cluster.query("TRUNCATE emptied"),
        lambda: cluster.query("INSERT INTO emptied SELECT n FROM generate_series(1, 30000) n"),
        lambda: cluster.query("VACUUM (FREEZE) plain"),
        lambda: cluster.query("VACUUM FULL plain"),
        lambda: cluster.query("REINDEX TABLE plain"),
        lambda: cluster.query(f"CREATE DATABASE d{number} STRATEGY = {rng.choice(['wal_log', 'file_copy'])}"),
        lambda: cluster.query(f"ALTER TABLE moving SET TABLESPACE {rng.choice(['pg_default', 'far'])}"),
        lambda: cluster.query("SELECT count(*) FROM plain"),
    ]
    for step in rng.sample(steps, 5):
        step()


@pytest.mark.parametrize(
    ("major", "checksums", "rounds"), [(17, True, 5), (18, True, 5), (18, False, 10), (19, True, 5)]
)
def test_what_the_server_sends_of_changes_makes_the_whole(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int, checksums: bool, rounds: int
) -> None:
    # Hint bits that no WAL tells of would make two copies of a resting server differ.
    hints = {} if checksums else {"wal_log_hints": "on"}
    cluster = make_cluster(major, checksums=checksums, settings=SETTINGS | hints)
    rng = random.Random(major)
    path = workspace / "repository"
    run_polarvault("repo", "init", path)
    fill(cluster)
    first = backed_up(cluster, path, "--source", "stream")
    assert first["parent"] is None
    label = first["label"]
    for number in range(rounds):
        churn(cluster, rng, number)
        cluster.query("CHECKPOINT")
        found = backed_up(cluster, path)
        assert (found["parent"], found["notes"]) == (label, [])
        assert "the server sends what has changed" in found["reason"]
        assert found["received_bytes"] < first["received_bytes"]
        label = found["label"]
        copy = workspace / f"copy{number}"
        assert_equal(cluster, path, label, copy)
        remove_copies(workspace, copy.name)
    before = cluster.hashes()
    target = workspace / "back"
    restored = Cluster(cluster.installation, workspace)
    restored.data = target
    mapping = [word for name, place in tablespaces(cluster) for word in ("-T", f"{place}={workspace / name}-back")]
    run_polarvault(
        "restore", "shop", "--repo", path, "-D", target, "--port", str(restored.port), "--bindir",
        cluster.installation.directory, "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N",
        "--start", *mapping,
    )  # fmt: skip
    try:
        assert restored.hashes() == before
    finally:
        restored.stop("immediate")
    out = workspace / "out"
    places = [word for name, place in tablespaces(cluster) for word in ("-T", f"{place}={workspace / name}-out")]
    run_polarvault("export", "shop", "--repo", path, "-D", out, *places)
    if has_program(cluster.installation, "pg_verifybackup"):
        assert run_program(cluster.installation, "pg_verifybackup", "-n", str(out)).returncode == 0
    assert run_polarvault("repo", "check", path, "--read-data", check=False).returncode == 0
    assert run_polarvault("verify", "shop", "--repo", path, check=False).returncode == 0


@pytest.mark.parametrize("major", [17, 18, 19])
def test_what_the_server_sends_of_changes_makes_what_pg_combinebackup_makes_of_them(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    cluster = make_cluster(major, settings=SETTINGS)
    for program in ("pg_basebackup", "pg_combinebackup"):
        if not has_program(cluster.installation, program):
            pytest.skip(f"there is no {program} beside PostgreSQL {major}: {cluster.installation.directory}")
    rng = random.Random(major)
    path = workspace / "repository"
    run_polarvault("repo", "init", path)
    fill(cluster)
    chain = Chain(cluster, workspace)
    label = backed_up(cluster, path)["label"]
    chain.back_up()
    for number in range(10):
        churn(cluster, rng, number)
        cluster.query("CHECKPOINT")
        found = backed_up(cluster, path)
        assert (found["parent"], found["notes"]) == (label, [])
        assert "the server sends what has changed" in found["reason"]
        label = found["label"]
        chain.back_up()
        if number % 3 == 0:
            assert_same_files(path, label, chain.put_together(workspace / f"combined{number}"))
            remove_copies(workspace, f"combined{number}")


def test_where_the_server_has_no_summaries_it_sends_everything_and_the_backup_says_so(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, settings={"summarize_wal": "off"})
    path = workspace / "repository"
    run_polarvault("repo", "init", path)
    first = backed_up(cluster, path)
    for number in range(3):
        # WAL that is not there any more cannot be summarized.
        cluster.query(f"CREATE TABLE later{number} AS SELECT 1 AS one")
        cluster.query("SELECT pg_switch_wal()")
        cluster.query("CHECKPOINT")
    cluster.query("ALTER SYSTEM SET summarize_wal = on")
    cluster.query("SELECT pg_reload_conf()")
    second = backed_up(cluster, path)
    assert second["parent"] == first["label"]
    note, *_ = second["notes"]
    assert "the server cannot tell what has changed, and sends everything" in note
    assert second["reason"] == "the last backup on this timeline"
    third = backed_up(cluster, path)
    assert "the server sends what has changed" in third["reason"]
    assert backed_up(cluster, path, "--full")["parent"] is None
