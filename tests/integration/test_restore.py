"""Restores of plain PostgreSQL: started for real, compared with their source, and refused where they must be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.program import program_environment, run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


class Restored(Cluster):
    """A server that `restore --start` left running."""


@pytest.fixture
def restore(workspace: Path) -> Iterator[Callable[..., tuple[Restored, dict[str, Any]]]]:
    """A function that restores a backup with --start and returns the running server and the JSON result."""
    running: list[Restored] = []

    def run(source: Cluster, backup: Path, *options: str, name: str = "restored") -> tuple[Restored, dict[str, Any]]:
        target = workspace / name
        server = Restored(source.installation, workspace)
        server.data = target
        running.append(server)
        finished = run_polarvault(
            "restore", backup, "-D", target, "--port", str(server.port), "--bindir", source.installation.directory,
            "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off",
            "-N", "--start", "--json", *options,
        )  # fmt: skip
        return server, json.loads(finished.stdout)

    yield run
    for server in running:
        server.stop("immediate")


def back_up(cluster: Cluster, target: Path, *options: str) -> Path:
    """Take a backup with PostgreSQL's own tool: restore must not depend on ours."""
    cluster.run("pg_basebackup", "-d", cluster.conninfo(), "-c", "fast", "-N", "-D", str(target), *options)
    return target


def listing(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what a directory holds, to see later that nothing changed."""
    return {
        str(path.relative_to(directory)): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def timeline_of(server: Cluster) -> int:
    return int(server.query("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")[0][0], 16)


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-z"], ["-Ft", "-z", "-X", "fetch"]], ids=" ".join)
def test_a_restored_primary_answers_and_writes_its_own_timeline(
    any_pg: Cluster, workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]], options: list[str]
) -> None:
    backup = back_up(any_pg, workspace / "backup", *options)
    before = listing(backup)
    server, result = restore(any_pg, backup)
    assert server.hashes() == any_pg.hashes()
    assert result["server"]["in_recovery"] is False
    assert result["server"]["timeline"] == timeline_of(server) == timeline_of(any_pg) + 1
    assert server.query("SHOW archive_mode") == [("off",)]
    server.query("CREATE TABLE written_here AS SELECT 1")
    assert not list(server.data.glob("*.signal"))
    assert listing(backup) == before
    # What recovery needed must not stand in the way of an ordinary life.
    server.restart()
    assert server.hash_of("written_here")[0] == 1


def test_a_backup_without_its_empty_directories_is_restored_and_it_is_said(
    pg18: Cluster, workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    backup = back_up(pg18, workspace / "backup")
    subprocess.run(["find", backup, "-mindepth", "1", "-type", "d", "-empty", "-delete"], check=True)
    assert not (backup / "pg_tblspc").exists()
    verified = run_polarvault("verifybackup", backup)
    assert "empty directories are missing" in verified.stderr
    server, result = restore(pg18, backup)
    assert server.hashes() == pg18.hashes()
    assert any("pg_notify" in warning for warning in result["warnings"])
    server.restart()


def test_a_restored_standby_stays_read_only_until_it_is_promoted(
    any_pg: Cluster, workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    backup = back_up(any_pg, workspace / "backup")
    server, result = restore(any_pg, backup, "--as", "standby")
    assert result["server"]["in_recovery"] is True
    assert server.hashes() == any_pg.hashes()
    server.promote()
    assert timeline_of(server) == timeline_of(any_pg) + 1


def test_a_standby_with_a_connection_follows_its_primary(
    pg15: Cluster, workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    backup = back_up(pg15, workspace / "backup")
    pg15.query("CREATE TABLE after_the_backup AS SELECT generate_series(1, 10) AS n")
    pg15.query("SELECT pg_create_physical_replication_slot('pv_standby')")
    try:
        server, _ = restore(
            pg15, backup, "--as", "standby", "--primary-conninfo", pg15.conninfo(), "--slot", "pv_standby"
        )
        wait_until(lambda: server.query("SELECT to_regclass('after_the_backup')") != [(None,)], "the standby follows")
        assert server.hashes() == pg15.hashes()
        server.stop()
    finally:
        pg15.query("DROP TABLE after_the_backup")
        pg15.query("SELECT pg_drop_replication_slot('pv_standby')")


@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_tablespaces_move_and_share_nothing_with_source_and_backup(
    make_cluster: Callable[..., Cluster], workspace: Path, form: str,
    restore: Callable[..., tuple[Restored, dict[str, Any]]],
) -> None:  # fmt: skip
    source = make_cluster(15)
    places = [source.add_tablespace(name) for name in ("one", "two")]
    kept = places if form == "-Ft" else [workspace / f"kept{i}" for i in range(2)]
    mapping = [] if form == "-Ft" else [f"-T{old}={new}" for old, new in zip(places, kept, strict=True)]
    backup = back_up(source, workspace / "backup", form, *mapping)
    refused = run_polarvault("restore", backup, "-D", workspace / "no", check=False)
    assert refused.returncode != 0
    assert f"-T {kept[0]}=" in refused.stderr
    news = [workspace / f"new{i}" for i in range(2)]
    moves = [f"-T{old}={new}" for old, new in zip(kept, news, strict=True)]
    server, _ = restore(source, backup, *moves)
    assert server.hashes() == source.hashes()
    assert {link.readlink() for link in (server.data / "pg_tblspc").iterdir()} == set(news)


def test_small_segments_and_a_server_without_checksums_are_restored(
    make_cluster: Callable[..., Cluster], workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    source = make_cluster(15, wal_segment_mb=1, checksums=False)
    with source.pgbench():
        backup = back_up(source, workspace / "backup")
    server, _ = restore(source, backup)
    assert server.query("SELECT sum(abalance) FROM pgbench_accounts") == server.query(
        "SELECT sum(delta) FROM pgbench_history"
    )


def test_a_copy_of_a_server_that_was_shut_down_is_restored(
    make_cluster: Callable[..., Cluster], workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    source = make_cluster(15)
    hashes = source.hashes()
    source.stop()
    server, result = restore(source, source.data)
    assert server.hashes() == hashes
    assert any("shut down cleanly" in warning for warning in result["warnings"])


def test_settings_of_the_source_do_not_reach_its_archive_or_its_standbys(
    make_cluster: Callable[..., Cluster], workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    archive = workspace / "archive"
    source = make_cluster(15, settings={"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"})
    source.account.make_directory(archive)
    source.query("ALTER SYSTEM SET work_mem = '7MB'")
    backup = back_up(source, workspace / "backup")
    # Written afterwards: with nobody connected, the backup itself would wait for this standby.
    with open(backup / "postgresql.auto.conf", "a", encoding="utf-8") as settings:
        settings.write("synchronous_standby_names = 'gone'\n")
    source.stop()
    archived = set(archive.iterdir())
    server, result = restore(source, backup, "--set", "work_mem=9MB")
    server.query("CREATE TABLE written_here AS SELECT 1")
    server.query("SELECT pg_switch_wal()")
    server.stop()
    assert set(archive.iterdir()) == archived
    changes = {change["name"]: change for change in result["settings"]}
    assert (changes["work_mem"]["from"], changes["work_mem"]["to"]) == ("7MB", "9MB")
    assert changes["synchronous_standby_names"]["to"] is None


def test_wal_from_an_archive_is_used_when_the_backup_holds_none(
    make_cluster: Callable[..., Cluster], workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    archive = workspace / "archive"
    source = make_cluster(15, settings={"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"})
    source.account.make_directory(archive)
    backup = back_up(source, workspace / "backup", "-X", "none")
    plan = run_polarvault("restore", backup, "-D", workspace / "r", "--plan")
    assert "has to be supplied" in plan.stdout
    port = Cluster(source.installation, workspace).port
    refused = run_polarvault("restore", backup, "-D", workspace / "r", "--port", str(port), "--start", check=False)
    assert refused.returncode != 0
    assert "--wal" in refused.stderr
    assert not (workspace / "r").exists()
    server, _ = restore(source, backup, "--set", f'restore_command=cp {archive}/%f "%p"')
    assert server.hashes() == source.hashes()


def test_a_plan_changes_nothing(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    there = {path.name for path in workspace.iterdir()}
    shown = run_polarvault("restore", backup, "-D", workspace / "r", "--port", "1234", "--plan")
    assert {path.name for path in workspace.iterdir()} == there
    assert "nothing was written" in shown.stdout
    assert "1234" in shown.stdout
    plan = json.loads(run_polarvault("restore", backup, "-D", workspace / "r", "--plan", "--json").stdout)
    assert plan["space"][0]["needed"] > 1_000_000
    assert plan["missing_wal"] is None


def test_a_target_that_is_not_empty_is_never_touched(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    target = workspace / "r"
    target.mkdir()
    (target / "precious").write_text("mine")
    finished = run_polarvault("restore", backup, "-D", target, check=False)
    assert finished.returncode == 1
    assert "not empty" in finished.stderr
    assert {path.name: path.read_text() for path in target.iterdir()} == {"precious": "mine"}


def test_programs_of_another_version_are_refused_before_anything_is_written(
    pg15: Cluster, pg18: Cluster, workspace: Path
) -> None:
    backup = back_up(pg15, workspace / "backup")
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--bindir", pg18.installation.directory,
        "--port", str(Cluster(pg15.installation, workspace).port), "--start", check=False,
    )  # fmt: skip
    assert finished.returncode == 4
    assert "PostgreSQL 15" in finished.stderr
    assert not (workspace / "r").exists()


def test_a_path_that_pg_ctl_cannot_start_in_is_refused_before_anything_is_written(
    pg15: Cluster, workspace: Path
) -> None:
    backup = back_up(pg15, workspace / "backup")
    target = workspace / "it's $HOME"
    port = Cluster(pg15.installation, workspace).port
    finished = run_polarvault("restore", backup, "-D", target, "--start", "--port", str(port), check=False)
    assert finished.returncode == 2
    assert "with $ in its path" in finished.stderr
    assert not target.exists()


def test_a_port_that_is_taken_is_refused_before_anything_is_written(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    finished = run_polarvault("restore", backup, "-D", workspace / "r", "--start", check=False)
    assert finished.returncode == 2
    assert f"port {pg15.port} is in use" in finished.stderr
    assert not (workspace / "r").exists()


def test_a_server_that_does_not_start_shows_its_log_and_keeps_the_files(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--bindir", pg15.installation.directory, "--start",
        "--port", str(Cluster(pg15.installation, workspace).port),
        "--set", "shared_preload_libraries=no_such_library", "--set", f"unix_socket_directories={workspace}",
        check=False,
    )  # fmt: skip
    assert finished.returncode == 4
    assert 'could not access file "no_such_library"' in finished.stderr
    assert "polarvault-start.log" in finished.stderr
    assert (workspace / "r" / "global" / "pg_control").exists()


def test_a_server_that_pg_ctl_does_not_wait_for_is_waited_for(
    pg15: Cluster, workspace: Path, restore: Callable[..., tuple[Restored, dict[str, Any]]]
) -> None:
    """A machine so slow that the server has not written its first file when pg_ctl gives up."""
    slow, real = workspace / "slow", Path(pg15.installation.directory)
    slow.mkdir()
    for program in real.iterdir():
        (slow / program.name).symlink_to(program)
    (slow / "pg_ctl").unlink()
    (slow / "pg_ctl").write_text(f'#!/bin/sh\n(sleep 2; exec {real}/pg_ctl "$@") >/dev/null 2>&1 &\nsleep 1\nexit 1\n')
    (slow / "pg_ctl").chmod(0o755)
    backup = back_up(pg15, workspace / "backup")
    server, result = restore(pg15, backup, "--bindir", str(slow), "--target", "immediate", "--target-action", "promote")
    assert result["outcome"]["ended"] == "promoted"
    assert server.hashes() == pg15.hashes()


def test_a_damaged_tar_leaves_nothing_behind(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup", "-Ft")
    base = backup / "base.tar"
    with open(base, "r+b") as stream:
        stream.truncate(base.stat().st_size * 2 // 3)
    finished = run_polarvault("restore", backup, "-D", workspace / "r", check=False)
    assert finished.returncode == 3
    assert "base.tar" in finished.stderr
    assert not (workspace / "r").exists()


def test_a_damaged_pg_control_is_refused(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    control = backup / "global" / "pg_control"
    content = bytearray(control.read_bytes())
    content[100] ^= 1
    control.write_bytes(content)
    finished = run_polarvault("restore", backup, "-D", workspace / "r", check=False)
    assert finished.returncode == 3
    assert "CRC" in finished.stderr
    assert not (workspace / "r").exists()


def test_an_interrupted_restore_leaves_nothing_behind(pg15: Cluster, workspace: Path) -> None:
    backup = back_up(pg15, workspace / "backup")
    # In the middle of the copying, however fast or slow the machine is: when so many files have been closed.
    program = (
        "import os, signal; from polarvault.cli.entry import main\n"
        "close, files = os.close, iter(range(100_000))\n"
        "os.close = lambda one: (close(one), next(files) != 500 or os.kill(os.getpid(), signal.SIGINT)) and None\n"
        "main()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, "restore", backup, "-D", workspace / "r", "-j", "1"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", env=program_environment(), check=False,
    )  # fmt: skip
    assert finished.returncode == 128 + signal.SIGINT, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (workspace / "r").exists()
