"""What is refused before a standby or replica is made, what its log means, and which settings it gets. No server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polarvault.backupset.model import Area, Form, Inventory
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.errors import PolarvaultError, ServerRefused, UsageError
from polarvault.instance.model import Role
from polarvault.instance.walreceiver_log import diagnose
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import parse_backup_label
from polarvault.pgfiles.tar import MemberKind
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.report.standby import FollowPrinter
from polarvault.restore.facts import BackupFacts, Storage, WithheldWal
from polarvault.restore.model import Archiving, Layout, RestoreRequest
from polarvault.restore.plan.roles import rules_of
from polarvault.restore.plan.roles.standby import application_name
from polarvault.restore.plan.routing import LocalHalfRouter
from polarvault.restore.plan.settings.archiving import archive_settings, archive_warnings
from polarvault.restore.plan.settings.hot_standby import hot_standby_shortfalls
from polarvault.restore.standby.follow import FollowState
from polarvault.restore.standby.follow_checks import check_follows, judge_withheld, last_held_segment
from polarvault.restore.standby.live_storage import check_storage
from polarvault.restore.standby.primary import Primary, SlotState
from polarvault.server.identity import ServerIdentity
from polarvault.wal.history import TimelineHistory
from support.small_files import control_bytes

LABEL = b"""START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIMELINE: 1
"""
IDENTITY = ServerIdentity(
    system_identifier="7", timeline_id=1, flush_lsn=Lsn(0x5000000), version_num=150008, version="15.8",
    segment_size_bytes=16 << 20, relation_segment_bytes=1 << 30, block_bytes=8192, data_checksums=True,
    full_page_writes=True, group_access=False, in_recovery=False, log_directory="log", polar_version=None,
    shared_data_directory=None,
)  # fmt: skip
SLOT = SlotState(name="s1", kind="physical", active_pid=None, restart_lsn=Lsn(0x2000028), wal_status="reserved")
PRIMARY = Primary(
    conninfo="host=p", identity=IDENTITY, history=TimelineHistory(1), settings={}, slots=(SLOT,),
    password_from_elsewhere=False,
)  # fmt: skip


BACKUP = BackupFacts(
    source=BackupOnDisk("/b", Form.PLAIN, (), {"system_identifier": "7"}),
    inventory=Inventory(
        files={}, sizes={}, tablespace_sizes={}, wal={"000000010000000000000002": 1}, names=frozenset(), tablespaces=(),
        has_control=False, control=None, group_readable=False, file_count=0,
    ),
    label=parse_backup_label(LABEL), major_version=15, is_polardb=False, had_shared_half=False,
)  # fmt: skip


def request(**more: Any) -> RestoreRequest:
    return RestoreRequest(**{"backup": "/b", "target": "/t/standby 2", "role": Role.STANDBY, **more})


def follows(primary: Primary, span: BackupSpan | None = None, **more: Any) -> list[str]:
    return check_follows(request(**more), BACKUP, primary, span)


def identity(**more: Any) -> Primary:
    return replace(PRIMARY, identity=replace(IDENTITY, **more))


@pytest.mark.parametrize(
    ("primary", "words"),
    [
        (identity(system_identifier="8"), "another cluster: its system identifier is 8, the backup's 7"),
        (identity(version_num=160002, version="16.2"), "version 15, the primary is PostgreSQL 16.2"),
        (identity(polar_version="2.0"), "of PostgreSQL, the primary is PolarDB"),
        (identity(flush_lsn=Lsn(0x1000000)), "before the backup's end at 0/2000028"),
        (
            replace(identity(timeline_id=2), history=TimelineHistory.parse(b"1\t0/2000000\tx\n", 2)),
            "left timeline 1 at 0/2000000",
        ),
        (
            replace(identity(timeline_id=4), history=TimelineHistory.parse(b"3\t0/2000000\tx\n", 4)),
            "does not contain timeline 1",
        ),
    ],
)
def test_a_primary_that_cannot_be_followed_is_refused(primary: Primary, words: str) -> None:
    with pytest.raises(ServerRefused, match="nothing was written") as caught:
        follows(primary)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ((replace(SLOT, kind="logical"),), "logical slot"),
        ((replace(SLOT, active_pid=77),), "process 77"),
        ((replace(SLOT, wal_status="lost"),), "is lost"),
        ((replace(SLOT, name="other"),), "its physical slots: other"),
        ((), "its physical slots: none"),
    ],
)
def test_a_slot_that_cannot_be_used_is_refused(slots: tuple[SlotState, ...], words: str) -> None:
    with pytest.raises(ServerRefused) as caught:
        follows(replace(PRIMARY, slots=slots), slot="s1")
    assert words in caught.value.message


def test_what_only_may_go_wrong_is_a_warning() -> None:
    assert follows(PRIMARY, slot="s1") == []
    assert "without a slot" in follows(PRIMARY)[0]
    unasked = follows(replace(PRIMARY, slots=None), slot="s1")
    assert "could not be looked at" in unasked[0]
    late = replace(PRIMARY, slots=(replace(SLOT, restart_lsn=Lsn(0x5000028)),))
    assert "from 0/5000000 only" in follows(late, slot="s1")[0]
    fresh = replace(PRIMARY, slots=(replace(SLOT, restart_lsn=None),))
    assert "holds no WAL until" in follows(fresh, slot="s1")[0]
    assert "PGPASSWORD" in follows(replace(PRIMARY, password_from_elsewhere=True), slot="s1")[0]


def test_a_lagging_standby_and_a_later_timeline_can_be_followed() -> None:
    follows(identity(in_recovery=True, flush_lsn=Lsn(0x1000000)))
    follows(replace(identity(timeline_id=2), history=TimelineHistory.parse(b"1\t0/3000000\tx\n", 2)))
    # The history file may be gone; the server finds out by itself.
    follows(replace(identity(timeline_id=2), history=None))
    newer = replace(BACKUP, label=replace(parse_backup_label(LABEL), timeline_id=3))
    with pytest.raises(ServerRefused, match="a promotion left it behind"):
        check_follows(request(), newer, PRIMARY)


def test_the_end_of_the_backup_decides_whether_a_promotion_came_too_early() -> None:
    promoted = replace(identity(timeline_id=2), history=TimelineHistory.parse(b"1\t0/3000000\tx\n", 2))
    span = BackupSpan("/b", Lsn(0x2000028), 1, Lsn(0x3000000), 1, 16 << 20)
    follows(promoted, span)
    with pytest.raises(ServerRefused, match="left timeline 1 at 0/3000000, but the backup reaches to 0/3000100"):
        follows(promoted, replace(span, end_lsn=Lsn(0x3000100)))


def test_streaming_starts_in_the_last_segment_that_the_backup_holds() -> None:
    assert last_held_segment(BACKUP, 16 << 20).start == Lsn(0x2000000)  # type: ignore[union-attr]
    more = {**BACKUP.inventory.wal, "000000010000000000000003": 1}
    longer = replace(BACKUP, inventory=replace(BACKUP.inventory, wal=more))
    assert last_held_segment(longer, 16 << 20).start == Lsn(0x3000000)  # type: ignore[union-attr]
    assert last_held_segment(replace(BACKUP, label=None), 16 << 20) is None


def test_wal_that_the_primary_withholds_has_to_come_from_elsewhere() -> None:
    gone = WithheldWal(Lsn(0x3000000), "requested WAL segment has already been removed")
    assert judge_withheld(request(), None) == []
    with pytest.raises(ServerRefused, match="no longer has the WAL that follows the backup, from 0/3000000"):
        judge_withheld(request(), gone)
    assert "may be in the backup" in judge_withheld(request(), replace(gone, is_certain=False))[0]
    supplied = request(settings=(("restore_command", "cp /a/%f %p"),))
    assert "the WAL archive has to supply it" in judge_withheld(supplied, gone)[0]


@pytest.mark.parametrize(
    "more",
    [
        {"role": Role.PRIMARY, "slot": "x"},
        {"role": Role.PRIMARY, "create_slot": True},
        {"role": Role.PRIMARY, "primary_conninfo": "host=x"},
        {"slot": "Standby-2"},
        {"slot": "x" * 64},
        {"create_slot": True},
        {"create_slot": True, "slot": "x"},
    ],
)
def test_options_about_the_primary_that_make_no_sense_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        rules_of(more.get("role", Role.STANDBY)).check_request(request(**more))
    assert caught.value.hint


@pytest.mark.parametrize(
    "more",
    [
        {"archiving": Archiving.ALWAYS},
        {"archiving": Archiving.ON},
        {"archive_command": "cp %p /a/%f"},
        {"archiving": Archiving.ALWAYS, "archive_command": "cp %p /a/%f", "role": Role.PRIMARY},
        {"archiving": Archiving.ALWAYS, "archive_command": "cp %p /a/%f", "role": Role.REPLICA},
        {"archive_command": "cp %p /a/%f", "role": Role.REPLICA},
    ],
)
def test_archiving_needs_a_command_of_its_own_and_a_role_that_can(more: dict[str, Any]) -> None:
    asked = request(**more)
    with pytest.raises(UsageError) as caught:
        rules_of(asked.role).check_request(asked)
    assert caught.value.hint


def test_archiving_is_off_unless_it_was_asked_for() -> None:
    assert [(wanted.name, wanted.value) for wanted in archive_settings(request())] == [("archive_mode", "off")]
    asked = request(archiving=Archiving.ALWAYS, archive_command="cp %p /a/%f")
    rules_of(asked.role).check_request(asked)
    settings = {wanted.name: wanted.value for wanted in archive_settings(asked)}
    assert settings == {"archive_mode": "always", "archive_command": "cp %p /a/%f"}
    assert archive_warnings(asked, "cp %p /source/%f") == []
    assert "the source's own" in archive_warnings(asked, "cp  %p /a/%f")[0]
    assert "lacks %p or %f" in archive_warnings(replace(asked, archive_command="/bin/true"), None)[0]


def test_the_standby_is_named_after_its_slot_or_its_directory() -> None:
    assert application_name(request(slot="s1")) == "s1"
    assert application_name(request()) == "standby_2"
    assert application_name(request(target="/")) == "standby"


def test_only_what_is_lower_than_on_the_primary_is_raised() -> None:
    ours = {"max_connections": "100", "max_wal_senders": "10"}
    theirs = {"max_connections": "200", "max_wal_senders": "5", "polar_hostid": "3"}
    assert hot_standby_shortfalls(ours, theirs) == {"max_connections": "200"}


REPLICA: dict[str, Any] = {"role": Role.REPLICA, "primary_conninfo": "host=p", "slot": "ro1"}


@pytest.mark.parametrize(
    "more",
    [
        {"primary_conninfo": None},
        {"slot": None},
        {"merge": True},
        {"configuration": "data"},
        {"configuration": "/etc/postgresql/15/main"},
        {"shared_from": "/s"},
        {"tablespace_mapping": {"/a": "/b"}},
        {"settings": (("polar_datadir", "/x"),)},
        {"settings": (("polar_enable_shared_storage_mode", "off"),)},
        {"settings": (("restore_command", "x"),)},
        {"settings": (("archive_mode", "on"),)},
    ],
)
def test_what_a_replica_lacks_or_cannot_have_is_refused(more: dict[str, Any]) -> None:
    rules = rules_of(Role.REPLICA)
    rules.check_request(request(**REPLICA))
    with pytest.raises(UsageError):
        rules.check_request(request(**{**REPLICA, **more}))


@pytest.mark.parametrize(
    ("area", "name", "expected"),
    [
        (Area.LOCAL, "pg_hba.conf", "/r/pg_hba.conf"),
        (Area.LOCAL, "PG_VERSION", "/r/PG_VERSION"),
        # No server starts without it, so it is put in place last.
        (Area.LOCAL, "postgresql.conf", None),
        (Area.LOCAL, "base/5/PG_VERSION", "/r/base/5/PG_VERSION"),
        (Area.LOCAL, "backup_label", None),
        (Area.LOCAL, "standby.signal", None),
        (Area.LOCAL, "pg_xact/0000", None),
        (Area.LOCAL, "polar_shared_data/base/5/1259", None),
        (Area.LOCAL, "global/pg_control", None),
        (Area.SHARED, "base/5/1259", None),
        (Area.WAL, "000000010000000000000002", None),
    ],
)
def test_a_replica_gets_the_local_half_without_label_signals_and_caches(
    area: Area, name: str, expected: str | None
) -> None:
    assert LocalHalfRouter(Layout("/r", None, {}), True).path(area, name, MemberKind.FILE) == expected


LOGS = [
    (
        'FATAL:  could not connect to the primary server: connection to server at "10.0.0.1", port 5432 failed: '
        'FATAL:  password authentication failed for user "streamer"',
        "password authentication failed", "primary_conninfo", True,
    ),
    (
        # PostgreSQL 13 breaks the line.
        "FATAL:  could not connect to the primary server: FATAL:  no pg_hba.conf entry for replication connection from "
        'host "10.0.0.2", user "streamer", SSL off',
        "no pg_hba.conf entry", "host replication streamer 10.0.0.2/32 scram-sha-256", True,
    ),
    (
        'FATAL:  streaming replication receiver "s1" could not connect to the primary server: connection to server on '
        'socket "/tmp/.s.PGSQL.5432" failed: FATAL:  no pg_hba.conf entry for replication connection from host '
        '"[local]", user "streamer", no encryption',
        "no pg_hba.conf entry", "local replication streamer scram-sha-256", True,
    ),
    (
        "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has "
        "already been removed",
        "000000010000000000000003", "take a new backup", True,
    ),
    (
        'FATAL:  could not start WAL streaming: ERROR:  replication slot "gone" does not exist',
        '"gone"', "pg_create_physical_replication_slot", True,
    ),
    (
        'FATAL:  could not start WAL streaming: ERROR:  replication slot "s1" is active for PID 4711',
        "4711", "another server", False,
    ),
    ("FATAL:  highest timeline 1 of the primary is behind recovery timeline 2", "behind", "new primary", True),
    (
        "FATAL:  could not connect to the primary server: connection to server at \"10.0.0.1\", port 5432 failed: "
        "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        "Connection refused", "start the primary", False,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason", "hint", "permanent"), LOGS)
def test_the_log_tells_why_a_standby_does_not_stream(line: str, reason: str, hint: str, permanent: bool) -> None:
    log = f"2026-11-22 12:00:00 UTC [1] LOG:  entering standby mode\n2026-11-22 12:00:01 UTC [2] {line}\n"
    found = diagnose(log + "2026-11-22 12:00:02 UTC [3] LOG:  waiting for WAL to become available at 0/3000018\n")
    assert found is not None
    assert reason in found.reason
    assert hint in found.hint
    assert found.permanent is permanent


def test_the_last_telling_line_counts_and_a_quiet_log_tells_nothing() -> None:
    assert diagnose("LOG:  entering standby mode\nLOG:  redo starts at 0/2000028\n") is None
    both = f"[1] {LOGS[0][0]}\n[2] {LOGS[5][0]}\n"
    found = diagnose(both)
    assert found is not None
    assert "4711" in found.reason


def test_progress_is_printed_when_the_state_changes() -> None:
    lines: list[str] = []
    show = FollowPrinter(lines.append)
    state = FollowState(
        status="streaming", sender="10.0.0.1:5432", receive_lsn=Lsn(0x300), replay_lsn=Lsn(0x200),
        primary_lsn=Lsn(0x500000), since_last_transaction_s=3.0,
    )  # fmt: skip
    for shown in (state, state, replace(state, caught_up=True)):
        show(shown)
    assert len(lines) == 2
    assert "streaming from 10.0.0.1:5432: replayed 0/200, 5.0 MB behind" in lines[0]
    assert "caught up" in lines[1]
    assert (state.lag_bytes, state.lag_s) == (0x500000 - 0x200, 3.0)
    assert replace(state, replay_lsn=Lsn(0x500000)).lag_s == 0.0


LIVE = Storage("/live", "/live", "/live", "/live", control_bytes(system=7), holds_slot=True)


@pytest.mark.parametrize(
    ("storage", "more", "primary", "words"),
    [
        (LIVE, {}, {}, None),
        (replace(LIVE, holds_slot=False), {}, {}, 'is not the storage that the primary writes to: slot "ro1"'),
        # One that is made only now cannot be there yet.
        (replace(LIVE, holds_slot=False), {"create_slot": True}, {}, None),
        (replace(LIVE, primarys_path="/other", primarys_real_path="/other"), {}, {}, 'storage is "/other"'),
        (replace(LIVE, primarys_path="/link"), {}, {}, None),
        (replace(LIVE, control=None), {}, {}, 'storage is not at "/live" on this machine'),
        (replace(LIVE, control=control_bytes(system=8)), {}, {}, "belongs to another cluster"),
        (replace(LIVE, control=bytes(8192)), {}, {}, "nothing was written"),
        (LIVE, {}, {"shared_data_directory": None}, "does not use shared storage"),
        (LIVE, {}, {"in_recovery": True}, "itself in recovery"),
    ],
)
def test_only_the_primarys_own_storage_is_opened(
    storage: Storage, more: dict[str, Any], primary: dict[str, Any], words: str | None
) -> None:
    served = identity(**{"shared_data_directory": "/live", **primary})
    asked = request(**{**REPLICA, **more})
    if words is None:
        check_storage(asked, served, storage)
        return
    with pytest.raises(PolarvaultError) as caught:
        check_storage(asked, served, storage)
    assert words in caught.value.message


def test_on_pfs_the_storage_is_looked_into_and_numbers_are_compared() -> None:
    served = replace(identity(shared_data_directory="/live/"), settings={"polar_hostid": "3"})
    on_pfs = replace(LIVE, on_pfs=True)
    assert check_storage(request(**REPLICA, host_id=4), served, on_pfs) == []
    with pytest.raises(UsageError, match="the primary's own number"):
        check_storage(request(**REPLICA, host_id=3), served, on_pfs)
    with pytest.raises(ServerRefused, match="is not the storage that the primary writes to"):
        check_storage(request(**REPLICA, host_id=4), served, replace(on_pfs, holds_slot=False))
    # Without a library, or a daemon here, only the primary can tell.
    unseen = replace(on_pfs, control=None, holds_slot=False, unseen="no pfsd serves disk live on this machine")
    (warning,) = check_storage(request(**REPLICA, host_id=4), served, unseen)
    assert "could not be looked into (no pfsd serves disk live" in warning
