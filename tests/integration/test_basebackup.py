"""Base backups of real servers of every version: the files of PostgreSQL's own tool, verified and started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.backups import (
    back_up,
    back_up_with_postgres,
    backup_listing,
    left_behind,
    unpack_backup,
    verify,
)
from support.cluster import Cluster
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

EVERYWHERE = [["-Fp"], ["-Ft", "-z", "-X", "fetch"]]
MORE = [
    ["-Fp", "-X", "fetch", "--manifest-checksums", "SHA256"],
    ["-Fp", "-X", "none", "--no-manifest"],
    ["-Ft"],
    ["-Ft", "-Z", "1", "-X", "stream", "--no-slot"],
    ["-Ft", "-X", "none", "--manifest-checksums", "NONE"],
]


def assert_same_files(server: Cluster, workspace: Path, options: list[str]) -> None:
    back_up_with_postgres(server, workspace / "theirs", *options)
    finished = back_up(server, workspace / "ours", *options)
    assert backup_listing(workspace / "ours") == backup_listing(workspace / "theirs")
    assert finished.stdout == ""
    if "none" not in options:
        assert finished.stderr == ""


@pytest.mark.parametrize("options", EVERYWHERE, ids=" ".join)
def test_the_files_are_those_of_pg_basebackup(any_pg: Cluster, workspace: Path, options: list[str]) -> None:
    assert_same_files(any_pg, workspace, options)


@pytest.mark.parametrize("options", MORE, ids=" ".join)
def test_the_files_are_those_of_pg_basebackup_in_every_mode(pg15: Cluster, workspace: Path, options: list[str]) -> None:
    assert_same_files(pg15, workspace, options)


def test_a_plain_backup_is_verified_and_starts(
    any_pg: Cluster, workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    backup = workspace / "backup"
    back_up(any_pg, backup, "-l", "a label of my own")
    assert "LABEL: a label of my own\n" in (backup / "backup_label").read_text()
    verify(any_pg.installation, backup)
    server = start_restored(any_pg.installation.major, backup)
    assert server.hashes() == any_pg.hashes()
    wait_until(lambda: left_behind(any_pg) == ([], 0), "slots and WAL senders are gone")


@pytest.mark.parametrize("options", [["-Z", "gzip:1"], ["-X", "fetch"]], ids=" ".join)
def test_a_tar_backup_is_verified_and_starts(
    any_pg: Cluster, workspace: Path, start_restored: Callable[..., Cluster], options: list[str]
) -> None:
    back_up(any_pg, workspace / "backup", "-Ft", *options)
    data = unpack_backup(workspace / "backup", workspace / "data")
    verify(any_pg.installation, data)
    if any_pg.installation.major >= 18:
        # pg_verifybackup reads tar files from 18 on, but not the WAL in them.
        verify(any_pg.installation, workspace / "backup", "-n")
    server = start_restored(any_pg.installation.major, data)
    assert server.hashes() == any_pg.hashes()


@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_a_backup_with_recovery_settings_starts_as_a_standby(
    any_pg: Cluster, workspace: Path, start_restored: Callable[..., Cluster], form: str
) -> None:
    back_up(any_pg, workspace / "backup", form, "-R", "-C", "-S", "follower")
    try:
        data = workspace / "backup" if form == "-Fp" else unpack_backup(workspace / "backup", workspace / "data")
        assert (data / "standby.signal").stat().st_size == 0
        settings = (data / "postgresql.auto.conf").read_text()
        assert f"port={any_pg.port}" in settings
        assert "primary_slot_name = 'follower'" in settings
        verify(any_pg.installation, data, "-i", "standby.signal")
        standby = start_restored(any_pg.installation.major, data, settings={"hot_standby": "on"})
        assert standby.query("SELECT pg_is_in_recovery()") == [(True,)]
        any_pg.query("CREATE TABLE written_later AS SELECT 1 AS n")
        wait_until(lambda: standby.query("SELECT to_regclass('written_later')") != [(None,)], "the standby follows")
        assert standby.hashes() == any_pg.hashes()
        standby.stop()
    finally:
        any_pg.query("DROP TABLE IF EXISTS written_later")
        wait_until(lambda: any_pg.backends("walsender") == 0, "the standby's WAL sender is gone")
        any_pg.query("SELECT pg_drop_replication_slot('follower')")


def test_a_backup_under_load_holds_every_committed_transaction(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    source = make_cluster(18)
    with source.pgbench():
        back_up(source, workspace / "backup", "-P", "-v")
    verify(source.installation, workspace / "backup")
    server = start_restored(18, workspace / "backup")
    balances = "SELECT sum(abalance) FROM pgbench_accounts"
    assert server.query(balances) == server.query("SELECT sum(delta) FROM pgbench_history")
    assert server.query("SELECT count(*) > 0 FROM pgbench_history") == [(True,)]
