"""`polarvault check` of servers that are ill: every finding is provoked by its real condition, on 15 and 18.

One server has as many illnesses as fit together; what needs a moment of its own is provoked in the test.
"""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from polarvault.model.finding import Severity
from support.checking import Checked, check_server
from support.cluster import Cluster
from support.program import run_polarvault, start_polarvault
from support.servers import ServerPool, features_of, missing_reason
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

SETTINGS = {
    "wal_level": "logical",
    "archive_mode": "on",
    "archive_command": "false",
    "full_page_writes": "off",
    "max_wal_senders": "2",
    "max_replication_slots": "3",
    "max_prepared_transactions": "5",
    # The subscription's own worker would only fill the log.
    "max_logical_replication_workers": "0",
}
MAJORS = pytest.mark.parametrize("sick", [15, 18], ids=["pg15", "pg18"], indirect=True)


@dataclass(frozen=True, slots=True)
class Sick:
    """A server with many illnesses, and what a check said of it when it had them all."""

    cluster: Cluster
    tablespace: Path
    extra: Path
    checked: Checked


def make_sick(cluster: Cluster, extra: Path) -> Sick:
    """Give a server its illnesses; extra is a configuration file of its that lies elsewhere."""
    tablespace = cluster.add_tablespace("archive_disk", rows=10)
    lose_a_slot(cluster)
    cluster.query("SELECT pg_create_physical_replication_slot('abandoned', true)")
    cluster.query("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    cluster.query(
        "CREATE SUBSCRIPTION news CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false, slot_name = 'news');"
        "ALTER SUBSCRIPTION news ENABLE"
    )
    cluster.query("BEGIN; INSERT INTO accounts VALUES (-1, 'x', 1); PREPARE TRANSACTION 'forgotten'")
    write_segments(cluster, 3)
    (cluster.data / "backup_label").write_text("START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n")
    cluster.account.own(cluster.data / "backup_label")
    failed = "SELECT failed_count FROM pg_stat_archiver"
    wait_until(lambda: cluster.query(failed)[0][0], "the archiver fails")
    return Sick(cluster, tablespace, extra, check_server(cluster.conninfo()))


def lose_a_slot(cluster: Cluster) -> None:
    """Make a slot, and let the server remove the WAL that it holds."""
    cluster.query("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    cluster.reload()
    cluster.query("SELECT pg_create_physical_replication_slot('too_late', true)")
    write_segments(cluster, 4)

    # The checkpointer may read the new limit a moment later than our session.
    wait_until(lambda: is_lost(cluster), "the slot is lost")
    cluster.query("ALTER SYSTEM RESET max_slot_wal_keep_size")
    cluster.reload()


def is_lost(cluster: Cluster) -> bool:
    """Checkpoint, and tell whether the only slot is lost."""
    cluster.query("CHECKPOINT")
    return cluster.query("SELECT wal_status FROM pg_replication_slots") == [("lost",)]


def write_segments(cluster: Cluster, count: int) -> None:
    """Fill WAL segments, as days of writing would."""
    for _ in range(count):
        cluster.query("INSERT INTO accounts SELECT max(id) + 1, 'x', 0 FROM accounts")
        cluster.query("SELECT pg_switch_wal()")


@pytest.fixture(scope="module")
def patients(servers: ServerPool) -> Iterator[Callable[[int], Sick]]:
    """A function that returns the sick server of a version, made when first asked for."""
    known: dict[int, Sick] = {}

    def find(major: int) -> Sick:
        if major not in servers.installations:
            pytest.skip(missing_reason(major))
        if major not in known:
            directory = servers.directory / f"sick{major}"
            extra = servers.directory / f"sick{major}.conf"
            extra.write_text("work_mem = '5MB'\n")
            cluster = closing.enter_context(
                Cluster.made(
                    servers.installations[major], directory, wal_segment_mb=1, checksums=False,
                    settings=SETTINGS | {"include": str(extra), "listen_addresses": "*"},
                )
            )  # fmt: skip
            known[major] = make_sick(cluster, extra)
        return known[major]

    with ExitStack() as closing:
        yield find


@pytest.fixture
def sick(request: pytest.FixtureRequest, patients: Callable[[int], Sick]) -> Sick:
    """The sick server of the version that the test names."""
    found = patients(request.param)
    wait_for_walsenders(found.cluster, 0)
    return found


def wait_for_walsenders(cluster: Cluster, count: int) -> None:
    """Wait until so many WAL senders are left: they end a moment later than their clients."""
    wait_until(lambda: cluster.backends("walsender") == count, f"{count} WAL senders are left")


def is_warning(checked: Checked, check: str, *words: str, subject: str | None = None) -> None:
    finding = checked.one(check, subject)
    assert finding.severity is Severity.WARNING, finding
    assert all(word in finding.message for word in words), finding.message
    assert finding.meaning
    assert finding.advice


def is_problem(checked: Checked, check: str, *words: str, subject: str | None = None) -> None:
    finding = checked.one(check, subject)
    assert finding.severity is Severity.PROBLEM, finding
    assert all(word in finding.message for word in words), finding.message
    assert finding.meaning
    assert finding.advice


def refusal_of_a_backup(cluster: Cluster, target: Path, *options: str) -> str:
    """Try what the check says is impossible; return what the server says to it."""
    finished = run_polarvault(
        "basebackup", "-h", cluster.directory, "-p", str(cluster.port), "-U", "postgres", "-D", target, "-c", "fast",
        "--no-sync", *options, check=False,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stderr
    return finished.stderr


@MAJORS
def test_a_failing_archiver_is_a_problem_with_its_command_and_what_waits(sick: Sick) -> None:
    is_problem(sick.checked, "archiving", "archiving fails: last failure 0000", "nothing has been archived yet", "wait")
    assert (sick.checked.one("archiving").advice or "").splitlines()[-1] == "as the server's user: false"


@MAJORS
def test_abandoned_and_lost_slots_are_named_with_the_line_that_drops_them(sick: Sick, workspace: Path) -> None:
    is_warning(sick.checked, "slot-inactive", 'physical slot "abandoned"', "MB of WAL", subject="abandoned")
    is_problem(sick.checked, "slot-lost", 'physical slot "too_late" is lost', subject="too_late")
    is_warning(sick.checked, "slot-inactive", 'logical slot "feed"', subject="feed")
    for check, name in (("slot-inactive", "abandoned"), ("slot-lost", "too_late")):
        advice = sick.checked.one(check, name).advice or ""
        assert f"SELECT pg_drop_replication_slot('{name}');" in advice.splitlines()
    is_problem(sick.checked, "slots-free", "3 of max_replication_slots = 3 slots exist: none is free")
    assert "all replication slots are in use" in refusal_of_a_backup(sick.cluster, workspace / "backup")


@MAJORS
def test_torn_and_rotten_pages_are_warned_of(sick: Sick) -> None:
    is_warning(sick.checked, "full-page-writes", "full_page_writes is off")
    is_warning(sick.checked, "data-checksums", "data checksums are off")
    assert f"pg_checksums --enable -D {sick.cluster.data}" in (sick.checked.one("data-checksums").advice or "")


@MAJORS
def test_a_leftover_backup_label_is_a_problem(sick: Sick) -> None:
    is_problem(sick.checked, "backup-label", "a leftover backup_label of 20")
    assert (sick.checked.one("backup-label").advice or "").endswith(
        f"mv {sick.cluster.data}/backup_label {sick.cluster.data}/backup_label.leftover"
    )


@MAJORS
def test_what_a_backup_does_not_bring_back_is_listed(sick: Sick) -> None:
    is_warning(sick.checked, "unlogged-tables", "1 unlogged table, 8.0 kB: postgres: public.scratch (8.0 kB)")
    is_warning(sick.checked, "logical-slots", "feed")
    is_warning(sick.checked, "subscriptions", "news")
    is_warning(sick.checked, "prepared-transactions", "1 prepared transaction, the oldest since 20")
    is_warning(sick.checked, "files-outside", f"1 file lies outside of the data directory: {sick.extra}")


@MAJORS
def test_indexes_that_come_back_as_broken_as_they_are(sick: Sick) -> None:
    assert sick.checked.one("invalid-indexes").is_ok
    assert sick.checked.one("collation-versions").is_ok
    cluster = sick.cluster
    cluster.query("CREATE TABLE twice AS SELECT 1 AS n FROM generate_series(1, 2)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        cluster.query("CREATE UNIQUE INDEX CONCURRENTLY broken ON twice (n)")
    has_icu = cluster.query("SELECT count(*) > 0 FROM pg_collation WHERE collname = 'de-x-icu'")[0][0]
    if cluster.installation.major >= 17:
        cluster.query(
            "CREATE DATABASE sorted TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"
        )
        cluster.query("UPDATE pg_database SET datcollversion = '0' WHERE datname = 'sorted'")
    if has_icu:
        cluster.query("CREATE COLLATION german (provider = icu, locale = 'de')")
        cluster.query("CREATE TABLE words (word text COLLATE german)")
        cluster.query("UPDATE pg_collation SET collversion = '1.0' WHERE collname = 'german'")
    try:
        checked = check_server(cluster.conninfo())
        is_warning(checked, "invalid-indexes", "1 invalid index: postgres: public.broken", subject="public.broken")
        if has_icu or cluster.installation.major >= 17:
            finding = checked.one("collation-versions")
            assert finding.severity is Severity.WARNING
            assert ("collation public.german of postgres (1.0, now " in finding.message) == has_icu
            if cluster.installation.major >= 17:
                assert 'database "sorted" (0, now 1)' in finding.message
                assert 'REINDEX DATABASE "sorted"; ALTER DATABASE "sorted" REFRESH' in (finding.advice or "")
    finally:
        cluster.query("DROP TABLE twice; DROP TABLE IF EXISTS words; DROP COLLATION IF EXISTS german")
        cluster.query("DROP DATABASE IF EXISTS sorted")
    assert check_server(cluster.conninfo()).one("invalid-indexes").is_ok


@MAJORS
def test_a_tablespace_whose_place_is_taken_comes_with_its_mapping(sick: Sick) -> None:
    is_warning(sick.checked, "tablespaces", '"archive_disk"', str(sick.tablespace), "is not empty")
    checked = check_server(sick.cluster.conninfo(), target="/backup/monday")
    mapping = f"-T {sick.tablespace}=/backup/monday.archive_disk"
    assert mapping in (checked.one("tablespaces").advice or "")


@MAJORS
def test_a_tablespace_that_is_gone_or_closed_is_a_problem(sick: Sick) -> None:
    away = sick.tablespace.with_name("away")
    sick.tablespace.rename(away)
    try:
        is_problem(check_server(sick.cluster.conninfo()), "tablespaces", "its directory is missing at the server")
        # A disk that is not mounted: the directory is there, and empty.
        sick.cluster.account.make_directory(sick.tablespace)
        is_problem(check_server(sick.cluster.conninfo()), "tablespaces", "its directory is missing at the server")
        sick.tablespace.chmod(0)
        is_problem(check_server(sick.cluster.conninfo()), "tablespaces", "Permission denied")
    finally:
        shutil.rmtree(sick.tablespace, ignore_errors=True)
        away.rename(sick.tablespace)


@MAJORS
def test_a_tablespace_inside_the_data_directory_is_warned_of(sick: Sick) -> None:
    inside = sick.cluster.account.make_directory(sick.cluster.data / "inside")
    sick.cluster.query(f"CREATE TABLESPACE inside LOCATION '{inside}'")
    try:
        is_warning(
            check_server(sick.cluster.conninfo()), "tablespaces", "lies inside the data directory", subject="inside"
        )
    finally:
        sick.cluster.query("DROP TABLESPACE inside")
        inside.rmdir()


@MAJORS
def test_wal_senders_that_are_in_use_are_counted_and_named(sick: Sick, workspace: Path) -> None:
    def occupy() -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(f"{sick.cluster.conninfo()} replication=true application_name=standby1")

    with occupy():
        one_left = check_server(sick.cluster.conninfo())
        is_problem(one_left, "wal-senders", "1 of max_wal_senders = 2 WAL senders are in use (standby1): 1 left")
        assert "ALTER SYSTEM SET max_wal_senders = 10;" in (one_left.one("wal-senders").advice or "")
        assert "max_wal_senders" in refusal_of_a_backup(sick.cluster, workspace / "backup")
        wait_for_walsenders(sick.cluster, 1)
        with occupy():
            none_left = check_server(sick.cluster.conninfo())
            is_problem(none_left, "wal-senders", "2 of max_wal_senders = 2", "(standby1 2x): 0 left")
            is_problem(none_left, "replication", "exceeds", "max_wal_senders", "(currently 2)")
    wait_for_walsenders(sick.cluster, 0)
    assert check_server(sick.cluster.conninfo()).one("wal-senders").is_ok


@MAJORS
def test_an_archiver_without_a_command_and_one_that_keeps_nothing(sick: Sick) -> None:
    try:
        sick.cluster.query("ALTER SYSTEM SET archive_command = ''")
        sick.cluster.reload()
        is_problem(check_server(sick.cluster.conninfo()), "archiving", "archive_mode is on, but archive_command")
        sick.cluster.query("ALTER SYSTEM SET archive_command = '/bin/true'")
        sick.cluster.reload()
        succeeded = "SELECT last_archived_time > last_failed_time FROM pg_stat_archiver"
        wait_until(lambda: sick.cluster.query(succeeded)[0][0], "the archiver succeeds")
        checked = check_server(sick.cluster.conninfo())
        is_warning(checked, "archive-command", "which keeps nothing")
        assert checked.one("archiving").is_ok
        assert "last success 0000" in checked.one("archiving").message
    finally:
        sick.cluster.query("ALTER SYSTEM RESET archive_command")
        sick.cluster.reload()


@pytest.mark.parametrize("major", [15, 18])
def test_an_archiver_that_hangs_and_a_reader_that_is_too_slow(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    settings = {
        "archive_mode": "on", "archive_command": "exec sleep 10000",
        "max_slot_wal_keep_size": "1MB", "wal_sender_timeout": "0", "checkpoint_timeout": "1d",
    }  # fmt: skip
    cluster = make_cluster(major, wal_segment_mb=1, settings=settings)
    connect = ("-h", cluster.directory, "-p", str(cluster.port), "-U", "postgres", "-S", "slow")
    cluster.query("SELECT pg_create_physical_replication_slot('slow', true)")
    (workspace / "wal").mkdir()
    receiver = start_polarvault("receivewal", *connect, "-D", workspace / "wal", "-n")
    try:
        active = "SELECT active FROM pg_replication_slots"
        wait_until(lambda: cluster.query(active) == [(True,)], "the receiver reads from its slot")
        receiver.send_signal(signal.SIGSTOP)
        write_segments(cluster, 12)
        ready = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        wait_until(lambda: cluster.query(ready)[0][0] >= 10, "segments wait for the archiver")
        checked = check_server(cluster.conninfo())
        is_warning(checked, "archive-backlog", "the archiver is behind; ", " files (", " of WAL at most) wait")
        assert checked.one("archiving").is_ok
        is_problem(checked, "slot-behind", 'physical slot "slow" is ', "behind and loses its WAL", subject="slow")
        receiver.kill()
        wait_for_walsenders(cluster, 0)
        is_problem(check_server(cluster.conninfo()), "slot-inactive", "; it loses this WAL at the next checkpoint")
        wait_until(lambda: is_lost(cluster), "the slot is lost")
        is_problem(check_server(cluster.conninfo()), "slot-lost", "does not hold its WAL any more")
    finally:
        receiver.kill()
        receiver.communicate()


@MAJORS
def test_a_small_limit_for_slots_is_warned_of(sick: Sick) -> None:
    sick.cluster.query("ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'")
    sick.cluster.reload()
    try:
        checked = check_server(sick.cluster.conninfo())
        is_warning(checked, "slot-wal-limit", "slots may hold back 2.0 MB of WAL", "less than 4 segments of 1.0 MB")
    finally:
        sick.cluster.query("ALTER SYSTEM RESET max_slot_wal_keep_size")
        sick.cluster.reload()


@MAJORS
def test_an_address_on_a_network_is_the_one_that_the_server_sees(sick: Sick) -> None:
    address = _own_address()
    if address is None:
        pytest.skip("this machine has no address besides its loopback")
    conninfo = f"host={address} port={sick.cluster.port} user=postgres password='correct horse' sslmode=disable"
    try:
        sick.cluster.set_hba(f"host postgres all {address}/32 scram-sha-256")
        checked = check_server(conninfo)
        # Its own address by another name: nothing leaves this machine.
        assert checked.one("tls").message.startswith("not encrypted, but within this machine")
        assert (checked.one("replication").advice or "").splitlines()[1].split() == [
            "host", "replication", "postgres", f"{address}/32", "scram-sha-256",
        ]  # fmt: skip
    finally:
        sick.cluster.set_hba()


@MAJORS
def test_a_standby_cannot_be_backed_up_while_its_primary_writes_no_full_pages(sick: Sick, workspace: Path) -> None:
    primary = sick.cluster
    data = workspace / "standby"
    # The archiver's failure must not hold this up: the WAL comes along with the backup.
    primary.run(
        "pg_basebackup", "-h", str(primary.directory), "-p", str(primary.port), "-U", "postgres", "-D", str(data),
        "-X", "fetch", "-c", "fast", "-R", "-T", f"{sick.tablespace}={workspace / 'space'}",
    )  # fmt: skip
    standby = Cluster.adopt(primary.installation, data, workspace / "run")
    try:
        standby.start()
        streams = "SELECT status FROM pg_stat_wal_receiver"
        wait_until(lambda: standby.query(streams) == [("streaming",)], "the standby streams")
        checked = check_server(standby.conninfo())
        is_problem(checked, "node-role", "this is a standby whose primary runs with full_page_writes = off")
        mapping = ("-T", f"{workspace / 'space'}={workspace / 'space2'}")
        assert "full_page_writes=off" in refusal_of_a_backup(standby, workspace / "backup", "--no-slot", *mapping)
        # The archiver of a standby sleeps, and its own setting of full_page_writes does not matter.
        assert checked.one("archiving").is_ok
        assert not checked.all("full-page-writes")
        _let_the_standby_see_full_pages(primary, standby)
        role = check_server(standby.conninfo()).one("node-role")
        assert role.is_ok, role
        assert role.message.startswith("this is a standby, ")
        standby.query("SELECT pg_wal_replay_pause()")
        is_warning(check_server(standby.conninfo()), "node-role", "replay is paused")
        standby.query("SELECT pg_wal_replay_resume()")
        standby.query("ALTER SYSTEM SET primary_conninfo = ''")
        standby.reload()
        wait_until(lambda: standby.query(streams) == [], "the WAL receiver ends")
        is_warning(check_server(standby.conninfo()), "node-role", "this is a standby that streams from nobody")
        standby.configure({"hot_standby": "off"})
        standby.restart()
        cold = check_server(standby.conninfo())
        is_problem(cold, "reachability", "the database system is")
        assert "hot_standby = on" in (cold.one("reachability").advice or "")
    finally:
        standby.remove()
        primary.query("ALTER SYSTEM RESET full_page_writes")
        primary.reload()


def _let_the_standby_see_full_pages(primary: Cluster, standby: Cluster) -> None:
    primary.query("ALTER SYSTEM SET full_page_writes = on")
    primary.reload()
    primary.query("CHECKPOINT")
    ((target,),) = primary.query("SELECT pg_current_wal_lsn()::text")
    wait_until(
        lambda: standby.query(f"SELECT pg_last_wal_replay_lsn() >= '{target}'") == [(True,)], "the standby replays"
    )
    standby.query("CHECKPOINT")


@pytest.mark.parametrize("major", [15, 18], ids=["pg15", "pg18"])
def test_wal_level_minimal_refuses_every_backup(make_cluster: Callable[..., Cluster], major: int) -> None:
    cluster = make_cluster(
        major, settings={"wal_level": "minimal", "max_wal_senders": "0", "summarize_wal": "off"}
        if major >= 17 else {"wal_level": "minimal", "max_wal_senders": "0"}, fill=False,
    )  # fmt: skip
    checked = check_server(cluster.conninfo())
    is_problem(checked, "wal-level", "wal_level is minimal")
    assert "ALTER SYSTEM SET wal_level = replica;" in (checked.one("wal-level").advice or "")
    is_problem(checked, "wal-senders", "0 of max_wal_senders = 0 WAL senders are in use: 0 left")
    assert checked.one("replication").severity is Severity.PROBLEM


def test_an_exclusive_backup_is_warned_of_while_it_runs(servers: ServerPool) -> None:
    major = next((number for number in (13, 14) if number in servers.installations), None)
    if major is None:
        pytest.skip(missing_reason(13))
    cluster = servers.get(major)
    with cluster.connect() as connection:
        connection.execute("SELECT pg_start_backup('forgotten', true, true)")
        try:
            is_warning(check_server(cluster.conninfo()), "backup-label", "an exclusive backup runs since 20")
        finally:
            connection.execute("SELECT pg_stop_backup()")
    assert check_server(cluster.conninfo()).one("backup-label").is_ok


def test_an_encrypted_connection_says_how(make_cluster: Callable[..., Cluster], servers: ServerPool) -> None:
    majors = [major for major, found in servers.installations.items() if "ssl" in features_of(found)]
    if not majors:
        pytest.skip("no PostgreSQL built with ssl is installed")
    cluster = make_cluster(majors[-1], fill=False)
    files = cluster.enable_tls(only_tls=True)
    secret = {"password": "correct horse", "host": "localhost"}
    checked = check_server(cluster.tcp_conninfo(sslmode="verify-full", sslrootcert=str(files.authority), **secret))
    assert checked.one("tls").message.startswith("encrypted connection: TLSv1.")
    assert "does not check" not in checked.one("tls").message
    unchecked = check_server(cluster.tcp_conninfo(sslmode="require", **secret))
    assert "sslmode=require does not check the certificate" in unchecked.one("tls").message
    # The line for pg_hba.conf demands what the connection has.
    (cluster.data / "pg_hba.conf").write_text("hostssl postgres all all scram-sha-256\nlocal all all trust\n")
    cluster.reload()
    refused = check_server(cluster.tcp_conninfo(sslmode="prefer", **secret)).one("replication")
    line = (refused.advice or "").splitlines()[1].split()
    assert (line[0], line[1], line[2], line[4]) == ("hostssl", "replication", "postgres", "scram-sha-256")


def _own_address() -> str | None:
    """Return this machine's address on a network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address
