"""Receiving WAL from real servers: the same bytes in the same files as the server's own, at every moment."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from support.backups import run_program
from support.cluster import PASSWORD, Cluster
from support.program import run_polarvault
from support.receiving import (
    KEEP_WAL,
    assert_same_wal,
    end_of_wal,
    forget_slot,
    make_standby,
    receiver,
    segments,
    valid_end,
    wait_released,
    wait_replayed,
    wait_same,
    wal_directory,
    write_wal,
)
from support.servers import ServerPool, has_program, missing_reason
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

MB = 1 << 20


def made(servers: ServerPool, major: int) -> Cluster:
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    return Cluster.made(
        servers.installations[major], servers.directory / f"receiving{major}", wal_segment_mb=1,
        settings=KEEP_WAL | {"max_wal_size": "1GB"},
    )  # fmt: skip


@pytest.fixture(scope="module", params=[15, 18, 19], ids=["pg15", "pg18", "pg19"])
def server(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Cluster]:
    """A server with segments of 1 MB that keeps them all."""
    with made(servers, request.param) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server18(servers: ServerPool) -> Iterator[Cluster]:
    """As `server`, PostgreSQL 18 only: for what has nothing to do with the version."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    with Cluster.made(
        servers.installations[18], servers.directory / "receiving", wal_segment_mb=1,
        settings=KEEP_WAL | {"max_wal_size": "1GB"},
    ) as cluster:  # fmt: skip
        yield cluster


def test_what_pgbench_writes_arrives_byte_for_byte_and_is_usable_at_any_moment(
    server: Cluster, workspace: Path
) -> None:
    archive = workspace / "wal"
    # Not so fast that the flushed position, told once a second, is always one of an earlier segment.
    with receiver(archive, server.conninfo(), "-s", "1") as running, server.pgbench(rate_per_s=50):
        looked = 0
        while looked < 4:
            names = segments(archive, partial=True)
            if names and (flushed := Lsn.parse(running.status.get("flushed_lsn", "0/0"))):
                looked += _is_usable_up_to(server, archive / names[-1], flushed, workspace)
            assert running.running.poll() is None, running.said
        write_wal(server, 6 * MB)
        running.wait_segments(6)
        said = running.stop()
    assert said == ""
    received = Lsn.parse(running.status["received_lsn"])
    assert running.status["flushed_lsn"] == str(received)
    assert assert_same_wal(archive, server, up_to=received) >= 6
    assert len(segments(archive, partial=True)) <= 1


def _is_usable_up_to(server: Cluster, path: Path, flushed: Lsn, workspace: Path) -> bool:
    """Copy a partial file now, and look how far pg_waldump can read it; False if it is another segment's."""
    segment = WalSegment.parse(path.name[:24], MB)
    try:
        copy = shutil.copy(path, workspace / segment.file_name)
    except FileNotFoundError:
        return False  # It was finished just now.
    if not segment.start < flushed <= segment.end:
        return False
    end = valid_end(server.installation, copy)
    if end < flushed:
        # The flushed position may lie inside of a record; then it is that record which ends the copy.
        wait_until(lambda: record_at(server, end), "the server has flushed the rest of the record")
        assert end + int(record_at(server, end).partition("tot): ")[2].split("/")[1].partition(",")[0]) > flushed
    return True


def record_at(server: Cluster, lsn: Lsn) -> str:
    """Return what pg_waldump says of the server's record at an LSN; nothing if it is not whole there."""
    wal = str(wal_directory(server))
    listing = run_program(server.installation, "pg_waldump", "-p", wal, "-s", str(lsn), "-n", "1").stdout
    return listing if f"lsn: {lsn >> 32:X}/{lsn & 0xFFFFFFFF:08X}" in listing else ""


@pytest.mark.parametrize("compression", ["lz4", "zstd:3", "5"])
def test_compressed_segments_hold_the_same(server18: Cluster, workspace: Path, compression: str) -> None:
    archive = workspace / "wal"
    with receiver(archive, server18.conninfo(), "-s", "1", "-Z", compression) as running:
        running.wait_streaming()
        end = write_wal(server18, 3 * MB)
        running.wait_flushed(end)
        # It has not ended; what is flushed can be read.
        (partial,) = segments(archive, partial=True)
        assert_same_wal(archive, server18, up_to=end)
        running.stop()
    suffix = {"5": ".gz", "lz4": ".lz4", "zstd:3": ".zst"}[compression]
    assert partial.endswith(f"{suffix}.partial")
    assert_same_wal(archive, server18, up_to=end)


@pytest.mark.parametrize("options", [["--synchronous"], ["--no-sync"], ["-s", "0"], ["-v", "-s", "1"]], ids=" ".join)
def test_every_way_of_syncing_receives_the_same(server18: Cluster, workspace: Path, options: list[str]) -> None:
    archive = workspace / "wal"
    with receiver(archive, server18.conninfo(), *options) as running:
        running.wait_streaming()
        end = write_wal(server18, 2 * MB)
        wait_until(lambda: Lsn.parse(running.status["received_lsn"]) >= end, "all is received")
        said = running.stop(signal.SIGINT)
    assert_same_wal(archive, server18, up_to=end)
    assert Lsn.parse(running.status["flushed_lsn"]) >= end
    if "-v" in options:
        assert "polarvault: starting log streaming at " in said
        assert "polarvault: finished segment at " in said
        assert "polarvault: stopped log streaming at " in said
    else:
        assert said == ""


def test_it_stops_at_the_end_position(server: Cluster, workspace: Path) -> None:
    start = end_of_wal(server)
    end = write_wal(server, 2 * MB)
    server.query("SELECT pg_create_physical_replication_slot('mine', true)")
    archive = workspace / "wal"
    try:
        archive.mkdir()
        run_polarvault("receivewal", "-D", archive, "-d", server.conninfo(), "-E", str(end), "-n", "-S", "mine")
        wait_released(server, "mine")
        ((restart,),) = server.query("SELECT restart_lsn FROM pg_replication_slots")
        # What is acknowledged at the end is all that is here, to the byte.
        assert Lsn.parse(restart) >= end
        # Nothing more is wanted: it ends at once, also without a slot.
        run_polarvault("receivewal", "-D", archive, "-d", server.conninfo(), "-E", str(start), "-n")
    finally:
        forget_slot(server, "mine")
    assert_same_wal(archive, server, up_to=end)


def test_slots_are_made_used_and_dropped(server: Cluster, workspace: Path) -> None:
    def slot(*options: str, check: bool = True) -> str:
        return run_polarvault("receivewal", "-d", server.conninfo(), *options, check=check).stderr

    assert slot("--create-slot", "--reserve-wal", "-S", "mine") == ""
    try:
        ((kind, restart),) = server.query("SELECT slot_type, restart_lsn FROM pg_replication_slots")
        assert kind == "physical"
        assert restart is not None
        refused = slot("--create-slot", "-S", "mine", check=False)
        assert 'replication slot "mine" already exists' in refused
        assert "drop it first: --drop-slot -S mine" in refused
        assert slot("--create-slot", "--if-not-exists", "-S", "mine") == ""
        # What was written since the slot was made is received by an empty directory.
        end = write_wal(server, 2 * MB)
        with receiver(workspace / "wal", server.conninfo(), "-S", "mine", "-s", "1") as running:
            running.wait_flushed(end)
            assert server.query("SELECT active FROM pg_replication_slots") == [(True,)]
            refused = slot("--drop-slot", "-S", "mine", check=False)
            assert "is active for PID" in refused
            assert "pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'mine'" in refused
            wait_until(lambda: (running.status["slot_state"] or {}).get("wal_status") == "reserved", "the slot is seen")
            running.stop()
        assert_same_wal(workspace / "wal", server, up_to=end, since=Lsn.parse(restart))
        wait_released(server, "mine")
        assert slot("--drop-slot", "-S", "mine", "-v").endswith('dropped replication slot "mine"\n')
        assert server.slots() == []
        refused = slot("--drop-slot", "-S", "mine", check=False)
        assert 'replication slot "mine" does not exist' in refused
        assert "FROM pg_replication_slots" in refused
    finally:
        forget_slot(server, "mine")


def test_options_may_be_abbreviated(server18: Cluster, workspace: Path) -> None:
    end = end_of_wal(server18)
    (workspace / "wal").mkdir()
    run_polarvault(
        "receivewal", f"--dir={workspace / 'wal'}", "--db", server18.conninfo(), "--end", str(end), "--no-l", "--sync",
        "--comp", "gzip:1", "--status-i", "3", "--verb",
    )  # fmt: skip
    assert_same_wal(workspace / "wal", server18, up_to=end)


def test_status_tells_what_the_receiver_does(server18: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    archive.mkdir()

    def status(code: int) -> dict[str, object]:
        finished = run_polarvault("receivewal", "-D", archive, "--status", check=False)
        assert finished.returncode == code, finished.stderr
        found: dict[str, object] = json.loads(finished.stdout)
        return found

    never = run_polarvault("receivewal", "-D", archive, "--status", check=False)
    assert never.returncode == 3
    assert "no receiver has written to" in never.stderr
    with receiver(archive, server18.conninfo(), "-s", "1") as running:
        running.wait_streaming()
        end = write_wal(server18, MB)
        running.wait_flushed(end)
        found = status(0)
        assert found["running"]
        assert found["state"] == "streaming"
        assert found["timeline"] == 1
        assert found["process_id"] == running.running.pid
        assert found["last_error"] is None
        assert found["slot"] is None
        assert Lsn.parse(str(found["received_lsn"])) >= Lsn.parse(str(found["flushed_lsn"])) >= end
        assert Lsn.parse(str(found["server_lsn"])) >= end
        assert isinstance(found["lag_bytes"], int)
        assert isinstance(found["lag_seconds"], float)
        # Only one receiver at a time.
        second = run_polarvault("receivewal", "-D", archive, "-d", server18.conninfo(), check=False)
        assert second.returncode == 1
        assert f"another receivewal (process {running.running.pid}) writes to" in second.stderr
        running.stop()
    stopped = status(2)
    assert (stopped["running"], stopped["state"]) == (False, "stopped")
    refused = run_polarvault("receivewal", "-D", archive, "-h", "/nowhere", check=False)
    assert refused.returncode == 1
    # What was received is still known, and why no more is.
    failed = status(2)
    assert "No such file or directory" in str(failed["last_error"])
    assert (failed["last_error_id"], failed["received_lsn"]) == ("connection-failed", stopped["received_lsn"])


def test_another_cluster_is_refused(server18: Cluster, pg18: Cluster, pg15: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    with receiver(archive, server18.conninfo()) as running:
        running.wait_streaming()
        end_of_wal(server18)
        running.wait_for("") if segments(archive) else wait_until(lambda: segments(archive), "WAL has come")
        running.stop()
    before = {path.name: path.read_bytes() for path in archive.iterdir() if not path.name.startswith(".")}
    for other in (pg18, pg15):
        refused = run_polarvault("receivewal", "-D", archive, "-d", other.conninfo(), check=False)
        assert refused.returncode == 1
        assert "WAL of two clusters must not be mixed" in refused.stderr
    assert before == {path.name: path.read_bytes() for path in archive.iterdir() if not path.name.startswith(".")}


def test_another_cluster_behind_one_of_several_hosts_is_refused_later_too(
    make_cluster: Callable[..., Cluster], pg18: Cluster, workspace: Path
) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, settings=KEEP_WAL, fill=False)
    hosts = f"host=127.0.0.1,127.0.0.1 port={cluster.port},{pg18.port} user=postgres"
    with receiver(workspace / "wal", hosts, "--synchronous") as running:
        running.wait_streaming()
        end = end_of_wal(cluster)
        running.wait_flushed(end)
        cluster.stop()
        running.wait_for("the WAL received so far is of cluster")
        cluster.start()
        end = write_wal(cluster, MB)
        running.wait_flushed(end)
        running.stop()
    assert_same_wal(workspace / "wal", cluster, up_to=end)


@pytest.mark.parametrize("major", [13, 16, 17])
def test_other_versions_give_their_wal_too(make_cluster: Callable[..., Cluster], workspace: Path, major: int) -> None:
    cluster = make_cluster(major, wal_segment_mb=1, settings=KEEP_WAL, fill=False)
    run_polarvault("receivewal", "-d", cluster.conninfo(), "--create-slot", "--reserve-wal", "-S", "mine")
    start = end_of_wal(cluster)
    end = write_wal(cluster, 2 * MB)
    with receiver(workspace / "wal", cluster.conninfo(), "-S", "mine", "--synchronous", "-Z", "gzip:1") as running:
        wait_same(running, cluster, end)
        running.stop()
    assert_same_wal(workspace / "wal", cluster, up_to=end, since=start)


@pytest.mark.parametrize("size_mb", [16, 64, 1024])
def test_larger_segments_take_no_more_space_than_their_wal(
    make_cluster: Callable[..., Cluster], workspace: Path, size_mb: int
) -> None:
    cluster = make_cluster(18, wal_segment_mb=size_mb, settings=KEEP_WAL, fill=False)
    with receiver(workspace / "wal", cluster.conninfo(), "--synchronous") as running:
        running.wait_streaming()
        end = write_wal(cluster, MB)
        running.wait_flushed(end)
        (partial,) = segments(workspace / "wal")
        found = (workspace / "wal" / partial).stat()
        assert found.st_size == size_mb * MB
        assert found.st_blocks * 512 < 24 * MB
        if size_mb < 1024:
            cluster.query("SELECT pg_switch_wal()")
            end = end_of_wal(cluster)
            running.wait_segments(1)
            running.wait_flushed(end)
        running.stop()
    if size_mb < 1024:
        assert_same_wal(workspace / "wal", cluster, up_to=end)
        whole = segments(workspace / "wal", partial=False)[0]
        assert (workspace / "wal" / whole).stat().st_blocks * 512 < 24 * MB
    else:
        with (
            open(wal_directory(cluster) / partial[:24], "rb") as theirs,
            open(workspace / "wal" / partial, "rb") as ours,
        ):
            used = end % (1 << 30)
            assert ours.read(used) == theirs.read(used)


def test_the_servers_remarks_are_printed_as_the_real_program_prints_them(pg18: Cluster, workspace: Path) -> None:
    asked = {"PGOPTIONS": "-c client_min_messages=debug1"}
    theirs = [pg18.installation] if has_program(pg18.installation, "pg_receivewal") else []
    said = []
    for program in [None, *theirs]:
        directory = workspace / f"wal{len(said)}"
        with receiver(directory, pg18.conninfo(), "-v", theirs=program, environment=asked) as running:
            running.wait_for("caught up")
            said.append({line for line in running.said.splitlines() if "caught up" in line})
            running.stop()
    # The name in it is the application's, which is the same.
    assert said == [said[0]] * len(said)
    assert all(line.startswith("DEBUG:  ") for line in said[0])


def test_an_encrypted_stream_is_received_and_followed_to_a_new_timeline(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    primary = make_cluster(15, wal_segment_mb=1, settings=KEEP_WAL, fill=False)
    tls = primary.enable_tls(only_tls=True)
    standby = make_standby(primary, workspace / "standby", slot="standby")
    try:
        words = {"password": PASSWORD, "sslmode": "verify-full", "sslrootcert": str(tls.authority)}
        archive = workspace / "wal"
        asked = {"PGOPTIONS": "-c client_min_messages=debug1"}
        with receiver(archive, standby.tcp_conninfo(**words), "-s", "1", "-v", environment=asked) as running:
            running.wait_streaming()
            # What the server remarks comes through, as pg_receivewal prints it.
            running.wait_for("\nDEBUG:  ")
            assert standby.query("SELECT bool_and(ssl) FROM pg_stat_ssl s JOIN pg_stat_replication USING (pid)") == [
                (True,)
            ]
            end = write_wal(primary, 5 * MB)
            wait_replayed(standby, end)
            wait_same(running, standby, end)
            primary.stop()
            standby.promote()
            end = write_wal(standby, 2 * MB)
            wait_same(running, standby, end)
            running.stop()
            assert running.status["timeline"] == 2
            assert running.status["connections"] == 1
        assert_same_wal(archive, standby, up_to=end)
        assert (archive / "00000002.history").read_bytes() == (wal_directory(standby) / "00000002.history").read_bytes()
    finally:
        standby.remove()


def test_a_slow_disk_does_not_lose_the_server(server18: Cluster, workspace: Path) -> None:
    """Sixteen segments in one go: more than may wait for the disk."""
    archive = workspace / "wal"
    with receiver(archive, server18.conninfo(), "-s", "1") as running:
        running.wait_streaming()
        end = write_wal(server18, 16 * MB)
        running.wait_flushed(end)
        # pg_receivewal dies by it; so do we, once all is durable.
        running.stop(signal.SIGHUP, status=-signal.SIGHUP)
    assert_same_wal(archive, server18, up_to=end)
