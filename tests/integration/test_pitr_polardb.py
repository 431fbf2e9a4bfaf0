"""Point-in-time recovery of a real PolarDB on shared storage: both halves, every kind of target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.instance.account import server_account
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.servers import ServerPool
from support.story import (
    RESTORE_POINT,
    Recoveries,
    Story,
    archive_all,
    change,
    resume,
    start_story,
    tell_with,
    timeline_of,
)

pytestmark = pytest.mark.polardb


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recoveries]:
    """A function that restores with --start and returns the server and the JSON result."""
    recoveries = Recoveries(workspace)
    yield recoveries
    recoveries.close()


def back_up_both_halves(source: PolarCluster, target: Path, *options: str) -> Path:
    """Take a backup with our own tool; the shared half lies inside."""
    run_polarvault("basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", target, *options, as_server=True)
    return target


@pytest.fixture(scope="module")
def archived(servers: ServerPool, polardb_installation: object) -> Iterator[tuple[Story, Path]]:
    """A story of PolarDB and its WAL archive; tests only read it."""
    directory = servers.directory / "polar_story"
    source = PolarCluster.made_polar(polardb_installation, directory)  # type: ignore[arg-type]
    try:
        archive = start_story(source, directory / "archive")
        story = tell_with(source, back_up_both_halves(source, directory / "backup"))
        archive_all(source, archive)
        yield story, archive
    finally:
        source.remove()


TARGETS = {
    "name": (lambda s: ["--target-name", RESTORE_POINT], "good"),
    "time": (lambda s: ["--target-time", s.good_time.isoformat()], "good"),
    "xid": (lambda s: ["--target-xid", s.disaster_xid], "bad"),
    "xid exclusive": (lambda s: ["--target-xid", s.disaster_xid, "--target-exclusive"], "good"),
    "lsn": (lambda s: ["--target-lsn", s.disaster_lsn], "good"),
    "immediate": (lambda s: ["--target", "immediate"], "at_backup"),
    "latest": (lambda s: ["--target", "latest"], "end"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_both_halves_are_recovered_to_the_target(archived: tuple[Story, Path], recover: Recoveries, kind: str) -> None:
    story, archive = archived
    options, state = TARGETS[kind]
    before = {path.name: path.stat().st_mtime_ns for path in archive.iterdir()}
    server, result = recover(story.source, story.backup, "--wal", archive, *options(story))
    wanted = getattr(story, state)
    assert server.hash_of("accounts") == wanted
    assert result["outcome"]["ended"] == ("promoted" if kind == "latest" else "paused")
    assert server.query("SHOW polar_datadir") == [(f"file-dio://{server.data}/polar_shared_data",)]
    if kind != "latest":
        assert (server.data / "recovery.signal").exists()
        resume(server)
    assert server.hash_of("accounts") == wanted
    # A timeline of its own, and nothing written into the source's WAL archive.
    assert timeline_of(server) == 2
    assert (server.data / "polar_shared_data" / "pg_wal" / "00000002.history").exists()
    server.query("CREATE TABLE written_here AS SELECT 1")
    server.query("SELECT pg_switch_wal()")
    server.stop()
    assert {path.name: path.stat().st_mtime_ns for path in archive.iterdir()} == before
    stop = result["recovery"]["stop"]
    if stop is not None and kind != "immediate":
        assert result["outcome"]["lsn"] == (stop["lsn"] if stop["where"] == "before" else stop["end_lsn"])


@pytest.mark.parametrize("action", ["promote", "shutdown"])
def test_the_action_at_the_target_is_carried_out(
    archived: tuple[Story, Path], recover: Recoveries, action: str
) -> None:
    story, archive = archived
    target = ["--target-name", RESTORE_POINT, "--target-action", action]
    server, result = recover(story.source, story.backup, "--wal", archive, *target)
    if action == "promote":
        assert server.hash_of("accounts") == story.good
        assert (result["outcome"]["ended"], timeline_of(server)) == ("promoted", 2)
    else:
        assert (result["outcome"]["ended"], server.is_running()) == ("shut down", False)


def test_segments_of_1_gb_are_received_and_recovered_from(
    make_polardb: Callable[..., PolarCluster], recover: Recoveries
) -> None:
    source = make_polardb(wal_segment_mb=1024, settings={"max_wal_size": "4GB"})
    source.query("SELECT pg_create_physical_replication_slot('receiver', true)")
    story = tell_with(source, back_up_both_halves(source, source.directory / "backup"))
    received = server_account().make_directory(source.directory / "received")
    end = source.query("SELECT pg_current_wal_flush_lsn()::text")[0][0]
    run_polarvault(
        "receivewal", "-d", source.conninfo(), "-S", "receiver", "--endpos", end, "-D", received, as_server=True
    )
    change(source, "INSERT INTO accounts VALUES (600000, 'after the receiver', 1)")
    server, _ = recover(story.source, story.backup, "--wal", received, "--target-name", RESTORE_POINT)
    assert server.hash_of("accounts") == story.good
    assert sum(path.stat().st_blocks for path in received.iterdir()) * 512 < 256 << 20
    check_ends_of_1_gb(story, received, recover)


def check_ends_of_1_gb(story: Story, received: Path, recover: Recoveries) -> None:
    """Break the end of received WAL in every way; only what a receiver itself leaves is an ordinary end."""
    where = story.source, story.backup, "--wal", received
    whole = recover.plan(*where, "--target", "latest")["reachable"]["latest"]
    for target in (
        ["--target-xid", story.disaster_xid],
        ["--target-lsn", story.disaster_lsn],
        ["--target-time", story.good_time.isoformat()],
        ["--target-lsn", whole["lsn"]],
        ["--target-time", whole["time"]],
    ):
        assert recover.plan(*where, *target)["reachable"]["latest"] == whole, target
    partial = max(received.glob("*.partial"))
    name = partial.name.removesuffix(".partial")
    # What a receiver leaves that was killed before it wrote anything: the one with WAL counts.
    (received / name).touch()
    story.source.account.own(received / name)
    assert recover.plan(*where, "--target", "latest")["reachable"]["latest"] == whole
    (received / name).unlink()
    used = int(whole["lsn"].split("/")[1], 16) % (1 << 30)
    disaster = int(story.disaster_lsn.split("/")[1], 16) % (1 << 30)
    # Cut behind the last record: the rest were zeros.
    os.truncate(partial, used + 8192)
    assert recover.plan(*where, "--target", "latest")["reachable"]["latest"] == whole
    with open(partial, "r+b") as stream:
        stream.seek(disaster + 64)
        stream.write(b"\xff" * 16)
    said = recover.refused(*where, "--target", "latest")
    assert "WAL of this segment goes on at" in said
    assert "--accept-end" in said
    assert recover.plan(*where, "--target-name", RESTORE_POINT)["stop"]["name"] == RESTORE_POINT
    partial.rename(received / name)
    os.truncate(received / name, 0)
    said = recover.refused(*where, "--target", "latest")
    assert name in said
    assert "is empty" in said
