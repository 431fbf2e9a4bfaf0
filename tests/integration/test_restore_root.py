"""What root restores belongs to the server's account, and no link that somebody else has made leads root astray."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from polarvault.instance.account import server_account
from support.made_backups import SEGMENT, MadeBackup
from support.program import run_polarvault

SECRET = b"geheim " * 100


def restore(backup: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_polarvault("restore", backup, "-D", target, "-N", *options, check=False)


def refused(backup: Path, target: Path, *options: str) -> str:
    finished = restore(backup, target, *options)
    assert finished.returncode != 0, finished.stdout
    assert "Traceback" not in finished.stderr
    assert not target.exists()
    return finished.stderr


@pytest.fixture
def secret(workspace: Path) -> Path:
    """A file that only we may read."""
    path = workspace / "shadow"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("name", ["stolen", "base/5/16384", "postgresql.conf", "PG_VERSION", "pg_xact/0000"])
def test_a_link_that_leaves_the_backup_is_refused(workspace: Path, secret: Path, name: str) -> None:
    backup = MadeBackup().plain(workspace / "b")
    path = backup / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    said = refused(backup, workspace / "r", "--force")
    assert f'"{path}" is a link to "{secret}"' in said


def test_a_link_to_a_file_of_the_backup_is_that_file(workspace: Path) -> None:
    made = MadeBackup()
    backup = made.plain(workspace / "b")
    (backup / "base/5/2601").symlink_to("16384")
    assert restore(backup, workspace / "r").returncode == 0
    copy = workspace / "r/base/5/2601"
    assert not copy.is_symlink()
    assert copy.read_bytes() == made.content["base/5/16384"]


@pytest.mark.parametrize("name", ["base/5", "global", "pg_xact"])
def test_a_part_of_the_database_that_is_a_link_is_refused(workspace: Path, name: str) -> None:
    backup = MadeBackup().plain(workspace / "b")
    elsewhere = workspace / "elsewhere"
    if (backup / name).exists():
        (backup / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (backup / name).symlink_to(elsewhere)
    assert "part of the database that the backup does not hold" in refused(backup, workspace / "r")


def test_of_a_linked_pg_wal_only_wal_is_taken(workspace: Path, secret: Path) -> None:
    backup = MadeBackup().plain(workspace / "b")
    elsewhere = workspace / "wal"
    (backup / "pg_wal").rename(elsewhere)
    (backup / "pg_wal").symlink_to(elsewhere)
    (elsewhere / "id_rsa").write_bytes(SECRET)
    (elsewhere / "000000010000000000000003").symlink_to(secret)
    assert "is a link to" in refused(backup, workspace / "r")
    (elsewhere / "000000010000000000000003").unlink()
    assert restore(backup, workspace / "r").returncode == 0
    assert sorted(path.name for path in (workspace / "r/pg_wal").iterdir()) == [SEGMENT]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read what the account may not")
def test_a_linked_pg_wal_does_not_open_what_belongs_to_root(workspace: Path) -> None:
    account = server_account()
    backup = MadeBackup().plain(workspace / "b")
    elsewhere = workspace / "wal"
    (backup / "pg_wal").rename(elsewhere)
    (elsewhere / SEGMENT).chmod(0o600)
    (backup / "pg_wal").symlink_to(elsewhere)
    os.lchown(backup / "pg_wal", account.uid, account.gid)
    assert "belongs to somebody else than what leads to it" in refused(backup, workspace / "r")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read what the account may not")
def test_a_second_name_of_somebody_elses_file_is_not_opened(workspace: Path, secret: Path) -> None:
    account = server_account()
    backup = MadeBackup().plain(workspace / "b")
    os.link(secret, backup / "stolen")
    os.chown(backup, account.uid, account.gid)
    assert "belongs to somebody else" in refused(backup, workspace / "r", "--force")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read what the account may not")
def test_a_backup_that_only_root_can_read_is_restored_to_the_account(workspace: Path) -> None:
    account = server_account()
    made = MadeBackup().seal()
    backup = made.plain(workspace / "b")
    for path in [backup, *backup.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert restore(backup, workspace / "r", "--owner", account.name).returncode == 0
    assert {path.stat().st_uid for path in (workspace / "r").rglob("*")} == {account.uid}
    assert (workspace / "r/base/5/16384").read_bytes() == made.content["base/5/16384"]
    tar = made.tar(workspace / "t")
    for path in [tar, *tar.iterdir()]:
        path.chmod(0o700)
    assert restore(tar, workspace / "r2", "--owner", account.name).returncode == 0
    assert {path.stat().st_uid for path in (workspace / "r2").rglob("*")} == {account.uid}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_an_empty_directory_behind_somebody_elses_link_is_not_given_away(workspace: Path) -> None:
    account = server_account()
    backup = MadeBackup().plain(workspace / "b")
    ours = workspace / "ours"
    ours.mkdir(mode=0o755)
    os.chown(ours, 0, 0)
    link = workspace / "link"
    link.symlink_to(ours)
    os.lchown(link, account.uid, account.gid)
    finished = restore(backup, link, "--owner", account.name)
    assert finished.returncode != 0
    assert "is not given to" in finished.stderr
    assert ours.stat().st_uid == 0
    assert restore(backup, ours, "--owner", account.name).returncode == 0
    assert ours.stat().st_uid == account.uid


# A server account that races with root: it replaces the temporary file of the settings by a link, as soon as it sees
# the directory that is its own already.
RACER = """
import os, sys, time
target, victim, done = sys.argv[1:]
print("ready", flush=True)
while not os.path.exists(done):
    for name in ("postgresql.conf.tmp", "postgresql.auto.conf.tmp", "recovery.signal.tmp", "pg_hba.conf.tmp"):
        try:
            os.symlink(victim, os.path.join(target, name))
        except OSError:
            pass
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray by another account")
def test_root_does_not_write_through_links_that_the_account_plants(workspace: Path, secret: Path) -> None:
    account = server_account()
    backup = MadeBackup().plain(workspace / "b")
    target = workspace / "r"
    target.mkdir()
    account.own(target)
    done = workspace / "done"
    racer = subprocess.Popen(
        ["/usr/bin/python3", "-c", RACER, target, secret, done], stdout=subprocess.PIPE, text=True,
        user=account.uid, group=account.gid,
    )  # fmt: skip
    try:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
        for _ in range(5):
            restore(backup, target, "--owner", account.name, "--force")
            subprocess.run(["find", target, "-mindepth", "1", "-delete"], check=False)
    finally:
        done.touch()
        racer.communicate(timeout=60)
    assert secret.read_bytes() == SECRET
    assert secret.stat().st_uid == 0
