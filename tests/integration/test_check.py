"""`polarvault check` of servers that are well: nothing but what is so, no question without an answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.check.session import patient
from polarvault.errors import ConnectionLost
from polarvault.model.finding import Severity
from polarvault.server.connection import ConnectionSettings, Connector
from support.checking import check_server
from support.cluster import Cluster
from support.program import command_line, program_environment, run_polarvault, start_polarvault
from support.small_disk import small_disk
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@pytest.fixture(params=[15, 18], ids=["pg15", "pg18"])
def healthy(request: pytest.FixtureRequest) -> Cluster:
    """The shared cluster of the oldest and the newest version that every machine has."""
    cluster: Cluster = request.getfixturevalue(f"pg{request.param}")
    return cluster


def test_every_version_answers_a_superuser(any_pg: Cluster) -> None:
    checked = check_server(any_pg.conninfo())
    assert not checked.all("unanswered")
    assert not checked.all("visibility")
    assert not checked.of(Severity.PROBLEM)
    # Its archiver is off and it has an unlogged table; only what is true is said.
    assert checked.of(Severity.WARNING) <= {"archiving", "unlogged-tables", "programs"}
    assert checked.one("archiving").message == "archive_mode is off, and nobody receives WAL through a slot"


def test_every_version_answers_a_role_with_nothing_but_replication(any_pg: Cluster) -> None:
    any_pg.query("CREATE ROLE humble LOGIN REPLICATION")
    try:
        checked = check_server(any_pg.tcp_conninfo(user="humble"))
        assert not checked.all("unanswered")
        assert not checked.of(Severity.PROBLEM)
        hidden, functions = checked.one("visibility"), checked.one("role-functions")
        assert "backup_label" in hidden.message
        assert "shared_preload_libraries" in hidden.message
        for finding in (hidden, functions):
            assert finding.is_ok
            assert finding.advice
            # The advice is ready to paste: a superuser does, and the finding is gone.
            any_pg.query("".join(line for line in finding.advice.splitlines() if line.startswith("GRANT")))
        granted = check_server(any_pg.tcp_conninfo(user="humble"))
        assert not granted.all("visibility")
        assert granted.one("role-functions").is_ok
        assert granted.one("backup-label").is_ok
    finally:
        any_pg.query("DROP OWNED BY humble; DROP ROLE humble")


@pytest.mark.parametrize("major", [15, 18])
def test_a_server_as_it_should_be_gives_status_0_to_the_humblest_role(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    settings = {"archive_mode": "on", "archive_command": f"cp %p {workspace}/%f"}
    cluster = make_cluster(major, fill=False, settings=settings)
    cluster.query("CREATE ROLE humble LOGIN REPLICATION")
    cluster.query("CREATE ROLE monitor LOGIN REPLICATION IN ROLE pg_monitor")
    for role in ("humble", "monitor", "postgres"):
        arguments = ["-h", cluster.directory, "-p", str(cluster.port), "-U", role, "-d", "postgres"]
        # Programs of its version and no other, wherever the tests have them from.
        path = {"PATH": f"{cluster.installation.directory}:{os.environ['PATH']}"}
        target = ("--target", workspace / "backup")
        finished = run_polarvault("check", *arguments, *target, environment=path, check=False)
        assert finished.returncode == 0, finished.stdout
        assert ", 0 warnings, 0 problems: " in finished.stdout
        # What would let it see more is there to be read.
        assert ("GRANT pg_monitor TO" in finished.stdout) == (role == "humble")


def test_a_role_without_replication_is_told_how_to_get_it(healthy: Cluster) -> None:
    healthy.query('CREATE ROLE "Odd ""one" LOGIN VALID UNTIL \'2001-01-01\'')
    try:
        checked = check_server(healthy.tcp_conninfo(user='Odd "one'))
        role, replication = checked.one("role"), checked.one("replication")
        assert role.severity is replication.severity is Severity.PROBLEM
        assert role.advice == replication.advice == 'as a superuser: ALTER ROLE "Odd ""one" REPLICATION;'
        assert "expired" in checked.one("role-expiry").message
        healthy.query(role.advice.partition(": ")[2])
        assert check_server(healthy.conninfo().replace("user=postgres", "user='Odd \"one'")).one("role").is_ok
    finally:
        healthy.query('DROP OWNED BY "Odd ""one"; DROP ROLE "Odd ""one"')


def test_a_connection_limit_is_a_problem_where_the_server_counts_walsenders(any_pg: Cluster) -> None:
    any_pg.query("CREATE ROLE single LOGIN REPLICATION CONNECTION LIMIT 1")
    try:
        checked = check_server(any_pg.tcp_conninfo(user="single"))
        limit = checked.all("role-connection-limit")
        # Whether it does depends on the minor release: the server's own answer decides.
        assert bool(limit) != checked.one("replication").is_ok
        if limit:
            any_pg.query((limit[0].advice or "").partition(": ")[2])
            assert check_server(any_pg.tcp_conninfo(user="single")).one("replication").is_ok
    finally:
        any_pg.query("DROP OWNED BY single; DROP ROLE single")


@pytest.mark.parametrize("way", ["tcp", "socket"])
def test_the_missing_line_of_pg_hba_conf_can_be_pasted(healthy: Cluster, way: str) -> None:
    kept = (healthy.data / "pg_hba.conf").read_text()
    conninfo = healthy.conninfo() if way == "socket" else healthy.tcp_conninfo(password="correct horse")
    try:
        (healthy.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\nlocal all all trust\n")
        healthy.reload()
        refused = check_server(conninfo)
        assert refused.one("connection").is_ok
        finding = refused.one("replication")
        assert finding.severity is Severity.PROBLEM
        assert "no pg_hba.conf entry for replication connection" in finding.message
        assert finding.advice
        where, line = finding.advice.splitlines()
        assert str(healthy.data / "pg_hba.conf") in where
        if way == "tcp":
            assert line.split() == ["host", "replication", "postgres", "127.0.0.1/32", "scram-sha-256"]
        else:
            assert line.split() == ["local", "replication", "postgres", "peer"]
            # The account that runs the tests is not called postgres.
            line = line.replace("peer", "trust")
        # What SQL can tell is told all the same.
        assert refused.one("wal-level").is_ok
        assert refused.one("backup-label").is_ok
        (healthy.data / "pg_hba.conf").write_text(f"{line}\nhost all all all trust\nlocal all all trust\n")
        healthy.reload()
        assert check_server(conninfo).one("replication").is_ok
    finally:
        (healthy.data / "pg_hba.conf").write_text(kept)
        healthy.reload()


def test_a_rejecting_line_is_to_be_preceded_and_a_refused_sql_login_has_its_own_line(healthy: Cluster) -> None:
    kept = (healthy.data / "pg_hba.conf").read_text()
    try:
        (healthy.data / "pg_hba.conf").write_text(
            "host replication all all reject\nhost template1 all all trust\nlocal all all trust\n"
        )
        healthy.reload()
        rejected = check_server(healthy.tcp_conninfo(dbname="template1"))
        assert ", above the line that rejects it, then run" in (rejected.one("replication").advice or "")
        (healthy.data / "pg_hba.conf").write_text("host replication all all trust\nlocal all all trust\n")
        healthy.reload()
        no_sql = check_server(healthy.tcp_conninfo(dbname="template1"))
        refused = no_sql.one("connection")
        assert refused.severity is Severity.PROBLEM
        assert (refused.advice or "").splitlines()[1].split() == [
            "host", "template1", "postgres", "127.0.0.1/32", "scram-sha-256",
        ]  # fmt: skip
        # The replication connection answers for what it can.
        assert no_sql.one("replication").is_ok
        assert no_sql.one("wal-level").is_ok
        assert no_sql.one("node-role").is_ok
        assert no_sql.one("programs").check == "programs"
    finally:
        (healthy.data / "pg_hba.conf").write_text(kept)
        healthy.reload()


def test_databases_that_cannot_be_looked_into_are_named_once(healthy: Cluster) -> None:
    healthy.query("CREATE DATABASE closed")
    kept = (healthy.data / "pg_hba.conf").read_text()
    try:
        (healthy.data / "pg_hba.conf").write_text("local postgres all trust\nlocal replication all trust\n")
        healthy.reload()
        missed = check_server(healthy.conninfo()).one("unanswered")
        assert missed.severity is Severity.WARNING
        assert missed.subject == "contents of 1 database (closed)"
        assert 'no pg_hba.conf entry for host "[local]", user "postgres", database "closed"' in missed.message
    finally:
        (healthy.data / "pg_hba.conf").write_text(kept)
        healthy.reload()
        healthy.query("DROP DATABASE closed")


def test_wal_that_is_received_through_a_slot_needs_no_archiver(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, fill=False)
    connect = ["-h", str(cluster.directory), "-p", str(cluster.port), "-U", "postgres"]
    run_polarvault("receivewal", *connect, "--create-slot", "-S", "keeper")
    (workspace / "wal").mkdir()
    receiver = start_polarvault("receivewal", *connect, "-D", workspace / "wal", "-S", "keeper")
    try:
        streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        wait_until(lambda: cluster.query(streams) == [(1,)], "the receiver streams")
        # Its own programs are found wherever the tests have them from.
        path = f"{cluster.installation.directory}:{os.environ['PATH']}"
        finished = run_polarvault(
            "check", *connect, "--target", workspace / "backup", environment={"PATH": path}, check=False
        )
    finally:
        receiver.terminate()
        receiver.communicate(timeout=60)
    assert "archive_mode is off; WAL is received by pg_receivewal (slot keeper)" in finished.stdout
    # Nothing else is amiss with it: that is what exit status 0 says.
    assert finished.stdout.splitlines()[-1].endswith(
        "0 warnings, 0 problems: nothing keeps this server from being backed up and restored"
    ), finished.stdout
    assert finished.returncode == 0


def test_a_wrong_password_is_one_problem(healthy: Cluster) -> None:
    healthy.set_hba(auth="scram-sha-256")
    try:
        checked = check_server(healthy.tcp_conninfo(password="wrong"))
        (finding,) = checked.report.findings
        assert finding.check == "reachability"
        assert 'password authentication failed for user "postgres"' in finding.message
        assert "PGPASSWORD" in (finding.advice or "")
    finally:
        healthy.set_hba()


def test_a_target_is_looked_at(healthy: Cluster, workspace: Path) -> None:
    full = workspace / "full"
    full.mkdir()
    (full / "something").touch()
    checked = check_server(healthy.conninfo(), target=str(full))
    assert checked.one("target").severity is Severity.PROBLEM
    assert checked.one("target").message == f'directory "{full}" exists but is not empty'
    assert checked.one("target-space").is_ok
    inside_a_file = check_server(healthy.conninfo(), target=str(full / "something" / "deep" / "backup"))
    assert inside_a_file.one("target").message == f'"{full / "something"}" is not a directory'
    new = check_server(healthy.conninfo(), target=str(workspace / "new" / "backup"))
    assert new.one("target").is_ok
    assert not (workspace / "new").exists()
    within = check_server(healthy.conninfo(), target=str(healthy.data / "backup")).one("target")
    assert within.severity is Severity.PROBLEM
    assert "lies inside the data directory of the server" in within.message


def test_a_target_that_cannot_be_written_to_is_a_problem(pg18: Cluster, workspace: Path) -> None:
    closed = workspace / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    connect = ["-h", str(pg18.directory), "-p", str(pg18.port), "-U", "postgres"]
    # Not as root, whom no mode keeps out.
    finished = run_polarvault("check", *connect, "--target", closed / "backup", as_server=True, check=False)
    assert finished.returncode == 2
    assert f'directory "{closed}" cannot be written to' in finished.stdout


def test_a_disk_that_is_too_small_is_a_problem(healthy: Cluster, workspace: Path) -> None:
    disk = workspace / "disk"
    disk.mkdir()
    with small_disk(disk, "12m"):
        finding = check_server(healthy.conninfo(), target=str(disk / "backup")).one("target-space")
    assert finding.severity is Severity.PROBLEM
    assert finding.message.startswith(f"12.0 MB available in {disk}, about ")


def test_json_text_and_exit_status_say_the_same(pg18: Cluster, workspace: Path) -> None:
    connect = ["-h", str(pg18.directory), "-p", str(pg18.port), "-U", "postgres"]
    warned = run_polarvault("check", *connect, "--json", check=False)
    report = json.loads(warned.stdout)
    assert warned.returncode == 1
    assert not warned.stderr
    assert (report["schema"], report["status"]) == (1, "warning")
    assert report["server"]["system_identifier"].isdigit()
    assert report["server"]["product"].startswith("PostgreSQL 18")
    assert {finding["severity"] for finding in report["findings"]} == {"ok", "warning"}
    assert all(f["meaning"] and f["advice"] for f in report["findings"] if f["severity"] != "ok")
    (workspace / "file").touch()
    text = run_polarvault("check", *connect, "--target", str(workspace), check=False)
    assert text.returncode == 2
    lines = text.stdout.splitlines()
    assert lines[0].startswith("PostgreSQL 18")
    (place,) = [number for number, line in enumerate(lines) if line.startswith("PROBLEM  target ")]
    assert lines[place + 1].startswith("         means: ")
    assert lines[place + 2].startswith("         do:    ")
    assert lines[-1].split(":")[0].endswith("2 warnings, 1 problem")


def test_names_that_are_no_text_or_not_printable_end_nothing(healthy: Cluster) -> None:
    healthy.query("CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        healthy.query(
            """DO $$ BEGIN EXECUTE format('CREATE UNLOGGED TABLE %I (i int)', E'\\xe9\\x1b[31m'); END $$""",
            dbname="raw",
        )
        connect = ["-h", str(healthy.directory), "-p", str(healthy.port), "-U", "postgres"]
        text = run_polarvault("check", *connect, check=False)
        assert (text.returncode, text.stderr) == (1, "")
        assert "\x1b" not in text.stdout
        report = json.loads(run_polarvault("check", *connect, "--json", check=False).stdout)
        assert any("raw: " in finding["message"] for finding in report["findings"])
    finally:
        healthy.query("DROP DATABASE raw")


def test_a_port_where_nobody_listens_is_a_problem_and_not_an_error() -> None:
    with TcpProxy(1) as closed:
        closed.refuse()
        finished = run_polarvault("check", "-h", "127.0.0.1", "-p", str(closed.port), "-w", "--json", check=False)
    assert finished.returncode == 2
    assert not finished.stderr
    report = json.loads(finished.stdout)
    assert report["server"] is None
    (finding,) = report["findings"]
    assert (finding["severity"], finding["check"]) == ("problem", "reachability")
    assert "Connection refused" in finding["message"]
    assert "PGPORT" in finding["advice"]


def test_a_role_that_may_nothing_gets_lines_with_its_name(pg18: Cluster) -> None:
    pg18.query("CREATE ROLE poor LOGIN")
    pg18.query("CREATE DATABASE closed")
    pg18.query("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    try:
        checked = check_server(f"{pg18.conninfo()} user=poor dbname=closed")
        assert checked.one("connection").advice == 'as a superuser: GRANT CONNECT ON DATABASE "closed" TO "poor";'
        assert checked.one("replication").advice == 'as a superuser: ALTER ROLE "poor" REPLICATION;'
        pg18.query(str(checked.one("connection").advice).removeprefix("as a superuser: "))
        pg18.query(str(checked.one("replication").advice).removeprefix("as a superuser: "))
        assert not check_server(f"{pg18.conninfo()} user=poor dbname=closed").of(Severity.PROBLEM)
    finally:
        pg18.query("DROP DATABASE closed")
        pg18.query("DROP ROLE poor")


def test_a_password_that_nobody_can_be_asked_for_is_named(pg18: Cluster) -> None:
    # In a session of its own a process has no terminal, wherever the tests run.
    finished = subprocess.run(
        command_line("check", "-d", pg18.conninfo(), "-W"), env=program_environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, start_new_session=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert "there is no terminal" in finished.stdout


def test_a_silent_network_is_not_waited_for_without_end(pg18: Cluster) -> None:
    with TcpProxy(pg18.port) as proxy:
        settings = ConnectionSettings(f"host=127.0.0.1 port={proxy.port} user=postgres sslmode=disable")
        connection = patient(Connector(settings).sql())
        assert connection.answer_timeout_s is not None
        connection.answer_timeout_s = 0.2
        proxy.stall_after(0)
        with pytest.raises(ConnectionLost, match="nothing has come from it"):
            connection.query("SELECT 1")
        connection.close()


def test_a_port_of_another_service_is_told_from_a_bad_certificate() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        greeter = threading.Thread(target=_greet, args=(service, 2))
        greeter.start()
        checked = check_server(f"host=127.0.0.1 port={service.getsockname()[1]} user=postgres sslmode=prefer")
        greeter.join()
    assert checked.one("reachability").advice == "check address and port: what answers there is no PostgreSQL server"


def _greet(service: socket.socket, times: int) -> None:
    for _ in range(times):
        connection, _ = service.accept()
        with connection:
            # Waits for the question, so that nothing is lost in a reset.
            connection.recv(8)
            connection.sendall(b"220 mail.example ESMTP\r\n")


def test_wrong_options_are_refused_before_anything_is_asked() -> None:
    for options, said in ((["--target", ""], "is not a directory name"), (["-d", "nonsense=1"], "connection")):
        refused = run_polarvault("check", *options, check=False)
        assert refused.returncode == 2
        assert said in refused.stderr
