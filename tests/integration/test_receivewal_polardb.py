"""Receiving WAL of PolarDB: a real one with its large segments and its two kinds of failover, and a recorded stream."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from support.backups import back_up
from support.followers import Followers, followers_in
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.receiving import (
    Receiver,
    assert_same_wal,
    content_of,
    end_of_wal,
    receiver,
    segments,
    valid_end,
    wait_replayed,
    wal_directory,
    write_wal,
)
from support.replay_server import ReplayServer

MakePolardb = Callable[..., PolarCluster]
MB = 1 << 20


@pytest.fixture
def followers(workspace: Path) -> Iterator[Followers]:
    """A maker of standbys that stops them afterwards."""
    with followers_in(workspace) as made:
        yield made


def either(*clusters: object) -> str:
    hosts = ",".join(str(cluster.directory) for cluster in clusters)  # type: ignore[attr-defined]
    ports = ",".join(str(cluster.port) for cluster in clusters)  # type: ignore[attr-defined]
    return f"host={hosts} port={ports} user=postgres target_session_attrs=read-write"


def wait_and_compare(running: Receiver, server: PolarCluster, size_bytes: int) -> Lsn:
    end = write_wal(server, size_bytes)
    timeline = int(server.query("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0][:8], 16)
    running.wait_flushed(end, timeline=timeline)
    assert_same_wal(running.directory, server, up_to=end)
    return end


@pytest.mark.polardb
def test_segments_of_a_gigabyte_take_what_is_in_them(make_polardb: MakePolardb, workspace: Path) -> None:
    cluster = make_polardb(wal_segment_mb=1024, fill=False)
    archive, own = workspace / "wal", wal_directory(cluster)
    run_polarvault("receivewal", "-d", cluster.conninfo(), "--create-slot", "--reserve-wal", "-S", "vault")
    with receiver(archive, cluster.conninfo(), "-S", "vault", "--synchronous") as running:
        end = write_wal(cluster, 20 * MB)
        running.wait_flushed(end)
        (name,) = segments(archive, partial=True)
        path, segment = archive / name, WalSegment.parse(name[:24], 1 << 30)
        assert path.stat().st_size == 1 << 30
        assert path.stat().st_blocks * 512 < 64 * MB
        copy = workspace / segment.file_name
        subprocess.run(["cp", "--sparse=always", path, copy], check=True)
        assert valid_end(cluster.installation, copy) >= end
        cluster.query("SELECT pg_switch_wal()")
        after = end_of_wal(cluster)
        running.wait_segments(1)
        running.wait_flushed(after)
        running.stop()
    subprocess.run(["cmp", archive / segment.file_name, own / segment.file_name], check=True)
    assert (archive / segment.file_name).stat().st_blocks * 512 < 64 * MB
    assert "PolarDB" in str(running.status["server"])


@pytest.mark.polardb
def test_a_read_only_node_takes_over_on_the_same_timeline(make_polardb: MakePolardb, workspace: Path) -> None:
    primary = make_polardb(settings={"wal_keep_size": "1GB"}, fill=False)
    primary.query("SELECT pg_create_physical_replication_slot('vault', true)")
    replica = primary.add_replica("ro1")
    try:
        with (
            receiver(workspace / "wal", either(primary, replica), "-s", "1", "-S", "vault") as running,
            receiver(workspace / "wal_of_replica", replica.conninfo(), "-s", "1") as beside,
        ):
            running.wait_streaming()
            beside.wait_streaming()
            end = wait_and_compare(running, primary, 20 * MB)
            # A read-only node sends the primary's WAL, which it finds on the shared storage.
            beside.wait_flushed(end)
            assert_same_wal(workspace / "wal_of_replica", primary, up_to=end)
            beside.stop()
            primary.kill()
            replica.promote()
            wait_and_compare(running, replica, 20 * MB)
            # The slot is on the shared storage as well, so it is still there, and the open segment went on.
            assert running.status["timeline"] == 1
            assert running.status["slot"] == "vault"
            running.stop()
        assert len(segments(workspace / "wal", partial=True)) <= 1
        assert {name[:8] for name in segments(workspace / "wal")} == {"00000001"}
    finally:
        replica.remove()


@pytest.mark.polardb
def test_a_standby_takes_over_on_a_new_timeline(
    make_polardb: MakePolardb, workspace: Path, followers: Followers
) -> None:
    primary = make_polardb(settings={"wal_keep_size": "1GB"})
    back_up(primary, workspace / "backup", "--polardata", str(workspace / "backup_shared"))
    shared = workspace / "standby_shared"
    standby, _, _ = followers.make(
        primary, workspace / "backup", "--primary-conninfo", primary.conninfo(), "--slot", "standby2",
        "--create-slot", "--polardata", str(shared), "--hostid", "7",
    )  # fmt: skip
    standby.shared = shared  # type: ignore[attr-defined]
    with receiver(workspace / "wal", either(primary, standby), "-s", "1") as running:
        running.wait_streaming()
        end = wait_and_compare(running, primary, 10 * MB)
        wait_replayed(standby, end)
        primary.kill()
        standby.promote()
        wait_and_compare(running, standby, 20 * MB)  # type: ignore[arg-type]
        assert running.status["timeline"] == 2
        running.stop()
    history = "00000002.history"
    assert (workspace / "wal" / history).read_bytes() == (shared / "pg_wal" / history).read_bytes()


@pytest.mark.parametrize("options", [[], ["-Z", "lz4", "--synchronous"]], ids=["plain", "lz4"])
def test_a_recorded_stream_is_received_byte_for_byte(
    replay_server: ReplayServer, tmp_path: Path, options: list[str]
) -> None:
    conninfo = f"host=127.0.0.1 port={replay_server.port} user=postgres"
    run_polarvault("receivewal", "-d", conninfo, "--create-slot", "--reserve-wal", "-S", "vault")
    end = Lsn.parse(replay_server.index["wal_stop"])
    run_polarvault("receivewal", "-D", tmp_path, "-d", conninfo, "-S", "vault", "-n", "-E", str(end), *options)
    command = next(e["command"] for e in replay_server.index["exchanges"] if "START_REPLICATION" in e["command"])
    sent = b""
    stream = b"".join(replay_server.recorded(command))
    at = 0
    while at < len(stream):
        length = int.from_bytes(stream[at + 1 : at + 5], "big")
        if stream[at : at + 1] == b"d" and stream[at + 5 : at + 6] == b"w":
            sent += stream[at + 30 : at + 1 + length]
        at += 1 + length
    whole, partial = segments(tmp_path)
    assert whole.startswith("000000010000000000000001")
    assert partial.endswith(".partial")
    received = content_of(tmp_path / whole) + content_of(tmp_path / partial)
    assert received[: len(sent)] == sent
    assert not any(received[len(sent) :])
    assert len(sent) == end - 16 * MB
