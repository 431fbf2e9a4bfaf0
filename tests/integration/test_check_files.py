"""`polarvault check`: files that nobody can read, files that are absent, half a database, each for real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from polarvault.model.finding import Severity
from support.checking import check_server
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=[15, 17, 18])
def cluster(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Cluster]:
    if request.param not in servers.installations:
        pytest.skip(missing_reason(request.param))
    made = Cluster.made(servers.installations[request.param], servers.directory / f"ill{request.param}", fill=False)
    yield made
    made.remove()


@pytest.mark.parametrize("name", ["server.key.bak", "lost+found"])
def test_what_the_servers_user_cannot_read_is_named_as_the_backup_would_name_it(cluster: Cluster, name: str) -> None:
    if cluster.account.uid == 0:
        pytest.skip("root reads everything")
    assert not check_server(cluster.conninfo()).all("unreadable-files")
    secret = cluster.data / name
    if name == "lost+found":
        secret.mkdir(mode=0o000)
    else:
        secret.touch(mode=0o000)
    try:
        found = check_server(cluster.conninfo())
        backup = run_polarvault(
            "basebackup", "-d", cluster.conninfo(), "-c", "fast", "-N", "-D", cluster.directory / "refused", check=False
        )
    finally:
        secret.rmdir() if secret.is_dir() else secret.unlink()
    # The backup's own answer is what the check must foretell.
    assert backup.returncode == 1
    assert name in backup.stderr
    unreadable = found.one("unreadable-files")
    assert unreadable.severity is Severity.PROBLEM
    assert name in unreadable.message
    assert "chown" in (unreadable.advice or "")


def test_files_that_pg_hba_conf_names_and_that_are_absent_are_named(cluster: Cluster) -> None:
    hba = cluster.data / "pg_hba.conf"
    plain = hba.read_bytes()
    lines = "local all @nobody_here trust\n"
    expected = {"nobody_here"}
    if cluster.installation.major >= 16:
        # include_if_exists may name what it likes.
        lines += "include more.conf\ninclude_dir more.d\ninclude_if_exists perhaps.conf\n"
        expected |= {"more.conf", "more.d"}
    hba.write_bytes(plain + lines.encode())
    try:
        found = check_server(cluster.conninfo()).one("files-absent")
    finally:
        hba.write_bytes(plain)
    assert found.severity is Severity.WARNING
    assert {
        name for name in ("nobody_here", "more.conf", "more.d", "perhaps.conf") if name in found.message
    } == expected
    assert not check_server(cluster.conninfo()).all("files-absent")


def test_a_file_that_postgresql_conf_includes_and_that_is_absent_is_named(cluster: Cluster) -> None:
    main = cluster.data / "postgresql.conf"
    plain = main.read_bytes()
    main.write_bytes(plain + b"include_if_exists 'perhaps.conf'\ninclude 'gone.conf'\ninclude_dir 'gone.d'\n")
    try:
        found = check_server(cluster.conninfo()).one("files-absent")
    finally:
        main.write_bytes(plain)
    assert "gone.conf" in found.message
    assert "gone.d" in found.message
    assert "perhaps.conf" not in found.message


def test_what_an_interrupted_drop_database_left_is_named_with_the_line_that_ends_it(cluster: Cluster) -> None:
    cluster.query('CREATE DATABASE "half gone"')
    with cluster.connect() as dropping, cluster.connect() as idle:
        # A backend that does not answer: DROP DATABASE waits for it when it has begun already.
        os.kill(idle.info.backend_pid, signal.SIGSTOP)
        try:
            dropping.pgconn.send_query(b'DROP DATABASE "half gone"')
            dropping.pgconn.flush()
            waits = (
                "SELECT count(*) FROM pg_stat_activity"
                f" WHERE pid = {dropping.info.backend_pid} AND wait_event = 'ProcSignalBarrier'"
            )
            wait_until(lambda: cluster.query(waits) == [(1,)], "DROP DATABASE waits")
            cluster.query(f"SELECT pg_cancel_backend({dropping.info.backend_pid})")
            left = "SELECT datconnlimit FROM pg_database WHERE datname = 'half gone'"
            wait_until(lambda: cluster.query(waits) == [(0,)], "DROP DATABASE has ended")
            assert cluster.query(left) == [(-2,)]
        finally:
            os.kill(idle.info.backend_pid, signal.SIGCONT)
            while dropping.pgconn.get_result() is not None:
                pass
    checked = check_server(cluster.conninfo())
    assert not checked.all("unanswered")
    found = checked.one("interrupted-drop")
    assert found.severity is Severity.WARNING
    assert "half gone" in found.message
    assert 'DROP DATABASE "half gone"' in (found.advice or "")
    cluster.query('DROP DATABASE "half gone"')
