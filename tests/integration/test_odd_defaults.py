"""Servers whose defaults are odd: no command depends on them, and none ends in a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.followers import Followers, followers_in
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.story import Recoveries, archive_all, start_story

pytestmark = pytest.mark.postgres

# What a hot standby refuses, what forbids, what changes spellings. The time-outs come with a role (`ROLE_SETTINGS`), so
# that a slow machine does not fail the test's own questions.
SETTINGS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "search_path": "nowhere, public",
    "datestyle": "German, DMY",
    "intervalstyle": "iso_8601",
    "timezone": "Asia/Kolkata",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "row_security": "off",
    "extra_float_digits": "-15",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "client_min_messages": "error",
    "lc_monetary": "C",
    "unix_socket_directories": ".",
}
ROLE_SETTINGS = {
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "search_path": "nowhere",
    "DateStyle": "SQL, DMY",
    "bytea_output": "escape",
    "client_min_messages": "error",
}
# Time-outs that end a session, each since a version: they strike before the first statement can change them.
LATER_ROLE_SETTINGS = {14: {"idle_session_timeout": "1ms"}, 17: {"transaction_timeout": "1ms"}}
ROLE = "odd"


@pytest.fixture(scope="module", params=[13, 15, 18])
def odd(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Cluster]:
    """A server that archives, with a role of its own for the commands."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"odd{major}"
    cluster = Cluster.made(servers.installations[major], directory, wal_segment_mb=1)
    try:
        start_story(cluster, directory / "archive")
        cluster.query(f"CREATE ROLE {ROLE} SUPERUSER LOGIN")
        for name, value in ROLE_SETTINGS.items():
            cluster.query(f"ALTER ROLE {ROLE} SET {name} = '{value}'")
            cluster.query(f"ALTER ROLE {ROLE} IN DATABASE postgres SET {name} = '{value}'")
        for since, settings in LATER_ROLE_SETTINGS.items():
            for name, value in settings.items() if major >= since else ():
                cluster.query(f"ALTER ROLE {ROLE} SET {name} = '{value}'")
        cluster.query("SELECT pg_create_restore_point('odd')")
        # The test's own connections go on through the socket that they know.
        cluster.configure(SETTINGS | {"unix_socket_directories": f"{directory}, ."})
        cluster.restart()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recoveries]:
    recoveries = Recoveries(workspace)
    yield recoveries
    recoveries.close()


@pytest.fixture
def followers(workspace: Path) -> Iterator[Followers]:
    with followers_in(workspace) as made:
        yield made


def reach(cluster: Cluster) -> list[str]:
    return ["-h", str(cluster.directory), "-p", str(cluster.port), "-U", ROLE]


def test_check_and_basebackup_work_on_a_server_with_odd_defaults(odd: Cluster, workspace: Path) -> None:
    checked = run_polarvault("check", *reach(odd), "--json", check=False)
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    assert "unanswered" not in checked.stdout
    assert json.loads(checked.stdout)["server"]["in_recovery"] is False
    assert '"clock"' in checked.stdout
    assert "ahead of this machine's" not in checked.stdout
    run_polarvault("basebackup", *reach(odd), "-D", workspace / "backup", "-c", "fast", "-N")
    run_polarvault("verifybackup", workspace / "backup")


def test_a_standby_of_it_is_started_checked_and_backed_up(odd: Cluster, followers: Followers, workspace: Path) -> None:
    odd.run("pg_basebackup", "-d", odd.conninfo(), "-c", "fast", "-N", "-D", str(workspace / "taken"))
    standby, result, _ = followers.make(odd, workspace / "taken", "--primary-conninfo", odd.conninfo())
    assert result["server"]["in_recovery"]
    checked = run_polarvault("check", *reach(standby), "--json", check=False)
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    assert "unanswered" not in checked.stdout
    # As the replication connection tells it, which is all that a backup asks.
    assert json.loads(checked.stdout)["server"]["in_recovery"] is True
    run_polarvault("basebackup", *reach(standby), "-D", workspace / "of_standby", "-c", "fast", "-N")


def test_a_recovery_that_pauses_in_hot_standby_is_seen_to_pause(
    odd: Cluster, recover: Recoveries, workspace: Path
) -> None:
    odd.run("pg_basebackup", "-d", odd.conninfo(), "-c", "fast", "-N", "-D", str(workspace / "taken"))
    with odd.connect() as connection:
        connection.execute("SELECT pg_create_restore_point('odd_end')")
    archive_all(odd, odd.directory / "archive")
    server, result = recover(
        odd, workspace / "taken", "--wal", odd.directory / "archive", "--target-name", "odd_end",
        "--set", "unix_socket_directories=.",
    )  # fmt: skip
    assert result["outcome"]["ended"] == "paused"
    assert result["server"]["host"] == str(server.data)
