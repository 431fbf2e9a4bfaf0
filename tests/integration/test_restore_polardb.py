"""Restores of a real PolarDB on shared storage: every form, every role, and live storage left alone."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.polardb

Restore = Callable[..., tuple[Cluster, dict[str, Any]]]


@pytest.fixture
def restore(polardb: PolarCluster, workspace: Path) -> Iterator[Restore]:
    """A function that restores a backup with --start and returns the running server and the JSON result."""
    running: list[Cluster] = []

    def run(backup: Path, *options: str, source: Cluster = polardb) -> tuple[Cluster, dict[str, Any]]:
        target = workspace / f"restored{len(running)}"
        server = Cluster(source.installation, workspace)
        server.data = target
        running.append(server)
        finished = run_polarvault(
            "restore", backup, "-D", target, "--port", str(server.port), "--bindir", source.installation.directory,
            "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N", "--start", "--json", *options,
        )  # fmt: skip
        return server, json.loads(finished.stdout)

    yield run
    for server in running:
        server.stop("immediate")


def back_up(cluster: PolarCluster, target: Path, *options: str) -> Path:
    """Take a backup with PolarDB's own tool: restore must not depend on ours."""
    arguments = ("-d", cluster.conninfo(), "-c", "fast", "-N", "-D", str(target), *options)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cluster.run, "polar_basebackup", *arguments)
        # On an idle server the tool would wait up to 20 s until the end of the backup is flushed (facts 1.6).
        while not wait([running], timeout=0.3).done:
            cluster.query("SELECT pg_logical_emit_message(true, 'test', '')")
        running.result()
    return target


def value(server: Cluster, query: str) -> Any:
    return server.query(query)[0][0]


def check_primary(server: Cluster, result: dict[str, Any], source: PolarCluster, shared: Path | None) -> None:
    assert server.hashes() == source.hashes()
    assert result["server"]["in_recovery"] is False
    assert result["server"]["timeline"] == 2
    wanted = "" if shared is None else f"file-dio://{shared}"
    assert value(server, "SHOW polar_datadir") == wanted
    assert value(server, "SHOW full_page_writes") == "on"
    server.query("CREATE TABLE written_here AS SELECT 1")
    assert value(source, "SELECT to_regclass('written_here')") is None


@pytest.mark.parametrize("options", [["-R"], ["-Ft"], ["-Ft", "-z"], ["-Ft", "-Z", "server-zstd"]], ids=" ".join)
def test_every_form_with_a_nested_shared_half_is_restored(
    polardb: PolarCluster, workspace: Path, restore: Restore, options: list[str]
) -> None:
    server, result = restore(back_up(polardb, workspace / "backup", *options))
    check_primary(server, result, polardb, server.data / "polar_shared_data")
    assert not list(server.data.rglob("*.signal"))
    server.restart()
    assert server.hash_of("written_here")[0] == 1


def test_two_halves_in_two_places_are_restored_to_two_places(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    backup = back_up(polardb, workspace / "backup", f"--polardata={workspace}/kept")
    alone = run_polarvault("restore", backup, "-D", workspace / "no", check=False)
    assert alone.returncode != 0
    assert "--shared-from" in alone.stderr
    shared = workspace / "new_shared"
    server, result = restore(backup, "--shared-from", str(workspace / "kept"), "--polardata", str(shared))
    check_primary(server, result, polardb, shared)
    assert (shared / "global" / "pg_control").exists()
    assert not (server.data / "global" / "pg_control").exists()


def test_halves_without_their_empty_directories_are_restored_and_it_is_said(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    backup = back_up(polardb, workspace / "backup")
    subprocess.run(["find", backup, "-mindepth", "1", "-type", "d", "-empty", "-delete"], check=True)
    assert not (backup / "base").exists()
    verified = run_polarvault("verifybackup", backup)
    assert "empty directories are missing" in verified.stderr
    server, result = restore(backup)
    check_primary(server, result, polardb, server.data / "polar_shared_data")
    assert any("pg_notify" in warning for warning in result["warnings"])
    server.restart()


def test_a_shared_half_inside_the_local_one_is_restored_to_its_own_place(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    backup = workspace / "backup"
    words = ("basebackup", "-d", polardb.conninfo(), "-c", "fast", "-N", "-D", backup)
    same = run_polarvault(*words, "--polardata", backup, check=False)
    assert (same.returncode, backup.exists()) == (1, False)
    assert "each half needs one of its own" in same.stderr
    run_polarvault(*words, "--polardata", backup / "inside")
    server, result = restore(backup)
    check_primary(server, result, polardb, server.data / "polar_shared_data")
    assert not (server.data / "inside").exists()


def test_halves_of_two_backups_are_refused(polardb: PolarCluster, workspace: Path) -> None:
    # Ours has a manifest in each half, the real tool's only in the local one.
    run_polarvault("basebackup", "-d", polardb.conninfo(), "-c", "fast", "-N", "-D", workspace / "old",
                   "--polardata", workspace / "old_shared")  # fmt: skip
    back_up(polardb, workspace / "new", f"--polardata={workspace}/new_shared")
    back_up(polardb, workspace / "newest", f"--polardata={workspace}/newest_shared")
    for local, shared in (("old", "new"), ("new", "old"), ("new", "newest"), ("newest", "new")):
        options = ("-D", workspace / "no", "--shared-from", workspace / f"{shared}_shared")
        refused = run_polarvault("restore", workspace / local, *options, check=False)
        assert refused.returncode == 1, (local, shared)
        assert "of two different backups" in refused.stderr
        assert not (workspace / "no").exists()


@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_merged_halves_run_without_shared_storage(
    polardb: PolarCluster, workspace: Path, restore: Restore, form: str
) -> None:
    server, result = restore(back_up(polardb, workspace / "backup", form), "--merge")
    check_primary(server, result, polardb, None)
    assert value(server, "SHOW polar_enable_shared_storage_mode") == "off"
    server.stop("immediate")
    server.start()
    assert server.hash_of("written_here")[0] == 1


def test_the_real_tools_tar_on_standard_output_is_restored_merged(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    single = workspace / "all.tar"
    with open(single, "wb") as stream:
        stream.write(_stdout_backup(polardb))
    refused = run_polarvault("restore", single, "-D", workspace / "no", check=False)
    assert "--merge" in refused.stderr
    wal = f'restore_command=cp {polardb.shared}/pg_wal/%f "%p"'
    server, result = restore(single, "--merge", "--set", wal)
    check_primary(server, result, polardb, None)


def test_our_single_tar_is_taken_apart_into_two_halves(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    backup = back_up(polardb, workspace / "backup", f"--polardata={workspace}/kept")
    single = workspace / "all.tar"
    with tarfile.open(single, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(backup, "")
        tar.add(workspace / "kept", "polar_shared_data")
    server, result = restore(single)
    check_primary(server, result, polardb, server.data / "polar_shared_data")


def test_a_standby_is_read_only_until_promoted_to_a_new_timeline(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    server, result = restore(back_up(polardb, workspace / "backup"), "--as", "standby")
    assert (result["server"]["in_recovery"], result["server"]["node_type"]) == (True, "standby")
    assert server.hashes() == polardb.hashes()
    server.promote()
    assert value(server, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)") == "00000002"


def test_a_standby_with_a_connection_follows_the_primary(
    polardb: PolarCluster, workspace: Path, restore: Restore
) -> None:
    backup = back_up(polardb, workspace / "backup")
    polardb.query("CREATE TABLE after_the_backup AS SELECT generate_series(1, 10) AS n")
    try:
        server, _ = restore(backup, "--as", "standby", "--primary-conninfo", polardb.conninfo())
        wait_until(lambda: value(server, "SELECT to_regclass('after_the_backup')"), "the standby follows")
        assert server.hash_of("after_the_backup") == polardb.hash_of("after_the_backup")
        server.stop()
    finally:
        polardb.query("DROP TABLE after_the_backup")


def test_storage_named_in_every_file_is_left_alone(
    make_polardb: Callable[..., PolarCluster], workspace: Path, restore: Restore
) -> None:
    source = make_polardb()
    live = f"file-dio://{source.shared}"
    source.query(f"ALTER SYSTEM SET polar_datadir = '{live}'")
    source.query("ALTER SYSTEM FOR CLUSTER SET archive_command = 'false'")
    backup = back_up(source, workspace / "backup")
    source.stop()
    control = (source.shared / "global" / "pg_control").read_bytes()
    server, result = restore(backup, source=source)
    assert value(server, "SHOW polar_datadir") == f"file-dio://{server.data}/polar_shared_data"
    server.query("CREATE TABLE written_here AS SELECT 1")
    server.query("CHECKPOINT")
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        lines = (server.data / name).read_text().splitlines()
        assert all(line.startswith("#") for line in lines if f"'{live}'" in line)
    assert (source.shared / "global" / "pg_control").read_bytes() == control
    assert {change["name"]: change["from"] for change in result["settings"]}["polar_datadir"] == live


def test_set_cannot_point_a_restored_copy_at_live_storage(polardb: PolarCluster, workspace: Path) -> None:
    backup = back_up(polardb, workspace / "backup")
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--bindir", polardb.installation.directory,
        "--set", f"polar_datadir=file-dio://{polardb.shared}", check=False,
    )  # fmt: skip
    assert finished.returncode != 0
    assert "polar_datadir" in finished.stderr
    assert not (workspace / "r").exists()


def test_plain_postgresql_programs_are_refused(polardb: PolarCluster, pg15: Cluster, workspace: Path) -> None:
    backup = back_up(polardb, workspace / "backup")
    finished = run_polarvault(
        "restore", backup, "-D", workspace / "r", "--bindir", pg15.installation.directory,
        "--port", str(Cluster(pg15.installation, workspace).port), "--start", check=False,
    )  # fmt: skip
    assert finished.returncode == 4
    assert "not PolarDB" in finished.stderr
    assert not (workspace / "r").exists()


def test_a_backup_of_a_read_only_node_is_refused(polardb: PolarCluster, workspace: Path) -> None:
    backup = back_up(polardb, workspace / "backup")
    (backup / "replica.signal").touch()
    finished = run_polarvault("restore", backup, "-D", workspace / "r", check=False)
    assert finished.returncode == 1
    assert "read-only node" in finished.stderr


def _stdout_backup(cluster: PolarCluster) -> bytes:
    return subprocess.run(
        [
            str(cluster.installation.program("polar_basebackup")), "-d", cluster.conninfo(),
            *("-c", "fast", "-N", "-D", "-", "-Ft", "-X", "none"),
        ],
        check=True, capture_output=True, cwd=cluster.directory,
        env=cluster.account.environment(cluster.directory), **cluster.account.run_as,
    ).stdout  # fmt: skip
