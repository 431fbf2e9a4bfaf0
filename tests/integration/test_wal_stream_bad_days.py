"""`wal stream` on the worst day: started twice, everything full, and the server has to be stopped all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.model.lsn import Lsn
from support.cluster import Cluster
from support.object_servers import BUCKET, SEAWEEDFS_MISSING, seaweedfs_program, shared_seaweedfs
from support.ports import hold_port
from support.program import command_line
from support.receiving import KEEP_WAL
from support.streaming import StreamSite
from support.waiting import wait_until

pytestmark = pytest.mark.postgres
SLOT = ["--slot", "shop_wal"]
QUICK = ["--slice-interval", "0.3", "-s", "1"]


def position(cluster: Cluster) -> str:
    ((lsn,),) = cluster.query("SELECT pg_current_wal_flush_lsn()::text")
    return str(lsn)


def processor_seconds(group: int) -> float:
    """Return what the processes of a group have used."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # It has ended.
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_a_second_start_takes_nothing_out_of_a_spool_that_is_in_use(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    spooled = ["--spool", str(workspace / "spool"), "--spool-max", "64MB"]
    with site.streaming(*SLOT, *QUICK, *spooled) as stream:
        site.wait_durable(position(cluster), stream)
        site.take_away()
        cluster.query("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
        site.wait_durable(position(cluster), stream)
        waiting = sorted((workspace / "spool").rglob("*.slice"))
        assert waiting
        other = workspace / "other"
        site.run("repo", "init", other)
        for words in (
            [*site.options, *site.stream_options, *SLOT],
            [*site.options, "--flush-spool"],
            # Into another repository it is another receiver, with a lock of its own.
            ["--repo", other, *site.stream_options, "--slot", "other"],
        ):
            done = site.run("wal", "stream", "shop", *words, *spooled, check=False)
            assert (done.returncode, "another program uses the spool" in done.stderr) == (2, True), done.stderr
        assert set(waiting) <= set((workspace / "spool").rglob("*.slice"))
        site.bring_back()
        site.wait_stored(position(cluster))
        assert stream.stop() == 0, stream.said
    site.compare(cluster, least=1)


@pytest.mark.parametrize("spooled", [False, True])
def test_a_server_can_be_stopped_while_the_repository_is_away(
    make_cluster: Callable[..., Cluster], workspace: Path, spooled: bool
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    spool = ["--spool", str(workspace / "spool"), "--spool-max", "1MB"] if spooled else []
    with site.streaming(*SLOT, *QUICK, *spool) as stream:
        site.wait_durable(position(cluster), stream)
        site.wait_stored(position(cluster))
        site.take_away()
        cluster.query("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g")
        end = position(cluster)
        wait_until(lambda: site.status()["upload"]["waiting_bytes"] >= 1 << 20, "something waits")
        before = processor_seconds(stream.running.pid)
        # The server waits until all of its WAL is confirmed, and gives no receiver that answers a time limit.
        cluster.stop()
        # It waited for half a minute, and did not spin: that would have taken all of it.
        assert processor_seconds(stream.running.pid) - before < 15
        states = ("no room",) if spooled else ("connecting", "disconnected")
        wait_until(lambda: site.status()["state"] in states, "it has left the server")
        cluster.start()
        site.bring_back()
        site.wait_stored(end)
        assert stream.stop() == 0, stream.said
    site.compare(cluster, least=6)


@pytest.mark.parametrize("major", [13, 15, 18])
def test_a_standby_that_has_more_than_the_repository_is_promoted_with_all_of_it(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    primary = make_cluster(major, settings=KEEP_WAL)
    site = StreamSite(primary, workspace)
    site.back_up()
    standby = site.restored("standby", "--as", "standby", "--primary-conninfo", primary.conninfo())
    try:
        with site.streaming(*SLOT, *QUICK) as stream:
            primary.query("CREATE TABLE story AS SELECT generate_series(1, 1000) AS n")
            site.wait_durable(position(primary), stream)
            # From here on the standby alone has it, as of the last seconds before any failover.
            stream.kill()
            primary.query("INSERT INTO story SELECT generate_series(1001, 5000)")
            wait_until(lambda: standby.query("SELECT count(*) FROM story") == [(5000,)], "the standby has it")
            primary.stop("immediate")
            standby.query("SELECT pg_promote()")
            wait_until(lambda: standby.query("SELECT pg_is_in_recovery()") == [(False,)], "it is promoted")
            assert standby.query("SELECT count(*) FROM story") == [(5000,)]
    finally:
        standby.stop("immediate")


@pytest.mark.skipif(seaweedfs_program() is None, reason=SEAWEEDFS_MISSING)
def test_a_receiver_can_be_stopped_while_the_object_store_hangs(
    make_cluster: Callable[..., Cluster], workspace: Path, tmp_path: Path
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL)
    # Its own: no other test may hang with it.
    with shared_seaweedfs(tmp_path / "seaweedfs") as server:
        settings = server.settings
        keys = {"AWS_ACCESS_KEY_ID": settings.access_key or "", "AWS_SECRET_ACCESS_KEY": settings.secret_key or ""}
        site = StreamSite(
            cluster, workspace, address=f"s3://{BUCKET}/hangs", environment={
                "AWS_ENDPOINT_URL": settings.endpoint or "", **keys,
            },
        )  # fmt: skip
        store = int((tmp_path / "seaweedfs/pid").read_text())
        with site.streaming(*SLOT, *QUICK) as stream:
            site.wait_durable(position(cluster), stream)
            cluster.query("SELECT pg_switch_wal()")
            os.killpg(store, signal.SIGSTOP)
            try:
                cluster.query("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
                wait_until(lambda: site.status()["upload"]["waiting_bytes"] > 0, "something waits")
                # A request is given up after minutes, the test after one.
                assert stream.stop() == 0, stream.said
                wait_until(lambda: cluster.query("SELECT count(*) FROM pg_stat_replication") == [(0,)], "it is gone")
                with site.streaming(*SLOT, *QUICK, "-v") as again:
                    wait_until(lambda: cluster.query("SELECT count(*) FROM pg_stat_replication") == [(1,)],
                               "it is connected, and asks the repository where to go on")  # fmt: skip
                    assert again.stop() == 0, again.said
            finally:
                os.killpg(store, signal.SIGCONT)


@pytest.mark.parametrize("major", [15, 18])
def test_a_standby_that_archives_always_goes_on_archiving_when_it_is_promoted_in_a_segment_of_the_repository(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    primary = make_cluster(major, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(primary, workspace)
    site.back_up()
    push = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", "--repo", site.address))
    # All that it knows it has from the repository, the beginning of the last segment included.
    standby = site.restored(
        "standby", "--as", "standby", "--set", f"primary_conninfo=host=127.0.0.1 port={hold_port(site)}",
        "--set", "archive_mode=always", "--set", f"archive_command=XDG_STATE_HOME={workspace}/state {push}",
    )  # fmt: skip
    try:
        with site.streaming(*SLOT, *QUICK) as stream:
            primary.query("CREATE TABLE story AS SELECT generate_series(1, 1000) AS n")
            site.wait_durable(position(primary), stream)
            assert stream.stop() == 0, stream.said
        wait_until(lambda: standby.query("SELECT to_regclass('story') IS NOT NULL") == [(True,)], "the standby has it")
        primary.stop("immediate")
        standby.query("SELECT pg_promote()")
        standby.query("CREATE TABLE later AS SELECT 1 AS n")
        standby.query("SELECT pg_switch_wal()")
        # The segment that was left comes first; the archiver asks for it until it is taken.
        wait_until(lambda: site.ends(2) >= Lsn.parse(position(standby)), "the new timeline is archived", timeout_s=150)
    finally:
        standby.stop("immediate")
    restored = site.restored("restored", "--target", "latest")
    try:
        assert restored.query("SELECT (SELECT count(*) FROM story), (SELECT n FROM later)") == [(1000, 1)]
    finally:
        restored.stop()
