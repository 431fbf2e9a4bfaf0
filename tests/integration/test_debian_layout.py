"""Debian's layout for real: configuration outside of the data directory, from the backup to the recovered server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.instance.debian import ROOT_VARIABLE
from support.backups import back_up, verify
from support.cluster import Cluster
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@dataclass(frozen=True, slots=True)
class DebianServer:
    """A cluster as pg_createcluster lays it out, below a root of its own; `directory` holds its configuration."""

    cluster: Cluster
    root: Path
    directory: Path
    archive: Path

    @property
    def environment(self) -> dict[str, str]:
        return {ROOT_VARIABLE: str(self.root)}

    def start(self) -> None:
        # As pg_ctlcluster, which need not be installed: the server reads the postgresql.conf that lies there.
        self.cluster.run("pg_ctl", "-D", str(self.directory), "-l", str(self.cluster.log), "-w", "start")


def debian_server(cluster: Cluster, workspace: Path, name: str) -> DebianServer:
    account = cluster.account
    root = account.make_directory(workspace / "etc", 0o755)
    directory = account.make_directory(root / str(cluster.installation.major) / name, 0o755)
    account.make_directory(directory / "conf.d", 0o755)
    archive = account.make_directory(workspace / "archive", 0o755)
    cluster.stop()
    for moved in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.move(cluster.data / moved, directory / moved)
    with open(directory / "postgresql.conf", "a", encoding="utf-8") as main:
        main.write(
            f"data_directory = '{cluster.data}'\nhba_file = '{directory}/pg_hba.conf'\n"
            f"ident_file = '{directory}/pg_ident.conf'\nexternal_pid_file = '{workspace}/server.pid'\n"
            f"archive_mode = on\narchive_command = 'cp %p {archive}/%f'\ninclude_dir = 'conf.d'\n"
        )
    (directory / "conf.d" / "site.conf").write_text("work_mem = '7MB'\n")
    (directory / "log").symlink_to(cluster.log)
    account.own(root)
    made = DebianServer(cluster, root, directory, archive)
    made.start()
    return made


@pytest.fixture
def debian(make_cluster: Callable[..., Cluster], workspace: Path) -> DebianServer:
    return debian_server(make_cluster(15, fill=False), workspace, f"pv{workspace.name.replace('_', '')}")


def test_the_whole_way_from_a_backup_to_the_moment_before_the_disaster(debian: DebianServer, workspace: Path) -> None:
    cluster, backup = debian.cluster, workspace / "backup"
    cluster.query("CREATE TABLE log (n int); INSERT INTO log VALUES (1)")
    said = back_up(cluster, workspace / "first", environment=debian.environment).stderr
    assert f"are not in the backup: {debian.directory}/postgresql.conf" in said
    assert "--copy-configuration" in said

    assert back_up(cluster, backup, "--copy-configuration", environment=debian.environment).stderr == ""
    verify(cluster.installation, backup)
    kept = workspace / "backup.configuration" / "files" / str(debian.directory).lstrip("/")
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == {
        "postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d/site.conf"
    }  # fmt: skip

    cluster.query("INSERT INTO log VALUES (2)")
    ((target,),) = cluster.query("SELECT pg_create_restore_point('before the disaster')")
    cluster.query("INSERT INTO log VALUES (3)")
    ((segment,),) = cluster.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    cluster.query("SELECT pg_switch_wal()")
    wait_until(lambda: (debian.archive / segment).exists(), "the WAL is archived")
    cluster.stop()
    shutil.move(cluster.data, workspace / "lost")
    archived = sorted(path.name for path in debian.archive.iterdir())

    # Everything is put aside and comes back from the copy.
    shutil.move(debian.directory, workspace / "lost-configuration")
    command = f"restore_command=cp {debian.archive}/%f %p"
    restored = run_polarvault(
        "restore", backup, "-D", cluster.data, "--configuration", debian.directory, "--set", command,
        "--target-lsn", target, "-N", *(["--owner", cluster.account.name] if cluster.account.switches else []),
        environment=debian.environment,
    )  # fmt: skip
    name = debian.directory.name
    assert restored.stdout.splitlines()[-1].strip() == f"pg_ctlcluster 15 {name} start"
    assert not (cluster.data / "postgresql.conf").exists()
    debian.start()
    # The target holds although the postgresql.conf that is read knows nothing of it, and nothing is archived.
    wait_until(lambda: cluster.query("SELECT pg_get_wal_replay_pause_state()") == [("paused",)], "recovery is paused")
    assert cluster.query("SELECT n FROM log ORDER BY n") == [(1,), (2,)]
    assert cluster.query("SELECT current_setting('work_mem'), current_setting('archive_mode')") == [("7MB", "off")]
    assert cluster.query("SELECT current_setting('config_file')") == [(str(debian.directory / "postgresql.conf"),)]
    cluster.query("SELECT pg_wal_replay_resume()")
    wait_until(lambda: cluster.query("SELECT pg_is_in_recovery()") == [(False,)], "the server is writable")
    assert sorted(path.name for path in debian.archive.iterdir()) == archived


def test_a_repository_keeps_the_configuration_and_gives_it_back(debian: DebianServer, workspace: Path) -> None:
    cluster, repository = debian.cluster, workspace / "repository"
    cluster.query("CREATE TABLE log (n int); INSERT INTO log VALUES (1)")
    run_polarvault("repo", "init", repository)
    run_polarvault(
        "backup", "shop", "--repo", repository, "-d", cluster.conninfo(), environment=debian.environment
    )  # fmt: skip
    cluster.stop()
    shutil.move(cluster.data, workspace / "lost")
    before = {str(path.relative_to(debian.directory)): path.read_bytes() for path in debian.directory.rglob("*.conf")}
    shutil.move(debian.directory, workspace / "lost-configuration")
    run_polarvault(
        "restore", "shop", "--repo", repository, "-D", cluster.data, "--configuration", debian.directory, "-N",
        *(["--owner", cluster.account.name] if cluster.account.switches else []),
        environment=debian.environment,
    )  # fmt: skip
    after = {str(path.relative_to(debian.directory)): path.read_bytes() for path in debian.directory.rglob("*.conf")}
    assert after.keys() == before.keys()
    assert after["conf.d/site.conf"] == before["conf.d/site.conf"]
    debian.start()
    assert cluster.query("SELECT n, current_setting('work_mem') FROM log") == [(1, "7MB")]


@pytest.mark.parametrize("format_options", [["-Fp"], ["-Ft"], ["-Ft", "-Zserver-gzip"]], ids=" ".join)
def test_a_file_that_is_included_from_outside_is_said_to_be_missing(
    make_cluster: Callable[..., Cluster], workspace: Path, format_options: list[str]
) -> None:
    cluster = make_cluster(15, fill=False)
    outside = cluster.account.make_directory(workspace / "elsewhere", 0o755)
    (outside / "site.conf").write_text("work_mem = '7MB'\n")
    (outside / "admins").write_text("postgres\n")
    (cluster.data / "inside.conf").write_text("work_mem = '6MB'\n")
    main, hba = cluster.data / "postgresql.conf", cluster.data / "pg_hba.conf"
    plain, plain_hba = main.read_text(), hba.read_text()
    # Inside, by a name and by a path: nothing is missing.
    main.write_text(f"{plain}include = 'inside.conf'\ninclude = '{cluster.data}/inside.conf'\n")
    cluster.restart()
    assert back_up(cluster, workspace / "whole", *format_options).stderr == ""
    main.write_text(f"{plain}include_if_exists = '{outside}/site.conf'\n")
    hba.write_text(f"{plain_hba}local all @{outside}/admins trust\n")
    cluster.restart()
    said = back_up(cluster, workspace / "lacking", *format_options).stderr
    assert f"are not in the backup: {outside}/site.conf, {outside}/admins; add --copy-configuration" in said
    assert back_up(cluster, workspace / "kept", *format_options, "--copy-configuration").stderr == ""
    assert (workspace / "kept.configuration" / "files" / str(outside / "site.conf").lstrip("/")).exists()
    # Who may only stream is not told where the data directory is.
    cluster.query("CREATE ROLE streamer LOGIN REPLICATION")
    said = run_polarvault(
        "basebackup", "-d", cluster.conninfo(), "-U", "streamer", "-c", "fast", "-N", "-D", workspace / "streamed",
        *format_options,
    ).stderr  # fmt: skip
    assert f"{outside}/site.conf" in said


def test_start_runs_debians_own_program(debian: DebianServer, workspace: Path) -> None:
    if shutil.which("pg_ctlcluster") is None or shutil.which("pg_ctlcluster", path="/usr/bin:/bin") is None:
        pytest.skip("pg_ctlcluster (postgresql-common) is not installed")
    cluster = debian.cluster
    if not str(cluster.installation.directory).startswith("/usr/lib/postgresql/"):
        pytest.skip("pg_ctlcluster starts Debian's own programs only")
    back_up(cluster, workspace / "backup", environment=debian.environment)
    cluster.stop()
    shutil.move(cluster.data, workspace / "lost")
    restored = run_polarvault(
        "restore", workspace / "backup", "-D", cluster.data, "-N", "--start",
        *(["--owner", cluster.account.name] if cluster.account.switches else []),
        environment=debian.environment, check=False,
    )  # fmt: skip
    assert restored.returncode == 0, restored.stderr
    assert "server is up" in restored.stdout
    assert cluster.query("SELECT current_setting('config_file')") == [(str(debian.directory / "postgresql.conf"),)]


def test_a_copy_beside_the_cluster_is_recovered_to_a_target(debian: DebianServer, workspace: Path) -> None:
    cluster, look = debian.cluster, workspace / "look"
    back_up(cluster, workspace / "backup", environment=debian.environment)
    restored = run_polarvault(
        "restore", workspace / "backup", "-D", look, "-N", "--target", "immediate", "--start",
        "--port", str(Cluster(cluster.installation, workspace).port),
        *(["--owner", cluster.account.name] if cluster.account.switches else []),
        environment=debian.environment, check=False,
    )  # fmt: skip
    assert restored.returncode == 0, restored.stderr
    cluster.run("pg_ctl", "-D", str(look), "-m", "immediate", "-w", "stop")
    assert "the server is paused" in restored.stdout


def test_check_tells_where_the_configuration_lies(debian: DebianServer) -> None:
    found = run_polarvault("check", "-d", debian.cluster.conninfo(), environment=debian.environment, check=False)
    assert f"{debian.directory}/conf.d/site.conf" in found.stdout
    # A role that may know nothing is told from this host.
    debian.cluster.query("CREATE ROLE humble LOGIN REPLICATION")
    humble = run_polarvault(
        "check", "-d", debian.cluster.tcp_conninfo(user="humble"), environment=debian.environment, check=False
    )
    assert f"{debian.directory}/postgresql.conf" in humble.stdout
