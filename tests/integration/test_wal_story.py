"""What our users tell each other about WAL in a repository, on PostgreSQL and PolarDB: every moment comes back."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from polarvault.model.lsn import Lsn
from support.cluster import Cluster
from support.object_servers import BUCKET, ObjectServer
from support.polar_cluster import PolarCluster
from support.program import command_line
from support.receiving import KEEP_WAL
from support.streaming import StreamSite
from support.waiting import wait_until
from support.waldump import waldump

pytestmark = pytest.mark.postgres
STREAM = ["--slot", "shop_wal", "--slice-interval", "0.3", "-s", "1"]
MB = 1 << 20


def position(cluster: Cluster) -> str:
    ((lsn,),) = cluster.query("SELECT pg_current_wal_flush_lsn()::text")
    return str(lsn)


def switch(cluster: Cluster) -> Lsn:
    """Switch to the next segment; return where the one that was written ends.

    Not where the server is afterwards: it writes on by itself (running transactions, hints on pages of the catalogue),
    and a test that waits for the archive of that waits for ever.
    """
    ((switched, size),) = cluster.query(
        "SELECT pg_switch_wal()::text, pg_size_bytes(current_setting('wal_segment_size'))"
    )
    return Lsn(-(-Lsn.parse(str(switched)) // int(size)) * int(size))


def delete_without_where(cluster: Cluster, seaweedfs: ObjectServer, workspace: Path) -> None:
    settings = seaweedfs.settings
    site = StreamSite(
        cluster, workspace, address=f"s3://{BUCKET}/story-{os.getpid()}-{cluster.port}", encrypted=True,
        environment={
            "AWS_ENDPOINT_URL": settings.endpoint or "", "AWS_ACCESS_KEY_ID": settings.access_key or "",
            "AWS_SECRET_ACCESS_KEY": settings.secret_key or "",
        },
    )  # fmt: skip
    with site.streaming(*site.options[2:], *STREAM) as stream:
        wait_until(lambda: cluster.query("SELECT active FROM pg_replication_slots") == [(True,)], "the slot is used")
        site.back_up()
        cluster.query("CREATE TABLE story AS SELECT generate_series(1, 1000) AS n")
        ((before,),) = cluster.query("SELECT clock_timestamp()::text")
        time.sleep(0.05)
        cluster.query("DELETE FROM story")
        site.wait_durable(position(cluster), stream)
        assert stream.stop() == 0, stream.said
    # The server and its disks are gone; there is nothing but the bucket and the key.
    cluster.stop("immediate")
    restored = site.restored("before", "--target-time", str(before))
    try:
        assert restored.query("SELECT count(*) FROM story") == [(1000,)]
    finally:
        restored.stop()


@pytest.mark.parametrize("major", [13, 14, 15, 16, 17, 18, 19])
def test_a_delete_without_where_is_undone_from_an_encrypted_bucket(
    make_cluster: Callable[..., Cluster], seaweedfs: ObjectServer, workspace: Path, major: int
) -> None:
    delete_without_where(make_cluster(major), seaweedfs, workspace)


def test_a_delete_without_where_is_undone_on_polardb(
    make_polardb: Callable[..., PolarCluster], seaweedfs: ObjectServer, workspace: Path
) -> None:
    """With segments as large as PolarDB's are: nothing waits for one to be full."""
    delete_without_where(make_polardb(wal_segment_mb=1024), seaweedfs, workspace)


# Random targets


@dataclass(frozen=True)
class Commit:
    """A commit as pg_waldump shows it."""

    lsn: Lsn
    xid: int
    time: object


class Clients:
    """Some clients that commit rows with the number of their transaction, and now and then name a point."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.points: dict[str, Lsn] = {}
        self._threads = [threading.Thread(target=self._run, args=[number], daemon=True) for number in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        with psycopg.connect(self._cluster.conninfo(), autocommit=True) as connection:
            while not self._stop.is_set():
                connection.execute("BEGIN")
                connection.execute(
                    "INSERT INTO commits SELECT txid_current(), g FROM generate_series(1, %s) g", [rng.randrange(1, 9)]
                )
                connection.execute("COMMIT" if rng.random() < 0.9 else "ROLLBACK")
                if number == 0 and rng.random() < 0.05:
                    name = f"point{len(self.points)}"
                    found = connection.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()
                    assert found is not None
                    self.points[name] = Lsn.parse(found[0])
                time.sleep(rng.uniform(0, 0.01))


@pytest.mark.parametrize("major", [15, 18])
def test_random_targets_show_what_was_committed_and_nothing_else(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int, request: pytest.FixtureRequest
) -> None:
    """The truth is what pg_waldump reads from the server's own WAL. POLARVAULT_TARGETS=30 tries so many."""
    cluster = make_cluster(major, settings=KEEP_WAL | {"max_connections": "50"})
    site = StreamSite(cluster, workspace)
    cluster.query("CREATE TABLE commits (xid bigint, n int)")
    with site.streaming(*STREAM) as stream:
        begin = Lsn.parse(str(cluster.query("SELECT pg_current_wal_lsn()::text")[0][0]))
        site.back_up()
        backed_up = Lsn.parse(position(cluster))
        with Clients(cluster, 4) as clients:
            time.sleep(3)
            site.back_up()
            time.sleep(3)
        cluster.query("SELECT pg_switch_wal()")
        site.wait_durable(position(cluster), stream)
        stream.stop()
    first = Lsn(begin // (16 * MB) * 16 * MB)
    records = waldump(cluster.installation, cluster.data / "pg_wal", first, 16 * MB, timeline_id=1).records
    commits = [Commit(found[1], found[2], found[3]) for one in records if (found := one.transaction_end) is not None
               and found[0] == "COMMIT"]  # fmt: skip
    later = [one for one in commits if one.lsn > backed_up]
    assert len(later) > 100
    writers = {xid for (xid,) in cluster.query("SELECT DISTINCT xid FROM commits")}
    rng = random.Random(major)
    for number in range(int(os.environ.get("POLARVAULT_TARGETS", "4"))):
        one = rng.choice(later)
        kind = ("lsn", "xid", "time", "name")[number % 4]
        if kind == "lsn":
            # In the middle of a record: the next one is the last to be replayed.
            asked = Lsn(one.lsn - rng.choice((0, 1, 30)))
            last = min(record.lsn for record in records if record.lsn >= asked)
            words, expected = str(asked), {other.xid for other in commits if other.lsn <= last}
        elif kind == "xid":
            words, expected = str(one.xid), {other.xid for other in commits if other.lsn <= one.lsn}
        elif kind == "time":
            moment = one.time + timedelta(microseconds=rng.choice((0, 1)))  # type: ignore[operator]
            past = min((other.lsn for other in commits if other.time > moment), default=None)  # type: ignore[operator]
            words = moment.isoformat()
            expected = {other.xid for other in commits if past is None or other.lsn < past}
        else:
            words = rng.choice(sorted(clients.points))
            expected = {other.xid for other in commits if other.lsn < clients.points[words]}
        restored = site.restored(f"target{number}", f"--target-{kind}", words)
        try:
            shown = {xid for (xid,) in restored.query("SELECT DISTINCT xid FROM commits")}
        finally:
            restored.stop()
        assert shown == expected & writers, (kind, words, sorted(shown ^ (expected & writers))[:10])


# Standbys that archive, and many timelines


def archiving_standby_takes_over(site: StreamSite) -> None:
    """The primary does not archive, the standby on other storage does, always; it is promoted when the primary dies."""
    primary, workspace = site.cluster, site.workspace
    site.back_up()
    push = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", "--repo", site.address))
    standby = site.restored(
        "standby", "--as", "standby", "--primary-conninfo", primary.conninfo(),
        "--set", "archive_mode=always", "--set", f"archive_command=XDG_STATE_HOME={workspace}/state {push}",
    )  # fmt: skip
    try:
        primary.query("CREATE TABLE story AS SELECT 1 AS n")
        ((first,),) = primary.query("SELECT clock_timestamp()::text")
        time.sleep(0.05)
        primary.query("UPDATE story SET n = 2")
        end = switch(primary)
        primary.query("UPDATE story SET n = n")
        wait_until(lambda: site.ends(1) >= end, "the standby has archived it", timeout_s=90)
        primary.query("UPDATE story SET n = 3")
        wait_until(lambda: standby.query("SELECT n FROM story") == [(3,)], "the standby has it")
        primary.stop("immediate")
        standby.promote()
        standby.query("UPDATE story SET n = 4")
        end = switch(standby)
        wait_until(lambda: site.ends(2) >= end, "the promoted standby has archived it", timeout_s=90)
        for name, more, expected in (
            ("before", ["--target-time", str(first)], 1),
            ("after", ["--target", "latest"], 4),
        ):
            restored = site.restored(name, *more)
            try:
                assert restored.query("SELECT n FROM story") == [(expected,)]
            finally:
                restored.stop()
        shown = site.run("wal", "status", "shop", *site.options).stdout
        assert "timeline 2, branched from 1" in shown
        assert "GAP" not in shown
        assert "nothing of it is reached" not in shown
    finally:
        standby.stop("immediate")


@pytest.mark.parametrize("major", [14, 18])
def test_a_standby_that_archives_always_takes_over(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    archiving_standby_takes_over(StreamSite(make_cluster(major, wal_segment_mb=4), workspace))


def test_a_standby_of_polardb_that_archives_always_takes_over(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    cluster = make_polardb(settings={"full_page_writes": "on"})
    archiving_standby_takes_over(StreamSite(cluster, workspace))


def test_five_timelines_and_a_branch_from_the_middle(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(16, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    cluster.query("CREATE TABLE story (timeline int, n int)")
    moments: dict[int, str] = {}
    with site.streaming(*STREAM) as stream:
        wait_until(lambda: cluster.query("SELECT active FROM pg_replication_slots") == [(True,)], "the slot is used")
        site.back_up()
        for timeline in range(1, 6):
            if timeline > 1:
                cluster.stop()
                (cluster.data / "standby.signal").touch()
                cluster.account.own(cluster.data / "standby.signal")
                cluster.start()
                cluster.promote()
            cluster.query(f"INSERT INTO story VALUES ({timeline}, 1)")
            ((moments[timeline],),) = cluster.query("SELECT clock_timestamp()::text")
            time.sleep(0.05)
            cluster.query(f"INSERT INTO story VALUES ({timeline}, 2)")
            site.wait_durable(position(cluster), stream, timeline=timeline)
        assert stream.stop() == 0, stream.said
    cluster.stop()
    # The middle of timeline 3 is brought back, becomes the cluster, and is streamed: timeline 6 branches from 3.
    middle = site.restored(
        "middle", "--target-time", moments[3], "--target-timeline", "3", "--target-action", "promote"
    )
    try:
        assert middle.query("SELECT max(timeline), count(*) FROM story") == [(3, 5)]
        assert middle.query("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)") == [("00000006",)]
        middle.query("INSERT INTO story VALUES (6, 1)")
        site.stream_options = ["-d", middle.conninfo()]
        with site.streaming(*STREAM) as stream:
            site.wait_durable(position(middle), stream, timeline=6)
            assert stream.stop() == 0, stream.said
    finally:
        middle.stop()
    for name, more, expected in (
        ("five", ["--target", "latest", "--target-timeline", "5"], (5, 10)),
        ("six", ["--target", "latest"], (6, 6)),
        ("two", ["--target-time", moments[2], "--target-timeline", "2"], (2, 3)),
    ):
        restored = site.restored(name, *more)
        try:
            assert restored.query("SELECT max(timeline), count(*) FROM story") == [expected], name
        finally:
            restored.stop()
    shown = site.run("wal", "status", "shop", *site.options).stdout
    assert "timeline 6, branched from 3" in shown
