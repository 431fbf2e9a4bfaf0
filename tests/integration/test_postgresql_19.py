"""What is new in PostgreSQL 19, beside its own programs; and pg_control of every version beside pg_controldata."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.model.lsn import Lsn
from polarvault.pgfiles.control import ClusterState, parse_control
from support.backups import back_up
from support.checking import check_server
from support.cluster import Cluster
from support.program import program_environment
from support.servers import ServerPool, has_program, missing_reason
from support.verifying import ours, theirs

pytestmark = pytest.mark.postgres


@dataclass
class Backups:
    """A server of 19 and backups of it; wal: a directory with the WAL that both need."""

    server: Cluster
    plain: Path
    tar: Path
    wal: Path


@pytest.fixture(scope="module")
def backups(servers: ServerPool) -> Iterator[Backups]:
    if 19 not in servers.installations:
        pytest.skip(missing_reason(19))
    directory = servers.directory / "nineteen"
    settings = {"wal_level": "replica", "wal_keep_size": "1GB"}
    with Cluster.made(servers.installations[19], directory / "server", wal_segment_mb=1, settings=settings) as server:
        back_up(server, directory / "plain")
        back_up(server, directory / "tar", "-Ft")
        server.query("SELECT pg_switch_wal()")
        wal = directory / "wal"
        wal.mkdir()
        for path in (server.data / "pg_wal").glob("0*"):
            shutil.copy(path, wal)
        yield Backups(server, directory / "plain", directory / "tar", wal)


@pytest.fixture
def places(backups: Backups, workspace: Path) -> dict[str, Path]:
    """What -w can name, by what the tests call it."""
    tar = workspace / "some.tar"
    subprocess.run(["tar", "-cf", tar, "-C", backups.wal, "."], check=True)
    compressed = workspace / "some.tar.gz"
    compressed.write_bytes(gzip.compress(tar.read_bytes(), 1))
    shutil.copy(compressed, workspace / "some.tgz")
    empty = workspace / "empty"
    empty.mkdir()
    return {
        "directory": backups.wal, "tar": tar, "gz": compressed, "tgz": workspace / "some.tgz", "empty": empty,
        "own": backups.tar / "pg_wal.tar", "base": backups.tar / "base.tar",
        "nothing": workspace / "nothing",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["directory", "tar", "gz", "tgz", "empty", "own", "base", "nothing"])
def test_the_path_of_wal_leads_to_the_verdict_of_pg_verifybackup(
    backups: Backups, places: dict[str, Path], place: str
) -> None:
    for backup in (backups.plain, backups.tar):
        real = theirs(backups.server.installation, "-w", places[place], backup)
        mine = ours("-w", places[place], backup)
        assert (mine.status, mine.output) == (real.status, real.output), real.errors + mine.errors


@pytest.mark.parametrize("option", ["--wal-path", "--wal-directory", "--wal-p", "--wal-d", "--wal", "--w"])
def test_the_path_of_wal_is_spelt_as_pg_verifybackup_takes_it(backups: Backups, option: str) -> None:
    words = f"{option}={backups.wal}", backups.plain
    real, mine = theirs(backups.server.installation, *words), ours(*words)
    assert (mine.status, mine.output) == (real.status, real.output)
    assert mine.is_good


def test_check_tells_the_wal_level_in_effect(backups: Backups) -> None:
    server = backups.server
    assert check_server(server.conninfo()).one("wal-level").message == "wal_level is replica"
    server.query("SELECT pg_create_logical_replication_slot('raising', 'pgoutput')")
    try:
        said = check_server(server.conninfo()).one("wal-level").message
        assert said == "wal_level is replica; while there are logical slots it is in effect logical"
    finally:
        server.query("SELECT pg_drop_replication_slot('raising')")


def test_the_newest_files_of_configuration_are_looked_for(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    hosts = workspace / "hosts.conf"
    hosts.write_text("")
    cluster = make_cluster(19, fill=False, settings={"hosts_file": str(hosts)})
    assert str(hosts) in check_server(cluster.conninfo()).one("files-outside").message


def test_pg_control_is_read_as_pg_controldata_reads_it(any_pg: Cluster) -> None:
    said = _controldata(any_pg)
    control = parse_control((any_pg.data / "global" / "pg_control").read_bytes())
    assert control.major_version == any_pg.installation.major
    assert str(control.control_version) == said["pg_control version number"]
    assert str(control.catalog_version) == said["Catalog version number"]
    assert str(control.system_identifier) == said["Database system identifier"]
    assert control.state is ClusterState.IN_PRODUCTION
    assert str(control.timeline_id) == said["Latest checkpoint's TimeLineID"]
    assert control.checkpoint_lsn == Lsn.parse(said["Latest checkpoint location"])
    assert control.redo_lsn == Lsn.parse(said["Latest checkpoint's REDO location"])
    assert control.minimum_recovery_lsn == Lsn.parse(said["Minimum recovery ending location"])
    assert control.checkpoint_time is not None
    assert (
        f"{control.checkpoint_time:%a %b} {control.checkpoint_time.day:2} {control.checkpoint_time:%H:%M:%S %Y}"
        == (said["Time of latest checkpoint"])
    )
    assert ("on" if control.full_page_writes else "off") == said["Latest checkpoint's full_page_writes"]
    assert [
        control.max_connections, control.max_worker_processes, control.max_wal_senders,
        control.max_prepared_transactions, control.max_locks_per_transaction,
    ] == [
        int(said[f"{name} setting"])
        for name in (
            "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact",
        )
    ]  # fmt: skip
    assert str(control.block_size) == said["Database block size"]
    assert str(control.relation_segment_blocks) == said["Blocks per segment of large relation"]
    assert str(control.wal_block_size) == said["WAL block size"]
    assert str(control.wal_segment_size) == said["Bytes per WAL segment"]
    assert str(control.data_checksum_version) == said["Data page checksum version"]


@pytest.mark.parametrize("major", [18, 19])
def test_checksums_that_were_switched_off_and_on_are_seen(make_cluster: Callable[..., Cluster], major: int) -> None:
    cluster = make_cluster(major, fill=False)
    cluster.stop()
    for option, has in (("--disable", False), ("--enable", True)):
        cluster.run("pg_checksums", option, "-D", str(cluster.data))
        assert parse_control((cluster.data / "global" / "pg_control").read_bytes()).has_data_checksums is has


def _controldata(cluster: Cluster) -> dict[str, str]:
    if not has_program(cluster.installation, "pg_controldata"):
        pytest.skip(f"this installation of {cluster.installation.major} has no pg_controldata")
    cluster.query("CHECKPOINT")
    finished = subprocess.run(
        [cluster.installation.program("pg_controldata"), "-D", str(cluster.data)],
        capture_output=True, text=True, check=True, env=program_environment({"TZ": "UTC", "LC_ALL": "C"}),
    )  # fmt: skip
    return dict(re.findall(r"^(.*?):\s+(.*)$", finished.stdout, re.MULTILINE))
