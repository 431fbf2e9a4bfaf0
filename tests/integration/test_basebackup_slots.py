"""The slot of a backup on a server that holds little WAL for slots: as good as pg_basebackup's, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.backups import back_up, back_up_with_postgres, verify
from support.cluster import Cluster
from support.servers import ServerPool, missing_reason

pytestmark = pytest.mark.postgres

SEGMENT_MB = 1


@pytest.fixture(scope="module", params=[13, 15, 18])
def strict(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Cluster]:
    """A server that cuts a slot off as soon as it is one segment behind."""
    if request.param not in servers.installations:
        pytest.skip(missing_reason(request.param))
    made = Cluster.made(
        servers.installations[request.param], servers.directory / f"strict{request.param}", fill=False,
        wal_segment_mb=SEGMENT_MB, settings={"max_slot_wal_keep_size": f"{SEGMENT_MB}MB", "checkpoint_timeout": "1d"},
    )  # fmt: skip
    made.query("CREATE TABLE much (line text)")
    yield made
    made.remove()


def write_segments(cluster: Cluster, count: int) -> None:
    """Write that much WAL since the last checkpoint."""
    for _ in range(count):
        cluster.query("INSERT INTO much SELECT repeat('x', 500) FROM generate_series(1, 100)")
        cluster.query("SELECT pg_switch_wal()")


def test_wal_from_before_the_checkpoint_does_not_cost_the_slot(strict: Cluster, workspace: Path) -> None:
    write_segments(strict, 5)
    back_up_with_postgres(strict, workspace / "theirs")
    write_segments(strict, 5)
    back_up(strict, workspace / "ours")
    verify(strict.installation, workspace / "ours")


def test_a_new_permanent_slot_holds_the_backups_wal_and_none_from_before(strict: Cluster, workspace: Path) -> None:
    write_segments(strict, 5)
    back_up(strict, workspace / "backup", "-C", "-S", "kept")
    # Written to disk when it was made: after a crash it would still hold that WAL.
    ((restart, start),) = strict.query(
        "SELECT restart_lsn - '0/0', (SELECT redo_lsn - '0/0' FROM pg_control_checkpoint())"
        " FROM pg_replication_slots WHERE slot_name = 'kept'"
    )
    assert start // (SEGMENT_MB << 20) * (SEGMENT_MB << 20) <= restart
    strict.query("SELECT pg_drop_replication_slot('kept')")


def test_a_slot_that_is_there_already_is_found_out_before_the_checkpoint(strict: Cluster, workspace: Path) -> None:
    strict.query("SELECT pg_create_physical_replication_slot('there')")
    ((before,),) = strict.query("SELECT checkpoint_lsn FROM pg_control_checkpoint()")
    refused = back_up(strict, workspace / "backup", "-C", "-S", "there", check=False)
    assert refused.returncode == 1
    assert 'replication slot "there" already exists' in refused.stderr
    assert strict.query("SELECT checkpoint_lsn FROM pg_control_checkpoint()") == [(before,)]
    # It is somebody else's.
    assert strict.query("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'there'") == [(1,)]
    strict.query("SELECT pg_drop_replication_slot('there')")


def test_no_slot_is_left_of_a_backup_that_fails(strict: Cluster, workspace: Path) -> None:
    (workspace / "backup").mkdir()
    (workspace / "backup" / "something").touch()
    for options in ([], ["-C", "-S", "new"]):
        refused = back_up(strict, workspace / "backup", *options, check=False)
        assert refused.returncode == 1
    assert strict.query("SELECT count(*) FROM pg_replication_slots") == [(0,)]
