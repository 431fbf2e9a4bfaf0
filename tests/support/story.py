"""The classic story of point-in-time recovery: rows, a restore point, then a destructive DELETE and UPDATE."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.cluster import Cluster
from support.program import run_polarvault
from support.waiting import wait_until

Hash = tuple[int, str]
RESTORE_POINT = "before_the_disaster"


@dataclass(frozen=True)
class Story:
    """A server, a backup of it, and what happened since.

    good: the table before the disaster; inserted: after the first transaction; bad: after the disaster; end: at last.
    """

    source: Cluster
    backup: Path
    at_backup: Hash
    inserted: Hash
    good: Hash
    bad: Hash
    end: Hash
    first_xid: int
    disaster_xid: int
    good_time: datetime
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
    segment = switch_wal(source)
    ((size,),) = source.query("SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'")
    path = archive / segment
    # `cp` writes it piece by piece under its final name.
    wait_until(lambda: path.exists() and path.stat().st_size == size, f"{segment} is archived")


def back_up(source: Cluster, backup: Path, options: Sequence[str] = ()) -> Path:
    """Take a backup with PostgreSQL's own tool: recovery must not depend on ours."""
    source.run("pg_basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", str(backup), *options)
    return backup


def tell(source: Cluster, backup: Path, options: Sequence[str] = ()) -> Story:
    """Back up, then let the story happen."""
    return tell_with(source, back_up(source, backup, options))


def tell_with(source: Cluster, backup: Path) -> Story:
    """After a backup: an insert, a restore point, the disaster, and one more insert."""
    at_backup = source.hash_of("accounts")
    first_xid, _ = change(source, "INSERT INTO accounts SELECT n, 'new', n FROM generate_series(100001, 100200) n")
    inserted = source.hash_of("accounts")
    _, good_time = change(source, "INSERT INTO accounts VALUES (200000, 'later', 1)")
    good = source.hash_of("accounts")
    source.query("SELECT pg_create_restore_point(%s)", [RESTORE_POINT])
    # The first record of the disaster begins here or later.
    lsn = source.query("SELECT pg_current_wal_insert_lsn()::text")[0][0]
    disaster_xid, disaster_time = change(
        source, "DELETE FROM accounts WHERE id % 3 = 0; UPDATE accounts SET balance = 0 WHERE id % 2 = 0"
    )
    bad = source.hash_of("accounts")
    _, last_time = change(source, "INSERT INTO accounts VALUES (300000, 'last', 1)")
    end = source.hash_of("accounts")
    return Story(
        source, backup, at_backup, inserted, good, bad, end, first_xid, disaster_xid, good_time, disaster_time, lsn,
        last_time,
    )  # fmt: skip


def switch_wal(source: Cluster) -> str:
    """Finish the segment that is written; return its name."""
    segment = source.query("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0]
    source.query("SELECT pg_switch_wal()")
    return str(segment)


def timeline_of(server: Cluster) -> int:
    """Return the timeline that a writable server writes."""
    return int(server.query("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")[0][0], 16)


def resume(server: Cluster) -> None:
    """Type what the result says: promote a paused server."""
    server.query("SELECT pg_wal_replay_resume()")
    wait_until(lambda: server.query("SELECT pg_is_in_recovery()") == [(False,)], "the server is promoted")


class Recoveries:
    """Restores with --start into a workspace, and the servers that they leave running."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.servers: list[Cluster] = []

    def run(
        self, source: Cluster, backup: Path, *options: object, start: bool = True, **how: Any
    ) -> tuple[Cluster, subprocess.CompletedProcess[str]]:
        """Restore with text output; start false: without --start."""
        number = len(self.servers)
        server = Cluster(source.installation, self.workspace)
        server.data = self.workspace / f"recovered{number}"
        server.log = server.data / "polarvault-start.log"
        self.servers.append(server)
        finished = run_polarvault(
            "restore", backup, "-D", server.data, "--port", str(server.port), "--bindir", source.installation.directory,
            "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off", "-N",
            *(["--start"] if start else []), *map(str, options), **how,
        )  # fmt: skip
        return server, finished

    def __call__(self, source: Cluster, backup: Path, *options: object, **how: Any) -> tuple[Cluster, dict[str, Any]]:
        """Restore, start and return the server and the JSON result."""
        server, finished = self.run(source, backup, "--json", *options, **how)
        return server, json.loads(finished.stdout)

    def refused(self, source: Cluster, backup: Path, *options: object) -> str:
        """Return what is said about a restore that must be refused before anything is written."""
        server, finished = self.run(source, backup, *options, check=False)
        assert finished.returncode in (1, 2, 3), finished.stdout + finished.stderr
        assert "Traceback" not in finished.stderr
        assert not server.data.exists()
        return finished.stderr

    def plan(self, source: Cluster, backup: Path, *options: object) -> dict[str, Any]:
        """Return the plan of a recovery."""
        _, finished = self.run(source, backup, "--plan", "--json", *options, start=False)
        return dict(json.loads(finished.stdout)["recovery"])

    def close(self) -> None:
        """Stop every server."""
        for server in self.servers:
            server.stop("immediate")
