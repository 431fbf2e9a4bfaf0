"""What `receivewal --status` says of a receiver that does not receive: never that all is well, and why not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from polarvault.model.lsn import Lsn
from support.cluster import Cluster
from support.program import run_polarvault
from support.receiving import (
    KEEP_WAL,
    STATUS_FILE,
    Receiver,
    end_of_wal,
    forget_slot,
    receiver,
    segments,
    wait_released,
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
    """A PostgreSQL 18 with segments of 1 MB; a test leaves it running."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    with Cluster.made(
        servers.installations[18], servers.directory / "watched", wal_segment_mb=1,
        settings=KEEP_WAL | {"max_wal_size": "1GB"},
    ) as cluster:  # fmt: skip
        yield cluster


def status(directory: Path) -> tuple[int, dict[str, Any]]:
    finished = run_polarvault("receivewal", "-D", directory, "--status", check=False)
    found: dict[str, Any] = json.loads(finished.stdout)
    assert found["exit_status"] == finished.returncode
    assert found["directory"] == str(directory)
    return finished.returncode, found


def checks(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding["check"], finding["severity"]) for finding in found["findings"]]


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def assert_lag_is_not_known(found: dict[str, Any], *, since: datetime) -> None:
    """No WAL is known to be missing, and none to be here: the lag counts from when the server was heard last."""
    assert found["lag_bytes"] is None
    assert since - timedelta(seconds=60) < moment(found["lag_since"]) <= datetime.now(UTC)
    assert found["lag_seconds"] == pytest.approx(
        (moment(found["ended"]) - moment(found["lag_since"])).total_seconds(), abs=5
    )


def wait_status(running: Receiver, state: str) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def is_so() -> bool:
        seen[:] = [status(running.directory)[1]]
        return bool(seen[0]["state"] == state)

    try:
        wait_until(is_so, f"the status is {state}", timeout_s=90, interval_s=0.5)
    except AssertionError as problem:
        problem.add_note(f"{seen}\n{running.said}")
        raise
    return seen[0]


def caught_up(running: Receiver, server: Cluster) -> None:
    running.wait_streaming()
    running.wait_flushed(write_wal(server, MB // 2))


def test_a_receiver_that_streams_is_well(server: Cluster, workspace: Path) -> None:
    with receiver(workspace / "wal", server.conninfo(), "-s", "1") as running:
        caught_up(running, server)
        code, found = status(workspace / "wal")
        assert (code, found["status"], found["state"], found["findings"]) == (0, "ok", "streaming", [])
        assert found["running"]
        assert found["process_id"] == running.running.pid
        assert not found["is_old"]
        assert moment(found["started_at"]) <= moment(found["state_since"]) <= moment(found["updated_at"])
        # The same with --json, which --status means anyway.
        again = run_polarvault("receivewal", "-D", workspace / "wal", "--status", "--json")
        assert json.loads(again.stdout).keys() == found.keys()


def test_a_receiver_stopped_by_a_signal_does_not_stream(server: Cluster, workspace: Path) -> None:
    with receiver(workspace / "wal", server.conninfo(), "-s", "1") as running:
        caught_up(running, server)
        began = datetime.now(UTC)
        os.kill(running.running.pid, signal.SIGSTOP)
        write_wal(server, MB)
        found = wait_status(running, "suspended")
        assert status(workspace / "wal")[0] == 2
        assert checks(found) == [("receiver-process", "problem")]
        assert found["findings"][0]["advice"] == f"let it go on: kill -CONT {running.running.pid}"
        assert_lag_is_not_known(found, since=began)
        first = found["lag_seconds"]
        assert status(workspace / "wal")[1]["lag_seconds"] > first
        os.kill(running.running.pid, signal.SIGCONT)
        running.wait_flushed(end_of_wal(server))
        wait_status(running, "streaming")
        running.stop()


def test_a_killed_server_leaves_no_lag_of_zero(server: Cluster, workspace: Path) -> None:
    with receiver(workspace / "wal", server.conninfo(), "-s", "1") as running:
        caught_up(running, server)
        began = datetime.now(UTC)
        server.kill()
        try:
            running.wait_for("trying again in")
            code, found = status(workspace / "wal")
            assert code in (1, 2)
            assert found["state"] in ("disconnected", "connecting")
            assert checks(found)[0][0] == "connection"
            assert found["last_error"]
            assert found["last_error_id"] in ("connection-lost", "connection-failed", "stream-ended", "server-error")
            assert moment(found["state_since"]) >= began - timedelta(seconds=1)
            assert_lag_is_not_known(found, since=began)
        finally:
            server.start()
        running.wait_flushed(end_of_wal(server))
        wait_status(running, "streaming")
        # Killed, it cannot say goodbye; its last word was that it streams.
        running.kill()
        assert json.loads((workspace / "wal" / STATUS_FILE).read_text())["state"] == "streaming"
        code, found = status(workspace / "wal")
        assert (code, found["running"], found["state"]) == (2, False, "stopped")
        assert "it was killed" in found["findings"][0]["message"]
        assert_lag_is_not_known(found, since=began)


def test_a_network_that_swallows_everything_is_silence(server: Cluster, workspace: Path) -> None:
    with (
        TcpProxy(server.port) as proxy,
        receiver(workspace / "wal", server.tcp_conninfo(port=proxy.port), "-s", "1") as running,
    ):
        caught_up(running, server)
        began = datetime.now(UTC)
        proxy.stall_after(0)
        write_wal(server, MB // 4)
        found = wait_status(running, "silent")
        assert checks(found)[0][0] == "server-heard"
        assert status(workspace / "wal")[0] in (1, 2)
        assert_lag_is_not_known(found, since=began)
        proxy.refuse()
        running.wait_for("Connection refused")
        assert status(workspace / "wal")[1]["state"] in ("disconnected", "connecting")
        proxy.restart()
        running.wait_flushed(end_of_wal(server))
        # The server may write a record of its own at any moment.
        wait_until(lambda: wait_status(running, "streaming")["lag_bytes"] == 0, "nothing is missing")
        running.stop()


@pytest.mark.parametrize("major", [15, 17, 18])
def test_a_lost_slot_ends_the_receiver_and_says_what_to_do(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    cluster = make_cluster(
        major, wal_segment_mb=1, settings={"max_slot_wal_keep_size": "3MB", "max_wal_size": "4MB"}, fill=False
    )
    archive = workspace / "wal"
    cluster.query("SELECT pg_create_physical_replication_slot('mine', true)")
    with (
        TcpProxy(cluster.port) as proxy,
        receiver(archive, cluster.tcp_conninfo(port=proxy.port), "-S", "mine", "-s", "1") as running,
    ):
        running.wait_streaming()
        running.wait_flushed(end_of_wal(cluster))
        proxy.refuse()
        running.wait_for("Connection refused")
        wait_released(cluster, "mine")
        for _ in range(3):
            write_wal(cluster, 3 * MB)
            cluster.query("SELECT pg_switch_wal()")
            cluster.query("CHECKPOINT")
        assert cluster.query("SELECT wal_status FROM pg_replication_slots") == [("lost",)]
        proxy.restart()
        said = running.ended(1)
    assert 'slot "mine" has lost WAL' in said
    assert "hint: drop the slot (polarvault receivewal --drop-slot -S mine)" in said
    assert "new base backup" in said
    code, found = status(archive)
    assert (code, found["state"], found["last_error_id"]) == (2, "stopped", "slot-lost")
    assert 'slot "mine" has lost WAL' in found["findings"][0]["message"]
    assert "new base backup" in found["findings"][0]["advice"]
    assert found["lag_bytes"] is None
    # Started again it ends at once, with the same words, and leaves what is there.
    before = segments(archive)
    again = run_polarvault("receivewal", "-D", archive, "-d", cluster.conninfo(), "-S", "mine", "--json", check=False)
    assert again.returncode == 1
    error = json.loads(again.stdout)["error"]
    assert (error["id"], 'slot "mine" has lost WAL' in error["message"]) == ("slot-lost", True)
    assert segments(archive) == before


def test_a_slot_that_is_dropped_meanwhile_is_a_problem(server: Cluster, workspace: Path) -> None:
    server.query("SELECT pg_create_physical_replication_slot('dropped', true)")
    with TcpProxy(server.port) as proxy:
        conninfo = server.tcp_conninfo(port=proxy.port)
        with receiver(workspace / "wal", conninfo, "-S", "dropped", "-s", "1") as running:
            caught_up(running, server)
            proxy.refuse()
            running.wait_for("Connection refused")
            forget_slot(server, "dropped")
            proxy.restart()
            running.wait_for('replication slot "dropped" does not exist')
            code, found = status(workspace / "wal")
            assert code in (1, 2)
            assert "does not exist" in found["findings"][0]["message"]
            assert found["findings"][0]["advice"].startswith("create it: ")
            running.stop()


def test_a_full_disk_is_a_problem_with_a_lag_that_grows(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    archive.mkdir()
    began = datetime.now(UTC)
    with small_disk(archive, "3m"), receiver(archive, server.conninfo(), "-s", "1") as running:
        running.wait_streaming()
        write_wal(server, 5 * MB)
        running.wait_until(lambda: running.status.get("state") == "disk full", "it waits for space")
        code, found = status(archive)
        assert (code, found["state"], found["last_error_id"]) == (2, "disk full", "disk-full")
        assert checks(found) == [("disk", "problem")]
        assert_lag_is_not_known(found, since=began)
        running.stop(signal.SIGTERM)


def test_a_directory_without_a_receiver_is_not_known(workspace: Path) -> None:
    (workspace / "wal").mkdir()
    for directory in (workspace / "wal", workspace / "nowhere"):
        finished = run_polarvault("receivewal", "-D", directory, "--status", check=False)
        assert finished.returncode == 3
        found = json.loads(finished.stdout)
        assert (found["command"], found["exit_status"]) == ("receivewal", 3)
        assert found["error"]["id"] in ("usage", "storage-failed")
        assert found["error"]["hint"]


def test_a_stop_that_was_asked_for_is_told_from_a_crash(server: Cluster, workspace: Path) -> None:
    with receiver(workspace / "wal", server.conninfo(), "-s", "1") as running:
        caught_up(running, server)
        running.stop()
    code, found = status(workspace / "wal")
    assert (code, found["running"], found["state"]) == (2, False, "stopped")
    assert found["findings"][0]["message"].startswith("no receiver runs; the last one ended ")
    assert Lsn.parse(found["flushed_lsn"])
