"""Point-in-time recovery on real servers: the table is what it was before the disaster, whatever names the moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from polarvault.demo.server import free_port
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

Hash = tuple[int, str]
Recover = Callable[..., tuple[Cluster, dict[str, Any]]]


@dataclass(frozen=True)
class Story:
    """A server with a WAL archive, a backup, and what happened since.

    good: the table before the disaster; inserted: after the first transaction; bad: after the disaster; end: at last.
    """

    source: Cluster
    archive: Path
    backup: Path
    at_backup: Hash
    inserted: Hash
    good: Hash
    bad: Hash
    end: Hash
    first_xid: int
    disaster_xid: int
    disaster_time: datetime
    disaster_lsn: str
    last_time: datetime


def start_story(source: Cluster, directory: Path) -> Path:
    """Make the directory that the cluster archives to, and switch archiving on."""
    archive = source.account.make_directory(directory)
    source.configure({"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"})
    source.restart()
    return archive


def change(source: Cluster, statement: str) -> tuple[int, datetime]:
    """Run a statement in a transaction of its own; return its number and a time after its commit."""
    with source.connect() as connection:
        connection.execute("BEGIN")
        connection.execute(statement.encode())
        (xid,) = connection.execute("SELECT txid_current()").fetchone() or (0,)
        connection.execute("COMMIT")
        (moment,) = connection.execute("SELECT clock_timestamp()").fetchone() or (datetime.now(UTC),)
    return int(xid), moment


def archive_all(source: Cluster, archive: Path) -> None:
    """Switch segments and wait until everything written so far is in the archive."""
    segment = source.query("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0]
    source.query("SELECT pg_switch_wal()")
    wait_until(lambda: (archive / segment).exists(), f"{segment} is archived")


def tell(source: Cluster, backup: Path, archive: Path) -> Story:
    """Back up, then: an insert, a restore point, the disaster, and one more insert."""
    source.run("pg_basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", str(backup))
    at_backup = source.hash_of("accounts")
    first_xid, _ = change(source, "INSERT INTO accounts SELECT n, 'new', n FROM generate_series(100001, 100200) n")
    inserted = source.hash_of("accounts")
    change(source, "INSERT INTO accounts VALUES (200000, 'later', 1)")
    good = source.hash_of("accounts")
    source.query("SELECT pg_create_restore_point('before_the_disaster')")
    # The first record of the disaster begins here or later.
    lsn = source.query("SELECT pg_current_wal_insert_lsn()::text")[0][0]
    disaster_xid, disaster_time = change(
        source, "DELETE FROM accounts WHERE id % 3 = 0; UPDATE accounts SET balance = 0 WHERE id % 2 = 0"
    )
    bad = source.hash_of("accounts")
    _, last_time = change(source, "INSERT INTO accounts VALUES (300000, 'last', 1)")
    end = source.hash_of("accounts")
    archive_all(source, archive)
    return Story(
        source, archive, backup, at_backup, inserted, good, bad, end, first_xid, disaster_xid, disaster_time, lsn,
        last_time,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[13, 15, 16, 17, 18])
def story(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Story]:
    """One story for each version; tests only read it."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"story{major}"
    source = Cluster.made(servers.installations[major], directory)
    try:
        archive = start_story(source, directory / "archive")
        yield tell(source, directory / "backup", archive)
    finally:
        source.remove()


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recover]:
    """A function that restores with --start and returns the server and the JSON result; `check` false: no assertion."""
    running: list[Cluster] = []

    def run(source: Cluster, backup: Path, *options: object, **how: Any) -> tuple[Cluster, dict[str, Any]]:
        target, port = workspace / f"restored{len(running)}", free_port()
        server = Cluster(source.installation, workspace, port=port)
        server.data = target
        running.append(server)
        finished = run_polarvault(
            "restore", backup, "-D", target, "--port", str(port), "--bindir", source.installation.bindir,
            "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N", "--start", "--json",
            *map(str, options), **how,
        )  # fmt: skip
        return server, json.loads(finished.stdout)

    yield run
    for server in running:
        server.stop("immediate")


def timeline_of(server: Cluster) -> int:
    return int(server.query("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")[0][0], 16)


def resume(server: Cluster) -> None:
    """Type what the result says: promote a paused server."""
    server.query("SELECT pg_wal_replay_resume()")
    wait_until(lambda: server.query("SELECT pg_is_in_recovery()") == [(False,)], "the server is promoted")


TARGETS = {
    "name": (lambda s: ["--target-name", "before_the_disaster"], "good"),
    "time": (lambda s: ["--target-time", (s.disaster_time - timedelta(microseconds=1)).isoformat()], "bad"),
    "xid": (lambda s: ["--target-xid", s.disaster_xid], "bad"),
    "xid exclusive": (lambda s: ["--target-xid", s.disaster_xid, "--target-exclusive"], "good"),
    "first xid": (lambda s: ["--target-xid", s.first_xid], "inserted"),
    "lsn exclusive": (lambda s: ["--target-lsn", s.disaster_lsn, "--no-target-inclusive"], "good"),
    "immediate": (lambda s: ["--target", "immediate"], "at_backup"),
    "latest": (lambda s: ["--target", "latest"], "end"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_the_table_is_what_it_was_at_the_target(story: Story, recover: Recover, kind: str) -> None:
    options, state = TARGETS[kind]
    server, result = recover(story.source, story.backup, "--wal", story.archive, *options(story))
    assert server.hash_of("accounts") == getattr(story, state)
    outcome = result["outcome"]
    if kind == "latest":
        assert outcome["ended"] == "promoted"
    else:
        assert outcome["ended"] == "paused"
        assert server.query("SELECT pg_is_in_recovery()") == [(True,)]
        resume(server)
    assert server.hash_of("accounts") == getattr(story, state)
    assert timeline_of(server) == 2
    planned = result["recovery"]
    if planned["stop"] is not None and kind != "immediate":
        stop = planned["stop"]
        assert outcome["lsn"] == (stop["lsn"] if stop["where"] == "before" else stop["end_lsn"])
    if planned["last_transaction"] is not None:
        assert outcome["time"] == planned["last_transaction"]["time"]
