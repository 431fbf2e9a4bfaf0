"""Drills of a real PolarDB on shared storage: both halves are restored, looked at, and the live storage left alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.drills import Drills, break_order, copied, problems, relation_file, sql_files
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.story import RESTORE_POINT, archive_all, start_story, tell_with

pytestmark = pytest.mark.polardb


def back_up(cluster: PolarCluster, target: Path, *options: str) -> Path:
    """Take a backup with PolarDB's own tool: the drill must not depend on ours."""
    arguments = ("-d", cluster.conninfo(), "-c", "fast", "-N", "-D", str(target), *options)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cluster.run, "polar_basebackup", *arguments)
        # On an idle server the tool would wait up to 20 s until the end of the backup is flushed (facts 1.6).
        while not wait([running], timeout=0.3).done:
            cluster.query("SELECT pg_logical_emit_message(true, 'test', '')")
        running.result()
    return target


@pytest.fixture
def drills(workspace: Path) -> Drills:
    """Drills in a scratch directory of the test's own."""
    return Drills(workspace)


@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_a_drill_of_both_halves_holds(polardb: PolarCluster, drills: Drills, form: str) -> None:
    backup = back_up(polardb, drills.workspace / "backup", form)
    rows = polardb.hash_of("accounts")[0]
    where = f"current_setting('polar_datadir') LIKE 'file%://{drills.scratch}/%'"
    (right,) = sql_files(drills.workspace, right=f"SELECT count(*) = {rows} AND {where} FROM accounts")
    report = drills.run(polardb, backup, "--amcheck", "--sql", right)
    # A second writer on the live storage would have begun its timeline there.
    assert not list((polardb.shared / "pg_wal").glob("*.history"))
    assert polardb.hash_of("accounts")[0] == rows
    assert report["facts"]["polardb"] is True
    assert any(one["name"] == "accounts" and one["rows"] == rows for one in report["relations"])
    assert {finding["severity"] for finding in report["findings"]} == {"ok"}


def test_a_moment_of_the_past_is_drilled_with_archived_wal(
    make_polardb: Callable[..., PolarCluster], drills: Drills
) -> None:
    source = make_polardb()
    archive = start_story(source, drills.workspace / "archive")
    backup = drills.workspace / "backup"
    run_polarvault("basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", backup, as_server=True)
    story = tell_with(source, backup)
    archive_all(source, archive)
    (right,) = sql_files(drills.workspace, right=f"SELECT count(*) = {story.good[0]} FROM accounts")
    options = ("--wal", archive, "--target-name", RESTORE_POINT, "--sql", right)
    report = drills.run(source, backup, *options)
    assert (report["recovery"]["ended"], report["recovery"]["timeline"]) == ("promoted", 2)
    report = drills.run(source, backup, *options, "--target-action", "pause", "--read", "none")
    assert report["recovery"]["ended"] == "paused"


def test_two_halves_in_two_places_are_drilled_also_merged(polardb: PolarCluster, drills: Drills) -> None:
    backup = back_up(polardb, drills.workspace / "backup", f"--polardata={drills.workspace}/kept")
    lost = drills.run(polardb, backup, status=1)
    assert "--shared-from" in lost["failure"]["hint"]
    shared = ("--shared-from", drills.workspace / "kept")
    assert drills.run(polardb, backup, *shared, "--merge", "--read", "none")["facts"]["polardb"] is True


def test_a_corrupt_index_in_the_shared_half_is_found(polardb: PolarCluster, drills: Drills) -> None:
    backup = copied(back_up(polardb, drills.workspace / "backup"), drills.workspace / "damaged")
    break_order(relation_file(polardb, backup / "polar_shared_data", "accounts_pkey"))
    report = drills.run(polardb, backup, "--amcheck", status=1)
    assert any("accounts_pkey" in subject for _, subject, _ in problems(report))


def test_programs_of_plain_postgresql_are_refused(polardb: PolarCluster, pg15: Cluster, drills: Drills) -> None:
    backup = back_up(polardb, drills.workspace / "backup")
    report = drills.run(polardb, backup, "--bindir", pg15.installation.directory, status=4)
    assert "not PolarDB" in report["failure"]["detail"]
    plain = drills.workspace / "plain"
    pg15.run("pg_basebackup", "-d", pg15.conninfo(), "-c", "fast", "-N", "-D", str(plain))
    report = drills.run(pg15, plain, "--bindir", polardb.installation.directory, status=4)
    assert "PolarDB" in report["failure"]["detail"]
