"""What the server sees of a stream: the same of ours as of PostgreSQL's own programs, of each version that is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polarvault.instance.model import Binaries
from support.backups import run_program
from support.cluster import Cluster
from support.program import run_polarvault
from support.receiving import end_of_wal, forget_slot, receiver, wait_released
from support.servers import has_program
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def programs(cluster: Cluster) -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield ours, and the server's own where the installation has it."""

    def ours(name: str, *words: str) -> None:
        run_polarvault(name, "-d", cluster.conninfo(), *words)

    def theirs(name: str, *words: str) -> None:
        finished = run_program(cluster.installation, f"pg_{name}", "-d", cluster.conninfo(), *words)
        assert finished.returncode == 0, finished.stderr

    yield "ours", ours
    if has_program(cluster.installation, "pg_basebackup"):
        yield "theirs", theirs


@contextmanager
def slot_of(cluster: Cluster, *, reserves: bool) -> Iterator[Callable[[], Any]]:
    """Make a slot, yield how to ask for its restart_lsn, and drop it."""
    cluster.query(f"SELECT pg_create_physical_replication_slot('dropin', {reserves})")
    try:
        yield lambda: cluster.query("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'dropin'")[0][0]
    finally:
        forget_slot(cluster, "dropin")


def test_a_backup_shorter_than_the_status_interval_leaves_its_slot_with_a_position(
    any_pg: Cluster, workspace: Path
) -> None:
    for who, run in programs(any_pg):
        with slot_of(any_pg, reserves=False) as restart_lsn:
            run("basebackup", "-D", str(workspace / who), "-c", "fast", "-N", "-S", "dropin", "-s", "600")
            wait_released(any_pg, "dropin")
            assert restart_lsn() is not None, who


@pytest.mark.parametrize("options", [(), ("--synchronous",)])
def test_a_receiver_gives_a_new_slot_its_position_at_once(
    any_pg: Cluster, workspace: Path, options: tuple[str, ...]
) -> None:
    theirs: list[Binaries | None] = [None]
    if has_program(any_pg.installation, "pg_receivewal"):
        theirs.append(any_pg.installation)
    for number, program in enumerate(theirs):
        with slot_of(any_pg, reserves=False) as restart_lsn:
            running = receiver(
                workspace / f"wal{number}", any_pg.conninfo(), "-S", "dropin", "-s", "600", *options, theirs=program
            )
            with running:
                wait_until(restart_lsn, "the slot has a position", timeout_s=60)
            wait_released(any_pg, "dropin")


def test_created_slots_reserve_wal_where_the_real_programs_do(any_pg: Cluster, workspace: Path) -> None:
    asked = "SELECT restart_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'dropin'"
    for who, run in programs(any_pg):
        try:
            run("receivewal", "--create-slot", "-S", "dropin")
            assert any_pg.query(asked) == [(False,)], who
            run("receivewal", "--drop-slot", "-S", "dropin")
            run("basebackup", "-D", str(workspace / who), "-c", "fast", "-N", "-C", "-S", "dropin")
            assert any_pg.query(asked) == [(True,)], who
        finally:
            forget_slot(any_pg, "dropin")


def test_reserve_wal_holds_wal_from_the_slots_first_moment_on(pg18: Cluster) -> None:
    try:
        run_polarvault("receivewal", "-d", pg18.conninfo(), "--create-slot", "--reserve-wal", "-S", "dropin")
        assert pg18.query("SELECT restart_lsn IS NOT NULL FROM pg_replication_slots") == [(True,)]
    finally:
        forget_slot(pg18, "dropin")
    refused = run_polarvault("receivewal", "-d", pg18.conninfo(), "--reserve-wal", "-D", "/tmp", check=False)
    assert "--reserve-wal needs --create-slot" in refused.stderr


SENDER = "SELECT application_name, flush_lsn IS NULL FROM pg_stat_replication WHERE state = 'streaming'"


@pytest.mark.parametrize("options", [(), ("--synchronous",), ("-S", "dropin")], ids=["plain", "synchronous", "slot"])
def test_a_receiver_has_the_real_name_and_reports_a_flush_position_only_when_it_should(
    any_pg: Cluster, workspace: Path, options: tuple[str, ...]
) -> None:
    seen = []
    theirs = [any_pg.installation] if has_program(any_pg.installation, "pg_receivewal") else []
    for number, program in enumerate([None, *theirs]):
        with (
            slot_of(any_pg, reserves=True),
            receiver(workspace / f"wal{number}", any_pg.conninfo(), "-s", "1", *options, theirs=program),
        ):
            end = end_of_wal(any_pg)
            told = f"SELECT 1 FROM pg_stat_replication WHERE write_lsn >= '{end}'"
            wait_until(lambda told=told: any_pg.query(told), "it has reported what it wrote", timeout_s=60)
            seen.append(any_pg.query(SENDER))
    assert seen == [[("pg_receivewal", not options)]] * len(seen)


def test_server_notices_look_as_they_do_in_the_real_program_and_are_said_once(any_pg: Cluster, workspace: Path) -> None:
    special = any_pg.data / "a_link_that_is_skipped"
    special.symlink_to("/nowhere")
    try:
        said = run_polarvault("basebackup", "-d", any_pg.conninfo(), "-D", workspace / "x", "-c", "fast", "-N").stderr
        lines = [line for line in said.splitlines() if "a_link_that_is_skipped" in line]
        if has_program(any_pg.installation, "pg_basebackup"):
            words = ("-d", any_pg.conninfo(), "-D", str(workspace / "y"), "-c", "fast", "-N")
            theirs = run_program(any_pg.installation, "pg_basebackup", *words).stderr.splitlines()
            assert set(lines) == {line for line in theirs if "a_link_that_is_skipped" in line}
    finally:
        special.unlink()
    assert lines == ['WARNING:  skipping special file "./a_link_that_is_skipped"']


def test_a_receiver_warns_of_commits_that_would_wait_for_it_for_ever(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    settings = {"synchronous_commit": "remote_apply", "synchronous_standby_names": "wal1"}
    cluster = make_cluster(18, fill=False)
    cluster.configure(settings)
    cluster.restart()
    conninfo = f"{cluster.conninfo()} application_name=wal1"
    with receiver(workspace / "wal", conninfo, "--synchronous") as running:
        running.wait_for("never applies WAL")
        running.stop()
