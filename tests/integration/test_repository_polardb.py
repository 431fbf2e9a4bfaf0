"""Backups of a real PolarDB in a repository: both halves, incremental, restored to where they belong, and merged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.polardb


def back_up(source: PolarCluster, repository: Path) -> dict[str, Any]:
    done = run_polarvault("backup", "shop", "--repo", repository, "-d", source.conninfo(), "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_both_halves_come_back_and_only_changes_are_stored(polardb: PolarCluster, workspace: Path) -> None:
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    first = back_up(polardb, repository)
    polardb.query("CREATE TABLE of_repository AS SELECT n, md5(n::text) AS v FROM generate_series(1, 5000) n")
    second = back_up(polardb, repository)
    assert (first["parent"], second["parent"]) == (None, first["label"])
    assert second["stored_bytes"] < first["stored_bytes"] / 3
    wanted = polardb.hashes()
    listed = json.loads(run_polarvault("list", "shop", "--repo", repository, "--json").stdout)
    assert [one["state"] for one in listed["clusters"][0]["backups"]] == ["good", "good"]
    for number, (word, more) in enumerate((("shop", []), (f"shop@{second['label']}", ["--merge"]))):
        target, shared = workspace / f"local{number}", workspace / f"shared{number}"
        server = Cluster(polardb.installation, workspace)
        server.data = target
        places = [] if more else ["--polardata", shared]
        try:
            run_polarvault(
                "restore", word, "--repo", repository, "-D", target, *places, "--port", str(server.port), "--bindir",
                polardb.installation.directory, "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off",
                "-N", "--start", *more,
            )  # fmt: skip
            assert server.hashes() == wanted
        finally:
            server.stop("immediate")
    polardb.query("DROP TABLE of_repository")


def test_both_halves_are_exported_each_with_a_manifest_that_stock_tools_accept(
    polardb: PolarCluster, workspace: Path
) -> None:
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    back_up(polardb, repository)
    local, shared, tars = workspace / "local", workspace / "shared", workspace / "tars"
    run_polarvault("export", "shop", "--repo", repository, "-D", local, "--polardata", shared)
    program = Path(polardb.installation.directory) / "pg_verifybackup"
    for half in (local, shared):
        done = subprocess.run([program, half], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    run_polarvault("verifybackup", local)
    run_polarvault("export", "shop", "--repo", repository, "-D", tars, "-Ft")
    run_polarvault("verifybackup", tars)
    wanted = polardb.hashes()
    server = Cluster(polardb.installation, workspace)
    server.data = workspace / "server"
    try:
        run_polarvault(
            "restore", tars, "-D", server.data, "--port", str(server.port), "--bindir", polardb.installation.directory,
            "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N", "--start",
        )  # fmt: skip
        assert server.hashes() == wanted
    finally:
        server.stop("immediate")


@pytest.mark.parametrize("program", ["polarvault", "polar_basebackup"])
def test_both_halves_of_a_backup_in_files_are_imported(polardb: PolarCluster, workspace: Path, program: str) -> None:
    repository, local, shared = workspace / "repository", workspace / "local", workspace / "shared"
    run_polarvault("repo", "init", repository)
    if program == "polarvault":
        run_polarvault("basebackup", "-D", local, "--polardata", shared, "-d", polardb.conninfo(), "-c", "fast")
    else:
        tool = Path(polardb.installation.directory) / program
        words = [tool, "-D", local, f"--polardata={shared}", "-d", polardb.conninfo(), "-c", "fast", "-X", "stream"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    run_polarvault("import", "shop", local, "--shared-from", shared, "--repo", repository)
    later = back_up(polardb, repository)
    assert later["parent"] is not None
    wanted = polardb.hashes()
    out, out_shared = workspace / "out", workspace / "out-shared"
    first = str(later["parent"])
    run_polarvault("export", f"shop@{first}", "--repo", repository, "-D", out, "--polardata", out_shared)
    for half in (out, out_shared):
        check = Path(polardb.installation.directory) / "pg_verifybackup"
        done = subprocess.run([check, half], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    server = Cluster(polardb.installation, workspace)
    server.data = workspace / "server"
    try:
        run_polarvault(
            "restore", f"shop@{first}", "--repo", repository, "-D", server.data, "--port", str(server.port), "--bindir",
            polardb.installation.directory, "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off",
            "-N", "--start",
        )  # fmt: skip
        assert server.hashes() == wanted
    finally:
        server.stop("immediate")


def halves(local: Path, shared: Path) -> dict[str, bytes | None]:
    """Return the files and directories of both halves; what names the places themselves is called alike."""
    found: dict[str, bytes | None] = {}
    for root, name in ((local, "local"), (shared, "shared")):
        for path in root.rglob("*"):
            content = path.read_bytes() if path.is_file() else None
            for place, word in ((local, b"LOCAL"), (shared, b"SHARED")):
                content = None if content is None else content.replace(str(place).encode(), word)
            found[f"{name}/{path.relative_to(root)}"] = content
    return found


def test_both_halves_are_brought_to_a_backup_in_place(polardb: PolarCluster, workspace: Path) -> None:
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    label = back_up(polardb, repository)["label"]
    wanted = polardb.hashes()

    def restore(local: Path, shared: Path, *options: str, status: int = 0) -> str:
        done = run_polarvault(
            "restore", f"shop@{label}", "--repo", repository, "-D", local, "--polardata", shared, "--bindir",
            polardb.installation.directory, "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off",
            "-N", *options, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stderr

    server = Cluster(polardb.installation, workspace)
    server.data, shared = workspace / "local", workspace / "shared"
    port = ["--port", str(server.port)]
    try:
        restore(server.data, shared, *port, "--start")
        server.query("CREATE TABLE since AS SELECT n FROM generate_series(1, 5000) n; DELETE FROM accounts")
    finally:
        server.stop()
    before = halves(server.data, shared)
    assert "--yes-shared" in restore(server.data, shared, *port, "--delta", status=2)
    assert halves(server.data, shared) == before
    restore(server.data, shared, *port, "--delta", "--yes-shared")
    kept = shared / "pg_wal" / "polarvault-before"
    shutil.rmtree(kept, ignore_errors=True)
    restore(workspace / "fresh_local", workspace / "fresh_shared", *port)
    found, fresh = halves(server.data, shared), halves(workspace / "fresh_local", workspace / "fresh_shared")
    assert found.keys() == fresh.keys()
    assert [name for name, content in found.items() if content != fresh[name]] == []
    try:
        restore(server.data, shared, *port, "--delta", "--yes-shared", "--start")
        assert server.hashes() == wanted
    finally:
        server.stop("immediate")


@pytest.mark.parametrize("writes", ["off", "on"])
def test_one_database_comes_back_alone_where_whole_pages_are_in_the_wal(
    polardb: PolarCluster, workspace: Path, writes: str
) -> None:
    ((before,),) = polardb.query("SHOW full_page_writes")
    _set_whole_pages(polardb, writes)
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    polardb.query("CREATE DATABASE apart")
    polardb.query("CREATE TABLE filled AS SELECT n FROM generate_series(1, 20000) n", dbname="apart")
    back_up(polardb, repository)
    wanted = polardb.hashes()
    server = Cluster(polardb.installation, workspace)
    server.data = workspace / "local"
    done = run_polarvault(
        "restore", "shop", "--repo", repository, "-D", server.data, "--polardata", workspace / "shared", "--port",
        str(server.port), "--bindir", polardb.installation.directory, "--set",
        f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N", "--start", "--only", "postgres",
        check=False,
    )  # fmt: skip
    polardb.query("DROP DATABASE apart")
    _set_whole_pages(polardb, before)
    if writes == "off":
        assert "with full_page_writes off" in done.stderr
        assert not server.data.exists()
        return
    try:
        assert done.returncode == 0, done.stderr
        assert 'database "apart" was left out and refuses connections' in done.stdout
        assert server.hashes() == wanted
        server.query("DROP DATABASE apart")
    finally:
        server.stop("immediate")


def _set_whole_pages(polardb: PolarCluster, value: str) -> None:
    polardb.query(f"ALTER SYSTEM SET full_page_writes = {value}")
    polardb.query("SELECT pg_reload_conf()")
    wait_until(lambda: polardb.query("SHOW full_page_writes") == [(value,)], "the setting is in force")
