"""PolarDB on a real PFS, under load: backups from it by both sources, restores into it, replicas, PITR, hard ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polarvault.instance.model import Binaries
from polarvault.model.pfs_address import PfsAddress
from polarvault.storage.occupants import RESTORE_MARK_NAME
from support.cluster import Cluster
from support.pfs_cluster import PfsCluster, contents_in_pfs, missing_pfs, remove_from_pfs
from support.pfs_disks import fresh_directory, pfs_disks
from support.program import command_line, program_environment, run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.polardb
SOURCE_HOST, RESTORED_HOST, REPLICA_HOST = 11, 12, 13


@pytest.fixture(scope="module")
def installation(polardb_installation: Binaries) -> Binaries:
    why = missing_pfs(polardb_installation)
    if why is not None:
        pytest.skip(why)
    return polardb_installation


@pytest.fixture
def place() -> Iterator[Callable[[int], PfsAddress]]:
    """A function that returns a directory that nobody has on disk N; it is removed afterwards."""
    given: list[PfsAddress] = []

    def fresh(number: int) -> PfsAddress:
        given.append(fresh_directory(pfs_disks()[number]))
        return given[-1]

    yield fresh
    for one in given:
        remove_from_pfs(one)


@pytest.fixture
def source(installation: Binaries, workspace: Path, place: Callable[[int], PfsAddress]) -> Iterator[PfsCluster]:
    settings = {"archive_mode": "on", "archive_timeout": "0", "archive_command": "/bin/true"}
    cluster = PfsCluster.made_in_pfs(
        installation, workspace / "source", place(0), host_id=SOURCE_HOST, settings=settings
    )
    yield cluster
    cluster.stop("immediate")


@pytest.fixture
def restore(source: PfsCluster, workspace: Path) -> Iterator[Callable[..., tuple[Cluster, dict[str, Any]]]]:
    """A function that restores with --start and returns the running server and the JSON result."""
    running: list[Cluster] = []

    def run(backup: Path | str, target: str, *options: str) -> tuple[Cluster, dict[str, Any]]:
        server = Cluster(source.installation, workspace)
        server.data = workspace / f"restored{len(running)}"
        running.append(server)
        finished = run_polarvault(
            "restore", backup, "-D", server.data, "--polardata", target, "--port", str(server.port),
            "--bindir", source.installation.directory, "--set", f"unix_socket_directories={workspace}", "-N",
            "--start", "--json", *options, timeout_s=300,
        )  # fmt: skip
        return server, json.loads(finished.stdout)

    yield run
    for server in reversed(running):
        server.stop("immediate")


def back_up(source: PfsCluster, target: Path, kind: str, *options: str) -> Path:
    run_polarvault(
        "basebackup", "-h", source.directory, "-p", str(source.port), "-U", "postgres", "-c", "fast", "-N", "-v",
        "--source", kind, "-D", target, "--polardata", target.with_suffix(".shared"), *options, timeout_s=300,
    )  # fmt: skip
    return target


def relations(directory: Path) -> dict[str, int]:
    """Return the files of a backup with their sizes, WAL apart."""
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file() and "pg_wal" not in path.parts
    }


def test_both_sources_bring_the_same_files_and_no_transaction_fails(source: PfsCluster, workspace: Path) -> None:
    source.run("pgbench", "-h", str(source.directory), "-p", str(source.port), "-U", "postgres", "-i", "-q", "postgres")
    source.query("CHECKPOINT")
    still = {kind: back_up(source, workspace / f"still-{kind}", kind) for kind in ("pfs", "stream")}
    for suffix in ("", ".shared"):
        found = [set(relations(path.with_suffix(suffix))) for path in still.values()]
        assert found[0] == found[1]
    rolled_back = "SELECT xact_rollback FROM pg_stat_database WHERE datname = 'postgres'"
    with source.pgbench(clients=4):
        before = source.query(rolled_back)
        busy = back_up(source, workspace / "busy", "pfs")
        assert source.query(rolled_back) == before
    run_polarvault("verifybackup", busy)


def test_from_pfs_to_a_second_disk_promoted_written_with_a_replica(
    source: PfsCluster, workspace: Path, place: Callable[[int], PfsAddress],
    restore: Callable[..., tuple[Cluster, dict[str, Any]]],
) -> None:  # fmt: skip
    with source.pgbench(clients=2):
        backup = back_up(source, workspace / "backup", "auto")
    target = place(1)
    restored, result = restore(backup, str(target), "--hostid", str(RESTORED_HOST))
    assert result["server"]["in_recovery"] is False
    assert result["server"]["timeline"] == 2
    assert restored.hash_of("accounts") == source.hash_of("accounts")
    assert restored.query("SHOW polar_datadir") == [(f"{target.path}/",)]
    tables = ("pgbench_accounts", "pgbench_tellers", "pgbench_branches")
    sums = [restored.query(f"SELECT sum({name[8]}balance) FROM {name}")[0][0] for name in tables]
    assert sums[0] == sums[1] == sums[2] == restored.query("SELECT coalesce(sum(delta), 0) FROM pgbench_history")[0][0]
    replica, result = restore(
        backup, str(target), "--as", "replica", "--hostid", str(REPLICA_HOST), "--slot", "ro1", "--create-slot",
        "--primary-conninfo", f"host={workspace} port={restored.port} user=postgres",
    )  # fmt: skip
    restored.query("CREATE TABLE written_here AS SELECT n FROM generate_series(1, 1000) n")
    lsn = restored.query("SELECT pg_current_wal_lsn()")[0][0]
    wait_until(lambda: replica.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]) == [(True,)], "replay")
    for name in (*tables, "written_here", "accounts"):
        assert replica.hash_of(name) == restored.hash_of(name)
    assert source.query("SELECT to_regclass('written_here')") == [(None,)]
    restored.restart()
    assert restored.query("SELECT count(*) FROM written_here") == [(1000,)]


def test_point_in_time_recovery_inside_of_pfs(
    source: PfsCluster, workspace: Path, place: Callable[[int], PfsAddress],
    restore: Callable[..., tuple[Cluster, dict[str, Any]]],
) -> None:  # fmt: skip
    archive = source.account.make_directory(workspace / "archive")
    library = os.environ["POLARVAULT_LIBPFSD"]
    words = command_line("wal", "push", "--to", archive)
    source.configure({"archive_command": f"POLARVAULT_LIBPFSD={library} {' '.join(map(str, words))} %p"})
    source.reload()
    backup = back_up(source, workspace / "backup", "pfs")
    source.query("CREATE TABLE kept AS SELECT n FROM generate_series(1, 500) n")
    source.query("SELECT pg_create_restore_point('before the mistake')")
    source.query("TRUNCATE kept")
    (wanted,) = source.query("SELECT pg_walfile_name(pg_switch_wal())")[0]
    wait_until(lambda: (archive / wanted).exists(), "the segment is archived", timeout_s=60)
    assert (archive / wanted).stat().st_size == 16 << 20
    target = place(1)
    restored, result = restore(
        backup, str(target), "--hostid", str(RESTORED_HOST), "--wal", str(archive), "--target-name",
        "before the mistake", "--target-action", "promote",
    )  # fmt: skip
    assert restored.query("SELECT count(*) FROM kept") == [(500,)]
    assert result["server"]["in_recovery"] is False
    assert not list(restored.data.glob("pgsql_tmp_polarvault_*"))


@pytest.mark.parametrize("victim", ["program", "helper"])
def test_a_restore_that_is_killed_leaves_nothing_that_looks_whole_and_the_live_cluster_alone(
    source: PfsCluster, workspace: Path, place: Callable[[int], PfsAddress], victim: str
) -> None:
    backup = back_up(source, workspace / "backup", "pfs")
    live = source.hashes()
    # On the disk of the live cluster: nothing of that may be touched.
    target = place(0)
    words = command_line(
        "restore", backup, "-D", workspace / "restored", "--polardata", str(target), "--hostid", str(RESTORED_HOST),
        "--bindir", source.installation.directory, "-N",
    )  # fmt: skip
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=program_environment(None), cwd="/",
    ) as running:  # fmt: skip
        wait_until(lambda: running.poll() is not None or len(contents_in_pfs(target)) > 50, "files arrive")
        assert running.poll() is None, running.communicate()[0]
        helpers = helpers_of(running.pid)
        os.kill(running.pid if victim == "program" else helpers[-1], signal.SIGKILL)
        said = running.communicate(timeout=60)[0]
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in helpers), "the helper has gone")
    left = contents_in_pfs(target)
    assert "global/pg_control" not in left
    assert RESTORE_MARK_NAME in left
    if victim == "helper":
        assert running.returncode == 1
        assert "has ended by signal 9" in said
        assert "no server starts from it" in said
        assert not (workspace / "restored").exists()
    refused = run_polarvault(
        "restore", backup, "-D", workspace / "again", "--polardata", str(target), "--hostid", str(RESTORED_HOST),
        "--bindir", source.installation.directory, check=False,
    )  # fmt: skip
    assert "a restore that was cut off" in refused.stderr
    assert source.hashes() == live
    source.restart()
    assert source.hashes() == live


def helpers_of(parent: int) -> list[int]:
    """Return the processes that serve PFS to a program."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if b"trees.pfs.helper" in words and int(fields[1]) == parent:
                found.append(int(entry.name))
    return sorted(found)


def test_a_frozen_daemon_is_not_waited_for_without_end(source: PfsCluster, workspace: Path) -> None:
    """pfsd of the second disk, on which nothing lives, is stopped for a while."""
    disk = pfs_disks()[1]
    daemon = int(
        subprocess.run(["pgrep", "-f", f"pfsdaemon.*{disk}"], capture_output=True, text=True).stdout.split()[0]
    )
    backup = back_up(source, workspace / "backup", "pfs")
    os.kill(daemon, signal.SIGSTOP)
    try:
        began = time.monotonic()
        failed = run_polarvault(
            "restore", backup, "-D", workspace / "restored", "--polardata", f"pfsd:///{disk}/frozen",
            "--bindir", source.installation.directory, check=False, timeout_s=180,
        )  # fmt: skip
        assert time.monotonic() - began < 150
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert failed.returncode == 1
    assert f"disk {disk} did not answer" in failed.stderr
    assert f"/var/log/pfsd-{disk}/pfsd.log" in failed.stderr
    assert not (workspace / "restored").exists()


def test_from_one_shared_storage_straight_onto_another_and_started(
    source: PfsCluster, workspace: Path, place: Callable[[int], PfsAddress]
) -> None:
    connection = ["-h", source.directory, "-p", str(source.port), "-U", "postgres", "-c", "fast", "-N"]
    target = place(1)
    words = [*connection, "--polardata", str(target), "--polar_host_id", str(RESTORED_HOST), "-R"]
    with source.pgbench(clients=2):
        run_polarvault("basebackup", *words, "--source", "pfs", "-D", workspace / "copy", timeout_s=300)
    assert {"backup_manifest", "global/pg_control"} <= contents_in_pfs(target).keys()
    refused = run_polarvault("basebackup", *words, "-D", workspace / "second", check=False)
    assert f'directory "{target}" exists but is not empty' in refused.stderr
    assert not (workspace / "second").exists()
    standby = Cluster.adopt(source.installation, workspace / "copy", workspace / "standby")
    standby.start()
    try:
        lsn = source.query("SELECT pg_current_wal_lsn()")[0][0]
        wait_until(lambda: standby.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]) == [(True,)], "replay")
        assert standby.query("SHOW polar_datadir") == [(f"{target.path}/",)]
        standby.promote()
        assert standby.hashes() == source.hashes()
        standby.query("CREATE TABLE written_here AS SELECT 1")
        assert source.query("SELECT to_regclass('written_here')") == [(None,)]
    finally:
        standby.stop("immediate")


def test_a_backup_into_pfs_that_is_interrupted_leaves_nothing(
    source: PfsCluster, workspace: Path, place: Callable[[int], PfsAddress]
) -> None:
    target = place(1)
    words = command_line(
        "basebackup", "-h", source.directory, "-p", str(source.port), "-U", "postgres", "-c", "fast", "-N",
        "--polardata", str(target), "--polar_host_id", str(RESTORED_HOST), "-D", workspace / "copy",
    )  # fmt: skip
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=program_environment(None), cwd="/",
    ) as running:  # fmt: skip
        wait_until(lambda: running.poll() is not None or len(contents_in_pfs(target)) > 50, "files arrive")
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    assert running.returncode != 0
    assert contents_in_pfs(target) == {}
    assert not (workspace / "copy").exists()
