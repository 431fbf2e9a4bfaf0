"""A receiver as synchronous standby: whatever a client was told is committed survives the loss of the server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from support.backups import back_up_with_postgres
from support.cluster import Cluster
from support.receiving import END_S, receiver, recover
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

CLIENTS = 3


class Ledger:
    """Clients that commit rows one by one and note, outside of the server, which commits they were told of."""

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged: list[tuple[int, int]] = []
        self._conninfo = cluster.conninfo()
        self._threads = [threading.Thread(target=self._commit, args=[client]) for client in range(CLIENTS)]

    def __enter__(self) -> Ledger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(END_S)

    def _commit(self, client: int) -> None:
        number = 0
        try:
            with psycopg.connect(self._conninfo, autocommit=True) as connection:
                while True:
                    number += 1
                    connection.execute("INSERT INTO ledger VALUES (%s, %s)", [client, number])
                    self.acknowledged.append((client, number))
        except psycopg.OperationalError:
            pass  # The server was killed: whether this one was committed nobody was told.

    def wait_more(self, count: int) -> None:
        """Wait for more acknowledged commits."""
        wanted = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= wanted, f"{count} more commits", timeout_s=END_S)


@contextmanager
def synchronous(cluster: Cluster, archive: Path, *options: str) -> Iterator[Callable[[], None]]:
    """Receive as the synchronous standby; yields a function that kills the receiver, as a power cut would."""
    conninfo = f"{cluster.conninfo()} application_name=vault"
    with receiver(archive, conninfo, "--synchronous", "-S", "vault", *options) as running:
        running.wait_until(
            lambda: cluster.query("SELECT 1 FROM pg_stat_replication WHERE application_name = 'vault'"), "it receives"
        )
        yield running.kill


@pytest.mark.parametrize(
    ("major", "options", "restarted"),
    [(18, [], False), (15, ["-Z", "gzip:1"], False), (18, ["-Z", "gzip:1"], True), (15, [], True)],
    ids=["plain", "gzip", "gzip-restarted", "plain-restarted"],
)
def test_no_acknowledged_commit_is_lost_with_the_server(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int, options: list[str], *, restarted: bool
) -> None:
    cluster = make_cluster(major, wal_segment_mb=1, settings={"max_wal_size": "64MB"})
    cluster.query("CREATE TABLE ledger (client int, number int); SELECT pg_create_physical_replication_slot('vault')")
    archive = workspace / "wal"
    with ExitStack() as stack:
        kill = stack.enter_context(synchronous(cluster, archive, *options))
        back_up_with_postgres(cluster, workspace / "backup", "-X", "none")
        stack.enter_context(cluster.pgbench())
        cluster.query("ALTER SYSTEM SET synchronous_standby_names = 'vault'")
        cluster.reload()
        wait_until(
            lambda: cluster.query("SELECT sync_state FROM pg_stat_replication") == [("sync",)], "it is synchronous"
        )
        with Ledger(cluster) as ledger:
            ledger.wait_more(200)
            if restarted:
                for _ in range(2):
                    kill()
                    # Nobody commits while nobody receives.
                    wait_until(lambda: cluster.backends("walsender") == 0, "its WAL sender is gone")
                    wait_until(
                        lambda: (
                            cluster.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")[0][0]
                            >= CLIENTS
                        ),
                        "all clients wait",
                    )
                    kill = stack.enter_context(synchronous(cluster, archive, *options))
                    ledger.wait_more(100)
            cluster.kill()
            kill()
        assert len(ledger.acknowledged) >= 200
    # Nothing of the server is left but the backup and what was received.
    shutil.rmtree(cluster.data)
    with recover(cluster, workspace / "backup", archive, workspace / "copy") as copy:
        found = set(copy.query("SELECT client, number FROM ledger"))
        assert set(ledger.acknowledged) - found == set()
        # Not acknowledged but committed: one for each client at most.
        assert len(found) <= len(ledger.acknowledged) + CLIENTS
        # The load's transactions are whole as well.
        assert copy.query(
            "SELECT sum(abalance) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history) FROM pgbench_accounts"
        ) == [(True,)]
