"""Base backups that go wrong: the message names cause and next step, and nothing is left that looks like a backup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.backups import back_up, left_behind
from support.cluster import PASSWORD, Cluster
from support.program import command_line, program_environment, run_polarvault, start_polarvault
from support.replay_server import MISSING as RECORDINGS_MISSING
from support.replay_server import ReplayServer, recordings
from support.servers import ServerPool, missing_reason
from support.small_disk import small_disk
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

# Slow enough that a backup of an empty cluster takes many seconds.
SLOWLY = ("-r", "1M")
END_S = 120


@pytest.fixture(params=[13, 18], ids=["pg13", "pg18"])
def server(request: pytest.FixtureRequest, servers: ServerPool) -> Cluster:
    """A shared cluster of a version with one COPY for each tablespace, and of one with a single stream."""
    if request.param not in servers.installations:
        pytest.skip(missing_reason(request.param))
    return servers.get(request.param)


@pytest.fixture(scope="module")
def guarded(servers: ServerPool) -> Iterator[Cluster]:
    """A cluster that asks for passwords over TCP and has two WAL senders."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    cluster = Cluster.made(
        servers.installations[18], servers.directory / "guarded", auth="scram-sha-256",
        settings={"max_wal_senders": "2"},
    )  # fmt: skip
    yield cluster
    cluster.remove()


@contextmanager
def backup_in_progress(
    cluster: Cluster, target: Path | str, *options: str, conninfo: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a slow backup and wait until the server sends files."""
    source = conninfo or cluster.conninfo()
    words = ["-d", source, "-c", "fast", "-N", "-D", os.fspath(target), *SLOWLY, *options]
    running = start_polarvault("basebackup", *words)
    try:
        wait_until(lambda: running.poll() is not None or streaming(cluster), "the server sends files")
        yield running
    finally:
        running.kill()
        running.communicate()


def streaming(cluster: Cluster) -> bool:
    return bool(
        cluster.query(
            "SELECT 1 FROM pg_stat_progress_basebackup"
            " WHERE phase = 'streaming database files' AND backup_streamed > 2000000"
        )
    )


def said_by(running: subprocess.Popen[str], status: int = 1) -> str:
    """Wait for the end and return standard error; the status must be as given, a signal's negative."""
    _, errors = running.communicate(timeout=END_S)
    assert running.returncode == status, errors
    assert "Traceback" not in errors
    assert "Exception" not in errors
    return errors


def refused(*arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """Run a backup that must fail with status 1 and return standard error."""
    finished = run_polarvault("basebackup", *map(str, arguments), check=False, environment=environment, timeout_s=END_S)
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "polarvault: hint: " in finished.stderr
    return finished.stderr


def assert_clean(cluster: Cluster, target: Path) -> None:
    assert not target.exists()
    wait_until(lambda: left_behind(cluster) == ([], 0), "slots and WAL senders are gone")


# The server and the network


def test_a_killed_server_ends_the_backup(server: Cluster, workspace: Path) -> None:
    with backup_in_progress(server, workspace / "backup") as running:
        server.kill()
        errors = said_by(running)
    assert "lost the connection to the server" in errors
    assert "hint: look into the server's log" in errors
    server.start()
    assert_clean(server, workspace / "backup")


def test_a_server_shut_down_ends_the_backup(server: Cluster, workspace: Path) -> None:
    with backup_in_progress(server, workspace / "backup", "-Ft") as running:
        server.stop("fast")
        errors = said_by(running)
    assert "terminating connection due to administrator command" in errors or "ended the WAL stream" in errors
    server.start()
    assert_clean(server, workspace / "backup")


@pytest.mark.parametrize("which", ["backup", "WAL"])
def test_a_terminated_wal_sender_ends_the_backup(server: Cluster, workspace: Path, which: str) -> None:
    with backup_in_progress(server, workspace / "backup", "-C", "-S", "mine") as running:
        is_backup = "IN" if which == "backup" else "NOT IN"
        # The WAL sender may not have begun to stream when the first files arrive.
        wait_until(lambda: server.backends("walsender") == 2, "both connections stand")
        server.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'"
            f" AND pid {is_backup} (SELECT pid FROM pg_stat_progress_basebackup)"
        )
        errors = said_by(running)
    assert "terminating connection due to administrator command" in errors
    # The permanent slot that we made would hold WAL back for ever.
    assert_clean(server, workspace / "backup")


@pytest.mark.parametrize("abruptly", [True, False], ids=["reset", "end"])
@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_a_cut_connection_ends_the_backup(server: Cluster, workspace: Path, form: str, *, abruptly: bool) -> None:
    with TcpProxy(server.port) as proxy:
        proxy.cut_after(5_000_000, abruptly=abruptly)
        errors = refused("-d", server.tcp_conninfo(port=proxy.port), "-c", "fast", "-D", workspace / "backup", form)
    assert "lost the connection to the server" in errors
    assert_clean(server, workspace / "backup")


def test_a_stalled_connection_can_be_interrupted(server: Cluster, workspace: Path) -> None:
    with TcpProxy(server.port) as proxy:
        proxy.stall_after(5_000_000)
        conninfo = server.tcp_conninfo(port=proxy.port)
        with backup_in_progress(server, workspace / "backup", "-r", "32M", conninfo=conninfo) as running:
            running.send_signal(signal.SIGINT)
            said_by(running, -signal.SIGINT)
    assert_clean(server, workspace / "backup")


def test_a_stream_with_a_bad_tar_header_is_refused(workspace: Path) -> None:
    class Tampering(ReplayServer):
        def recorded(self, command: str) -> Iterator[bytes]:
            for piece in super().recorded(command):
                yield piece.replace(b"ustar\0", b"ust\0r\0", 1) if command.startswith("BASE_BACKUP") else piece

    directory = recordings()
    if directory is None:
        pytest.skip(RECORDINGS_MISSING)
    with Tampering(directory) as tampering:
        finished = run_polarvault(
            "basebackup", "-d", f"host=127.0.0.1 port={tampering.port} user=postgres", "-D", workspace / "backup",
            check=False, timeout_s=END_S,
        )  # fmt: skip
    assert finished.returncode == 1
    assert "base.tar" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (workspace / "backup").exists()
    assert tampering.slots == set() or all(name.startswith("pg_basebackup_") for name in tampering.slots)


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_cleans_up(server: Cluster, workspace: Path, number: signal.Signals) -> None:
    (workspace / "found").mkdir()
    with backup_in_progress(server, workspace / "found", "--waldir", str(workspace / "wal")) as running:
        running.send_signal(number)
        errors = said_by(running, -number)
    assert f"interrupted by {number.name}" in errors
    assert list((workspace / "found").iterdir()) == []
    assert_clean(server, workspace / "wal")


def test_an_interrupted_backup_is_kept_when_asked_for_and_does_not_look_whole(server: Cluster, workspace: Path) -> None:
    with backup_in_progress(server, workspace / "backup", "-n") as running:
        running.send_signal(signal.SIGINT)
        errors = said_by(running, -signal.SIGINT)
    assert "not removed at user's request" in errors
    assert (workspace / "backup" / "backup_label").exists()
    assert not list((workspace / "backup").glob("backup_manifest*"))
    wait_until(lambda: left_behind(server) == ([], 0), "slots and WAL senders are gone")


def test_impatience_does_not_disturb_the_cleaning_up(pg18: Cluster, workspace: Path) -> None:
    with backup_in_progress(pg18, workspace / "backup") as running:
        for _ in range(5):
            running.send_signal(signal.SIGINT)
        said_by(running, -signal.SIGINT)
    assert_clean(pg18, workspace / "backup")


# The target


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-Z", "gzip:1"], ["-Ft", "-Z", "zstd"]], ids=" ".join)
def test_a_full_target_is_named_and_emptied(pg18: Cluster, workspace: Path, options: list[str]) -> None:
    target = workspace / "small"
    target.mkdir()
    size = "1m" if "-Z" in options else "12m"
    with small_disk(target, size):
        # Below the mount point: a file system's root cannot be removed.
        errors = refused("-d", pg18.conninfo(), "-c", "fast", "-D", target / "backup", *options)
        assert "No space left on device" in errors
        assert f'"{target}/backup/' in errors
        assert "df -h" in errors
        assert_clean(pg18, target / "backup")


def test_a_target_that_is_not_empty_is_never_touched(pg18: Cluster, workspace: Path) -> None:
    for name in ("backup", "wal"):
        (workspace / name).mkdir()
    (workspace / "wal" / "precious").write_text("mine")
    errors = refused("-d", pg18.conninfo(), "-D", workspace / "wal")
    assert f'directory "{workspace / "wal"}" exists but is not empty' in errors
    refused("-d", pg18.conninfo(), "-D", workspace / "new", "--waldir", workspace / "wal")
    assert not (workspace / "new").exists()
    refused("-d", pg18.conninfo(), "-D", workspace / "backup", "--waldir", workspace / "wal")
    assert list((workspace / "backup").iterdir()) == []
    assert (workspace / "wal" / "precious").read_text() == "mine"
    assert left_behind(pg18)[0] == []


def test_a_target_that_is_a_file_is_refused(pg18: Cluster, workspace: Path) -> None:
    (workspace / "file").write_text("mine")
    finished = run_polarvault("basebackup", "-d", pg18.conninfo(), "-D", workspace / "file", check=False)
    assert finished.returncode == 1
    assert f'"{workspace / "file"}"' in finished.stderr
    assert "Traceback" not in finished.stderr
    assert (workspace / "file").read_text() == "mine"


def test_a_reader_of_standard_output_that_goes_away_ends_the_backup(pg18: Cluster) -> None:
    arguments = ("basebackup", "-d", pg18.conninfo(), "-c", "fast", "-Ft", "-X", "none", "-D", "-")
    with subprocess.Popen(
        command_line(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=program_environment(), cwd="/",
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(1000)
        running.stdout.close()
        errors = running.stderr.read().decode()
        assert running.wait(END_S) == 1
    assert "Broken pipe" in errors
    assert "Traceback" not in errors
    wait_until(lambda: left_behind(pg18) == ([], 0), "WAL senders are gone")


# Logging in


def test_a_wrong_password_is_named(guarded: Cluster, workspace: Path) -> None:
    errors = refused(
        "-d", guarded.tcp_conninfo(), "-w", "-D", workspace / "backup", environment={"PGPASSWORD": "wrong"}
    )
    assert 'password authentication failed for user "postgres"' in errors
    assert ".pgpass" in errors
    assert "wrong" not in errors.replace("wrong password", "")
    assert not (workspace / "backup").exists()


def test_a_missing_password_is_not_asked_for(guarded: Cluster, workspace: Path) -> None:
    errors = refused("-d", guarded.tcp_conninfo(), "-w", "-D", workspace / "backup")
    assert "no password supplied" in errors
    assert not (workspace / "backup").exists()


def test_a_missing_pg_hba_entry_is_given_as_a_line_to_add(guarded: Cluster, workspace: Path) -> None:
    guarded.set_hba("host replication all 127.0.0.1/32 reject", auth="scram-sha-256")
    try:
        rejected = refused("-d", guarded.tcp_conninfo(password=PASSWORD), "-D", workspace / "backup")
        assert "pg_hba.conf rejects replication connection" in rejected
    finally:
        guarded.set_hba(auth="scram-sha-256")
    lines = ["local all all trust", "host all all 127.0.0.1/32 trust"]
    (guarded.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
    guarded.reload()
    try:
        errors = refused("-d", guarded.tcp_conninfo(), "-D", workspace / "backup")
    finally:
        guarded.set_hba(auth="scram-sha-256")
    assert "no pg_hba.conf entry for replication connection" in errors
    assert "host replication postgres 127.0.0.1/32 scram-sha-256" in errors


def test_a_role_without_replication_is_named_with_the_command_that_grants_it(guarded: Cluster, workspace: Path) -> None:
    guarded.query("DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN")
    errors = refused("-d", guarded.conninfo(), "-U", "plain", "-D", workspace / "backup")
    assert "ALTER ROLE plain REPLICATION" in errors


@pytest.mark.parametrize("taken", [1, 2])
def test_wal_senders_that_are_used_up_are_named(guarded: Cluster, workspace: Path, taken: int) -> None:
    wait_until(lambda: guarded.backends("walsender") == 0, "earlier WAL senders are gone")
    others = [psycopg.connect(f"{guarded.conninfo()} replication=true", autocommit=True) for _ in range(taken)]
    try:
        errors = refused("-d", guarded.conninfo(), "-c", "fast", "-D", workspace / "backup")
    finally:
        for other in others:
            other.close()
    assert "max_wal_senders" in errors
    assert "pg_stat_replication" in errors
    assert_clean(guarded, workspace / "backup")


def test_a_server_that_is_down_is_named_with_its_address(workspace: Path) -> None:
    with TcpProxy(1) as proxy:
        proxy.refuse()
        errors = refused("-h", "127.0.0.1", "-p", str(proxy.port), "-U", "postgres", "-D", workspace / "backup")
    assert "Connection refused" in errors
    assert str(proxy.port) in errors
    assert not (workspace / "backup").exists()


# The data


@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_a_corrupt_page_is_named_and_the_files_stay_without_a_manifest(
    make_cluster: Callable[..., Cluster], workspace: Path, form: str
) -> None:
    cluster = make_cluster(18)
    ((path,),) = cluster.query("SELECT pg_relation_filepath('accounts')")
    cluster.stop()
    with open(cluster.data / path, "r+b") as relation:
        relation.seek(3 * 8192 + 5000)
        relation.write(b"\xff\x00\xff\x00")
    cluster.start()
    finished = back_up(cluster, workspace / "backup", form, check=False)
    assert finished.returncode == 1
    assert f'checksum verification failed in file "{path}", block 3' in finished.stderr
    assert "checksum error occurred" in finished.stderr
    assert "hint: " in finished.stderr
    assert (workspace / "backup" / ("PG_VERSION" if form == "-Fp" else "base.tar")).exists()
    assert not (workspace / "backup" / "backup_manifest").exists()
    wait_until(lambda: left_behind(cluster) == ([], 0), "slots and WAL senders are gone")
    back_up(cluster, workspace / "unchecked", form, "--no-verify-checksums")


def test_wal_that_was_removed_during_the_backup_is_named(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, settings={"max_wal_size": "2MB"})
    with TcpProxy(cluster.port) as proxy:
        proxy.stall_after(5_000_000)
        conninfo = cluster.tcp_conninfo(port=proxy.port)
        fast = ("-X", "fetch", "-r", "32M")
        with backup_in_progress(cluster, workspace / "backup", *fast, conninfo=conninfo) as running:
            cluster.query("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
            cluster.query("DROP TABLE filler; CHECKPOINT")
            cluster.query("SELECT pg_switch_wal()")
            cluster.query("CHECKPOINT")
            proxy.resume()
            errors = said_by(running)
    assert "has already been removed" in errors or "could not find" in errors
    assert_clean(cluster, workspace / "backup")


def test_a_slot_that_exists_already_is_left_alone(pg18: Cluster, workspace: Path) -> None:
    pg18.query("SELECT pg_create_physical_replication_slot('theirs')")
    try:
        finished = back_up(pg18, workspace / "backup", "-C", "-S", "theirs", check=False)
        assert finished.returncode == 1
        assert 'replication slot "theirs" already exists' in finished.stderr
        assert not (workspace / "backup").exists()
        assert pg18.slots() == ["theirs"]
        finished = back_up(pg18, workspace / "backup", "-S", "missing", check=False)
        assert finished.returncode == 1
        assert 'replication slot "missing" does not exist' in finished.stderr
        assert not (workspace / "backup").exists()
    finally:
        pg18.query("SELECT pg_drop_replication_slot('theirs')")


def test_nothing_is_left_running_or_lying_about(pg18: Cluster, workspace: Path) -> None:
    temporary = workspace / "tmp"
    temporary.mkdir()
    with backup_in_progress(pg18, workspace / "backup") as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert children == []
        running.send_signal(signal.SIGTERM)
        said_by(running, -signal.SIGTERM)
    shutil.rmtree(temporary)
    assert [path.name for path in workspace.iterdir()] == []
