"""Both halves end to end without PolarDB: a PostgreSQL 15 behind the two-archive proxy, backed up and restored."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import backend_messages as wire
from support.cluster import Cluster
from support.program import run_polarvault, start_polarvault
from support.two_archive_proxy import SHARED_DIRECTORY, Shape, TwoArchiveProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

Pair = tuple[Cluster, TwoArchiveProxy]


def back_up(pair: Pair, target: Path, *options: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run basebackup through the proxy."""
    cluster, proxy = pair
    connection = ["-d", cluster.tcp_conninfo(port=proxy.port), "-c", "fast", "-N"]
    return run_polarvault("basebackup", "-D", target, *options, *connection, **arguments)


def restore_merged(backup: Path, start_restored: Callable[..., Cluster], target: Path) -> Cluster:
    """Merge both halves, drop what only PolarDB knows, and start the result as the PostgreSQL 15 that it is."""
    # No --start: the settings are still PolarDB's, and its programs need not be here.
    run_polarvault("restore", backup, "-D", target, "--merge", "-N")
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        lines = (target / name).read_text().splitlines(keepends=True)
        (target / name).write_text("".join(line for line in lines if not line.startswith("polar_")))
    return start_restored(15, target)


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-z"], ["-Ft", "-Z", "client-zstd:1"]], ids=" ".join)
def test_what_is_backed_up_under_load_starts_as_one_directory(
    two_archives: Pair, workspace: Path, start_restored: Callable[..., Cluster], options: list[str]
) -> None:
    cluster, _ = two_archives
    expected = cluster.hashes()
    with cluster.pgbench():
        back_up(two_archives, workspace / "backup", *options)
    restored = restore_merged(workspace / "backup", start_restored, workspace / "merged")
    assert restored.hash_of("accounts") == expected["accounts"]
    # pgbench keeps these sums equal in every transaction: the copy is one moment.
    ((accounts, tellers, history),) = restored.query(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
        " (SELECT sum(delta) FROM pgbench_history)"
    )
    assert accounts == tellers == history


def test_each_half_passes_the_stock_verifier(two_archives: Pair, workspace: Path) -> None:
    cluster, _ = two_archives
    local, shared = workspace / "local", workspace / "shared"
    back_up(two_archives, local, "--polardata", str(shared))
    assert (shared / "global/pg_control").exists()
    assert not (local / "global/pg_control").exists()
    assert (local / "backup_label").exists()
    assert (local / "base/5").is_dir()
    for half, options in ((local, ["-n"]), (shared, [])):
        verified = subprocess.run(
            [cluster.installation.program("pg_verifybackup"), *options, half],
            capture_output=True,
            text=True,
            check=False,
        )
        assert verified.returncode == 0, verified.stderr
        paths = [entry["Path"] for entry in json.loads((half / "backup_manifest").read_text())["Files"]]
        assert len(paths) == len(set(paths))


def test_what_is_worthless_after_a_restore_is_left_out_unless_asked_for(two_archives: Pair, workspace: Path) -> None:
    back_up(two_archives, workspace / "lean")
    back_up(two_archives, workspace / "whole", "--keep-all")
    page = "polar_shared_data/polar_fullpage/00000000.fp"
    assert not (workspace / "lean" / page).exists()
    assert (workspace / "lean" / page).parent.is_dir()
    assert (workspace / "whole" / page).stat().st_size == 1 << 20


@pytest.mark.parametrize("oddity", ["terminated_base", "protocol_in_member_name", "base_256_sizes"])
def test_oddities_of_real_servers_change_nothing(
    two_archives: Pair, workspace: Path, start_restored: Callable[..., Cluster], oddity: str
) -> None:
    cluster, proxy = two_archives
    setattr(proxy.shape, oddity, not getattr(proxy.shape, oddity))
    back_up(two_archives, workspace / "backup")
    assert not list((workspace / "backup").rglob("file-dio*"))
    restored = restore_merged(workspace / "backup", start_restored, workspace / "merged")
    assert restored.hashes() == cluster.hashes()


def test_commands_that_this_server_breaks_are_not_sent(two_archives: Pair, workspace: Path) -> None:
    _, proxy = two_archives
    back_up(two_archives, workspace / "backup", "-X", "fetch")
    (command,) = (c for c in proxy.commands if c.startswith("BASE_BACKUP"))
    assert "TABLESPACE_MAP" not in command
    assert not re.search(r"\bWAL\b", command)
    assert "WAIT 0" in command
    assert list((workspace / "backup/polar_shared_data/pg_wal").glob("0*"))


def test_a_read_only_node_is_refused_before_anything_is_written(two_archives: Pair, workspace: Path) -> None:
    _, proxy = two_archives
    proxy.shape.become_replica()
    refused = back_up(two_archives, workspace / "backup", check=False)
    assert refused.returncode == 1
    assert re.search(r"read-only node|replica", refused.stderr)
    assert not (workspace / "backup").exists()


def test_a_checkpoint_that_hangs_is_explained_and_names_the_slot(two_archives: Pair, workspace: Path) -> None:
    cluster, proxy = two_archives
    cluster.query("SELECT pg_create_physical_replication_slot('left_over', true)")
    proxy.hold_checkpoint()
    running = start_polarvault(
        "basebackup", "-D", workspace / "backup", "-d", cluster.tcp_conninfo(port=proxy.port), "-c", "fast",
        "--checkpoint-timeout", "3",
    )  # fmt: skip
    try:
        wait_until(lambda: any(c.startswith("BASE_BACKUP") for c in proxy.commands), "the backup has begun")
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 1
    assert "left_over" in said
    assert not (workspace / "backup").exists()


def test_a_server_error_in_the_middle_is_shown(workspace: Path, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(15)
    refusal = wire.error("53300", "too many base backups") + wire.READY
    with TwoArchiveProxy(cluster.port, shape=Shape(answers={r"^BASE_BACKUP": refusal})) as proxy:
        failed = back_up((cluster, proxy), workspace / "backup", check=False)
    assert failed.returncode == 1
    assert "too many base backups" in failed.stderr
    assert not (workspace / "backup").exists()


def test_the_backup_s_settings_still_name_the_live_storage_and_the_user_is_told(
    two_archives: Pair, workspace: Path
) -> None:
    finished = back_up(two_archives, workspace / "backup")
    assert SHARED_DIRECTORY in (workspace / "backup/postgresql.conf").read_text()
    assert "polarvault restore" in finished.stdout + finished.stderr
