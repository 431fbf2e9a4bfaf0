"""Every finding of `polarvault check` about PolarDB, provoked on a real one; those about hanging are shown to hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from support.backups import back_up
from support.cluster import Cluster
from support.followers import followers_in
from support.polar_cluster import PolarCluster
from support.program import run_polarvault, start_polarvault
from support.servers import ServerPool
from support.waiting import wait_until

pytestmark = pytest.mark.polardb

# The server lays out 768 MB of zeros otherwise, and every backup has to pass them.
SMALL = {"polar_enable_fullpage_snapshot": "off"}

Findings = dict[str, list[dict[str, str]]]


def check(server: Cluster, *options: str, user: str = "postgres") -> Findings:
    """Run the check and return its findings by kind; the exit status must agree with them."""
    conninfo = server.conninfo().replace("user=postgres", f"user={user}")
    finished = run_polarvault("check", "-d", conninfo, "--json", *options, check=False)
    assert "Traceback" not in finished.stderr
    report: dict[str, Any] = json.loads(finished.stdout)
    assert finished.returncode == {"ok": 0, "warning": 1, "problem": 2}[report["status"]]
    found: Findings = {}
    for finding in report["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def only(found: Findings, name: str) -> dict[str, str]:
    """Return the one finding of a kind."""
    (finding,) = found[name]
    if finding["severity"] != "ok":
        assert finding["meaning"]
        assert finding["advice"]
    return finding


def line_of(finding: dict[str, str], start: str) -> str:
    """Return the line of the advice that begins so: what a reader would type."""
    (line,) = [line for line in finding["advice"].splitlines() if line.startswith(start)]
    return line


def configure(server: Cluster, **settings: str) -> None:
    """Change settings that a reload makes effective."""
    server.configure(settings)
    server.reload()


@pytest.fixture(scope="module")
def primary(servers: ServerPool, polardb_installation: Binaries) -> Iterator[PolarCluster]:
    """A primary with full_page_writes on and polar_monitor, and a role that may only log in and replicate."""
    settings = {"full_page_writes": "on", **SMALL}
    cluster = PolarCluster.made_polar(polardb_installation, servers.directory / "check", settings=settings)
    cluster.query("CREATE EXTENSION polar_monitor")
    cluster.query("CREATE ROLE copier LOGIN REPLICATION")
    yield cluster
    cluster.remove()


@pytest.fixture(scope="module")
def reader(primary: PolarCluster) -> Iterator[PolarCluster]:
    """A read-only node of that primary."""
    replica = primary.add_replica("reader")
    wait_until(lambda: primary.query("SELECT polar_oldest_apply_lsn() > '0/0'")[0][0], "the node applies")
    yield replica
    replica.remove()


def write(primary: PolarCluster) -> None:
    """Make pages that a checkpoint has to write."""
    primary.query("UPDATE accounts SET balance = balance + 1")


@pytest.mark.parametrize("user", ["postgres", "copier"])
def test_a_healthy_primary_with_a_read_only_node_has_nothing_to_complain_about(
    primary: PolarCluster, reader: PolarCluster, user: str
) -> None:
    write(primary)
    found = check(primary, user=user)
    polar = [finding for name, many in found.items() if name.startswith("polardb") for finding in many]
    assert {finding["severity"] for finding in polar} == {"ok"}
    assert "polar_version 2.0.15" in only(found, "polardb")["message"]
    assert "shared storage" in only(found, "polardb")["message"]
    assert "node type primary" in only(found, "polardb-node")["message"]
    assert "file-dio" in only(found, "polardb-storage")["message"]
    assert str(primary.shared) in only(found, "polardb-storage")["subject"]
    assert 'read-only nodes keep up ("reader"' in only(found, "polardb-replicas")["message"]
    assert only(found, "polardb-torn-pages")["message"].startswith("full_page_writes is on")
    assert only(found, "polardb-tablespace")["message"].startswith("there are no user tablespaces")


@pytest.mark.parametrize("user", ["postgres", "copier"])
def test_a_read_only_node_is_a_problem_and_the_primary_is_named_to_those_who_may_know(
    primary: PolarCluster, reader: PolarCluster, user: str
) -> None:
    wait_until(lambda: reader.query("SELECT 1 FROM pg_extension WHERE extname = 'polar_monitor'"), "it is replicated")
    wait_until(lambda: reader.query("SELECT 1 FROM pg_roles WHERE rolname = 'copier'"), "the role is replicated")
    wait_until(lambda: reader.query("SELECT sender_port FROM pg_stat_wal_receiver"), "the reader streams")
    finding = only(check(reader, user=user), "polardb-node")
    assert finding["severity"] == "problem"
    assert "this is a read-only node (replica)" in finding["message"]
    wanted = f"polarvault check -h {primary.directory} -p {primary.port}" if user == "postgres" else "-h PRIMARY"
    assert wanted in finding["advice"]


# A node that only reads refuses serializable transactions; the others hide what tells one node from another.
ODD = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "search_path": "nowhere",
}
ORDINARY = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "search_path": '"$user", public',
}


@contextmanager
def odd_defaults(node: Cluster) -> Iterator[None]:
    """Give a node that only reads odd defaults, under which the test's own sessions can ask nothing either."""

    def is_odd() -> bool:
        try:
            return not node.query("SELECT 1")
        except psycopg.errors.FeatureNotSupported:
            return True

    def change(settings: dict[str, str]) -> None:
        node.configure(settings)
        os.kill(int((node.data / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)

    change(ODD)
    try:
        wait_until(is_odd, "the odd defaults are in effect")
        yield
    finally:
        change(ORDINARY)
        wait_until(lambda: not is_odd(), "the ordinary defaults are in effect")


@pytest.mark.parametrize("user", ["postgres", "copier"])
def test_a_read_only_node_is_told_whatever_its_defaults_are(
    primary: PolarCluster, reader: PolarCluster, workspace: Path, user: str
) -> None:
    wait_until(lambda: reader.query("SELECT 1 FROM pg_extension WHERE extname = 'polar_monitor'"), "it is replicated")
    wait_until(lambda: reader.query("SELECT 1 FROM pg_roles WHERE rolname = 'copier'"), "the role is replicated")
    with odd_defaults(reader):
        finding = only(check(reader, user=user), "polardb-node")
        assert "this is a read-only node (replica)" in finding["message"]
        conninfo = reader.conninfo().replace("user=postgres", f"user={user}")
        taken = run_polarvault("basebackup", "-d", conninfo, "-D", workspace / "of_reader", "-c", "fast", check=False)
        assert taken.returncode == 1
        assert "this server is a read-only node (replica)" in taken.stderr


def test_settings_that_make_a_read_only_node_crash_are_found(primary: PolarCluster, reader: PolarCluster) -> None:
    configure(reader, restore_command="cp /nowhere/%f %p")
    finding = only(check(reader), "polardb-replica-restore-command")
    assert finding["severity"] == "warning"
    assert "PANIC" in finding["meaning"]
    configure(reader, restore_command="")
    reader.configure({"archive_mode": "always", "archive_command": "true"})
    reader.restart()
    try:
        found = check(reader)
        assert only(found, "polardb-replica-archiving")["severity"] == "problem"
        assert "polardb-replica-restore-command" not in found
    finally:
        reader.configure({"archive_mode": "off"})
        reader.restart()


def drop_slot(primary: PolarCluster, name: str) -> None:
    """Drop a slot, if it is there, once nobody uses it."""
    active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active"
    wait_until(lambda: not primary.query(active, [name]), f"slot {name} is idle")
    if name in primary.slots():
        primary.query("SELECT pg_drop_replication_slot(%s)", [name])


def checkpoint_has_full_pages(primary: PolarCluster) -> bool:
    primary.query("CHECKPOINT")
    return primary.query("SELECT full_page_writes FROM pg_control_checkpoint()") == [(True,)]


def waits_for_checkpoint(primary: PolarCluster, kind: str) -> bool:
    return bool(
        primary.query(
            "SELECT 1 FROM pg_stat_activity WHERE backend_type = %s AND wait_event LIKE 'Checkpoint%%'", [kind]
        )
    )


def test_the_slot_of_a_stopped_read_only_node_hangs_backups_until_the_printed_line_is_typed(
    primary: PolarCluster, workspace: Path
) -> None:
    gone = primary.add_replica("gone")
    primary.query("SELECT pg_create_physical_replication_slot('receiver', true)")
    try:
        wait_until(lambda: primary.query("SELECT polar_oldest_apply_lsn() > '0/0'")[0][0], "the node applies")
        gone.stop("immediate")
        wait_until(
            lambda: primary.query("SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'gone'")[0][0],
            "the primary knows that the node is gone",
        )
        write(primary)
        # The slot of a receiver that is not connected is no reason to wait, and is not blamed.
        finding = only(check(primary, user="copier"), "polardb-replicas")
        assert (finding["severity"], finding["subject"]) == ("problem", "gone")
        assert "a backup will hang" in finding["message"]
        assert "polar_ignore_ro_latency = on" in finding["advice"]
        assert "receiver" not in finding["message"] + finding["advice"]
        # With incremental checkpoints, which need full_page_writes off, a backup does not wait.
        configure(primary, full_page_writes="off")
        assert only(check(primary), "polardb-replicas")["severity"] == "warning"
        back_up(primary, workspace / "while_off", "-X", "none")
        configure(primary, full_page_writes="on")
        write(primary)
        with hanging_backup(primary, workspace / "backup") as backup:
            held_up = back_up(primary, workspace / "held_up", "--checkpoint-timeout", "2", check=False)
            assert held_up.returncode == 1
            assert 'held up by inactive replication slots "gone"' in held_up.stderr
            assert backup.poll() is None
            primary.query(line_of(finding, "SELECT pg_drop_replication_slot('gone')"))
            assert backup.wait(60) == 0
        assert only(check(primary), "polardb-replicas")["severity"] == "ok"
    finally:
        gone.remove()
        configure(primary, full_page_writes="on")
        drop_slot(primary, "gone")
        drop_slot(primary, "receiver")


def test_the_emergency_line_ends_the_wait_and_is_itself_a_finding_while_it_is_on(
    primary: PolarCluster, workspace: Path
) -> None:
    gone = primary.add_replica("away")
    try:
        wait_until(lambda: primary.query("SELECT polar_oldest_apply_lsn() > '0/0'")[0][0], "the node applies")
        gone.stop("immediate")
        write(primary)
        finding = only(check(primary), "polardb-replicas")
        emergency = line_of(finding, "in an emergency").partition(": ")[2]
        with hanging_backup(primary, workspace / "backup") as backup:
            for statement in emergency.split(";")[:-1]:
                primary.query(statement)
            assert backup.wait(60) == 0
        found = check(primary)
        assert only(found, "polardb-replicas")["severity"] == "warning"
        ignored = only(found, "polardb-ignore-ro-latency")
        assert ignored["severity"] == "warning"
        for statement in ignored["advice"].partition(": ")[2].split(";")[:-1]:
            primary.query(statement)
        wait_until(lambda: primary.query("SHOW polar_ignore_ro_latency") == [("off",)], "the setting is back")
        assert only(check(primary), "polardb-replicas")["severity"] == "problem"
        # The other way out: the node comes back.
        gone.start()
        wait_until(lambda: only(check(primary), "polardb-replicas")["severity"] == "ok", "the node keeps up again")
    finally:
        gone.remove()
        primary.query("ALTER SYSTEM RESET polar_ignore_ro_latency")
        primary.reload()
        drop_slot(primary, "away")


@contextmanager
def hanging_backup(primary: PolarCluster, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a CHECKPOINT and a real backup, wait until the server holds both up, yield; CHECKPOINT must end after."""
    with ThreadPoolExecutor(1) as pool:
        checkpoint = pool.submit(primary.query, "CHECKPOINT")
        wait_until(lambda: waits_for_checkpoint(primary, "client backend"), "CHECKPOINT waits")
        backup = start_polarvault(
            "basebackup", "-d", primary.conninfo(), "-c", "fast", "-N", "-X", "none", "-D", str(target)
        )
        try:
            wait_until(lambda: waits_for_checkpoint(primary, "walsender"), "the backup waits")
            assert not checkpoint.done()
            assert backup.poll() is None
            yield backup
            checkpoint.result(60)
        finally:
            backup.kill()
            backup.communicate()
            # Where a test has failed, the thread must not wait for ever.
            primary.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'CHECKPOINT'")


def test_a_read_only_node_whose_replay_stands_still_is_told_from_idle_slots(
    primary: PolarCluster, reader: PolarCluster
) -> None:
    primary.query("SELECT pg_create_physical_replication_slot('receiver', true)")
    reader.query("SELECT pg_wal_replay_pause()")
    try:
        wait_until(lambda: reader.query("SELECT pg_get_wal_replay_pause_state() <> 'not paused'")[0][0], "it is paused")
        write(primary)
        finding = only(check(primary), "polardb-replicas")
        assert (finding["severity"], finding["subject"]) == ("problem", '"reader"')
        assert "that is connected applies nothing" in finding["message"]
        assert "pg_wal_replay_resume()" in finding["advice"]
        assert "receiver" not in finding["advice"]
    finally:
        reader.query("SELECT pg_wal_replay_resume()")
        primary.query("SELECT pg_drop_replication_slot('receiver')")
    assert only(check(primary), "polardb-replicas")["severity"] == "ok"


def test_tablespaces_are_useless_and_those_linked_by_hand_break_backups(primary: PolarCluster, workspace: Path) -> None:
    location = primary.account.make_directory(workspace / "space")
    primary.query(f"CREATE TABLESPACE space LOCATION '{location}'")
    link = primary.shared / "pg_tblspc" / str(primary.query("SELECT max(oid) FROM pg_tablespace")[0][0])
    try:
        with pytest.raises(psycopg.Error, match="could not create directory"):
            primary.query("CREATE TABLE lost TABLESPACE space AS SELECT 1")
        finding = only(check(primary), "polardb-tablespace")
        assert (finding["severity"], finding["subject"]) == ("warning", "space")
        assert "if somebody linked it" not in finding["meaning"]
        assert "if somebody linked it" in only(check(primary, user="copier"), "polardb-tablespace")["meaning"]
        link.symlink_to(location)
        finding = only(check(primary), "polardb-tablespace")
        assert finding["severity"] == "problem"
        failed = back_up(primary, workspace / "backup", check=False)
        assert failed.returncode == 1
        assert "could not read symbolic link" in failed.stderr
        link.unlink()
        assert only(check(primary), "polardb-tablespace")["severity"] == "warning"
    finally:
        link.unlink(missing_ok=True)
        primary.query("DROP TABLESPACE space")
    assert only(check(primary), "polardb-tablespace")["severity"] == "ok"


def test_a_tablespace_linked_by_hand_in_a_storage_without_protocol_breaks_backups_too(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    cluster = make_polardb(protocol="", fill=False, settings=SMALL)
    assert "a path without protocol" in only(check(cluster), "polardb-storage")["message"]
    location = cluster.account.make_directory(workspace / "space")
    cluster.query(f"CREATE TABLESPACE space LOCATION '{location}'")
    oid = cluster.query("SELECT max(oid) FROM pg_tablespace")[0][0]
    (cluster.shared / "pg_tblspc" / str(oid)).symlink_to(location)
    cluster.query("CREATE TABLE found TABLESPACE space AS SELECT 1 AS n")
    assert only(check(cluster), "polardb-tablespace")["severity"] == "problem"
    assert back_up(cluster, workspace / "backup", "-Ft", check=False).returncode == 1


def test_after_a_failover_the_slot_of_the_promoted_node_is_found(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    old = make_polardb(settings={"full_page_writes": "on", **SMALL})
    old.query("CREATE EXTENSION polar_monitor")
    promoted = old.add_replica("promoted")
    try:
        write(old)
        level = "SELECT polar_oldest_apply_lsn() >= pg_current_wal_lsn()"
        wait_until(lambda: old.query(level)[0][0], "the node keeps up")
        # Only a checkpoint saves what the slot knows.
        old.query("CHECKPOINT")
        old.kill()
        promoted.promote()
        finding = only(check(promoted), "polardb-replicas")
        assert (finding["severity"], finding["subject"]) == ("problem", '"promoted"')
        write(promoted)
        with hanging_backup(promoted, workspace / "backup") as backup:
            promoted.query(line_of(finding, "SELECT pg_drop_replication_slot('promoted')"))
            assert backup.wait(60) == 0
        assert only(check(promoted), "polardb-replicas")["severity"] == "ok"
    finally:
        promoted.remove()


def test_a_role_that_only_replicates_is_told_what_show_tells(primary: PolarCluster) -> None:
    primary.set_hba("local all copier reject", "local replication copier trust")
    try:
        found = check(primary, user="copier")
    finally:
        primary.set_hba()
    assert "shared storage" in only(found, "polardb")["message"]
    assert str(primary.shared) in only(found, "polardb-storage")["subject"]
    assert only(found, "polardb-torn-pages")["severity"] == "ok"
    assert "polardb-replicas" not in found


def test_a_standby_of_a_primary_without_full_page_writes_cannot_be_backed_up(
    primary: PolarCluster, workspace: Path
) -> None:
    configure(primary, full_page_writes="off")
    back_up(primary, workspace / "backup", "--polardata", str(workspace / "backup_shared"))
    # What every backup leaves behind in the storage does not alarm.
    assert "harmless" in only(check(primary), "polardb-backup-label")["message"]
    with followers_in(workspace) as followers:
        try:
            standby, _, _ = followers.make(
                primary, workspace / "backup", "--primary-conninfo", primary.conninfo(), "--slot", "standby",
                "--create-slot", "--polardata", str(workspace / "standby_shared"),
            )  # fmt: skip
            with odd_defaults(standby):
                found = check(standby)
            assert "standby" in only(found, "polardb-node")["message"]
            finding = only(found, "node-role")
            assert (finding["severity"], finding["subject"]) == ("problem", "full_page_writes")
            failed = back_up(standby, workspace / "of_the_standby", "-X", "none", check=False)
            assert failed.returncode == 1
            assert "full_page_writes=off" in failed.stderr
            # What the advice says, on the primary and then on the standby.
            for statement in line_of(finding, "ALTER SYSTEM").split(";")[:-1]:
                primary.query(statement)
            # The checkpointer may read the setting a moment after the checkpoint that was asked for with it.
            wait_until(lambda: checkpoint_has_full_pages(primary), "a checkpoint knows that full_page_writes is on")
            ((lsn,),) = primary.query("SELECT pg_current_wal_lsn()::text")
            wait_until(
                lambda: standby.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn])[0][0], "it is replayed"
            )
            standby.query("CHECKPOINT")
            assert only(check(standby), "node-role")["severity"] == "ok"
            back_up(standby, workspace / "of_the_standby", "-X", "none")
        finally:
            followers.stop()
            primary.query("ALTER SYSTEM RESET full_page_writes")
            configure(primary, full_page_writes="on")
            drop_slot(primary, "standby")


def test_a_target_within_the_shared_storage_is_a_problem(primary: PolarCluster) -> None:
    finding = only(check(primary, "--target", str(primary.shared / "backups")), "polardb-target")
    assert finding["severity"] == "problem"
    assert "polardb-target" not in check(primary, "--target", str(primary.directory / "backups"))


# PolarDB as its sample configuration makes it: full_page_writes off, no extension


def test_what_a_backup_leaves_out_is_told(polardb: PolarCluster) -> None:
    # Laid out a few seconds after the start of the server.
    wait_until(lambda: len(list((polardb.shared / "polar_fullpage").glob("*.fp"))) == 3, "the files are there")
    message = only(check(polardb), "polardb-fullpage")["message"]
    assert message == "768 MB in polar_fullpage are sent by the server and left out of the backup"


def test_full_page_writes_off_is_a_hazard_on_an_ordinary_file_system(polardb: PolarCluster) -> None:
    finding = only(check(polardb), "polardb-torn-pages")
    assert finding["severity"] == "warning"
    assert "polar_has_partial_write is on" in finding["message"]
    assert "polardb-torn-pages" in finding["check"]
    statement = line_of(finding, "ALTER SYSTEM")
    try:
        for part in statement.split(";")[:-1]:
            polardb.query(part)
        wait_until(lambda: polardb.query("SHOW full_page_writes") == [("on",)], "the setting is read")
        assert only(check(polardb), "polardb-torn-pages")["severity"] == "ok"
    finally:
        polardb.query("ALTER SYSTEM RESET full_page_writes")
        polardb.reload()


def test_without_the_extension_an_idle_slot_cannot_be_judged(polardb: PolarCluster) -> None:
    assert only(check(polardb), "polardb-replicas")["severity"] == "ok"
    polardb.query("SELECT pg_create_physical_replication_slot('whose')")
    try:
        finding = only(check(polardb), "polardb-replicas")
        assert finding["severity"] == "warning"
        polardb.query(finding["advice"].splitlines()[0].partition(": ")[2])
        assert only(check(polardb), "polardb-replicas")["severity"] == "ok"
    finally:
        polardb.query("DROP EXTENSION IF EXISTS polar_monitor")
        polardb.query("SELECT pg_drop_replication_slot('whose')")


# An odd one: a long path, large segments that are switched by the clock, few walsenders for ordinary roles


@pytest.fixture(scope="module")
def odd(servers: ServerPool, polardb_installation: Binaries) -> Iterator[PolarCluster]:
    """A primary with everything that a healthy one does not have; the path of its storage has 37 characters or more."""
    directory = servers.directory / "odd_and_far_from_the_root"
    settings = {
        "archive_mode": "on",
        "archive_command": "true",
        "archive_timeout": "30s",
        "wal_keep_size": "32MB",
        "polar_max_non_super_wal_snd": "2",
        "polar_enable_switch_wal_in_backup": "on",
        **SMALL,
    }
    cluster = PolarCluster.made_polar(polardb_installation, directory, wal_segment_mb=64, settings=settings, fill=False)
    assert len(str(cluster.shared)) > 36
    cluster.query("CREATE ROLE copier LOGIN REPLICATION")
    yield cluster
    cluster.remove()


def test_a_long_path_concerns_the_fetch_of_other_tools_only(odd: PolarCluster, workspace: Path) -> None:
    finding = only(check(odd), "polardb-fetch")
    assert finding["severity"] == "ok"
    excess = len(f"file-dio://{odd.shared}") - 47
    assert f"polar_datadir is {excess} bytes too long" in finding["message"]
    target = server_account().make_directory(workspace / "fetched")
    failed = odd.run(
        "polar_basebackup", "-d", odd.conninfo(), "-c", "fast", "-N", "-Ft", "-X", "fetch", "-D", str(target),
        check=False,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "file name too long for tar format" in failed.stderr
    back_up(odd, workspace / "ours", "-X", "fetch")


def test_what_large_segments_cost_is_said(odd: PolarCluster) -> None:
    found = check(odd)
    assert only(found, "polardb-archive-timeout")["severity"] == "warning"
    assert "up to 180 GB a day" in only(found, "polardb-archive-timeout")["message"]
    assert only(found, "polardb-wal-keep-size")["severity"] == "warning"
    assert "polar_enable_switch_wal_in_backup is on" in only(found, "polardb-segment-size")["message"]


def test_the_limit_for_walsenders_of_ordinary_roles_concerns_them_alone(odd: PolarCluster, workspace: Path) -> None:
    assert only(check(odd), "polardb-walsender-limit")["severity"] == "ok"
    assert only(check(odd, user="copier"), "polardb-walsender-limit")["severity"] == "ok"
    configure(odd, polar_max_non_super_wal_snd="1")
    finding = only(check(odd, user="copier"), "polardb-walsender-limit")
    assert finding["severity"] == "problem"
    conninfo = odd.conninfo().replace("user=postgres", "user=copier")
    failed = run_polarvault("basebackup", "-d", conninfo, "-N", "-D", workspace / "backup", check=False)
    assert failed.returncode == 1
    assert "polar_max_non_super_wal_snd" in failed.stderr
    # With 0 not even the check itself gets its walsender: PolarDB is then recognised by SQL.
    configure(odd, polar_max_non_super_wal_snd="0")
    assert only(check(odd, user="copier"), "polardb-walsender-limit")["severity"] == "problem"
    configure(odd, polar_max_non_super_wal_snd="2")
