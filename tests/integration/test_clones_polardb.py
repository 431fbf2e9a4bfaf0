"""Clones of a real PolarDB: both halves are the clone's own, and the live storage is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.clones import Clones, ask, can_reach, moment_behind_backup, photograph, sharing_disk
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.polardb


def test_clones_of_both_halves_go_to_their_moments(make_polardb: Callable[..., PolarCluster], workspace: Path) -> None:
    source = make_polardb(start=False)
    archive = source.account.make_directory(source.directory / "archive")
    source.configure({"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"})
    source.start()
    source.fill()
    with sharing_disk(workspace) as disk:
        backup = disk / "backup"
        with source.pgbench():
            run_polarvault("basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", backup, as_server=True)
        moment = moment_behind_backup(source)
        source.query("DELETE FROM accounts WHERE id > 50")
        [[last]] = source.query("SELECT pg_walfile_name(pg_switch_wal())")
        wait_until(lambda: (archive / last).exists(), "the segment is archived")
        source.stop()
        watched = (backup, archive, source.data, source.shared)
        before = photograph(*watched)
        clones = Clones(disk / "clones", source.installation.directory)
        try:
            latest = clones.create(backup, "--wal", archive, "--name", "latest")
            past = clones.create(backup, "--wal", archive, "--target-time", moment, "--name", "past")
            still = clones.create(backup, "--wal", archive, "--read-only", "--name", "still")
            assert [ask(one, "SELECT count(*) FROM accounts")[0][0] for one in (latest, past, still)] == [50, 5000, 50]
            for clone in (latest, past, still):
                [[datadir]] = ask(clone, "SELECT current_setting('polar_datadir')")
                assert datadir.partition("://")[2].startswith(clone["directory"])
                assert clone["is_polardb"]
                assert not can_reach(clone, source.port) if clone is not still else True
            ask(past, "CREATE TABLE mine AS SELECT n FROM generate_series(1, 100000) n; DELETE FROM accounts")
            clones.run("stop", "past")
            started = clones.run("start", "past")["clone"]
            assert ask(started, "SELECT count(*) FROM mine") == [(100000,)]
            again = clones.run("reset", "past")["clone"]
            assert ask(again, "SELECT count(*) FROM accounts") == [(5000,)]
            assert ask(still, "SELECT pg_is_in_recovery()") == [(True,)]
        finally:
            clones.remove_all()
        assert photograph(*watched) == before
        assert clones.left() == []
