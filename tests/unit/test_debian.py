"""Debian's layout: which cluster of /etc/postgresql a data directory belongs to, and what that means for a restore."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from polarvault.errors import UsageError
from polarvault.instance.debian import DebianCluster, cluster_at, cluster_of, find_clusters
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Role
from polarvault.recovery.target import (
    RecoveryTarget,
    TargetKind,
    parse_target_lsn,
    parse_target_name,
    parse_target_time,
    parse_target_xid,
)
from polarvault.report.restore import plan_json, plan_text, start_command
from polarvault.restore.model import RestorePlan
from unit.test_restore_plan import FakeHost, auto_file, changed, inventory, plan, recovery, settled, with_files

MAIN = DebianCluster("15", "main", "/etc/postgresql/15/main")
ETC = b"""data_directory = '/t'
hba_file = '/etc/postgresql/15/main/pg_hba.conf'
ident_file = '/etc/postgresql/15/main/pg_ident.conf'
external_pid_file = '/var/run/postgresql/15-main.pid'
port = 5433
max_connections = 100
unix_socket_directories = '/var/run/postgresql'
log_directory = '/var/log/postgresql'
ssl = on
ssl_cert_file = '/etc/ssl/certs/ssl-cert-snakeoil.pem'
huge_pages = on
archive_mode = on
archive_command = 'cp %p /archive/%f'
recovery_end_command = 'rm -rf /archive'
recovery_target_time = '2020-01-01'
"""


def debian_host(etc: bytes = ETC) -> FakeHost:
    host = FakeHost(files={MAIN.main_file: etc})
    host.debian = MAIN
    return host


def plan_there(etc: bytes = ETC, conf: bytes | None = None) -> RestorePlan:
    found = with_files(inventory(conf), pg_hba_conf=None, postgresql_auto_conf=b"archive_mode = on\nwork_mem = '9MB'\n")
    return settled(found, recovery(parse_target_xid("77")), debian_host(etc))


def cluster_directory(root: Path, version: str, name: str, conf: str) -> DebianCluster:
    directory = root / version / name
    directory.mkdir(parents=True)
    (directory / "postgresql.conf").write_text(conf)
    return DebianCluster(version, name, str(directory))


def test_the_cluster_is_the_one_whose_configuration_names_the_data_directory(tmp_path: Path) -> None:
    root, data = tmp_path / "etc", tmp_path / "data"
    (data / "main").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    main = cluster_directory(root, "15", "main", f"data_directory = '{tmp_path}/link/main'  # moved\n")
    included = cluster_directory(root, "16", "other", "include_dir = 'conf.d'\n")
    (root / "16/other/conf.d").mkdir()
    (root / "16/other/conf.d/place.conf").write_text(f"data_directory '{data}/sixteen'\n")
    cluster_directory(root, "14", "silent", "port = 5432\n")
    (root / "README").write_text("not a version")
    host = Host()
    assert [str(cluster) for cluster in find_clusters(str(root), host)] == ["14/silent", "15/main", "16/other"]
    assert cluster_of(f"{data}/main", str(root), host) == main
    # It need not exist: pg_dropcluster has removed it, or a disk was lost.
    assert cluster_of(f"{data}/sixteen", str(root), host) == included
    assert cluster_of(f"{data}/elsewhere", str(root), host) is None
    assert cluster_of(f"{data}/main", str(tmp_path / "absent"), host) is None


def test_a_configuration_directory_is_known_by_its_place() -> None:
    assert cluster_at("/etc/postgresql/15/main/") == MAIN
    assert cluster_at("/etc/postgresql/config") is None
    assert cluster_at("/") is None


def test_everything_goes_where_the_clusters_server_reads_it() -> None:
    made = plan_there()
    # Nothing outside of the data directory is written, and no postgresql.conf that nobody would read.
    assert set(made.files) == {"/t/postgresql.auto.conf"}
    assert "recovery_target_xid = 77" in auto_file(made).splitlines()
    assert "archive_mode = off" in auto_file(made).splitlines()
    assert "archive_command = ''" in auto_file(made).splitlines()
    # What the file in /etc says for another recovery must not act, nor be a second target.
    assert "recovery_end_command = ''" in auto_file(made).splitlines()
    assert "recovery_target_time = ''" in auto_file(made).splitlines()
    assert "work_mem = '9MB'" in auto_file(made).splitlines()


def test_what_the_file_in_etc_says_of_its_own_host_stays() -> None:
    changes = changed(plan_there())
    for name in (
        "data_directory", "external_pid_file", "hba_file", "ident_file", "log_directory", "ssl", "ssl_cert_file",
        "unix_socket_directories", "huge_pages", "port",
    ):  # fmt: skip
        assert name not in changes


def test_what_the_source_had_running_is_raised_over_the_file_in_etc() -> None:
    # The source ran with 321 connections, and hot standby demands as many.
    assert changed(plan_there())["max_connections"] == ("100", "321")
    assert "max_connections = 321" in auto_file(plan_there()).splitlines()


def test_a_postgresql_conf_that_came_with_the_backup_is_not_taken_for_the_one_that_is_read() -> None:
    made = plan_there(conf=b"port = 1\nrecovery_target_lsn = '0/1'\n")
    assert set(made.files) == {"/t/postgresql.auto.conf"}
    assert "recovery_target_xid = 77" in auto_file(made).splitlines()


def test_the_plan_and_the_start_line_say_the_layout() -> None:
    made = plan_there()
    text = "\n".join(plan_text(made))
    assert "Debian's cluster 15/main" in text
    assert plan_json(made)["configuration_file"] == MAIN.main_file
    assert start_command(made, Account("postgres", 1, 1), is_root=True) == "pg_ctlcluster 15 main start"
    assert made.instance.debian == MAIN
    assert not any("postgresql.conf" in warning for warning in made.warnings)


def test_a_cluster_of_another_version_is_no_place_for_the_backup() -> None:
    host = debian_host()
    host.debian = replace(MAIN, version="16")
    with pytest.raises(UsageError, match="PostgreSQL 15") as caught:
        plan(inventory(None), host=host)
    assert "pg_createcluster 15" in str(caught.value.hint)


def test_without_any_postgresql_conf_the_target_holds_for_one_that_nobody_has_named() -> None:
    made = settled(with_files(inventory(None)), recovery(parse_target_xid("77")))
    lines = auto_file(made).splitlines()
    assert "recovery_target_xid = 77" in lines
    assert "recovery_target_time = ''" in lines
    assert "recovery_end_command = ''" in lines
    assert "archive_cleanup_command = ''" in lines
    assert "archive_mode = off" in lines
    # A plain pg_ctl needs a file all the same.
    assert b"max_connections = 321" in made.files["/t/postgresql.conf"]


@pytest.mark.parametrize(
    "target",
    [
        parse_target_time("2026-11-22 14:03:00+01"), parse_target_xid("77"), parse_target_lsn("0/5000000"),
        parse_target_name("a"), RecoveryTarget(TargetKind.IMMEDIATE),
    ],
    ids=lambda target: str(target.kind.value),
)  # fmt: skip
def test_the_server_meets_its_target_after_the_empty_ones_which_it_would_refuse_behind_it(
    target: RecoveryTarget,
) -> None:
    made = settled(with_files(inventory(None)), recovery(target))
    kinds = ("", "_time", "_xid", "_lsn", "_name")
    found = [
        line for line in auto_file(made).splitlines() if line.startswith(tuple(f"recovery_target{k} =" for k in kinds))
    ]
    assert len(found) == len(kinds)
    assert [line.endswith("= ''") for line in found] == [True] * 4 + [False]


def test_in_the_usual_layout_recovery_is_still_not_left_to_postgresql_conf_alone() -> None:
    made = settled(inventory(b"restore_command = 'old'\nport = 1\n"), recovery(parse_target_xid("77")))
    assert "recovery_target_xid = 77" in auto_file(made).splitlines()
    assert "restore_command" in auto_file(made)
    assert b"\nport = 1\n" in made.files["/t/postgresql.conf"]


def test_a_standbys_connection_holds_in_every_layout() -> None:
    made = plan(inventory(None), host=debian_host(), role=Role.STANDBY, primary_conninfo="host=new", slot="s1")
    assert "primary_conninfo = 'host=new'" in auto_file(made).splitlines()
    assert "primary_slot_name = s1" in auto_file(made).splitlines()


def test_lines_of_pg_hba_conf_whose_files_are_not_here_are_commented_out_before_anything_is_written() -> None:
    host = FakeHost(files={"/etc/here": b"me\n"})
    hba = b"host all @/etc/here all md5\nhost all @/etc/gone all md5\nhost all @bad all reject\nlocal all all trust\n"
    made = plan(with_files(inventory(), pg_hba_conf=hba), host=host)
    lines = made.files["/t/pg_hba.conf"].splitlines()
    assert lines[0] == b"host all @/etc/here all md5"
    assert lines[1].startswith(b"#host all @/etc/gone")
    assert lines[3] == b"host all all all reject"
    assert lines[-1] == b"local all all trust"
    assert any('pg_hba.conf line 2 names "/etc/gone"' in warning for warning in made.warnings)
    assert any("line 3" in warning and "reject all" in warning for warning in made.warnings)
