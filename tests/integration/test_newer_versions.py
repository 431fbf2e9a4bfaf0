"""Servers and backups of a version that is not known yet: what goes on with a warning, and what is refused.

There is none to be had, so that a known one says that it is newer: a relay changes the version that the server
reports, and the files of a backup get other version numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from support.backups import back_up, verify
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.tcp_proxy import TcpProxy
from support.verifying import findings, ours, read_member, rewrite_manifest, rewrite_tar

pytestmark = pytest.mark.postgres

NOT_KNOWN = "is newer than what this polarvault knows (PostgreSQL 13 to 19)"


@dataclass
class Newer:
    """A server that says that it is PostgreSQL 20, and backups that look as if they were of one."""

    server: Cluster
    conninfo: str
    plain: Path
    tar: Path


@pytest.fixture(scope="module")
def newer(servers: ServerPool) -> Iterator[Newer]:
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    directory = servers.directory / "newer"
    with Cluster.made(servers.installations[18], directory / "server", wal_segment_mb=1) as server:
        back_up(server, directory / "plain")
        back_up(server, directory / "tar", "-Ft")
        _as_version_20(directory / "plain")
        _tar_as_version_20(directory / "tar")
        with TcpProxy(server.port) as proxy:
            proxy.said_instead = b"server_version\x0018.", b"server_version\x0020."
            yield Newer(server, server.tcp_conninfo(port=proxy.port), directory / "plain", directory / "tar")


def _newer_control(content: bytes) -> bytes:
    changed = bytearray(content)
    # Versions of the format and of the catalogs; everything behind them could be anywhere.
    changed[8:16] = (2001).to_bytes(4, "little") + (202709011).to_bytes(4, "little")
    changed[100:300] = changed[101:301]
    return bytes(changed)


def _as_version_20(backup: Path) -> None:
    control = backup / "global" / "pg_control"
    control.write_bytes(_newer_control(control.read_bytes()))
    for path in backup.rglob("PG_VERSION"):
        path.write_text("20\n")
    for path in (backup / "pg_wal").glob("0*"):
        content = bytearray(path.read_bytes())
        content[::8192] = b"\x2f" * len(content[::8192])
        path.write_bytes(content)
    _list_anew(backup / "backup_manifest", lambda name: (backup / name).read_bytes())


def _tar_as_version_20(backup: Path) -> None:
    base = backup / "base.tar"
    control = _newer_control(read_member(base, "global/pg_control"))
    rewrite_tar(base, {"global/pg_control": control, "PG_VERSION": b"20\n"})
    _list_anew(
        backup / "backup_manifest", lambda name: read_member(base, name), only=("global/pg_control", "PG_VERSION")
    )


def _list_anew(manifest: Path, read: Callable[[str], bytes], *, only: tuple[str, ...] | None = None) -> None:
    def edit(fields: dict[str, Any]) -> None:
        for entry in fields["Files"]:
            if only is None or entry["Path"] in only:
                content = read(entry["Path"])
                entry["Size"] = len(content)
                entry["Checksum"] = google_crc32c.value(content).to_bytes(4, "little").hex()

    rewrite_manifest(manifest, edit)


@pytest.mark.parametrize("options", [[], ["-Ft"], ["-X", "fetch"], ["-R"]], ids=["plain", "tar", "fetch", "R"])
def test_a_newer_server_is_backed_up_with_a_warning(newer: Newer, workspace: Path, options: list[str]) -> None:
    finished = run_polarvault("basebackup", "-d", newer.conninfo, "-c", "fast", "-N", "-D", workspace / "b", *options)
    assert NOT_KNOWN in finished.stderr
    assert "pages are checked by the server alone" in finished.stderr
    # Written by us; and what 18 cannot read.
    without = {"-R": ["--ignore=postgresql.auto.conf", "--ignore=standby.signal"], "-Ft": ["-n"]}
    verify(newer.server.installation, workspace / "b", *without.get("".join(options), []))


def test_wal_of_a_newer_server_is_received_with_one_warning(newer: Newer, workspace: Path) -> None:
    archive = workspace / "wal"
    archive.mkdir()
    end = newer.server.query("SELECT pg_current_wal_lsn()")[0][0]
    newer.server.query("SELECT pg_switch_wal()")
    finished = run_polarvault("receivewal", "-d", newer.conninfo, "-D", archive, "--endpos", end, "-n", "--no-sync")
    assert finished.stderr.count(NOT_KNOWN) == 1
    assert [path.name for path in archive.iterdir() if len(path.name) >= 24]


def test_check_warns_of_a_newer_server(newer: Newer) -> None:
    finished = run_polarvault("check", "-d", newer.conninfo, "--json", check=False)
    found = {entry["check"]: entry for entry in json.loads(finished.stdout)["findings"]}
    assert found["server-version"]["severity"] == "warning"
    assert NOT_KNOWN in found["server-version"]["message"]


def test_a_newer_backup_is_restored_as_it_is(newer: Newer, workspace: Path) -> None:
    for source in (newer.plain, newer.tar):
        target = workspace / source.name
        finished = run_polarvault("restore", source, "-D", target, "--no-sync")
        assert NOT_KNOWN in finished.stdout + finished.stderr
        assert (target / "PG_VERSION").read_text() == "20\n"
        assert (target / "global/pg_control").read_bytes() == (newer.plain / "global/pg_control").read_bytes() or (
            source == newer.tar and (target / "global/pg_control").stat().st_size == 8192
        )
        assert (target / "recovery.signal").exists()
        assert {path.stat().st_size for path in (target / "pg_wal").glob("0*")} == {1 << 20}


@pytest.mark.parametrize(
    "options", [["--target", "immediate"], ["--target-time", "2026-01-01 00:00:00+00"], ["--wal", "{wal}"]]
)
def test_recovery_of_a_newer_backup_is_refused_and_nothing_written(
    newer: Newer, workspace: Path, options: list[str]
) -> None:
    words = [option.format(wal=newer.plain / "pg_wal") for option in options]
    for source in (newer.plain, newer.tar):
        finished = run_polarvault("restore", source, "-D", workspace / "target", *words, check=False)
        assert finished.returncode != 0
        assert f"{NOT_KNOWN}: how it writes" in finished.stderr
        assert "use a newer polarvault" in finished.stderr
        assert not (workspace / "target").exists()


def test_a_drill_of_a_newer_backup_is_refused(newer: Newer) -> None:
    finished = run_polarvault("drill", newer.plain, check=False)
    assert finished.returncode != 0
    assert NOT_KNOWN in finished.stdout + finished.stderr


def test_files_of_a_newer_backup_are_verified_and_the_rest_is_called_unchecked(newer: Newer) -> None:
    for source in (newer.plain, newer.tar):
        verdict = ours(source)
        assert verdict.is_good, verdict.errors
        assert ("warning", "newer-version", "PG_VERSION") in findings(source)
        summary = run_polarvault("verifybackup", "--summary", source).stderr
        assert "not checked: page checksums: the backup is of a server that is newer" in summary
        assert "not checked: WAL: the backup is of a server that is newer" in summary


def test_a_changed_file_of_a_newer_backup_is_found(newer: Newer, workspace: Path) -> None:
    copy = workspace / "copy"
    shutil.copytree(newer.plain, copy)
    with open(copy / "global" / "pg_filenode.map", "r+b") as file:
        file.write(b"X")
    assert ("problem", "wrong-checksum", "global/pg_filenode.map") in findings(copy)
    assert run_polarvault("restore", copy, "-D", workspace / "t", check=False).returncode != 0


def test_a_newer_pg_control_beside_an_older_version_is_damage(newer: Newer, workspace: Path) -> None:
    copy = workspace / "copy"
    shutil.copytree(newer.plain, copy)
    (copy / "PG_VERSION").write_text("18\n")
    _list_anew(copy / "backup_manifest", lambda name: (copy / name).read_bytes())
    assert ("problem", "control-version", "global/pg_control") in findings(copy)
    refused = run_polarvault("restore", copy, "-D", workspace / "t", check=False)
    assert refused.returncode != 0
    assert "control file version 2001" in refused.stderr


def test_a_later_format_of_the_newest_version_is_not_guessed_at(newer: Newer, workspace: Path) -> None:
    """What a release has that the table knows only a release candidate of."""
    copy = workspace / "copy"
    shutil.copytree(newer.plain, copy)
    for path in copy.rglob("PG_VERSION"):
        path.write_text("19\n")
    _list_anew(copy / "backup_manifest", lambda name: (copy / name).read_bytes())
    assert ("warning", "control-version", "global/pg_control") in findings(copy)
    assert ours(copy).is_good
    assert run_polarvault("restore", copy, "-D", workspace / "t", "--no-sync").returncode == 0
    assert run_polarvault("restore", copy, "-D", workspace / "u", "--target", "immediate", check=False).returncode != 0
