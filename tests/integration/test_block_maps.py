"""Block maps of real WAL: beside the server's own summaries, and beside what really differs in the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import core as hypothesis_core

from polarvault.config.model import KeySource, RepositoryConfiguration
from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.opening import open_repository
from polarvault.repository.maps.stored import maps_beside
from support.block_comparison import beyond, lacking, map_of_range, map_of_segments, summarized, unexplained
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import command_line, run_polarvault
from support.random_changes import RandomChanges
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

SEGMENT_MB = 4
SETTINGS = {"wal_keep_size": "4GB", "max_prepared_transactions": "5", "max_wal_size": "2GB"}
CHANGES = 60


@pytest.mark.parametrize("major", [17, 18])
def test_a_map_says_what_the_servers_own_summary_says_of_the_same_wal(
    make_cluster: Callable[..., Cluster], major: int
) -> None:
    # Without checksums visibility maps are changed with fewer records.
    seed = hypothesis_core.global_force_seed + major
    checksums = seed % 2 == 0
    cluster = make_cluster(major, wal_segment_mb=SEGMENT_MB, settings=SETTINGS, checksums=checksums, fill=False)
    cluster.add_tablespace("elsewhere", rows=10)
    work = RandomChanges(cluster, seed, tablespace="elsewhere")
    work.begin()
    with work.beside():
        for _ in range(3):
            work.run(CHANGES // 3)
            cluster.query("CHECKPOINT")
    ((end,),) = cluster.query("SELECT redo_lsn FROM pg_control_checkpoint()")
    newest = "SELECT coalesce(max(end_lsn), '0/0') >= %s FROM pg_available_wal_summaries()"
    wait_until(lambda: cluster.query(newest, [end]) == [(True,)], "the WAL is summarized", timeout_s=60)
    ranges = cluster.query("SELECT start_lsn, end_lsn FROM pg_available_wal_summaries() ORDER BY 1")
    seen = 0
    for start, stop in ranges:
        rows = cluster.query(
            "SELECT relfilenode::bigint, reltablespace::bigint, reldatabase::bigint, relforknumber, relblocknumber,"
            " is_limit_block FROM pg_wal_summary_contents(1, %s, %s)", [start, stop],
        )  # fmt: skip
        ours = map_of_range(cluster.data / "pg_wal", Lsn.parse(start), Lsn.parse(stop), SEGMENT_MB << 20)
        theirs = summarized(rows)
        seen += sum(len(blocks) for _, blocks in theirs.values())
        assert ours.gaps == ()
        assert lacking(theirs, ours) == [], (seed, start, stop)
        assert beyond(theirs, ours) == [], (seed, start, stop)
    assert seen > 1000


def compare_cold_copies(cluster: Cluster, data: Path, copy: Path, *, seed: int, tablespace: str | None) -> None:
    """Change a cluster between two cold copies; every difference must be in the map of the WAL between them."""
    work = RandomChanges(cluster, seed, tablespace=tablespace)
    work.begin()
    cluster.stop()
    copied = copy / "before"
    shutil.copytree(data, copied, symlinks=False, ignore=shutil.ignore_patterns("pg_wal", "*.pid", "polar_fullpage"))
    cluster.start()
    ((start,),) = cluster.query("SELECT redo_lsn FROM pg_control_checkpoint()")
    with work.beside():
        work.run(CHANGES)
    # What the shutdown writes is one record, and changes no page.
    cluster.query("SELECT pg_switch_wal()")
    cluster.stop()
    first = WalSegment.holding(Lsn.parse(start), 1, SEGMENT_MB << 20)
    found = map_of_segments(data / "pg_wal", first)
    wrong, differing = unexplained(copied, data, found)
    assert wrong == [], (seed, work.done)
    assert differing > 200


@pytest.mark.parametrize("major", [13, 14, 15, 16, 17, 18])
def test_what_differs_between_two_cold_copies_is_in_the_map(
    make_cluster: Callable[..., Cluster], workspace: Path, installation: Callable[[int], Binaries], major: int
) -> None:
    seed = hypothesis_core.global_force_seed + major
    # Either makes a change of hint bits write WAL.
    checksums = seed % 2 == 0
    settings = SETTINGS if checksums else SETTINGS | {"wal_log_hints": "on"}
    cluster = make_cluster(major, wal_segment_mb=SEGMENT_MB, settings=settings, checksums=checksums, fill=False)
    cluster.add_tablespace("elsewhere", rows=10)
    compare_cold_copies(cluster, cluster.data, workspace, seed=seed, tablespace="elsewhere")


def test_the_maps_of_an_archive_are_made_by_the_command_and_name_what_differs(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    seed = hypothesis_core.global_force_seed
    cluster = make_cluster(15, wal_segment_mb=1, settings=SETTINGS | {"wal_log_hints": "on"}, fill=False)
    repository, key = workspace / "repository", workspace / "key"
    place = ("--repo", str(repository), "--key-file", str(key))

    def run(*words: str) -> str:
        return run_polarvault(*words, as_server=True, directory=workspace).stdout

    run("repo", "init", str(repository), "--new-key-file", str(key))
    words = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", *place))
    cluster.configure({"archive_mode": "on", "archive_command": words})
    cluster.restart()
    work = RandomChanges(cluster, seed, tablespace=None)
    work.begin()
    cluster.stop()
    shutil.copytree(cluster.data, workspace / "before", ignore=shutil.ignore_patterns("pg_wal", "*.pid"))
    cluster.start()
    ((start,),) = cluster.query("SELECT redo_lsn FROM pg_control_checkpoint()")
    with work.beside():
        work.run(20)
    # What has reached the files is random then, and recovery does the rest.
    cluster.kill()
    cluster.start()
    work.run(10)
    cluster.query("SELECT pg_switch_wal()")
    # Waits until everything is archived.
    cluster.stop()
    (first,) = json.loads(run("wal", "map", "shop", *place, "--json"))["timelines"]
    assert (first["gaps"], first["problems"]) == ([], [])
    assert first["made"] > 10
    (again,) = json.loads(run("wal", "map", "shop", *place, "--json"))["timelines"]
    assert (again["made"], again["present"]) == (0, first["made"])
    run("repo", "check", *place)
    chosen = RepositoryConfiguration("here", str(repository), key=KeySource(key_file=str(key)))
    opened = open_repository(chosen, {})
    try:
        maps = maps_beside(opened.repository.wal_of("shop"), opened.repository, "shop")
        there = [one for one, _ in maps.stored(1) if one.end > Lsn.parse(start)]
        wrong, differing = unexplained(workspace / "before", cluster.data, maps.changes(there))
    finally:
        opened.close()
    assert wrong == [], (seed, work.done)
    assert differing > 200


@pytest.mark.polardb
def test_what_differs_between_two_cold_copies_of_a_polardb_is_in_the_map(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    seed = hypothesis_core.global_force_seed
    cluster = make_polardb(wal_segment_mb=SEGMENT_MB, settings=SETTINGS | {"wal_log_hints": "on"}, fill=False)
    compare_cold_copies(cluster, cluster.shared, workspace, seed=seed, tablespace=None)
