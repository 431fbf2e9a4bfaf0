"""Promotions while WAL is received: every timeline is whole, and recovery along them works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.backups import back_up_with_postgres
from support.cluster import Cluster
from support.program import run_polarvault
from support.receiving import (
    KEEP_WAL,
    Receiver,
    make_standby,
    receiver,
    recover,
    segments,
    wait_replayed,
    wait_same,
    wal_directory,
    write_wal,
)

pytestmark = pytest.mark.postgres

MB = 1 << 20


def either(*clusters: Cluster) -> str:
    """Return a connection string of several hosts that wants the one that takes writes."""
    hosts = ",".join(str(cluster.directory) for cluster in clusters)
    ports = ",".join(str(cluster.port) for cluster in clusters)
    return f"host={hosts} port={ports} user=postgres target_session_attrs=read-write"


@contextmanager
def standbys(primary: Cluster, workspace: Path, count: int, **how: dict[str, str]) -> Iterator[list[Cluster]]:
    made: list[Cluster] = []
    try:
        for number in range(count):
            made.append(make_standby(primary, workspace / f"standby{number}", slot=f"standby{number}", **how))
        yield made
    finally:
        for standby in made:
            standby.remove()


def wait_and_compare(running: Receiver, server: Cluster, size_bytes: int) -> None:
    """Have the server write, and compare the newest timeline."""
    wait_same(running, server, write_wal(server, size_bytes))


def test_it_follows_two_promotions_and_recovery_along_them_works(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    primary = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    archive = workspace / "wal"
    with standbys(primary, workspace, 2) as (second, third):
        archive.mkdir()
        with receiver(archive, either(primary, second, third), "-s", "1") as running:
            running.wait_streaming()
            back_up_with_postgres(primary, workspace / "backup", "-X", "none")
            primary.query("CREATE TABLE story AS SELECT 1 AS timeline")
            end = write_wal(primary, 2 * MB)
            wait_replayed(second, end)
            wait_replayed(third, end)
            wait_same(running, primary, end)
            primary.kill()
            second.promote()
            second.query("SELECT pg_create_physical_replication_slot('standby1')")
            second.query("INSERT INTO story VALUES (2)")
            wait_and_compare(running, second, 2 * MB)
            third.query(f"ALTER SYSTEM SET primary_conninfo = '{second.conninfo()}'")
            third.restart()
            second.query("INSERT INTO story VALUES (22)")
            end = write_wal(second, MB)
            wait_replayed(third, end)
            wait_same(running, second, end)
            second.kill()
            third.promote()
            third.query("INSERT INTO story VALUES (3)")
            wait_and_compare(running, third, 2 * MB)
            running.stop()
            assert running.status["timeline"] == 3
            assert running.status["last_error"] is not None
        for name in ("00000002.history", "00000003.history"):
            assert (archive / name).read_bytes() == (wal_directory(third) / name).read_bytes()
        expected = third.hashes()
        assert {name[:8] for name in segments(archive)} == {"00000001", "00000002", "00000003"}
        with recover(third, workspace / "backup", archive, workspace / "copy") as copy:
            assert copy.query("SELECT timeline FROM story ORDER BY 1") == [(1,), (2,), (3,), (22,)]
            assert copy.hashes() == expected


def test_a_receiver_attached_to_the_standby_that_is_promoted_goes_on_in_the_same_connection(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    primary = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    archive = workspace / "wal"
    with standbys(primary, workspace, 1) as (standby,):
        with receiver(archive, standby.conninfo(), "--synchronous", "-v", "-Z", "gzip:1") as running:
            running.wait_streaming()
            end = write_wal(primary, 2 * MB)
            wait_replayed(standby, end)
            wait_same(running, primary, end)
            primary.stop()
            standby.promote()
            wait_and_compare(running, standby, 2 * MB)
            assert running.status["connections"] == 1
            assert "switched to timeline 2 at" in running.stop()
        # Started once more, or started anew, it has nothing to repair.
        before = segments(archive)
        with receiver(archive, standby.conninfo(), "--synchronous", "-v", "-Z", "gzip:1") as running:
            running.wait_for("(timeline 2)")
            wait_and_compare(running, standby, MB)
            running.stop()
        assert set(segments(archive, partial=False)) >= {name for name in before if not name.endswith(".partial")}


def test_a_promoted_standby_that_was_behind_is_followed_from_the_fork(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    primary = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    archive = workspace / "wal"
    with standbys(primary, workspace, 1) as (standby,):
        with receiver(archive, either(primary, standby), "-s", "1", "-v") as running:
            running.wait_streaming()
            back_up_with_postgres(primary, workspace / "backup", "-X", "none")
            end = write_wal(primary, MB)
            wait_replayed(standby, end)
            standby.stop()
            end = write_wal(primary, 4 * MB)
            wait_same(running, primary, end)
            old = {name: (archive / name).read_bytes() for name in segments(archive)}
            primary.stop("immediate")
            # Without the primary it cannot catch up.
            standby.start()
            standby.promote()
            running.wait_for("timeline 2 of the server parts at")
            running.wait_for("is kept, but is not part of the new timeline")
            wait_and_compare(running, standby, 2 * MB)
            running.stop()
        for name, content in old.items():
            assert (archive / name).read_bytes()[: len(content)] == content
        # The newest segment by number is still one of timeline 1. A restart goes on where the last run stopped.
        assert max(name[8:24] for name in segments(archive)) == max(
            name[8:24] for name in segments(archive) if name.startswith("00000001")
        )
        standby.query("CREATE TABLE after_fork AS SELECT 1 AS n")
        newest = [name for name in segments(archive) if name.startswith("00000002")][-1]
        with receiver(archive, standby.conninfo(), "-s", "1", "-v") as running:
            running.wait_for("starting log streaming at")
            assert "parts at" not in running.said
            number = int(newest[8:16], 16) << 12 | int(newest[16:24], 16)
            assert f"{number * MB:X}" in running.said.partition("streaming at 0/")[2]
            wait_and_compare(running, standby, 5 * MB)
            running.stop()
        with recover(standby, workspace / "backup", archive, workspace / "copy") as copy:
            assert copy.query("SELECT n FROM after_fork") == [(1,)]


def test_an_old_primary_that_comes_back_does_not_touch_the_archive(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    primary = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    archive = workspace / "wal"
    with standbys(primary, workspace, 2) as (second, third):
        with receiver(archive, second.conninfo(), "-s", "1") as running:
            running.wait_streaming()
            end = write_wal(primary, MB)
            wait_replayed(second, end)
            wait_replayed(third, end)
            second.promote()
            wait_and_compare(running, second, 2 * MB)
            running.stop()
        # The old one goes on writing on timeline 1, and another standby of it becomes another timeline 2.
        wait_replayed(third, write_wal(primary, 6 * MB))
        before = {path.name: path.read_bytes() for path in archive.iterdir() if not path.name.startswith(".")}
        refused = run_polarvault("receivewal", "-D", archive, "-d", primary.conninfo(), "-n", check=False)
        assert refused.returncode == 1
        assert "the server is on timeline 1, the directory already holds timeline 2" in refused.stderr
        assert "old primary" in refused.stderr
        assert "target_session_attrs=read-write" in refused.stderr
        third.promote()
        refused = run_polarvault("receivewal", "-D", archive, "-d", third.conninfo(), "-n", check=False)
        assert refused.returncode == 1
        assert "timeline 2, of which the directory holds WAL up to" in refused.stderr
        assert "is not in the history of the server's timeline 2" in refused.stderr
        assert before == {path.name: path.read_bytes() for path in archive.iterdir() if not path.name.startswith(".")}
        # As a service it waits for the right one to come back.
        with receiver(archive, primary.conninfo(), "-s", "1") as running:
            running.wait_for("trying again in")
            assert running.running.poll() is None
            running.stop()
