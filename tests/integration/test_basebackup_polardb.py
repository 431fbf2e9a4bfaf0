"""Base backups of PolarDB: a real one on shared storage, and the recorded answers of one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.backups import back_up, left_behind, tar_listing, unpack, verify
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import command_line, program_environment, run_polarvault
from support.replay_server import ReplayServer
from support.waiting import wait_until

SHARED = "polar_shared_data"
polardb_only = pytest.mark.polardb


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def assert_two_halves(local: Path, shared: Path) -> None:
    """Check what belongs where, and that nothing of the live storage's path became a file name."""
    in_local, in_shared = names(local), names(shared)
    assert {"backup_label", "postgresql.conf", "base", "pg_xact", "pg_logindex"} <= in_local
    assert {"global/pg_control", "pg_wal/archive_status", "pg_xact/0000", "pg_twophase"} <= in_shared
    assert "global/pg_control" not in in_local
    assert not any(name.startswith("pg_wal/") for name in in_local)
    assert not any(":" in name for name in in_local | in_shared)
    # The servers' caches are gone, the directories that a server needs are not.
    assert "polar_fullpage" in in_shared
    assert not list((shared / "polar_fullpage").iterdir())
    assert not [name for name in in_local if name.startswith("pg_xact/")]


def to_standard_output(conninfo: str, file: Path, *options: str) -> None:
    with open(file, "wb") as output:
        finished = subprocess.run(
            command_line("basebackup", "-d", conninfo, "-c", "fast", "-Ft", "-D", "-", *options),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True, env=program_environment(),
            timeout=120, check=False,
        )  # fmt: skip
    assert finished.returncode == 0, finished.stderr


# Recorded answers


def replayed(server: ReplayServer) -> str:
    return f"host=127.0.0.1 port={server.port} user=postgres"


def test_recorded_halves_are_laid_out_in_two_directories(replay_server: ReplayServer, workspace: Path) -> None:
    local, shared = workspace / "local", workspace / "shared"
    finished = run_polarvault("basebackup", "-d", replayed(replay_server), "-N", "-D", local, "--polardata", shared)
    assert_two_halves(local, shared)
    assert (shared / "pg_wal").is_dir()
    assert f"local half:  {local}" in finished.stdout
    assert f"shared half: {shared}" in finished.stdout
    assert finished.stdout.count("left out:") == 1
    (command,) = [command for command in replay_server.commands if command.startswith("BASE_BACKUP")]
    assert "WAIT 0" in command
    assert "TABLESPACE_MAP" not in command
    assert "pg_logical_emit_message" in "".join(replay_server.commands)


def test_recorded_halves_become_two_tar_files(replay_server: ReplayServer, workspace: Path) -> None:
    run_polarvault("basebackup", "-d", replayed(replay_server), "-N", "-Ft", "-D", workspace / "backup")
    found = {path.name for path in (workspace / "backup").iterdir()}
    assert {"base.tar", "data.tar", "pg_wal.tar", "backup_manifest", "backup_manifest.shared"} <= found
    assert "backup_label" in tar_listing(workspace / "backup" / "base.tar")
    assert "global/pg_control" in tar_listing(workspace / "backup" / "data.tar")


def test_halves_compressed_by_the_server_are_stored_as_they_come(replay_server: ReplayServer, workspace: Path) -> None:
    backup = workspace / "backup"
    run_polarvault(
        "basebackup", "-d", replayed(replay_server), "-N", "-Ft", "-Z", "server-zstd:1", "--no-manifest", "-X", "none",
        "-D", backup,
    )  # fmt: skip
    assert "backup_label" in tar_listing(backup / "base.tar.zst")
    assert "global/pg_control" in tar_listing(backup / "data.tar.zst")


# A real one


@pytest.fixture
def own(make_polardb: Callable[..., PolarCluster]) -> PolarCluster:
    """A primary of the test's own with full_page_writes on, as standbys and the checkpoint's rules want it."""
    return make_polardb(settings={"full_page_writes": "on"})


@pytest.fixture
def with_replica(own: PolarCluster) -> Iterator[tuple[PolarCluster, PolarCluster]]:
    """A primary and a read-only node on the same storage."""
    replica = own.add_replica("reader")
    yield own, replica
    replica.remove()


@polardb_only
@pytest.mark.parametrize("method", ["stream", "fetch"])
def test_both_halves_in_plain_format_are_verified(polardb: PolarCluster, workspace: Path, method: str) -> None:
    local, shared = workspace / "local", workspace / "shared"
    finished = back_up(polardb, local, "--polardata", str(shared), "-X", method)
    assert_two_halves(local, shared)
    verify(polardb.installation, local)
    # With a pg_wal beside it, the stock tool also reads all WAL of the backup.
    verify(polardb.installation, shared)
    assert "full_page_writes is off" in finished.stderr
    wait_until(lambda: left_behind(polardb) == ([], 0), "slots and WAL senders are gone")


@polardb_only
def test_without_polardata_the_shared_half_is_inside(polardb: PolarCluster, workspace: Path) -> None:
    finished = back_up(polardb, workspace / "backup")
    assert_two_halves(workspace / "backup", workspace / "backup" / SHARED)
    verify(polardb.installation, workspace / "backup", "-i", SHARED)
    verify(polardb.installation, workspace / "backup" / SHARED)
    # The line that the backup itself says to type.
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("verify:")]
    assert line.split(maxsplit=1)[1] == f"polarvault verifybackup {workspace / 'backup'}"
    run_polarvault("verifybackup", workspace / "backup")


@polardb_only
@pytest.mark.parametrize("options", [[], ["-z"], ["-Z", "zstd"], ["-Z", "server-lz4"]], ids=" ".join)
def test_both_halves_in_tar_format_are_verified(polardb: PolarCluster, workspace: Path, options: list[str]) -> None:
    backup = workspace / "backup"
    back_up(polardb, backup, "-Ft", *options)
    suffix = {"-z": ".gz", "zstd": ".zst", "server-lz4": ".lz4", "": ""}[options[-1] if options else ""]
    local = unpack(backup / f"base.tar{suffix}", workspace / "local")
    shared = unpack(backup / f"data.tar{suffix}", workspace / "shared")
    (wal,) = backup.glob("pg_wal.tar*")
    unpack(wal, shared / "pg_wal")
    for half, manifest in ((local, "backup_manifest"), (shared, "backup_manifest.shared")):
        (half / "backup_manifest").write_bytes((backup / manifest).read_bytes())
    for added in ("polarvault_backup.json", "backup_manifest.server"):
        (local / added).write_bytes((backup / added).read_bytes())
    verify(polardb.installation, local)
    verify(polardb.installation, shared)


@polardb_only
@pytest.mark.parametrize("method", ["fetch", "none"])
def test_one_tar_on_standard_output_holds_both_halves(polardb: PolarCluster, workspace: Path, method: str) -> None:
    to_standard_output(polardb.conninfo(), workspace / "all.tar", "-X", method)
    local = unpack(workspace / "all.tar", workspace / "local")
    verify(polardb.installation, local, "-i", SHARED)
    verify(polardb.installation, local / SHARED, *([] if method == "fetch" else ["-n"]))
    assert "global/pg_control" in names(local / SHARED)


@polardb_only
def test_standard_output_carries_the_local_half_when_polardata_takes_the_other(
    polardb: PolarCluster, workspace: Path
) -> None:
    shared = workspace / "shared"
    to_standard_output(polardb.conninfo(), workspace / "local.tar", "-X", "none", "--polardata", str(shared))
    assert "backup_label" in tar_listing(workspace / "local.tar")
    assert not [name for name in tar_listing(workspace / "local.tar") if name.startswith(SHARED)]
    assert {"data.tar", "backup_manifest"} <= {path.name for path in shared.iterdir()}


@polardb_only
def test_segments_of_a_gigabyte_have_full_length_and_take_little_room(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    cluster = make_polardb(wal_segment_mb=1024)
    back_up(cluster, workspace / "plain")
    back_up(cluster, workspace / "tar", "-Ft")
    (segment,) = [path for path in (workspace / "plain" / SHARED / "pg_wal").iterdir() if path.is_file()]
    for path in (segment, workspace / "tar" / "pg_wal.tar"):
        status = path.stat()
        assert status.st_size >= 1 << 30
        assert status.st_blocks * 512 < 100 << 20
    verify(cluster.installation, workspace / "plain" / SHARED)


@polardb_only
def test_commands_that_the_server_breaks_are_never_sent(polardb: PolarCluster, workspace: Path) -> None:
    before = len(polardb.log_text())
    for form in ("-Fp", "-Ft"):
        back_up(polardb, workspace / form, form, "-X", "fetch")
    sent = [line for line in polardb.log_text()[before:].splitlines() if "received replication command: BASE_B" in line]
    assert len(sent) == 2
    for line in sent:
        assert "TABLESPACE_MAP" not in line
        assert " WAL," not in line
        assert "WAIT 0" in line


@polardb_only
def test_a_backup_ends_at_once_on_an_idle_server(polardb: PolarCluster, workspace: Path) -> None:
    finished = back_up(polardb, workspace / "backup", "-v")
    # Said after five seconds of waiting for the end of the WAL (facts 1.6).
    assert "has not flushed the end of the backup yet" not in finished.stderr


@polardb_only
def test_a_role_that_may_only_replicate_can_take_a_backup(own: PolarCluster, workspace: Path) -> None:
    own.query("CREATE ROLE copier LOGIN REPLICATION")
    own.set_hba("local all copier reject", "local replication copier trust")
    # Somebody else's work flushes the end of the backup, which this role cannot do.
    with own.pgbench(rate_per_s=20):
        finished = back_up(own, workspace / "backup", "-U", "copier")
    assert "cannot make the server flush its WAL" in finished.stderr
    verify(own.installation, workspace / "backup" / SHARED)


@polardb_only
def test_a_standby_is_made_from_a_backup_and_backed_up_itself(
    own: PolarCluster, workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    local, shared = workspace / "local", workspace / "shared"
    back_up(own, local, "--polardata", str(shared), "-R")
    assert (local / "standby.signal").exists()
    assert not (shared / "standby.signal").exists()
    own.account.own(shared)
    # No setting but port and socket is changed by hand: the copy must not open the live storage.
    standby = _adopted(own, local, workspace / "standby")
    try:
        standby.start()
        assert standby.query("SHOW polar_datadir") == [(f"file-dio://{shared}",)]
        own.query("CREATE TABLE written_later AS SELECT generate_series(1, 100) AS n")
        wait_until(lambda: standby.query("SELECT to_regclass('written_later')") != [(None,)], "the standby follows")
        assert standby.hashes() == own.hashes()
        back_up(standby, workspace / "second", "--polardata", str(workspace / "second_shared"))
        assert "BACKUP FROM: standby" in (workspace / "second" / "backup_label").read_text()
        assert not list((workspace / "second").glob("*.signal"))
        verify(own.installation, workspace / "second")
        verify(own.installation, workspace / "second_shared")
    finally:
        standby.stop("immediate")


def _adopted(source: Cluster, data: Path, directory: Path) -> Cluster:
    return Cluster.adopt(source.installation, data, directory)


@polardb_only
def test_a_read_only_node_is_refused(with_replica: tuple[PolarCluster, PolarCluster], workspace: Path) -> None:
    primary, replica = with_replica
    finished = back_up(replica, workspace / "backup", check=False)
    assert finished.returncode == 1
    assert "read-only node" in finished.stderr
    assert "connect to the primary" in finished.stderr
    assert not (workspace / "backup").exists()
    # Where SQL cannot tell, the node's own signal file in the backup does.
    primary.query("CREATE ROLE copier LOGIN REPLICATION")
    replica.set_hba("local all copier reject", "local replication copier trust")
    wait_until(lambda: replica.query("SELECT 1 FROM pg_roles WHERE rolname = 'copier'"), "the role is replicated")
    finished = back_up(replica, workspace / "backup", "-U", "copier", check=False)
    assert finished.returncode == 1
    assert "read-only node" in finished.stderr
    assert not (workspace / "backup").exists()


@polardb_only
def test_a_stopped_read_only_node_that_holds_the_checkpoint_up_is_named(
    with_replica: tuple[PolarCluster, PolarCluster], workspace: Path
) -> None:
    primary, replica = with_replica
    replica.stop("immediate")
    # Not DDL: that would wait for the stopped node itself.
    primary.query("UPDATE accounts SET balance = balance + 1")
    finished = back_up(primary, workspace / "backup", "--checkpoint-timeout", "10", check=False)
    assert finished.returncode == 1
    assert 'the checkpoint is held up by inactive replication slot "reader"' in finished.stderr
    assert "pg_drop_replication_slot('reader')" in finished.stderr
    assert not (workspace / "backup").exists()


@polardb_only
def test_a_corrupt_page_in_the_shared_half_is_named(make_polardb: Callable[..., PolarCluster], workspace: Path) -> None:
    cluster = make_polardb()
    ((path,),) = cluster.query("SELECT substring(pg_relation_filepath('accounts') from 'base/.*')")
    cluster.stop()
    with open(cluster.shared / path, "r+b") as relation:
        relation.seek(3 * 8192 + 5000)
        relation.write(b"\xff\x00\xff\x00")
    cluster.start()
    finished = back_up(cluster, workspace / "backup", check=False)
    assert finished.returncode == 1
    assert f'checksum verification failed in file "{path}", block 3' in finished.stderr
    assert (workspace / "backup" / SHARED / "global" / "pg_control").exists()
    assert not list(workspace.rglob("backup_manifest"))
