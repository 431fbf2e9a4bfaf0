"""WAL streamed from real servers into a repository, through kills, failovers and repositories that are away."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.model.lsn import Lsn
from support.cluster import Cluster
from support.receiving import KEEP_WAL
from support.small_disk import small_disk
from support.streaming import StreamSite
from support.waiting import wait_until

pytestmark = pytest.mark.postgres
SLOT = ["--slot", "shop_wal"]
QUICK = ["--slice-interval", "0.3", "-s", "1"]


class Load:
    """Commits numbers one after the other while it runs; remembers which were acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.acknowledged: list[int] = []
        self._stop = threading.Event()
        cluster.query("CREATE TABLE IF NOT EXISTS numbers (n int PRIMARY KEY, filler text)")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        number = 1 + max(self.acknowledged, default=0)
        while not self._stop.is_set():
            try:
                self.cluster.query(
                    f"INSERT INTO numbers SELECT {number}, string_agg(md5(({number} * g)::text), '') "
                    "FROM generate_series(1, 600) g"
                )
                self.acknowledged.append(number)
            except Exception:
                time.sleep(0.05)  # The server is being restarted.
            number += 1


def position(cluster: Cluster) -> str:
    ((lsn,),) = cluster.query("SELECT pg_current_wal_flush_lsn()::text")
    return str(lsn)


def numbers_of(cluster: Cluster) -> set[int]:
    return {number for (number,) in cluster.query("SELECT n FROM numbers")}


@pytest.mark.parametrize("major", [13, 15, 18])
def test_every_moment_is_reached_from_what_was_streamed(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    cluster = make_cluster(major, wal_segment_mb=4)
    site = StreamSite(cluster, workspace)
    with site.streaming(*SLOT, *QUICK) as stream:
        wait_until(lambda: cluster.query("SELECT active FROM pg_replication_slots") == [(True,)], "the slot is used")
        site.run("backup", "shop", *site.options, "-d", cluster.conninfo())
        cluster.query("CREATE TABLE story (n int); INSERT INTO story SELECT generate_series(1, 1000)")
        ((before,),) = cluster.query("SELECT clock_timestamp()::text")
        time.sleep(0.05)
        cluster.query("DELETE FROM story")
        cluster.query("INSERT INTO story VALUES (-1)")
        # Ranges, and not whole segments: it does not take a switch.
        site.wait_durable(position(cluster), stream)
        assert site.status()["findings"] == []
        begun = time.monotonic()
        assert stream.stop() == 0, stream.said
        assert time.monotonic() - begun < 20
    restored = site.restored("before", "--target-time", str(before))
    try:
        assert restored.query("SELECT count(*), min(n) FROM story") == [(1000, 1)]
    finally:
        restored.stop()
    restored = site.restored("after", "--target", "latest")
    try:
        assert restored.query("SELECT count(*), min(n) FROM story") == [(1, -1)]
    finally:
        restored.stop()
    found = json.loads(site.run("wal", "status", "shop", *site.options, "--json").stdout)
    assert found["clusters"][0]["cluster"] == "shop"


def test_maps_are_made_as_wal_passes(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18, wal_segment_mb=1)
    site = StreamSite(cluster, workspace)
    with site.streaming(*SLOT, *QUICK) as stream:
        wait_until(lambda: cluster.query("SELECT active FROM pg_replication_slots") == [(True,)], "the slot is used")
        cluster.query("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 60000) g")
        cluster.query("SELECT pg_switch_wal()")
        cluster.query("CREATE TABLE small (n int)")
        site.wait_stored(position(cluster))
        assert stream.stop() == 0
    folder = site.repository / "clusters/shop/maps"

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("0*") if path.is_file()}

    kept = contents()
    assert len(kept) >= 4
    # Made again from the WAL they are the same.
    shutil.rmtree(folder)
    site.run("wal", "map", "shop", *site.options)
    again = contents()
    assert {name: again[name] for name in kept} == kept


def test_kills_of_receiver_repository_and_server_lose_nothing_that_was_acknowledged(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL | {"fsync": "on"})
    site = StreamSite(cluster, workspace)
    rng = random.Random(11)
    with Load(cluster):
        for round_number in range(6):
            spooled = ["--spool", str(workspace / "spool"), "--spool-max", "64MB"] if rng.random() < 0.5 else []
            with site.streaming(*SLOT, *QUICK, *spooled) as stream:
                time.sleep(rng.uniform(0.8, 2.0))
                what = round_number % 3
                if what == 1:
                    site.take_away()
                    time.sleep(rng.uniform(0.5, 1.5))
                elif what == 2:
                    cluster.stop("immediate")
                    time.sleep(rng.uniform(0.1, 0.5))
                    cluster.start()
                stream.kill()
            if what == 1:
                site.bring_back()
            ((held,),) = cluster.query("SELECT restart_lsn::text FROM pg_replication_slots")
            if not spooled:
                assert site.ends() >= Lsn.parse(held)
    with site.streaming(*SLOT, *QUICK, "--spool", str(workspace / "spool"), "--spool-max", "64MB") as stream:
        cluster.query("SELECT pg_switch_wal()")
        site.wait_stored(position(cluster))
        assert stream.stop() == 0, stream.said
    site.compare(cluster, least=5)
    site.run("repo", "check", "--repo", site.repository, "--read-data")


def test_a_repository_that_is_away_fills_the_spool_and_then_holds_the_server(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(16, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    spool = workspace / "spool"
    cluster.query("CREATE TABLE big (content text)")
    with site.streaming(*SLOT, *QUICK, "--spool", str(spool), "--spool-max", "3MB") as stream:
        site.wait_durable(position(cluster), stream)
        site.wait_stored(position(cluster))
        site.take_away()
        cluster.query("INSERT INTO big SELECT string_agg(md5(g::text), '') FROM generate_series(1, 200000) g, "
                      "generate_series(1, 3) GROUP BY g % 200")  # fmt: skip
        cluster.query("SELECT pg_switch_wal()")
        end = position(cluster)
        wait_until(lambda: site.status()["upload"]["waiting_bytes"] >= 3 << 20, "the spool is full")
        time.sleep(2)
        found = site.status()
        assert Lsn.parse(found["flushed_lsn"]) < Lsn.parse(end)
        assert found["upload"]["waiting_bytes"] < 8 << 20
        assert [one["check"] for one in found["findings"]] == ["repository"]
        taken = sum(path.stat().st_size for path in spool.rglob("*.slice"))
        assert 3 << 20 <= taken < 8 << 20
        # Told to stop, it does not wait for what is away.
        begun = time.monotonic()
        assert stream.stop() == 0, stream.said
        assert time.monotonic() - begun < 20
        assert "wait for the repository" in stream.said
    # What is in the spool is uploaded also when there is no server any more.
    cluster.stop()
    site.bring_back()
    done = site.run("wal", "stream", "shop", *site.options, "--flush-spool", "--spool", spool, "--spool-max", "3MB")
    assert "uploaded" in done.stdout
    assert not list(spool.rglob("*.slice"))
    cluster.start()
    with site.streaming(*SLOT, *QUICK, "--spool", str(spool), "--spool-max", "3MB") as stream:
        site.wait_stored(end)
        assert stream.stop() == 0
    site.compare(cluster, least=6)


def test_a_synchronous_spool_keeps_what_was_committed_when_the_server_is_gone(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, wal_segment_mb=4, settings={"fsync": "on"})
    site = StreamSite(cluster, workspace)
    site.run("backup", "shop", *site.options, "-d", cluster.conninfo())
    spooled = ["--spool", str(workspace / "spool"), "--spool-max", "64MB"]
    with site.streaming(*SLOT, *QUICK, "--synchronous", *spooled) as stream:
        wait_until(lambda: cluster.query("SELECT active FROM pg_replication_slots") == [(True,)], "the slot is used")
        cluster.configure({"synchronous_standby_names": "*", "synchronous_commit": "on"})
        cluster.reload()
        wait_until(
            lambda: cluster.query("SELECT sync_state FROM pg_stat_replication") == [("sync",)], "it is synchronous"
        )
        with Load(cluster) as load:
            time.sleep(1.5)
            site.take_away()
            time.sleep(1.5)
            stream.kill()
            cluster.stop("immediate")
    assert len(load.acknowledged) > 20
    cluster.data.rename(workspace / "destroyed")
    site.bring_back()
    # The next start finds no server, and uploads what waits all the same.
    done = site.run("wal", "stream", "shop", *site.options, *site.stream_options, *SLOT, *spooled, "-n", check=False)
    assert done.returncode == 1
    assert "uploaded" in done.stderr
    restored = site.restored("restored", "--target", "latest")
    try:
        assert set(load.acknowledged) <= numbers_of(restored)
    finally:
        restored.stop()
    (workspace / "destroyed").rename(cluster.data)


def test_a_failover_is_followed_and_both_timelines_restore(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    primary = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(primary, workspace)
    site.run("backup", "shop", *site.options, "-d", primary.conninfo())
    standby = site.restored(
        "standby", "--as", "standby", "--primary-conninfo", primary.conninfo(), "--set", "wal_keep_size=1GB"
    )
    try:
        both = f"host=127.0.0.1,127.0.0.1 port={primary.port},{standby.port} user=postgres"
        both += " target_session_attrs=read-write"
        site.stream_options = ["-d", both, *SLOT, *QUICK]
        with site.streaming() as stream:
            primary.query("CREATE TABLE story AS SELECT 1 AS n")
            site.wait_durable(position(primary), stream)
            ((first,),) = primary.query("SELECT clock_timestamp()::text")
            time.sleep(0.05)
            primary.query("UPDATE story SET n = 2")
            wait_until(
                lambda: standby.query("SELECT n FROM story") == [(2,)], "the standby has it"
            )  # fmt: skip
            primary.stop("immediate")
            standby.query("SELECT pg_promote()")
            standby.query("UPDATE story SET n = 3")
            site.wait_durable(position(standby), stream, timeline=2)
            assert standby.query("SELECT slot_name FROM pg_replication_slots") == [("shop_wal",)]
            assert 'made replication slot "shop_wal"' in stream.said
            assert stream.stop() == 0
        for name, more, expected in (
            ("old", ["--target-time", str(first), "--target-timeline", "1"], 1),
            ("new", ["--target", "latest"], 3),
        ):
            restored = site.restored(name, *more)
            try:
                assert restored.query("SELECT n FROM story") == [(expected,)]
            finally:
                restored.stop()
    finally:
        standby.stop()


def test_wal_that_the_server_has_removed_is_a_gap_that_a_backup_ends(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(17, wal_segment_mb=1, settings={"max_wal_size": "2MB", "min_wal_size": "2MB"})
    site = StreamSite(cluster, workspace)
    site.run("backup", "shop", *site.options, "-d", cluster.conninfo())
    with site.streaming(*QUICK) as stream:
        site.wait_durable(position(cluster), stream)
        assert "no slot is used" in stream.said
        stream.stop()
    cluster.query("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 150000) g")
    for _ in range(3):
        cluster.query("SELECT pg_switch_wal()")
        cluster.query("CHECKPOINT")
    done = site.run("wal", "stream", "shop", *site.options, *site.stream_options, *QUICK, check=False)
    assert done.returncode == 1
    assert "no longer has WAL from" in done.stderr
    assert "take a new backup" in done.stderr
    site.run("backup", "shop", *site.options, "-d", cluster.conninfo())
    with site.streaming(*QUICK) as stream:
        cluster.query("CREATE TABLE story AS SELECT 1 AS n")
        site.wait_durable(position(cluster), stream)
        site.wait_stored(position(cluster))
        stream.stop()
    restored = site.restored("restored", "--target", "latest")
    try:
        assert restored.query("SELECT n FROM story") == [(1,)]
    finally:
        restored.stop()


def test_two_servers_and_two_receivers(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    with site.streaming(*SLOT, *QUICK) as stream:
        site.wait_durable(position(cluster), stream)
        again = site.run("wal", "stream", "shop", *site.options, *site.stream_options, "-n", check=False)
        assert again.returncode == 2
        assert "another" in again.stderr
        # From another machine nothing keeps a second one out, and it does no harm.
        elsewhere = {"XDG_STATE_HOME": str(workspace / "state2")}
        second = StreamSite.__new__(StreamSite)
        second.__dict__ |= site.__dict__ | {"environment": site.environment | elsewhere}
        with second.streaming("--slot", "second", *QUICK, "--slice-size", "100kB") as other:
            cluster.query("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
            cluster.query("SELECT pg_switch_wal()")
            site.wait_stored(position(cluster))
            wait_until(
                lambda: cluster.query("SELECT bool_and(flush_lsn >= pg_current_wal_flush_lsn()) AND count(*) = 2 "
                                      "FROM pg_stat_replication") == [(True,)],
                "both have everything",
            )  # fmt: skip
            assert other.stop() == 0, other.said
        assert stream.stop() == 0
    site.compare(cluster, least=2)
    # A copy that was promoted on its own writes another history under the same system identifier.
    cluster.stop()
    shutil.copytree(cluster.data, workspace / "copy", symlinks=True)
    cluster.start()
    cluster.query("CREATE TABLE original AS SELECT g FROM generate_series(1, 1000) g")
    with site.streaming(*SLOT, *QUICK) as stream:
        site.wait_durable(position(cluster), stream)
        site.wait_stored(position(cluster))
        stream.stop()
    copy = Cluster.adopt(cluster.installation, workspace / "copy", workspace / "copy-log")
    copy.start()
    try:
        copy.query("CREATE TABLE copied AS SELECT g FROM generate_series(1, 5000) g")
        refused = site.run("wal", "stream", "shop", *site.options, "-d", copy.conninfo(), *QUICK, "-n", check=False)
        assert refused.returncode == 1
        assert "two servers" in refused.stderr or "continue" in refused.stderr, refused.stderr
    finally:
        copy.stop()


def test_a_full_disk_of_the_spool_suspends_and_goes_on(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    spool = workspace / "spool"
    spool.mkdir()
    cluster.query("CREATE TABLE big (content text)")
    with small_disk(spool, "4m"):
        cluster.account.own(spool)
        with site.streaming(*SLOT, *QUICK, "--spool", str(spool), "--spool-max", "64MB") as stream:
            site.wait_durable(position(cluster), stream)
            site.take_away()
            cluster.query("INSERT INTO big SELECT string_agg(md5((g * n)::text), '') FROM generate_series(1, 2000) g, "
                          "generate_series(1, 100) n GROUP BY n")  # fmt: skip
            end = position(cluster)
            wait_until(lambda: site.status()["state"] == "disk full", "receiving is suspended")
            found = site.status()
            assert Lsn.parse(found["flushed_lsn"]) < Lsn.parse(end)
            site.bring_back()
            # What waits is uploaded, and makes room.
            site.wait_stored(end)
            assert stream.stop() == 0, stream.said
        assert not list(spool.rglob("*.slice"))
    site.compare(cluster, least=3)


def test_a_slot_that_has_lost_wal_is_named_and_a_new_one_goes_on_behind_a_backup(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    limits = {"max_wal_size": "2MB", "min_wal_size": "2MB", "max_slot_wal_keep_size": "2MB"}
    cluster = make_cluster(15, wal_segment_mb=1, settings=limits)
    site = StreamSite(cluster, workspace)
    site.back_up()
    with site.streaming(*SLOT, *QUICK) as stream:
        site.wait_durable(position(cluster), stream)
        stream.stop()
    for _ in range(6):
        cluster.query(
            "CREATE TABLE IF NOT EXISTS big AS SELECT 1 AS g; INSERT INTO big SELECT generate_series(1, 30000)"
        )
        cluster.query("SELECT pg_switch_wal()")
        cluster.query("CHECKPOINT")
    wait_until(lambda: cluster.query("SELECT wal_status FROM pg_replication_slots") == [("lost",)], "the slot is lost")
    done = site.run("wal", "stream", "shop", *site.options, *site.stream_options, *SLOT, *QUICK, check=False)
    assert done.returncode == 1
    assert 'slot "shop_wal" has lost WAL' in done.stderr
    assert "take a new backup" in done.stderr
    assert "--drop-slot" in done.stderr
    cluster.query("SELECT pg_drop_replication_slot('shop_wal')")
    site.back_up()
    with site.streaming(*SLOT, *QUICK) as stream:
        cluster.query("CREATE TABLE story AS SELECT 1 AS n")
        site.wait_stored(position(cluster))
        assert stream.stop() == 0, stream.said
    restored = site.restored("restored", "--target", "latest")
    try:
        assert restored.query("SELECT n FROM story") == [(1,)]
    finally:
        restored.stop()
    shown = site.run("wal", "status", "shop", *site.options, check=False)
    assert shown.returncode == 1
    assert "GAP" in shown.stdout


def test_wal_is_acknowledged_when_both_repositories_have_it(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    site = StreamSite(cluster, workspace)
    second = workspace / "second"
    site.run("repo", "init", second)
    (workspace / "polarvault.toml").write_text(
        f'[repository.near]\naddress = "{site.repository}"\n[repository.far]\naddress = "{second}"\n'
        f'[cluster.shop]\nconnection = "{cluster.conninfo()}"\nrepositories = ["near", "far"]\nslot = "shop_wal"\n'
    )
    cluster.account.own(workspace / "polarvault.toml")
    site.options, site.stream_options = ["--config", str(workspace / "polarvault.toml")], []
    with site.streaming(*QUICK) as stream:
        site.wait_durable(position(cluster), stream)
        (second / ".incoming").chmod(0)
        cluster.query("CREATE TABLE story AS SELECT generate_series(1, 1000) AS n")
        end = position(cluster)
        wait_until(lambda: (site.status()["upload"] or {}).get("message") is not None, "the second one is away")
        site.wait_stored(end)
        time.sleep(1.5)
        ((held,),) = cluster.query("SELECT restart_lsn::text FROM pg_replication_slots")
        assert Lsn.parse(held) < Lsn.parse(end)
        (second / ".incoming").chmod(0o700)
        site.wait_durable(end, stream)
        assert stream.stop() == 0, stream.said
    site.compare(cluster, least=0)
    site.repository = second
    assert site.ends() >= Lsn.parse(end)
