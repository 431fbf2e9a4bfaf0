"""Incremental backups: the chain is found, and combined by the server's own program; what is missing is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.backupset.inventory import take_inventory
from polarvault.backupset.source import find_backup
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.incremental import plan_chain
from support.backups import back_up
from support.cluster import Cluster
from support.drills import Drills
from support.made_backups import MadeBackup, files, label
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason

FULL, FIRST, SECOND = 0x2000028, 0x4000028, 0x6000028


def refused(*words: object, status: int = 1) -> str:
    finished = run_polarvault("restore", *map(str, words), check=False)
    assert finished.returncode == status, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stderr


def made(directory: Path, start: int, base: int | None = None, timeline: int = 1) -> Path:
    content = files(start)
    if base is not None:
        more = f"INCREMENTAL FROM LSN: 0/{base:X}\nINCREMENTAL FROM TLI: {timeline}\n"
        content["backup_label"] = label(start, start + 0x38, more)
    return MadeBackup(content, start=start).seal().plain(directory)


def test_the_link_that_is_missing_is_named_and_what_is_there(workspace: Path) -> None:
    full = made(workspace / "all/full", FULL)
    second = made(workspace / "all/second", SECOND, FIRST)
    said = refused(second, "-D", workspace / "r")
    assert f'"{second}" is an incremental backup of the one that began at 0/4000028 on timeline 1' in said
    assert f"{full}: began at 0/2000028 on timeline 1, full" in said
    assert "among those that were named" in refused(second, full, "-D", workspace / "r")


def test_a_link_of_another_timeline_does_not_fit(workspace: Path) -> None:
    made(workspace / "all/full", FULL)
    first = made(workspace / "all/first", FIRST, FULL, timeline=3)
    assert "began at 0/2000028 on timeline 3" in refused(first, "-D", workspace / "r")


def test_a_backup_that_is_not_of_the_chain_is_not_taken_along(workspace: Path) -> None:
    full, other = made(workspace / "full", FULL), made(workspace / "other", 0x3000028)
    first = made(workspace / "first", FIRST, FULL)
    assert f'"{other}" is not part of the chain' in refused(full, other, first, "-D", workspace / "r")
    assert "is not an incremental backup" in refused(full, other, "-D", workspace / "r")


def test_a_damaged_link_is_named(workspace: Path) -> None:
    full = made(workspace / "all/full", FULL)
    (full / "base/5/16384").unlink()
    first = made(workspace / "all/first", FIRST, FULL)
    said = refused(first, "-D", workspace / "r", status=3)
    assert f'"{full}" does not agree with its manifest' in said


def test_of_an_older_link_without_a_manifest_it_is_said_that_nobody_can_tell_whether_it_is_whole(
    workspace: Path,
) -> None:
    full = made(workspace / "all/full", FULL)
    (full / "backup_manifest").unlink()
    source = find_backup(str(made(workspace / "all/first", FIRST, FULL)))
    request = RestoreRequest(backup=source.path, target=str(workspace / "r"))
    oldest, newest = plan_chain(request, source, take_inventory(source))
    assert not newest.warnings
    assert len(oldest.warnings) == 1
    assert str(full) in oldest.warnings[0]
    assert "no backup_manifest" in oldest.warnings[0]


def test_a_link_in_tar_format_is_said_to_need_unpacking(workspace: Path) -> None:
    full = MadeBackup().seal().tar(workspace / "all/full")
    first = made(workspace / "all/first", FIRST, FULL)
    assert f"tar -xf {full}/base.tar" in refused(first, "-D", workspace / "r")


@pytest.fixture(scope="module", params=[17, 18, 19])
def chain(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[tuple[Cluster, list[Path]]]:
    """A server, and a full backup with two incremental ones upon it, with a tablespace; in plain format."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    installation = servers.installations[major]
    if not os.access(installation.program("pg_combinebackup"), os.X_OK):
        pytest.skip(f"{installation.directory} has no pg_combinebackup")
    directory = servers.directory / f"incremental{major}"
    with Cluster.made(installation, directory, settings={"summarize_wal": "on"}, fill=False) as source:
        space = directory / "space"
        space.mkdir()
        shutil.chown(space, source.account.name)
        source.query(f"CREATE TABLESPACE space LOCATION '{space}'")
        source.query("CREATE TABLE t TABLESPACE space AS SELECT i FROM generate_series(1, 20000) i")
        backups: list[Path] = []
        for number in range(3):
            base = ["-i", str(backups[-1] / "backup_manifest")] if backups else []
            target = directory / "all" / str(number)
            target.parent.mkdir(exist_ok=True)
            back_up(source, target, "-T", f"{space}={directory}/copies{number}", *base)
            backups.append(target)
            source.query(f"INSERT INTO t SELECT {number}")
            source.query("CHECKPOINT")
        yield source, backups


@pytest.mark.postgres
def test_a_chain_is_found_combined_and_started(chain: tuple[Cluster, list[Path]], workspace: Path) -> None:
    source, backups = chain
    newest = backups[-1]
    space = (newest / "pg_tblspc").iterdir().__next__().readlink()
    server = Cluster(source.installation, workspace)
    server.data = workspace / "r"
    finished = run_polarvault(
        "restore", newest, "-D", server.data, "--port", str(server.port), "--bindir", source.installation.directory,
        "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N", "--start",
        "-T", f"{space}={workspace}/space",
    )  # fmt: skip
    try:
        assert server.query("SELECT count(*) FROM t") == [(20002,)]
        assert not list(workspace.rglob(".polarvault*")), finished.stdout
    finally:
        server.stop("immediate")


@pytest.mark.postgres
def test_a_byte_that_has_changed_in_an_older_link_is_found(chain: tuple[Cluster, list[Path]], workspace: Path) -> None:
    source, backups = chain
    links = [workspace / str(number) for number in range(3)]
    for backup, link in zip(backups, links, strict=True):
        subprocess.run(["cp", "-a", backup, link], check=True)
    path = max((links[0] / "base").rglob("[0-9]*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    with open(path, "r+b") as stream:
        stream.seek(5000)
        stream.write(b"?")
    space = (links[2] / "pg_tblspc").iterdir().__next__().readlink()
    said = refused(
        *links,
        "-D",
        workspace / "r",
        "--bindir",
        source.installation.directory,
        "-T",
        f"{space}={workspace}/s",
        status=3,
    )
    assert f'"{links[0]}" does not agree with its manifest' in said
    assert not (workspace / "r").exists()


@pytest.mark.postgres
def test_a_drill_takes_a_chain(chain: tuple[Cluster, list[Path]], workspace: Path) -> None:
    source, backups = chain
    report = Drills(workspace).run(source, backups[-1], "--read", "none")
    assert report["facts"]["path"] == str(backups[-1])
