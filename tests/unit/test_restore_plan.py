"""The plan of a restore: what is refused before anything is written, and which settings change."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from polarvault.backupset.manifest_end import load_manifest_span
from polarvault.backupset.model import Area, Form, Inventory, ManifestSpan, Part, Tablespace
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.errors import BackupUnusable, PolarvaultError, StorageFailed, TargetNotEmpty, UsageError
from polarvault.instance.debian import DebianCluster
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Role
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.control import ClusterState, ControlFile
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
from polarvault.report.recovery import recovery_json, recovery_text
from polarvault.report.restore import plan_json, plan_text, settings_table, start_command
from polarvault.report.units import format_bytes
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import Archiving, RestorePlan, RestoreRequest
from polarvault.restore.plan.backup import missing_wal
from polarvault.restore.plan.gather import look_at_host
from polarvault.restore.plan.places import check_space
from polarvault.restore.plan.plan import plan_restore
from polarvault.restore.plan.recovery import plan_recovery
from polarvault.restore.plan.roles import rules_of
from polarvault.storage.occupants import Occupancy, Occupant

LABEL = b"""START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIMELINE: 1
"""
CONTROL = ControlFile(
    system_identifier=7, control_version=1300, catalog_version=202209061, state=ClusterState.IN_PRODUCTION,
    checkpoint_lsn=Lsn(0x2000060), redo_lsn=Lsn(0x2000028), timeline_id=1, minimum_recovery_lsn=Lsn(0),
    max_connections=321, max_worker_processes=8, max_wal_senders=10, max_prepared_transactions=0,
    max_locks_per_transaction=64, block_size=8192, relation_segment_blocks=131072, wal_block_size=8192,
    wal_segment_size=16 << 20, data_checksum_version=1,
)  # fmt: skip
ACCOUNT = Account("postgres", 1, 1)
POLAR_CONF = b"""polar_enable_shared_storage_mode = on
polar_datadir = 'file-dio:///live/shared'
polar_vfs.localfs_mode = true
polar_disk_name = 'home'
full_page_writes = off
"""


class FakeHost(Host):
    """A machine with nothing on it but what a test names."""

    def __init__(self, *, full: tuple[str, ...] = (), files: Mapping[str, bytes] | None = None) -> None:
        self.full = full
        self.files = files or {}
        self.available: int | None = 1 << 40
        self.taken_ports: tuple[int, ...] = ()
        self.debian: DebianCluster | None = None

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def list_names(self, directory: str) -> list[str] | None:
        return None

    def exists(self, path: str) -> bool:
        return path in self.files

    def occupant(self, path: str) -> Occupant | None:
        return Occupant(path, Occupancy.OTHER) if path in self.full else None

    def debian_cluster(self, data_directory: str) -> DebianCluster | None:
        return self.debian

    def enclosing_occupant(self, path: str) -> Occupant | None:
        while path != (path := posixpath.dirname(path)):
            for name, kind in (("PG_VERSION", Occupancy.CLUSTER), ("global/pg_control", Occupancy.SHARED_HALF)):
                if posixpath.join(path, name) in self.files:
                    return Occupant(path, kind)
        return None

    def real_path(self, path: str) -> str:
        return path

    def available_bytes(self, path: str) -> tuple[int, int | None]:
        return 1, self.available

    def port_is_taken(self, port: int) -> bool:
        return port in self.taken_ports

    def shares_extents(self, source: str, target: str) -> bool:
        return False

    def takes_direct_io(self, path: str) -> bool:
        return True

    def is_writable_directory(self, path: str, account: Account) -> bool:
        return path == "/tmp"


def inventory(conf: bytes | None = b"port = 5432\n", shared: bool = False, **more: object) -> Inventory:
    files: dict[tuple[Area, str], bytes] = {
        (Area.LOCAL, "PG_VERSION"): b"15\n",
        (Area.LOCAL, "backup_label"): LABEL,
        (Area.LOCAL, "pg_hba.conf"): b"local all all trust\n",
    }
    if conf is not None:
        files[Area.LOCAL, "postgresql.conf"] = conf
    sizes = {Area.LOCAL: 1000} | ({Area.SHARED: 5000} if shared else {})
    found = Inventory(
        files=files, sizes=sizes, tablespace_sizes={}, wal={"000000010000000000000002": 16 << 20},
        names=frozenset(files), tablespaces=(), has_control=True, control=CONTROL, group_readable=False, file_count=3,
    )  # fmt: skip
    return replace(found, **more)  # type: ignore[arg-type]


def with_files(found: Inventory, **contents: bytes | None) -> Inventory:
    """Change files of the local half; None removes one. Underscores before conf stand for dots."""
    files = dict(found.files)
    for key, body in contents.items():
        name = key.replace("_conf", ".conf").replace("postgresql_auto", "postgresql.auto").replace("_signal", ".signal")
        if body is None:
            files.pop((Area.LOCAL, name))
        else:
            files[Area.LOCAL, name] = body
    return replace(found, files=files, names=frozenset(files))


def plan(found: Inventory, host: Host | None = None, form: Form = Form.PLAIN, **request: object) -> RestorePlan:
    asked = RestoreRequest(**{"backup": "/b", "target": "/t", **request})  # type: ignore[arg-type]
    return plan_restore(asked, facts(asked, found, host, form))


def facts(asked: RestoreRequest, found: Inventory, host: Host | None = None, form: Form = Form.PLAIN) -> RestoreFacts:
    """The facts about a backup that was found so, without primary and WAL."""
    rules = rules_of(asked.role)
    rules.check_request(asked)
    parts = [Part(Area.LOCAL, asked.backup)] + ([Part(Area.SHARED, "/b.shared")] if found.has_shared_half else [])
    backup = rules.judge_backup(asked, BackupOnDisk(asked.backup, form, tuple(parts)), found)
    return RestoreFacts(backup=backup, host=look_at_host(asked, backup, rules, host or FakeHost(), ACCOUNT))


def changed(made: RestorePlan) -> dict[str, tuple[str | None, str | None]]:
    return {change.name: (change.before, change.after) for change in made.changes}


def main_file(made: RestorePlan) -> str:
    return made.files.get("/t/postgresql.conf", made.inventory.file("postgresql.conf") or b"").decode()


def auto_file(made: RestorePlan) -> str:
    return made.files["/t/postgresql.auto.conf"].decode()


def refused(error: type[PolarvaultError], match: str, found: Inventory, **more: object) -> str:
    with pytest.raises(error, match=match) as caught:
        plan(found, **more)  # type: ignore[arg-type]
    assert caught.value.hint or caught.value.exit_code == 2
    return caught.value.hint or ""


def test_a_primary_archives_nothing_and_recovers_from_its_own_wal() -> None:
    made = plan(inventory(b"archive_mode = on\narchive_command = 'cp %p /a/%f' # keep\n"))
    assert changed(made) == {
        "archive_mode": ("on", "off"),
        "archive_command": ("cp %p /a/%f", None),
        "restore_command": (None, "false"),
        "max_logical_replication_workers": (None, "0"),
    }
    assert "#archive_command = 'cp %p /a/%f' # keep" in main_file(made)
    assert made.signal_path == "/t/recovery.signal"


@pytest.mark.parametrize(
    "line",
    [
        b"primary_conninfo = 'host=source'",
        b"primary_slot_name = 's'",
        b"archive_cleanup_command = 'rm'",
        b"recovery_end_command = 'x'",
        b"recovery_target_time = '2020-01-01'",
        b"recovery_target_timeline = '3'",
        b"promote_trigger_file = '/x'",
        b"data_directory = '/live'",
        b"external_pid_file = '/run/x.pid'",
        b"hba_file = '/etc/pg_hba.conf'",
        b"log_directory = '/var/log/postgresql'",
        b"log_directory = '../outside'",
        b"log_directory = 'log/../../outside'",
        b"log_filename = '../../outside.log'",
        b"log_filename = '/var/log/postgresql.log'",
        b"stats_temp_directory = '../stats'",
        b"hba_file = '../pg_hba.conf'",
        b"ident_file = 'x/../../pg_ident.conf'",
        b"external_pid_file = '../x.pid'",
        b"data_directory = '../live'",
        b"krb_server_keyfile = 'FILE:/etc/krb5.keytab'",
        b"krb_server_keyfile = '../krb5.keytab'",
        b"ssl_ca_file = '../ca.crt'",
        b"ssl_crl_file = '../../ca.crl'",
        b"stats_temp_directory = '/run/stats'",
        b"synchronous_standby_names = '*'",
        b"ssl_ca_file = '/etc/ca.crt'",
    ],
)
def test_what_points_at_the_source_is_commented_out(line: bytes) -> None:
    made = plan(inventory(line + b"\n"))
    assert "#" + line.decode() in main_file(made)
    assert changed(made)[line.split(b" ")[0].decode()][1] is None


@pytest.mark.parametrize(
    "line",
    [
        b"log_directory = 'log'",
        b"log_directory = 'x/../log'",
        b"log_filename = 'x.log'",
        b"hba_file = '/t/pg_hba.conf'",
        b"cluster_name = 'x'",
    ],
)
def test_what_lies_in_the_restored_directory_stays(line: bytes) -> None:
    assert line.decode() in main_file(plan(inventory(line + b"\n"))).splitlines()


def test_a_standby_keeps_synchronous_names_and_gets_its_connection() -> None:
    made = plan(
        inventory(b"synchronous_standby_names = '*'\nprimary_conninfo = 'host=old'\nhot_standby = off\n"),
        role=Role.STANDBY, primary_conninfo="host=new password=secret", slot="s1",
    )  # fmt: skip
    assert changed(made)["primary_conninfo"] == ("host=old", "host=new password=secret")
    assert changed(made)["primary_slot_name"] == (None, "s1")
    assert changed(made)["hot_standby"] == ("off", "on")
    assert "synchronous_standby_names" not in changed(made)
    assert "restore_command" not in changed(made)
    assert made.signal_path == "/t/standby.signal"


def test_set_comes_last_and_wins() -> None:
    made = plan(
        inventory(b"port = 1\n"), port=2, settings=(("port", "3"), ("restore_command", 'cp /a/%f "%p"'), ("x.y", "a'b"))
    )
    assert changed(made)["port"] == ("1", "3")
    assert changed(made)["restore_command"] == (None, 'cp /a/%f "%p"')
    assert auto_file(made).count("restore_command") == 1
    assert "x.y = 'a''b'" in main_file(made)


def test_sockets_that_cannot_be_made_here_move() -> None:
    assert changed(plan(inventory(b"unix_socket_directories = '/run/x, /tmp'\n")))["unix_socket_directories"] == (
        "/run/x, /tmp",
        "/tmp",
    )
    assert "unix_socket_directories" not in changed(plan(inventory(b"unix_socket_directories = ''\n")))


def test_debians_socket_directory_is_not_the_default_of_an_account_that_may_not_use_it() -> None:
    host = FakeHost(files={"/var/run/postgresql": b""})
    assert changed(plan(inventory(), host=host))["unix_socket_directories"] == (None, "/tmp")
    assert "unix_socket_directories" not in changed(plan(inventory()))


@pytest.mark.parametrize("value", ["../outside", "sock/../../outside", "/outside"])
def test_a_socket_directory_outside_of_the_copy_is_replaced_however_it_is_spelled(value: str) -> None:
    made = plan(inventory(f"unix_socket_directories = '{value}, /tmp'\n".encode()))
    assert changed(made)["unix_socket_directories"] == (f"{value}, /tmp", "/tmp")


def test_subscriptions_stay_off_in_a_copy_and_on_in_what_replaces_its_source() -> None:
    assert changed(plan(inventory()))["max_logical_replication_workers"] == (None, "0")
    standby = plan(inventory(), role=Role.STANDBY, primary_conninfo="host=a")
    replacement = plan(inventory(), recovery=RecoveryRequest(keep_archiving=True))
    asked = plan(inventory(), settings=(("max_logical_replication_workers", "4"),))
    assert "max_logical_replication_workers" not in {**changed(standby), **changed(replacement)}
    assert changed(asked)["max_logical_replication_workers"] == (None, "4")


def test_ssl_without_its_certificate_is_switched_off_and_said() -> None:
    made = plan(inventory(b"ssl = on\nssl_cert_file = '/etc/x.crt'\n"))
    assert changed(made)["ssl"] == ("on", "off")
    assert any("ssl is switched off" in warning for warning in made.warnings)


def test_ssl_with_its_files_in_the_backup_stays() -> None:
    found = inventory(b"ssl = on\n")
    files = {**found.files, (Area.LOCAL, "server.crt"): b"", (Area.LOCAL, "server.key"): b""}
    assert "ssl" not in changed(plan(replace(found, files=files, names=frozenset(files))))


def test_a_backup_without_configuration_gets_a_minimal_one() -> None:
    found = with_files(inventory(None), pg_hba_conf=None)
    made = plan(found)
    assert "max_connections = 321" in main_file(made)
    assert b"peer" in made.files["/t/pg_hba.conf"]
    assert sum("holds no" in warning for warning in made.warnings) == 2


def test_an_include_that_is_not_here_is_commented_out_and_said() -> None:
    made = plan(inventory(b"include '/etc/none.conf'\n"))
    assert main_file(made).startswith("#include '/etc/none.conf'")
    assert any("/etc/none.conf" in warning for warning in made.warnings)


def test_two_halves_get_the_settings_of_an_ordinary_file_system() -> None:
    made = plan(inventory(POLAR_CONF, shared=True), shared_target="/s")
    assert changed(made)["polar_datadir"] == ("file-dio:///live/shared", "file-dio:///s")
    assert changed(made)["full_page_writes"] == ("off", "on")
    assert changed(made)["polar_has_partial_write"] == (None, "on")
    assert "polar_disk_name" not in changed(made)


@pytest.mark.parametrize("value", ["file-dio:///live/shared", "/live", "pfsd:///s", "file-dio://./s", ""])
def test_set_cannot_name_other_storage(value: str) -> None:
    found = inventory(POLAR_CONF, shared=True)
    refused(UsageError, "polar_datadir", found, shared_target="/s", settings=(("polar_datadir", value),))


def test_set_may_choose_buffered_storage() -> None:
    made = plan(inventory(POLAR_CONF, shared=True), shared_target="/s", settings=(("polar_datadir", "file:///s/"),))
    assert changed(made)["polar_datadir"][1] == "file:///s/"


def test_a_source_on_pfs_gets_names_that_cannot_fence_it() -> None:
    conf = (
        b"polar_enable_shared_storage_mode=on\npolar_datadir='/disk1/data'\npolar_disk_name='disk1'\npolar_hostid=3\n"
    )
    made = plan(inventory(conf, shared=True))
    assert changed(made)["polar_datadir"] == ("/disk1/data", "file-dio:///t/polar_shared_data")
    assert changed(made)["polar_vfs.localfs_mode"] == (None, "on")
    assert changed(made)["polar_disk_name"] == ("disk1", "home")
    assert changed(made)["polar_hostid"] == ("3", "1")


def test_every_line_that_names_live_storage_is_disarmed() -> None:
    found = with_files(
        inventory(POLAR_CONF + b"polar_datadir = 'file-dio:///live/older'\n", shared=True),
        postgresql_auto_conf=b"polar_datadir = 'file-dio:///live/auto'\n",
    )
    made = plan(found, shared_target="/s")
    assert "polar_datadir = 'file-dio:///s'" in auto_file(made).splitlines()
    assert "live" not in auto_file(made)
    for line in main_file(made).splitlines():
        assert "live" not in line or line.startswith("#")


def test_settings_of_the_whole_cluster_do_not_override() -> None:
    found = inventory(POLAR_CONF, shared=True)
    cluster = {(Area.SHARED, "global/polar_settings.conf"): b"archive_command = 'cp %p /a'\narchive_mode = on\n"}
    made = plan(replace(found, files={**found.files, **cluster}), shared_target="/s")
    assert made.files["/s/global/polar_settings.conf"].startswith(b"#archive_command")
    # WAL replay can bring the line back, so a higher file says otherwise.
    assert "archive_command = ''" in auto_file(made)
    assert changed(made)["archive_mode"] == ("on", "off")


def test_merged_halves_are_an_instance_without_shared_storage() -> None:
    made = plan(inventory(POLAR_CONF, shared=True), merge=True)
    assert made.layout.shared is None
    assert changed(made)["polar_datadir"] == ("file-dio:///live/shared", None)
    assert changed(made)["polar_enable_shared_storage_mode"] == ("on", "off")


def test_a_local_half_alone_is_refused() -> None:
    hint = refused(BackupUnusable, "only the local half", inventory(POLAR_CONF, has_control=True))
    assert "--shared-from" in hint


def test_halves_in_one_name_space_need_merge() -> None:
    found = inventory(POLAR_CONF)
    files = {**found.files, (Area.LOCAL, "global/pg_control"): b""}
    found = replace(found, files=files, names=frozenset(files))
    assert "--merge" in refused(BackupUnusable, "one name space", found)
    assert plan(found, merge=True).layout.merged


def test_a_backup_of_a_read_only_node_is_refused() -> None:
    standby = LABEL.replace(b"FROM: primary", b"FROM: standby")
    refused(BackupUnusable, "read-only node", with_files(inventory(), backup_label=standby))
    refused(BackupUnusable, "read-only node", with_files(inventory(), replica_signal=b""))


def test_a_backup_of_a_standby_is_taken() -> None:
    standby = with_files(inventory(), backup_label=LABEL.replace(b"FROM: primary", b"FROM: standby"))
    plan(replace(standby, control=replace(CONTROL, state=ClusterState.IN_ARCHIVE_RECOVERY)))


def test_a_missing_label_is_refused_unless_the_server_was_shut_down() -> None:
    found = with_files(inventory(), backup_label=None)
    refused(BackupUnusable, "no backup_label", found)
    assert plan(replace(found, control=replace(CONTROL, state=ClusterState.SHUT_DOWN))).label is None


def test_incremental_backups_are_refused_with_the_way_out() -> None:
    label = LABEL + b"INCREMENTAL FROM LSN: 0/1000028\n"
    assert "pg_combinebackup" in refused(BackupUnusable, "incremental", with_files(inventory(), backup_label=label))


@pytest.mark.parametrize("odd", ["$d", "`d`", 'a"b', "a\\b"])
def test_the_line_that_starts_a_server_needs_no_path_that_pg_ctls_shell_would_expand(odd: str) -> None:
    made = plan(inventory(), target=f"/a b'c{odd}")
    words = shlex.split(start_command(made, Account("postgres", 1, 1), is_root=False))
    assert words == ["cd", f"/a b'c{odd}", "&&", "pg_ctl", "-D", ".", "-l", "polarvault-start.log", "-w", "start"]
    as_root = shlex.split(start_command(made, Account("postgres", 1, 1), is_root=True))
    assert as_root[:3] == ["su", "postgres", "-c"]
    assert shlex.split(as_root[3]) == words


def test_missing_parts_are_named() -> None:
    refused(BackupUnusable, "no global/pg_control", inventory(has_control=False, control=None))
    refused(BackupUnusable, "no PG_VERSION", with_files(inventory(), PG_VERSION=None))
    with pytest.raises(BackupUnusable, match="PostgreSQL 13 to 19 can be restored"):
        plan(with_files(inventory(), PG_VERSION=b"12\n"))


def test_missing_wal_is_said_with_the_setting_that_supplies_it() -> None:
    made = plan(inventory(wal={}))
    assert any("000000010000000000000002" in warning and "--wal" in warning for warning in made.warnings)
    assert not plan(inventory(wal={}), settings=(("restore_command", "cp /a/%f %p"),)).warnings


def test_missing_wal_is_looked_for_up_to_where_the_manifest_says_that_the_backup_ended() -> None:
    two = (ManifestSpan("/b/backup_manifest", Lsn.parse("0/2000028"), Lsn.parse("0/4000050"), 1),)
    first, second, third = (f"00000001000000000000000{number}" for number in (2, 3, 4))
    made = plan(inventory(wal={first: 16 << 20, third: 16 << 20}, spans=two))
    assert any(second in warning and "--wal" in warning for warning in made.warnings)
    assert missing_wal(inventory(wal={first: 1, second: 1}, spans=two), made.label) == third
    assert missing_wal(inventory(wal={first: 1, second: 1, third: 1}, spans=two), made.label) is None


def test_wal_of_another_timeline_and_an_end_at_the_end_of_a_segment_are_not_missing() -> None:
    label = plan(inventory()).label
    ends = ManifestSpan("/b/backup_manifest", Lsn.parse("0/2000028"), Lsn.parse("0/3000000"), 1)
    assert missing_wal(inventory(spans=(ends,)), label) is None
    # Of a backup during which a standby was promoted only where recovery starts is known.
    later = replace(ends, end_lsn=Lsn.parse("0/9000000"), end_timeline_id=2)
    assert missing_wal(inventory(spans=(later,)), label) is None
    endless = replace(ends, end_lsn=Lsn.parse("FFFFFFFF/FFFFFFFF"))
    assert missing_wal(inventory(spans=(endless,)), label) == "000000010000000000000003"


def test_a_target_that_is_not_empty_is_refused() -> None:
    refused(TargetNotEmpty, '"/t" exists', inventory(), host=FakeHost(full=("/t",)))
    refused(TargetNotEmpty, '"/s"', inventory(POLAR_CONF, shared=True), host=FakeHost(full=("/s",)), shared_target="/s")


@pytest.mark.parametrize("target", ["/b/new", "/b", "/"])
def test_backup_and_target_must_not_lie_inside_one_another(target: str) -> None:
    refused(UsageError, "inside one another", inventory(), target=target)


@pytest.mark.parametrize("mark", ["/srv/live/PG_VERSION", "/srv/live/global/pg_control"])
def test_a_target_inside_of_a_cluster_is_refused(mark: str) -> None:
    host = FakeHost(files={mark: b""})
    found = inventory(POLAR_CONF, shared=True)
    refused(UsageError, 'inside of "/srv/live"', found, host=host, shared_target="/srv/live/deep/in")
    plan(found, host=host, shared_target="/srv/alive/in")


def test_targets_must_not_lie_inside_one_another_but_the_shared_half_may_be_nested() -> None:
    found = inventory(POLAR_CONF, shared=True)
    assert plan(found, shared_target="/t/inside").layout.shared == "/t/inside"
    refused(UsageError, "inside one another", found, shared_target="/t")


def test_tablespaces_of_a_plain_backup_need_a_new_place() -> None:
    found = inventory(tablespaces=(Tablespace(16384, "/copy", "/copy"),))
    assert "-T /copy=" in refused(UsageError, "/copy", found)
    assert plan(found, tablespace_mapping={"/copy": "/new"}).layout.tablespaces == {16384: "/new"}


def test_tablespaces_of_tar_files_go_home_unless_something_is_there() -> None:
    found = inventory(tablespaces=(Tablespace(16384, "/home1", None),))
    assert plan(found, form=Form.TAR_DIRECTORY).layout.tablespaces == {16384: "/home1"}
    hint = refused(TargetNotEmpty, "/home1", found, host=FakeHost(full=("/home1",)), form=Form.TAR_DIRECTORY)
    assert "-T /home1=" in hint


def test_a_mapping_of_an_unknown_tablespace_is_refused() -> None:
    refused(UsageError, "/nowhere", inventory(), tablespace_mapping={"/nowhere": "/x"})


@pytest.mark.parametrize(
    "request_",
    [{"primary_conninfo": "x"}, {"slot": "x"}, {"port": 0}, {"shared_target": "/s"}, {"merge": True}],
)
def test_options_that_do_not_fit_are_refused(request_: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        plan(inventory(), **request_)  # type: ignore[arg-type]


def test_missing_space_is_an_error_with_both_numbers() -> None:
    host = FakeHost()
    host.available = 500
    with pytest.raises(StorageFailed, match="1000 bytes are needed, 500 bytes are free"):
        check_space(plan(inventory(), host=host))
    # Where nobody tells, the copy itself finds out.
    host.available = None
    check_space(made := plan(inventory(), host=host))
    assert any("unknown how much is available" in line for line in plan_text(made))


def test_a_port_in_use_is_refused_for_a_start_and_said_otherwise() -> None:
    host = FakeHost()
    host.taken_ports = (5432,)
    assert "--port" in refused(UsageError, "port 5432 is in use", inventory(), host=host, start=True)
    assert any("5432" in warning for warning in plan(inventory(), host=host).warnings)
    assert not plan(inventory(), host=host, port=5433).warnings
    assert not plan(inventory(b"listen_addresses = ''\n"), host=host).warnings


def test_halves_of_two_backups_are_noticed() -> None:
    found = inventory(POLAR_CONF, shared=True)
    for body, count in ((LABEL, 0), (LABEL.replace(b"0/2000028", b"0/9000028"), 1)):
        copy = {(Area.SHARED, "polar_non_exclusive_backup_label"): body}
        made = plan(replace(found, files={**found.files, **copy}))
        assert sum("two different backups" in warning for warning in made.warnings) == count


SPAN = ManifestSpan("/b/backup_manifest", Lsn(0x2000028), Lsn(0x2000100), 1)


@pytest.mark.parametrize(
    ("control", "spans", "reason"),
    [
        (replace(CONTROL, checkpoint_lsn=Lsn(0x1000060)), (), "0/1000060 is older than the label's at 0/2000060"),
        (replace(CONTROL, checkpoint_lsn=Lsn(0x3000060)), (SPAN,), "0/3000060 is from after the backup's end at 0/20"),
        (CONTROL, (SPAN, replace(SPAN, path="/b.shared/backup_manifest", start_lsn=Lsn(7))), "/b.shared/backup_mani"),
    ],
)
def test_halves_of_two_backups_are_refused(control: ControlFile, spans: tuple[ManifestSpan, ...], reason: str) -> None:
    found = inventory(POLAR_CONF, shared=True, control=control, spans=spans)
    assert "--shared-from" in refused(BackupUnusable, reason, found)
    assert "verifybackup" in refused(BackupUnusable, reason, inventory(control=control, spans=spans))


def test_a_checkpoint_while_the_backup_was_taken_is_no_contradiction() -> None:
    plan(inventory(control=replace(CONTROL, checkpoint_lsn=Lsn(0x20000F0)), spans=(SPAN, SPAN)))


@pytest.mark.parametrize(
    ("content", "span"),
    [
        (b'{"Files": [],\n"WAL-Ranges": [\n{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }\n],\n'
         b'"Manifest-Checksum": "00"}\n', (0x2000028, 0x2000100)),
        (b'"WAL-Ranges": [{"Timeline": 2, "Start-LSN": "0/30", "End-LSN": "0/40"},'
         b'{"Timeline": 1, "Start-LSN": "0/20", "End-LSN": "0/30"}]', (0x20, 0x40)),
        (b'"WAL-Ranges": []', None),
        (b'"WAL-Ranges": [{"Timeline": "x"}]', None),
        (b'"WAL-Ranges": [7]', None),
        (b'"WAL-Ranges": [{"Timeline": 1e400, "Start-LSN": "0/20", "End-LSN": "0/30"}]', None),
        (b'"WAL-Ranges": [{"Timeline": 1, "Start-LSN": 5, "End-LSN": null}]', None),
        (b"", None),
    ],
)  # fmt: skip
def test_the_end_of_a_manifest_says_where_the_backup_began(
    tmp_path: Path, content: bytes, span: tuple[int, int] | None
) -> None:
    path = tmp_path / "backup_manifest"
    path.write_bytes(b" " * 100_000 + content)
    found = load_manifest_span(str(path))
    assert (found and (found.start_lsn, found.end_lsn)) == span
    assert load_manifest_span(str(tmp_path / "absent")) is None


def test_passwords_do_not_reach_the_report() -> None:
    made = plan(inventory(), role=Role.STANDBY, primary_conninfo="host=a password=geheim")
    assert "geheim" not in str(plan_json(made)) + "\n".join(plan_text(made))


def test_the_table_names_old_and_new_values() -> None:
    made = plan(inventory(b"port = 1\n"), port=2)
    lines = settings_table(made.changes, "/t")
    (place,) = [number for number, line in enumerate(lines) if line.strip().startswith("port")]
    assert lines[place].split() == ["port", "1", "->", "2", "(postgresql.conf)"]
    assert lines[place + 1].strip() == "--port"
    assert max(map(len, lines)) <= 80
    assert settings_table([], "/t") == ["  no setting had to be changed"]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1536, "1.5 kB"), (1 << 30, "1.0 GB"), (150 << 20, "150 MB")]
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


def recovery(target: RecoveryTarget, **more: object) -> RecoveryPlan:
    """The plan of a recovery that was found to be possible."""
    made = RecoveryPlan(
        target=target, action=TargetAction.PAUSE, span=None, timeline_id=3, timeline_setting="3", stop=None,
        last_transaction=None, reachable=None,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def settled(found: Inventory, recovers: RecoveryPlan, host: Host | None = None, **request: object) -> RestorePlan:
    asked = RestoreRequest(backup="/b", target="/t", **request)  # type: ignore[arg-type]
    return plan_restore(asked, replace(facts(asked, found, host), recovery=recovers))


MOMENT = parse_target_time("2026-11-22 14:03:00+01")


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (MOMENT, {"recovery_target_time": "2026-11-22 13:03:00+00", "recovery_target_inclusive": "on"}),
        (replace(MOMENT, inclusive=False), {"recovery_target_inclusive": "off"}),
        (parse_target_xid("77"), {"recovery_target_xid": "77", "recovery_target_action": "pause"}),
        (parse_target_lsn("0/5000000"), {"recovery_target_lsn": "0/5000000"}),
        (parse_target_name("it's here"), {"recovery_target_name": "it's here"}),
        (RecoveryTarget(TargetKind.IMMEDIATE), {"recovery_target": "immediate", "recovery_target_action": "pause"}),
    ],
    ids=lambda value: str(value) if isinstance(value, RecoveryTarget) else "",
)
def test_a_target_is_written_as_the_server_reads_it(target: RecoveryTarget, wanted: dict[str, str]) -> None:
    made = settled(inventory(), recovery(target))
    written = {name: after for name, (_, after) in changed(made).items()}
    assert written.items() >= (wanted | {"recovery_target_timeline": "3"}).items()
    assert made.signal_path == "/t/recovery.signal"
    if target.name:
        assert "recovery_target_name = 'it''s here'" in auto_file(made)


def test_the_end_of_the_wal_is_no_target() -> None:
    made = settled(inventory(), recovery(RecoveryTarget(TargetKind.LATEST), action=TargetAction.PROMOTE))
    assert {name for name in changed(made) if name.startswith("recovery_target")} == {"recovery_target_timeline"}


def test_targets_of_the_source_are_taken_out_wherever_they_stand() -> None:
    conf = b"recovery_target_xid = '5'\nrecovery_target_timeline = '9'\nrecovery_target_action = shutdown\n"
    made = settled(with_files(inventory(conf), postgresql_auto_conf=b"recovery_target_lsn = '0/1'\n"), recovery(MOMENT))
    found = changed(made)
    assert found["recovery_target_xid"] == ("5", None)
    assert found["recovery_target_lsn"] == ("0/1", None)
    assert found["recovery_target_timeline"] == ("9", "3")
    assert found["recovery_target_action"] == ("shutdown", "pause")


def test_wal_directories_become_our_restore_command_with_the_clusters_identity() -> None:
    asked = RecoveryRequest(wal_directories=("/wal one", "/wal/two"))
    made = settled(inventory(wal={}), recovery(MOMENT), recovery=asked)
    command = changed(made)["restore_command"][1] or ""
    assert "wal fetch --wal '/wal one' --wal /wal/two --system-identifier 7" in command
    assert command.endswith('%f "%p"')
    assert not made.warnings


def test_a_standby_gets_the_wal_directories_and_no_target() -> None:
    asked = RecoveryRequest(wal_directories=("/wal",))
    made = plan(inventory(), role=Role.STANDBY, recovery=asked)
    assert "wal fetch --wal /wal" in (changed(made)["restore_command"][1] or "")


def test_a_pause_needs_hot_standby() -> None:
    assert changed(settled(inventory(b"hot_standby = off\n"), recovery(MOMENT)))["hot_standby"] == ("off", "on")
    shut = recovery(MOMENT, action=TargetAction.SHUTDOWN)
    assert "hot_standby" not in changed(settled(inventory(b"hot_standby = off\n"), shut))


def test_archiving_is_kept_only_on_request() -> None:
    conf = b"archive_mode = on\narchive_command = 'cp %p /a/%f'\nrestore_command = 'cp /a/%f %p'\n"
    assert changed(plan(inventory(conf)))["archive_command"] == ("cp %p /a/%f", None)
    kept = changed(plan(inventory(conf), recovery=RecoveryRequest(keep_archiving=True)))
    assert not {"archive_mode", "archive_command"} & kept.keys()
    assert kept["restore_command"] == ("cp /a/%f %p", "false")


@pytest.mark.parametrize(
    "request_",
    [
        RestoreRequest("/b", "/t", role=Role.STANDBY, recovery=RecoveryRequest(target=MOMENT)),
        RestoreRequest("/b", "/t", role=Role.STANDBY, recovery=RecoveryRequest(timeline=2)),
        RestoreRequest("/b", "/t", role=Role.REPLICA, recovery=RecoveryRequest(wal_directories=("/w",))),
        RestoreRequest("/b", "/t", role=Role.STANDBY, recovery=RecoveryRequest(keep_archiving=True)),
        RestoreRequest("/b", "/t", archiving=Archiving.ON, recovery=RecoveryRequest(keep_archiving=True)),
        RestoreRequest("/b", "/t", settings=(("recovery_target_xid", "5"),), recovery=RecoveryRequest(target=MOMENT)),
        # Also alone: nobody would look whether it can be reached.
        RestoreRequest("/b", "/t", settings=(("Recovery_Target_LSN", "0/1"),)),
        RestoreRequest("/b", "/t", settings=(("recovery_target_timeline", "2"),)),
    ],
    ids=lambda value: f"{value.role.value} {value.settings} {value.recovery}",
)
def test_recovery_options_that_do_not_fit_are_refused(request_: RestoreRequest) -> None:
    with pytest.raises(UsageError, match="--"):
        rules_of(request_.role).check_request(request_)


def test_an_archive_that_cannot_be_looked_into_is_said_to_be_so() -> None:
    asked = RestoreRequest("/b", "/t", recovery=RecoveryRequest(target=MOMENT, archive_is_unknown=True))
    made = plan_recovery(asked, facts(asked, inventory()).backup, ACCOUNT, lambda done, total: None)
    assert (made.is_checked, made.timeline_setting) == (False, "latest")
    assert "cannot be looked into" in made.warnings[0]
    assert "not known" in "\n".join(recovery_text(made))
    shown = recovery_json(made)
    assert shown is not None
    assert (shown["checked"], shown["value"]) == (False, "2026-11-22 13:03:00+00")
