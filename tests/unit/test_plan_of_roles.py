"""The plan is a function of request and facts: every role, target and form, from facts that were written down here."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from polarvault.backupset.model import Area, Form, Inventory, Part
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.errors import BackupUnusable, UsageError
from polarvault.instance.model import Account, Role
from polarvault.pgfiles.backup_label import parse_backup_label
from polarvault.recovery.reachability import RecoveryPlan
from polarvault.recovery.target import (
    RecoveryRequest,
    RecoveryTarget,
    TargetAction,
    TargetKind,
    parse_target_lsn,
    parse_target_name,
    parse_target_time,
    parse_target_xid,
)
from polarvault.report.restore import plan_text
from polarvault.restore.facts import BackupFacts, Choice, HostFacts, Outside, Place, PrimaryFacts, RestoreFacts
from polarvault.restore.model import Layout, RestorePlan, RestoreRequest
from polarvault.restore.plan.plan import check_startable, plan_restore
from polarvault.restore.plan.roles import rules_of
from polarvault.restore.plan.routing import LocalHalfRouter, Router, router_of
from unit.test_restore_plan import CONTROL, LABEL, POLAR_CONF
from unit.test_standby_checks import PRIMARY

POSTGRES_CONF = (
    b"max_connections = 100\narchive_mode = on\narchive_command = 'cp %p /a/%f'\nsynchronous_standby_names = '*'\n"
)
PLACES = {"plain": None, "two halves": "/t/shared", "merged": None}
FORMS = {
    Form.PLAIN: [Part(Area.LOCAL, "/b")],
    Form.TAR_DIRECTORY: [Part(Area.LOCAL, "/b/base.tar", is_tar=True), Part(Area.WAL, "/b/pg_wal.tar", is_tar=True)],
    Form.TAR_FILE: [Part(Area.LOCAL, "/b", is_tar=True)],
    Form.REPOSITORY: [],
}
FOLLOWS: dict[str, Any] = {"primary_conninfo": "host=p", "slot": "s1"}
TARGETS = {
    None: {},
    RecoveryTarget(TargetKind.LATEST): {"recovery_target_timeline": "3"},
    RecoveryTarget(TargetKind.IMMEDIATE): {"recovery_target": "immediate"},
    parse_target_time("2026-11-22 14:03:00+01"): {"recovery_target_time": "2026-11-22 13:03:00+00"},
    parse_target_xid("77"): {"recovery_target_xid": "77"},
    parse_target_lsn("0/5000000"): {"recovery_target_lsn": "0/5000000"},
    parse_target_name("a"): {"recovery_target_name": "a"},
}


def backup(halves: str, form: Form = Form.PLAIN, **more: Any) -> BackupFacts:
    is_polardb = halves != "plain"
    files = {
        (Area.LOCAL, "PG_VERSION"): b"15\n",
        (Area.LOCAL, "backup_label"): LABEL,
        (Area.LOCAL, "postgresql.conf"): POLAR_CONF + POSTGRES_CONF if is_polardb else POSTGRES_CONF,
        (Area.LOCAL, "pg_hba.conf"): b"local all all trust\n",
    }
    sizes = {Area.LOCAL: 1000} | ({Area.SHARED: 5000} if halves == "two halves" else {})
    found = Inventory(
        files=files, sizes=sizes, tablespace_sizes={}, wal={"000000010000000000000002": 16 << 20},
        names=frozenset(files), tablespaces=(), has_control=True, control=CONTROL, group_readable=False, file_count=4,
    )  # fmt: skip
    made = BackupFacts(
        source=BackupOnDisk("/b", form, tuple(FORMS[form])), inventory=found, label=parse_backup_label(LABEL),
        major_version=15, is_polardb=is_polardb, had_shared_half=is_polardb,
    )  # fmt: skip
    return replace(made, **more)


def machine(layout: Layout, **more: Any) -> HostFacts:
    places = tuple(Place(path, path, 1, 1 << 40) for path in layout.roots)
    made = HostFacts(
        account=Account("postgres", 1, 1), layout=layout, places=places, shares_extents=False, outside=Outside({}),
        takes_direct_io=True,
    )  # fmt: skip
    return replace(made, **more)


def recovery(target: RecoveryTarget) -> RecoveryPlan:
    action = TargetAction.PROMOTE if target.kind is TargetKind.LATEST else TargetAction.PAUSE
    return RecoveryPlan(
        target=target, action=action, span=None, timeline_id=3, timeline_setting="3", stop=None, last_transaction=None,
        reachable=None, hot_standby_needs={"max_connections": 500},
    )  # fmt: skip


def facts(role: Role, halves: str, form: Form = Form.PLAIN, target: RecoveryTarget | None = None) -> RestoreFacts:
    layout = Layout("/t", PLACES[halves], {}, merged=halves == "merged")
    found = backup(halves, form)
    if role is Role.REPLICA:
        layout = Layout("/t", None, {}, live_datadir="file-dio:///live/shared")
        found = replace(
            found, label=None, had_shared_half=False,
            inventory=replace(found.inventory, control=None, wal={}, sizes={Area.LOCAL: 1000}),
        )  # fmt: skip
    return RestoreFacts(
        backup=found,
        host=machine(layout, storage_path="/live/shared"),
        primary=None if role is Role.PRIMARY else PrimaryFacts(replace(PRIMARY, conninfo="host=p port=1"), ("odd",)),
        recovery=recovery(target) if target is not None else None,
    )


def asked(role: Role, halves: str, target: RecoveryTarget | None = None, **more: Any) -> RestoreRequest:
    given = {} if role is Role.PRIMARY else FOLLOWS
    fields = {"role": role, "merge": halves == "merged", "recovery": RecoveryRequest(target=target), **given, **more}
    request = RestoreRequest("/b", "/t", **fields)
    rules_of(role).check_request(request)
    return request


def after(made: RestorePlan) -> dict[str, str | None]:
    return {change.name: change.after for change in made.changes}


CASES = [
    (role, halves, form, target)
    for role, halves, form, target in itertools.product(Role, PLACES, Form, TARGETS)
    # Only a primary has a target, and a replica has no storage of its own.
    if (role is Role.PRIMARY or target is None) and (role is not Role.REPLICA or halves == "two halves")
]


@pytest.mark.parametrize(
    ("role", "halves", "form", "target"), CASES, ids=lambda value: str(getattr(value, "name", value))
)
def test_what_a_role_gets_in_every_form_and_to_every_target(
    role: Role, halves: str, form: Form, target: RecoveryTarget | None
) -> None:
    known = facts(role, halves, form, target)
    made = plan_restore(asked(role, halves, target), known)
    settings = after(made)
    # Whatever it is: it starts in its role, archives nothing, and follows nobody whom the user has not named.
    assert made.signal_path == {
        Role.PRIMARY: "/t/recovery.signal", Role.STANDBY: "/t/standby.signal", Role.REPLICA: "/t/replica.signal",
    }[role]  # fmt: skip
    assert settings["archive_mode"] == "off"
    assert settings["archive_command"] is None
    assert settings.get("primary_conninfo") == (None if role is Role.PRIMARY else "host=p port=1")
    assert settings.get("primary_slot_name") == (None if role is Role.PRIMARY else "s1")
    assert settings.get("restore_command") == ("false" if role is Role.PRIMARY else None)
    assert ("synchronous_standby_names" in settings) == (role is Role.PRIMARY)
    assert settings.get("max_logical_replication_workers") == ("0" if role is Role.PRIMARY else None)
    # Its storage.
    datadir = {"plain": None, "two halves": "file-dio:///t/shared", "merged": None}[halves]
    assert made.files["/t/postgresql.conf"].count(b"live/shared'") == (1 if halves != "plain" else 0)
    if role is Role.REPLICA:
        assert not {"polar_datadir", "polar_enable_shared_storage_mode", "full_page_writes"} & settings.keys()
    else:
        assert settings.get("polar_datadir") == datadir
        assert settings.get("polar_enable_shared_storage_mode") == ("off" if halves == "merged" else None)
        assert settings.get("full_page_writes") == (None if halves == "plain" else "on")
    # Where its recovery ends.
    assert {name: settings.get(name) for name in TARGETS[target]} == TARGETS[target]
    assert settings.get("recovery_target_action") == (
        "pause" if target is not None and target.kind is not TargetKind.LATEST else None
    )
    # What hot standby needs: by pg_control, or the WAL if that was read.
    if role is not Role.REPLICA:
        assert settings["max_connections"] == ("500" if target is not None else "321")
    # What is said and done beside the settings.
    assert ("odd" in made.warnings) == (role is not Role.PRIMARY)
    assert isinstance(router_of(made.layout, made.inventory), LocalHalfRouter if role is Role.REPLICA else Router)
    assert sum(need.needed for need in made.space) == {"plain": 1000, "two halves": 6000, "merged": 1000}[halves] - (
        5000 if role is Role.REPLICA else 0
    )
    text = "\n".join(plan_text(made))
    assert f"to be a {role.value}" in text
    assert ("from the primary's storage and its stream" in text) == (role is Role.REPLICA)
    # The same facts, the same plan: nobody else was asked.
    assert plan_restore(asked(role, halves, target), known) == made


def test_what_must_hold_for_a_replica_stands_in_the_file_that_arms_it() -> None:
    made = plan_restore(asked(Role.REPLICA, "two halves"), facts(Role.REPLICA, "two halves"))
    assert list(made.files) == ["/t/postgresql.conf"]
    ordinary = plan_restore(asked(Role.STANDBY, "two halves"), facts(Role.STANDBY, "two halves"))
    assert b"primary_conninfo" in ordinary.files["/t/postgresql.auto.conf"]


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.STANDBY])
def test_a_setting_below_what_the_wal_was_written_with_is_refused_where_it_is_replayed(role: Role) -> None:
    request = asked(role, "plain", settings=(("max_connections", "5"),))
    with pytest.raises(UsageError, match="hot standby needs at least 321"):
        plan_restore(request, facts(role, "plain"))
    plan_restore(replace(request, role=Role.REPLICA, slot="s"), facts(Role.REPLICA, "two halves"))


def test_wal_that_the_backup_lacks_is_missed_unless_something_brings_it() -> None:
    known = facts(Role.PRIMARY, "plain")
    bare = replace(known, backup=replace(known.backup, inventory=replace(known.backup.inventory, wal={})))
    with pytest.raises(BackupUnusable, match="without which it cannot be started"):
        check_startable(plan_restore(asked(Role.PRIMARY, "plain", start=True), bare))
    for more in ({"settings": (("restore_command", "cp"),)}, {"recovery": RecoveryRequest(wal_directories=("/w",))}):
        made = plan_restore(asked(Role.PRIMARY, "plain", **more), bare)
        check_startable(made)
        assert made.warnings == ()
    check_startable(
        plan_restore(asked(Role.STANDBY, "plain"), replace(bare, primary=facts(Role.STANDBY, "plain").primary))
    )


def test_what_was_found_out_on_the_way_is_said_in_its_order() -> None:
    known = facts(Role.PRIMARY, "plain", target=RecoveryTarget(TargetKind.LATEST))
    assert known.recovery is not None
    known = replace(
        known,
        backup=replace(known.backup, warnings=("of the backup",)),
        host=replace(known.host, taken_port=5432, saved_configuration="/b.configuration"),
        recovery=replace(known.recovery, warnings=("of the WAL",)),
        choice=Choice((("/old", "too old"),), frozenset({"/old"}), (), ("of the others",)),
    )
    made = plan_restore(asked(Role.PRIMARY, "plain"), known)
    assert [warning.split(" on this")[0] for warning in made.warnings] == [
        "of the others", "of the backup", "of the WAL", "port 5432 is in use",
    ]  # fmt: skip
    assert made.recovery is not None
    assert made.recovery.rejected == (("/old", "too old"),)
    assert made.broken == {"/old"}


def test_what_a_compressed_tar_shows_only_at_its_end_changes_what_follows_from_it_alone() -> None:
    known = facts(Role.PRIMARY, "plain", Form.TAR_DIRECTORY)
    unseen = replace(known, backup=replace(known.backup, inventory=replace(known.backup.inventory, control=None)))
    before = after(plan_restore(asked(Role.PRIMARY, "plain"), unseen))
    assert "max_connections" not in before
    settled = after(plan_restore(asked(Role.PRIMARY, "plain"), known))
    assert settled == {**before, "max_connections": "321"}
