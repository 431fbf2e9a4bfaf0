"""What recovery does beside the data of the copy: it must not harm the source, nor stop early without a word."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.servers import ServerPool, missing_reason
from support.story import Recoveries, archive_all, back_up, start_story

pytestmark = pytest.mark.postgres


@pytest.fixture(params=[13, 15, 16, 17, 18])
def source(request: pytest.FixtureRequest, servers: ServerPool, make_cluster: Callable[..., Cluster]) -> Cluster:
    """A server of each version in turn, of this test's own."""
    if request.param not in servers.installations:
        pytest.skip(missing_reason(request.param))
    return make_cluster(major=request.param)


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recoveries]:
    """A function that restores with --start and returns the server and the JSON result."""
    recoveries = Recoveries(workspace)
    yield recoveries
    recoveries.close()


def test_a_tablespace_newer_than_the_backup_is_never_written_into(
    source: Cluster, recover: Recoveries, workspace: Path
) -> None:
    archive = start_story(source, workspace / "archive")
    backup = back_up(source, workspace / "backup")
    location = source.add_tablespace("late")
    source.query("SELECT pg_create_restore_point('filled')")
    before = source.query("SELECT pg_current_wal_insert_lsn()::text")[0][0]
    source.query("UPDATE in_late SET note = 'changed'; CHECKPOINT")
    good = source.hash_of("in_late")
    archive_all(source, archive)
    for target in (["--target-name", "filled"], ["--target-lsn", before], ["--target", "latest"]):
        error = recover.refused(source, backup, "--wal", archive, *target)
        assert f'"{location}"' in error
        assert "the copy would write over them" in error
    source.restart()
    assert source.hash_of("in_late") == good
    # What the hint says works: stop before it.
    lsn = re.findall(r"--target-lsn (\S+) --target-exclusive", error)[0]
    server, _ = recover(source, backup, "--wal", archive, "--target-lsn", lsn, "--target-exclusive")
    assert server.query("SELECT to_regclass('in_late')") == [(None,)]
    # As on another machine: the directory is not there, and then it is.
    source.stop()
    shutil.rmtree(location)
    assert f"mkdir -p {location}" in recover.refused(source, backup, "--wal", archive, "--target", "latest")
    source.account.make_directory(location)
    server, _ = recover(source, backup, "--wal", archive, "--target", "latest")
    assert server.hash_of("in_late") == good


@pytest.mark.parametrize("target", [["--target-name", "later"], ["--target", "latest"]])
def test_settings_that_the_source_raised_after_the_backup_do_not_stop_recovery(
    source: Cluster, recover: Recoveries, workspace: Path, target: list[str]
) -> None:
    archive = start_story(source, workspace / "archive")
    backup = back_up(source, workspace / "backup")
    source.configure({"max_connections": "150", "max_worker_processes": "12"})
    source.restart()
    source.query("INSERT INTO accounts VALUES (100001, 'after', 1)")
    source.query("SELECT pg_create_restore_point('later')")
    archive_all(source, archive)
    server, result = recover(source, backup, "--wal", archive, *target)
    assert server.hash_of("accounts") == source.hash_of("accounts")
    assert server.query("SHOW max_connections") == [("150",)]
    assert result["outcome"]["ended"] == ("paused" if "later" in target else "promoted")


def test_a_setting_with_which_the_server_would_pause_on_its_way_is_refused(
    make_cluster: Callable[..., Cluster], recover: Recoveries, workspace: Path
) -> None:
    source = make_cluster(major=18)
    archive = start_story(source, workspace / "archive")
    backup = back_up(source, workspace / "backup")
    source.configure({"max_connections": "150"})
    source.restart()
    source.query("SELECT pg_create_restore_point('later')")
    archive_all(source, archive)
    said = recover.refused(source, backup, "--wal", archive, "--target-name", "later", "--set", "max_connections=100")
    assert "max_connections" in said
    assert "give at least 150" in said


def test_damage_in_the_middle_is_not_taken_for_the_end_of_the_wal(
    source: Cluster, recover: Recoveries, workspace: Path
) -> None:
    archive = start_story(source, workspace / "archive")
    backup = back_up(source, workspace / "backup")
    source.query("CREATE TABLE first AS SELECT repeat('x', 100) FROM generate_series(1, 5000)")
    ((name, offset),) = source.query("SELECT * FROM pg_walfile_name_offset(pg_current_wal_insert_lsn())")
    source.query("CREATE TABLE second AS SELECT repeat('x', 100) FROM generate_series(1, 5000)")
    archive_all(source, archive)
    source.query("CREATE TABLE third (n int)")
    archive_all(source, archive)
    damaged = archive / name
    content = bytearray(damaged.read_bytes())
    content[offset + 10_000] ^= 1
    damaged.write_bytes(content)
    error = recover.refused(source, backup, "--wal", archive, "--target", "latest")
    assert str(damaged) in error
    assert "has a wrong checksum" in error
