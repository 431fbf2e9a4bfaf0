"""Receiving that goes wrong: it goes on by itself where it can, says why where it cannot, and never loses a byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.errors import ConnectionLost, PolarvaultError, ServerError
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.server.connection import ConnectionSettings, Connector
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.run import receive_wal
from polarvault.walarchive.receive.state import ReceiverState
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.store.directory import DirectoryStore
from support.cluster import Cluster
from support.program import run_polarvault
from support.receiving import (
    END_S,
    KEEP_WAL,
    assert_same_wal,
    content_of,
    end_of_wal,
    forget_slot,
    receiver,
    segments,
    wait_released,
    wait_same,
    write_wal,
)
from support.servers import ServerPool, missing_reason
from support.small_disk import small_disk
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

MB = 1 << 20


@pytest.fixture(scope="module")
def server(servers: ServerPool) -> Iterator[Cluster]:
    """A PostgreSQL 18 with segments of 1 MB that keeps them all; a test leaves it running."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    with Cluster.made(
        servers.installations[18], servers.directory / "faulty", wal_segment_mb=1,
        settings=KEEP_WAL | {"max_wal_size": "1GB"},
    ) as cluster:  # fmt: skip
        yield cluster


# The server


def test_a_server_killed_under_load_and_shut_down_is_followed(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    with receiver(archive, server.conninfo(), "-s", "1", "-v") as running:
        running.wait_streaming()
        with server.pgbench():
            running.wait_segments(2)
            server.kill()
            running.wait_for("trying again in")
        running.wait_until(lambda: running.status["state"] in ("disconnected", "connecting"), "the status says so")
        # Nobody knows whether the server comes back: what it sent is durable, and the status says that, too.
        running.wait_until(
            lambda: running.status["flushed_lsn"] == running.status["received_lsn"], "what was received is durable"
        )
        server.start()
        # The end of crash recovery and all that follows.
        running.wait_flushed(end_of_wal(server))
        assert_same_wal(archive, server, up_to=Lsn(end_of_wal(server) // MB * MB))
        # A fast shutdown waits for everything to be flushed here, the last checkpoint record too.
        end = write_wal(server, MB // 2)
        server.stop("fast")
        running.wait_for("the server ended the WAL stream")
        running.wait_until(lambda: Lsn.parse(running.status["flushed_lsn"]) > end, "the status says so")
        server.start()
        end = write_wal(server, MB)
        running.wait_flushed(end)
        server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")
        running.wait_for("terminating connection due to administrator command")
        end = write_wal(server, MB)
        wait_same(running, server, end)
        assert running.status["last_error"]
        running.stop()
    assert_same_wal(archive, server, up_to=end)
    # Every reconnection went on in the open segment: nothing was fetched twice, no second partial file is left.
    assert len(segments(archive, partial=True)) <= 1


def test_without_loop_the_first_loss_is_the_end(server: Cluster, workspace: Path) -> None:
    with receiver(workspace / "wal", server.conninfo(), "-n", "-s", "1") as running:
        running.wait_streaming()
        end = write_wal(server, MB)
        running.wait_flushed(end)
        server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")
        assert "terminating connection due to administrator command" in running.ended(1)
    assert_same_wal(workspace / "wal", server, up_to=end)


# The network


def test_a_network_that_cuts_every_megabyte_loses_nothing(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    with TcpProxy(server.port) as proxy:
        conninfo = server.tcp_conninfo(port=proxy.port)
        with receiver(archive, conninfo, "-s", "1", "-v") as running:
            running.wait_streaming()
            proxy.cut_after(1_234_567)
            wait_same(running, server, write_wal(server, 3 * MB))
            proxy.cut_after(1_234_567, abruptly=False)
            wait_same(running, server, write_wal(server, 3 * MB))
            proxy.refuse()
            running.wait_for("Connection refused")
            end = write_wal(server, MB)
            proxy.restart()
            wait_same(running, server, end)
            assert proxy.connections_seen >= 6
            running.stop()
    assert_same_wal(archive, server, up_to=end)
    assert len(segments(archive, partial=True)) <= 1


def test_a_network_that_drips_loses_nothing(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    with (
        TcpProxy(server.port) as proxy,
        receiver(archive, server.tcp_conninfo(port=proxy.port), "-s", "1") as running,
    ):
        # What is there already of the segment comes quickly.
        wait_same(running, server, end_of_wal(server))
        proxy.drip(7)
        wait_same(running, server, write_wal(server, 20_000))
        proxy.drip(1)
        end = end_of_wal(server)
        wait_same(running, server, end)
        running.stop()
    assert_same_wal(archive, server, up_to=end)


class Listening:
    """Keeps what a receiver reports."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.problems: list[PolarvaultError] = []
        self.states: list[str] = []
        self.received = Lsn(0)

    def step(self, text: str, **facts: object) -> None:
        self.notes.append(text)

    note = warning = step

    def notice(self, notice: ServerError) -> None:
        self.notes.append(notice.message)

    def problem(self, problem: PolarvaultError) -> None:
        self.problems.append(problem)

    def status(self, state: ReceiverState) -> None:
        self.states.append(state.state)
        self.received = state.received


def test_a_network_that_goes_silent_is_left_after_a_while(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    archive.mkdir()
    with TcpProxy(server.port) as proxy:
        request = ReceiveRequest(status_interval_s=1.0, silence_limit_s=4.0)
        store = DirectoryStore(str(archive), compression=Compression())
        stop, heard = StopRequest(), Listening()
        connector = Connector(ConnectionSettings(server.tcp_conninfo(port=proxy.port)))
        thread = threading.Thread(target=receive_wal, args=(request, store, connector, heard, stop))
        thread.start()
        try:
            wait_until(lambda: "streaming" in heard.states, "it streams")
            # An idle server is no silent one: it answers when it is asked.
            wait_until(lambda: len(heard.states) > 4, "some seconds have passed")
            assert heard.problems == []
            proxy.stall_after(0)
            wait_until(lambda: heard.problems, "the silence is noticed")
            assert isinstance(heard.problems[0], ConnectionLost)
            assert "nothing came from the server for 4 s, not even when it was asked" in heard.problems[0].message
            proxy.restart()
            end = write_wal(server, 2 * MB)
            wait_until(lambda: heard.received >= end, "it receives again")
        finally:
            stop.request()
            thread.join(END_S)
    assert not thread.is_alive()
    assert_same_wal(archive, server, up_to=end)


# Signals


# Before it is connected it dies by the signal: test_drop_in_signals.py.
@pytest.mark.parametrize("when", ["starting", "waiting"])
def test_it_can_be_stopped_at_any_moment(server: Cluster, workspace: Path, when: str) -> None:
    archive = workspace / "wal"
    with TcpProxy(server.port) as proxy:
        conninfo = server.tcp_conninfo(port=proxy.port)
        if when == "starting":
            # In the middle of the answers to what it asks before it streams.
            proxy.stall_after(1500)
        with receiver(archive, conninfo, "-s", "1", "-v") as running:
            if when == "waiting":
                running.wait_streaming()
                end = write_wal(server, MB)
                running.wait_flushed(end)
                proxy.refuse()
                running.wait_for("trying again in")
            else:
                wait_until(lambda: proxy.connections_seen, "it connects")
                wait_until(lambda: (archive / ".polarvault-receivewal.lock").exists(), "it is under way")
            said = running.stop()
        assert "interrupted" not in said
        if when == "waiting":
            assert_same_wal(archive, server, up_to=end)
            assert json.loads((archive / ".polarvault-receivewal.json").read_text())["state"] == "stopped"


def test_everything_is_durable_and_told_when_it_is_stopped(server: Cluster, workspace: Path) -> None:
    """Also with a status interval longer than the whole run."""
    server.query("SELECT pg_create_physical_replication_slot('stopped', true)")
    try:
        with receiver(workspace / "wal", server.conninfo(), "-s", "600", "-S", "stopped") as running:
            running.wait_streaming()
            end = write_wal(server, 3 * MB)
            running.wait_until(lambda: Lsn.parse(running.status["received_lsn"]) >= end, "all is received")
            running.stop()
        wait_released(server, "stopped")
        ((restart,),) = server.query("SELECT restart_lsn FROM pg_replication_slots")
        assert Lsn.parse(restart) >= end
    finally:
        forget_slot(server, "stopped")
    assert_same_wal(workspace / "wal", server, up_to=end)


# The slot


def test_a_slot_that_is_missing_or_taken_is_named(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    archive.mkdir()
    refused = run_polarvault("receivewal", "-D", archive, "-d", server.conninfo(), "-S", "missing", check=False)
    assert refused.returncode == 1
    assert 'replication slot "missing" does not exist' in refused.stderr
    assert "polarvault receivewal --create-slot -S missing" in refused.stderr
    server.query("SELECT pg_create_physical_replication_slot('taken', true)")
    (workspace / "other").mkdir()
    try:
        with receiver(workspace / "other", server.conninfo(), "-S", "taken") as first:
            first.wait_streaming()
            with receiver(archive, server.conninfo(), "-S", "taken", "-s", "1") as second:
                second.wait_for('replication slot "taken" is active for PID')
                end = write_wal(server, MB)
                first.stop()
                # The way is free.
                second.wait_flushed(end)
                second.stop()
    finally:
        forget_slot(server, "taken")


def test_a_slot_about_to_lose_wal_is_warned_of_and_a_lost_one_is_a_gap(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(
        18, wal_segment_mb=1, settings={"max_slot_wal_keep_size": "3MB", "max_wal_size": "4MB"}, fill=False
    )
    cluster.query("SELECT pg_create_physical_replication_slot('mine', true)")
    archive = workspace / "wal"
    with receiver(archive, cluster.conninfo(), "-S", "mine", "-s", "1") as running:
        running.wait_streaming()
        running.wait_flushed(end_of_wal(cluster))
        running.wait_for('slot "mine" loses WAL when the server has written another')
        running.wait_for("max_slot_wal_keep_size")
        running.wait_flushed(end_of_wal(cluster))
        running.stop()
    end = Lsn.parse(running.status["flushed_lsn"])
    before = {name: (archive / name).read_bytes() for name in segments(archive)}
    for _ in range(3):
        write_wal(cluster, 3 * MB)
        cluster.query("SELECT pg_switch_wal()")
        cluster.query("CHECKPOINT")
    assert cluster.query("SELECT wal_status FROM pg_replication_slots") == [("lost",)]
    refused = run_polarvault("receivewal", "-D", archive, "-d", cluster.conninfo(), "-S", "mine", "-n", check=False)
    assert refused.returncode == 1
    segment = max(before).removesuffix(".partial")
    assert 'slot "mine" has lost WAL: the server no longer has WAL from' in refused.stderr
    assert segment in refused.stderr
    assert f"{end // MB * MB >> 32:X}/{(end // MB * MB) & 0xFFFFFFFF:X}" in refused.stderr
    assert "hint: " in refused.stderr
    # Without the slot it is the same gap.
    refused = run_polarvault("receivewal", "-D", archive, "-d", cluster.conninfo(), "-n", check=False)
    assert refused.returncode == 1
    assert "the server no longer has WAL from" in refused.stderr
    assert segment in refused.stderr
    assert before == {name: (archive / name).read_bytes() for name in segments(archive)}
    # Trying again cannot help, also not a service.
    with receiver(archive, cluster.conninfo(), "-S", "mine", "-s", "1") as running:
        assert "take a new base backup" in running.ended(1)
    with receiver(archive, cluster.conninfo(), "-s", "1") as running:
        assert "no longer has WAL from" in running.ended(1)


# The disk


@pytest.mark.parametrize("options", [[], ["--synchronous", "-Z", "gzip:1"]], ids=" ".join)
def test_a_full_disk_suspends_receiving_until_there_is_space(
    server: Cluster, workspace: Path, options: list[str]
) -> None:
    archive = workspace / "wal"
    archive.mkdir()
    start = end_of_wal(server)
    with small_disk(archive, "6m"):
        ballast = archive / "ballast"
        ballast.write_bytes(os.urandom(2 * MB))
        with receiver(archive, server.conninfo(), "-s", "1", *options) as running:
            running.wait_streaming()
            wait_until(lambda: "is nearly full" in running.said, "it warns")
            # Random, so that compression helps no more than by half.
            end = noise(server, 9 * MB if "-Z" in options else 4 * MB)
            running.wait_for("No space left on device")
            running.wait_until(lambda: running.status.get("state") == "disk full", "it waits for space")
            found = run_polarvault("receivewal", "-D", archive, "--status", check=False)
            assert found.returncode == 2
            assert json.loads(found.stdout)["state"] == "disk full"
            assert "No space left on device" in json.loads(found.stdout)["last_error"]
            # What was acknowledged is there.
            assert_same_wal(archive, server, up_to=Lsn.parse(running.status["flushed_lsn"]), since=start)
            ballast.unlink()
            running.wait_flushed(end)
            running.stop()
        assert_same_wal(archive, server, up_to=end, since=start)
        assert len(segments(archive, partial=True)) <= 1


def noise(server: Cluster, size_bytes: int) -> Lsn:
    server.query(
        "SELECT count(pg_logical_emit_message(false, 'noise', (SELECT string_agg(gen_random_uuid()::text, '')"
        f" FROM generate_series(1, 2000) WHERE n > 0))) FROM generate_series(1, {size_bytes // 72_000 + 1}) n"
    )
    return end_of_wal(server)


def test_a_full_disk_can_be_left_by_a_signal_and_ends_a_run_without_loop(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    archive.mkdir()
    with small_disk(archive, "3m"):
        with receiver(archive, server.conninfo(), "-s", "1") as running:
            running.wait_streaming()
            noise(server, 4 * MB)
            running.wait_until(lambda: running.status.get("state") == "disk full", "it waits for space")
            running.stop(signal.SIGTERM)
        with receiver(archive, server.conninfo(), "-s", "1", "-n") as running:
            assert "No space left on device" in running.ended(1)


def put_back(server: Cluster, older: Path) -> None:
    """Stop a server and start it with the data directory that it had before."""
    server.stop()
    shutil.rmtree(server.data)
    shutil.copytree(older, server.data)
    server.account.own(server.data)
    server.start()


def test_a_server_that_was_put_back_to_an_older_state_is_not_received_from(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    server = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL)
    archive, older = workspace / "wal", workspace / "older"
    server.stop()
    shutil.copytree(server.data, older)
    server.start()
    # Somewhere in the middle of a segment, and other bytes than those that come after.
    server.query("SELECT pg_logical_emit_message(false, 'first', repeat('history', 20000))")
    with receiver(archive, server.conninfo()) as running:
        running.wait_streaming()
        wait_same(running, server, write_wal(server, 2 * MB))
        received = segments(archive)
        put_back(server, older)
        running.wait_for("the server was set back: its WAL ended at 0/")
        # As much as before, and more: nothing in LSN or name tells it from what was there.
        write_wal(server, 4 * MB)
        asked = running.status["connections"]
        running.wait_until(lambda: running.status.get("connections", 0) > asked + 1, "it has asked again")
        assert f"move the segments from {segments(archive)[0][:8]}" in running.stop()
    assert segments(archive) == received
    contents = {name: content_of(archive / name) for name in received}
    # A new receiver, which did not see the server when it was behind.
    with receiver(archive, server.conninfo(), "-n") as running:
        assert "does not continue what is kept up to there" in running.ended(1)
    assert {name: content_of(archive / name) for name in segments(archive)} == contents
