"""What the check makes of facts: what no server shows at will, and the borders between OK, warning and problem."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polarvault.check.connection.hba import Client, hba_line, login_method, parse_refusal
from polarvault.check.connection.reach import Attempt, ReachFacts, judge_reach
from polarvault.check.connection.role import RoleFacts, judge_role
from polarvault.check.connection.transport import TransportFacts, judge_transport
from polarvault.check.files.configuration import outside_of
from polarvault.check.files.contents import ContentFacts, UnloggedTable, judge_contents
from polarvault.check.files.places import Place, TablespaceFacts, judge_tablespaces
from polarvault.check.host import ProgramFacts, judge_clock, judge_programs
from polarvault.check.run import CheckReport
from polarvault.check.session import Unanswered, parse_size_setting
from polarvault.check.target import SizeFacts, TargetFacts, judge_target
from polarvault.check.visibility import judge_unanswered
from polarvault.check.wal.archiving import ArchivingFacts, judge_archiving
from polarvault.check.wal.slots import SlotFacts, judge_slots
from polarvault.check.wal.walsenders import WalFacts, judge_wal
from polarvault.errors import ConnectionFailed
from polarvault.model.finding import Finding, Severity
from polarvault.report.check import check_text

OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM


def severities(findings: list[Finding]) -> list[Severity]:
    return [finding.severity for finding in findings]


# pg_hba.conf


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            'FATAL: no pg_hba.conf entry for replication connection from host "10.1.2.3", user "bk", no encryption',
            ("bk", "10.1.2.3", False, False),
        ),
        (
            'FATAL:  no pg_hba.conf entry for replication connection from host "10.1.2.3", user "bk", SSL off',
            ("bk", "10.1.2.3", False, False),
        ),
        (
            'failed: FATAL: no pg_hba.conf entry for host "fe80::1", user "bk", database "app", SSL encryption\n'
            'failed: FATAL: no pg_hba.conf entry for host "fe80::1", user "bk", database "app", no encryption',
            ("bk", "fe80::1", True, False),
        ),
        (
            'FATAL: pg_hba.conf rejects replication connection for host "[local]", user "bk", no encryption',
            ("bk", None, False, True),
        ),
        (
            'FATAL: pg_hba.conf rejects connection for host "10.1.2.3", user "bk", database "app", SSL on',
            ("bk", "10.1.2.3", True, True),
        ),
        ('FATAL: password authentication failed for user "bk"', None),
    ],
)
def test_the_servers_own_words_say_who_was_refused(message: str, expected: tuple[object, ...] | None) -> None:
    found = parse_refusal(message)
    assert (found and (found.user, found.address, found.encrypted, found.is_rejection)) == expected


@pytest.mark.parametrize(
    ("database", "client", "line"),
    [
        (
            "replication",
            Client(user="bk", address="fe80::1", encrypted=True, method="scram-sha-256"),
            "hostssl replication bk fe80::1/128 scram-sha-256",
        ),
        (
            "all",
            Client(user='A "b', address="10.0.0.1", encrypted=False, method="md5"),
            'host "all" "A ""b" 10.0.0.1/32 md5',
        ),
        ("app", Client(user="+g", address=None, encrypted=False, method="peer"), 'local app "+g" peer'),
    ],
)
def test_the_line_is_quoted_as_the_file_wants_it(database: str, client: Client, line: str) -> None:
    assert " ".join(hba_line(database, client).split()) == line


def test_the_method_is_the_one_that_works_already_or_fits_the_stored_password() -> None:
    ask = {"system_user": None, "used_password": True, "password_encryption": "scram-sha-256", "local": False}
    assert login_method(**ask) == "scram-sha-256"  # type: ignore[arg-type]
    assert login_method(**ask | {"password_encryption": "md5"}) == "md5"  # type: ignore[arg-type]
    assert login_method(**ask | {"system_user": "cert:bk"}) == "cert"  # type: ignore[arg-type]
    assert login_method(**ask | {"used_password": False, "local": True}) == "peer"  # type: ignore[arg-type]


def test_a_translated_refusal_gets_the_address_that_sql_tells() -> None:
    sql = Attempt(check="connection", database="postgres", error=None, where="db1:5432", user="bk")
    refused = ConnectionFailed("FATAL: kein pg_hba.conf-Eintrag für Replikationsverbindung von Host »172.17.0.1«")
    client = Client(user="bk", address="172.17.0.1", encrypted=True, method="scram-sha-256")
    facts = ReachFacts(
        sql=sql,
        replication=Attempt(check="replication", database="replication", error=refused),
        client=client,
        hba_file="/etc/pg_hba.conf",
    )
    fine, finding = judge_reach(facts)
    assert fine.is_ok
    assert finding.advice == (
        "add this line to /etc/pg_hba.conf, then run: SELECT pg_reload_conf();\n"
        "hostssl replication  bk  172.17.0.1/32  scram-sha-256"
    )


def test_one_reason_for_both_logins_is_one_finding() -> None:
    down = ConnectionFailed("connection refused", hint="start it")
    both = [Attempt(check=name, database="d", error=down) for name in ("connection", "replication")]
    (finding,) = judge_reach(ReachFacts(sql=both[0], replication=both[1], client=None, hba_file=None))
    assert (finding.check, finding.advice) == ("reachability", "start it")


# Transport, role


TRANSPORT = TransportFacts(
    where="db1",
    local_socket=False,
    same_machine=False,
    encrypted=False,
    protocol=None,
    sslmode="prefer",
    server_ssl="on",
)


def test_only_a_readable_network_connection_is_warned_of() -> None:
    assert severities(judge_transport(replace(TRANSPORT, local_socket=True))) == [OK]
    assert severities(judge_transport(replace(TRANSPORT, same_machine=True))) == [OK]
    assert severities(judge_transport(replace(TRANSPORT, encrypted=True))) == [OK]
    (plain,) = judge_transport(TRANSPORT)
    (no_tls,) = judge_transport(replace(TRANSPORT, server_ssl="off"))
    assert plain.severity is no_tls.severity is WARNING
    assert "sslmode=require" in (plain.advice or "")
    assert "ALTER SYSTEM SET ssl = on;" in (no_tls.advice or "")


def test_a_role_is_judged_by_its_rights_limit_and_expiry() -> None:
    role = RoleFacts(
        name="bk", database="app", superuser=False, replication=True, connection_limit=-1,
        limit_refused_us=False, expires_in_days=None,
        functions={"pg_switch_wal()": True},
    )  # fmt: skip
    assert severities(judge_role(role)) == [OK, OK]
    assert severities(judge_role(replace(role, connection_limit=1, expires_in_days=15.0))) == [OK, OK]
    refused = replace(role, connection_limit=1, limit_refused_us=True, expires_in_days=3.0)
    assert severities(judge_role(refused)) == [OK, PROBLEM, WARNING, OK]
    assert severities(judge_role(replace(role, superuser=True))) == [OK]


# WAL


WAL = WalFacts(
    wal_level="replica", max_wal_senders=10, senders=[], max_replication_slots=10, slots_in_use=0, wal_keep_bytes=0,
    max_slot_wal_keep_bytes=-1, segment_bytes=1 << 30, summarize_wal=None, spread_checkpoint_s=270.0,
)  # fmt: skip


def test_a_backup_needs_two_wal_senders_and_a_slot() -> None:
    assert set(severities(judge_wal(WAL))) == {OK}
    assert set(severities(judge_wal(replace(WAL, senders=["a"] * 8)))) == {OK}
    assert PROBLEM in severities(judge_wal(replace(WAL, senders=["a"] * 9)))
    assert PROBLEM in severities(judge_wal(replace(WAL, slots_in_use=10)))
    # What the role may not see is not judged.
    assert set(severities(judge_wal(replace(WAL, senders=None, slots_in_use=None, wal_level=None)))) == {OK}


def test_the_room_of_a_slot_is_counted_in_segments() -> None:
    assert WARNING in severities(judge_wal(replace(WAL, max_slot_wal_keep_bytes=3 << 30)))
    assert WARNING not in severities(judge_wal(replace(WAL, max_slot_wal_keep_bytes=4 << 30)))


SLOT = SlotFacts(
    name="s", kind="physical", active=True, synced=False, wal_status="reserved", restart_lsn="0/1", held_bytes=5 << 20
)


def test_slots_are_judged_by_use_and_by_what_they_hold() -> None:
    def one(slot: SlotFacts, limit: int | None = None) -> Finding:
        (finding,) = judge_slots([slot], limit_bytes=limit)
        return finding

    assert one(SLOT).message == "1 active; the slowest is 5.0 MB behind"
    assert one(replace(SLOT, active=False, restart_lsn=None, held_bytes=None)).is_ok
    # A standby's copy of its primary's slot is idle by design (PostgreSQL 17).
    assert one(replace(SLOT, active=False, synced=True)).is_ok
    assert one(replace(SLOT, wal_status="unreserved")).check == "slot-behind"
    assert one(replace(SLOT, active=False)).check == "slot-inactive"
    assert "until the slot moves on or the disk is full" in (one(replace(SLOT, active=False)).meaning or "")
    assert "10.0 GB" in (one(replace(SLOT, active=False), 10 << 30).meaning or "")
    lost = one(replace(SLOT, active=False, wal_status=None, reason="idle_timeout"))
    assert (lost.check, "(idle_timeout)" in lost.message) == ("slot-lost", True)
    assert judge_slots([], limit_bytes=None)[0].message == "there are no replication slots"


ARCHIVING = ArchivingFacts(
    mode="on", command="cp %p /a/%f", library="", in_recovery=False, archived_count=3, last_archived_wal="0001",
    last_archived_time="2026-11-22 10:00:00+00", failed_count=0, last_failed_wal=None, last_failed_time=None,
    failing=False, ready=0, segment_bytes=16 << 20, receivers=[],
)  # fmt: skip


def test_archiving_is_judged_by_its_last_failure_and_what_waits() -> None:
    assert severities(judge_archiving(ARCHIVING)) == [OK]
    recovered = replace(ARCHIVING, failed_count=7, last_failed_time="2026-11-22 09:00:00+00", last_failed_wal="0000")
    (finding,) = judge_archiving(recovered)
    assert finding.message.endswith("7 failures, the last at 2026-11-22 09:00:00 UTC")
    assert severities(judge_archiving(replace(recovered, failing=True))) == [PROBLEM]
    assert severities(judge_archiving(replace(ARCHIVING, ready=10))) == [OK, WARNING]
    assert "160 MB" in judge_archiving(replace(ARCHIVING, ready=10))[1].message
    assert severities(judge_archiving(replace(ARCHIVING, command="", library="mine"))) == [OK]
    assert severities(judge_archiving(replace(ARCHIVING, command="", library=None))) == [PROBLEM]
    # What the role may not see is not taken for empty.
    assert severities(judge_archiving(replace(ARCHIVING, command=None, library=None, ready=None))) == [OK]
    assert severities(judge_archiving(replace(ARCHIVING, mode="off"))) == [WARNING]
    assert severities(judge_archiving(replace(ARCHIVING, mode="off", receivers=["pg_receivewal (slot a)"]))) == [OK]
    assert severities(judge_archiving(replace(ARCHIVING, command=":", receivers=["pg_receivewal (slot a)"]))) == [OK]


# Files, contents, this machine


def test_files_outside_of_the_data_directory_are_listed_once() -> None:
    paths = [
        "server.crt",
        "/data/pg_hba.conf",
        "/etc/pg/postgresql.conf",
        "/data/../etc/pg/postgresql.conf",
        "/data2/a",
        "",
    ]
    assert outside_of("/data/", paths) == ["/etc/pg/postgresql.conf", "/data2/a"]


def test_tablespaces_are_judged_by_their_place_here_and_at_the_server() -> None:
    space = TablespaceFacts(oid=1, name="t", location="/ts", size_bytes=None, at_server=None, here=Place.FREE)

    def one(space: TablespaceFacts, target: str | None = None) -> Finding:
        (finding,) = judge_tablespaces([space], data_directory="/data", target=target)
        return finding

    assert one(space).is_ok
    assert one(replace(space, location="pg_tblspc/1")).is_ok
    assert "-T /ts=/b.t" in (one(replace(space, here=Place.TAKEN), "/b").advice or "")
    assert "cannot be read" in one(replace(space, here=Place.UNREADABLE)).message
    assert one(replace(space, location="/data/t")).severity is WARNING
    assert one(replace(space, location="/data2/t")).is_ok
    assert one(replace(space, at_server="its directory is missing at the server")).severity is PROBLEM


def test_only_what_does_not_come_back_is_warned_of() -> None:
    nothing = ContentFacts(
        databases=2, unlogged=[], indexes=[], foreign_tables=0, extensions=[], libraries=[], logical_slots=[],
        subscriptions=[], prepared_transactions=0, oldest_prepared=None,
    )  # fmt: skip
    assert severities(judge_contents(nothing)) == [OK] * 3
    needs = replace(nothing, foreign_tables=3, extensions=["postgis"], libraries=["pgaudit"])
    assert severities(judge_contents(needs)) == [OK] * 5
    tables = [UnloggedTable(database="app", name=f"t{number}", size_bytes=number << 20) for number in range(7)]
    finding = judge_contents(replace(nothing, unlogged=tables))[0]
    assert finding.message == (
        "7 unlogged tables, 21.0 MB: app: t6 (6.0 MB), app: t5 (5.0 MB), app: t4 (4.0 MB), app: t3 (3.0 MB), "
        "app: t2 (2.0 MB), and 2 more"
    )


def test_clocks_may_differ_by_seconds_and_by_what_cannot_be_known() -> None:
    assert severities(judge_clock(difference_s=-4.9, uncertainty_s=0.0)) == [OK]
    assert severities(judge_clock(difference_s=6.0, uncertainty_s=1.5)) == [OK]
    (ahead,) = judge_clock(difference_s=3600.0, uncertainty_s=0.1)
    assert ahead.severity is WARNING
    assert ahead.message == "the server's clock is 3600.0 s ahead of this machine's"
    assert "behind" in judge_clock(difference_s=-8.0, uncertainty_s=0.1)[0].message


def test_programs_of_another_version_do_not_count() -> None:
    facts = ProgramFacts(
        product="PostgreSQL", major=18, version="18.1 (Debian)", found=None, rejected=["/usr/bin: version 15.2"]
    )
    (finding,) = judge_programs(facts)
    assert finding.severity is WARNING
    assert "the server is PostgreSQL 18.1, and no programs of PostgreSQL 18 were found" in finding.message
    assert "(found: /usr/bin: version 15.2)" in finding.message
    # A host that only keeps backups is as it should be.
    (nothing,) = judge_programs(replace(facts, rejected=[]))
    assert nothing.severity is OK
    assert "but not be started or drilled" in nothing.message


def test_space_is_compared_with_the_estimate() -> None:
    size = SizeFacts(database_bytes=100 << 20, wal_bytes=0, databases=1, hidden=0)
    target = TargetFacts(path="/b", ancestor="/b", obstacle=None, advice=None, available_bytes=200 << 20)
    assert severities(judge_target(target, size)) == [OK, OK]
    assert severities(judge_target(replace(target, available_bytes=110 << 20), size)) == [OK, WARNING]
    assert severities(judge_target(replace(target, available_bytes=99 << 20), size)) == [OK, PROBLEM]
    assert severities(judge_target(target, None)) == [OK, OK]
    assert severities(judge_target(replace(target, obstacle="no", available_bytes=None), size)) == [PROBLEM]
    # Nobody knows: that is neither room nor the lack of it.
    unknown = judge_target(replace(target, available_bytes=None), size)
    assert severities(unknown) == [OK, OK]
    assert "does not tell how much room it has" in unknown[1].message


# What was not told, and the report


def test_what_is_hidden_is_one_finding_and_each_failure_another() -> None:
    missed = [
        Unanswered("setting a", "permission denied", grant="pg_monitor"),
        Unanswered("backup_label", "permission denied", grant="EXECUTE ON FUNCTION f()"),
        Unanswered("sizes", "canceling statement due to lock timeout"),
    ]
    hidden, failed = judge_unanswered(missed, role="bk", database="app")
    assert hidden.message == 'not visible to role "bk": setting a, backup_label'
    assert (hidden.advice or "").splitlines() == [
        'to check it, as a superuser, in database "app":', 'GRANT pg_monitor TO "bk";',
        'GRANT EXECUTE ON FUNCTION f() TO "bk";',
    ]  # fmt: skip
    assert (failed.check, failed.message) == ("unanswered", "sizes: canceling statement due to lock timeout")


def test_sizes_of_settings_are_bytes() -> None:
    texts = ["16MB", "0", "-1", "8kB", "2GB", "16777216B", "off"]
    assert [parse_size_setting(text) for text in texts] == [16 << 20, 0, -1, 8 << 10, 2 << 30, 16 << 20, None]


def test_prose_is_wrapped_for_a_terminal_and_what_is_to_be_typed_is_not() -> None:
    finding = Finding(
        severity=WARNING, check="x", subject="x", message="word " * 30, meaning="meaning " * 30, advice="type " * 30
    )
    lines = list(check_text(CheckReport(findings=(finding,), server=None, identity=None), width=80))
    typed = [line for line in lines if "type" in line]
    assert len(typed) == 1
    assert all(len(line) <= 80 for line in lines if "word" in line and "\x1b" not in line)
    assert sum("meaning" in line for line in lines) > 1
