"""Block maps of real WAL: beside the server's own summaries, and beside what really differs in the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import core as hypothesis_core

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from support.block_comparison import beyond, lacking, map_of_range, map_of_segments, summarized, unexplained
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
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


@pytest.mark.polardb
def test_what_differs_between_two_cold_copies_of_a_polardb_is_in_the_map(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    seed = hypothesis_core.global_force_seed
    cluster = make_polardb(wal_segment_mb=SEGMENT_MB, settings=SETTINGS | {"wal_log_hints": "on"}, fill=False)
    compare_cold_copies(cluster, cluster.shared, workspace, seed=seed, tablespace=None)
