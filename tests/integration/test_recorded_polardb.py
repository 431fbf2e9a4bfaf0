"""Base backups of the recorded PolarDB: real bytes of a real server, on machines that have none."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from support.program import run_polarvault
from support.replay_server import ReplayServer


def connection(server: ReplayServer) -> list[str]:
    return ["-d", f"host=127.0.0.1 port={server.port} user=postgres", "-c", "fast", "-N"]


def listed(manifest: Path) -> dict[str, int]:
    return {entry["Path"]: entry["Size"] for entry in json.loads(manifest.read_text())["Files"]}


def on_disk(half: Path) -> dict[str, int]:
    """Return name and size of every file that a manifest must list: all but itself and WAL."""
    files = (path for path in half.rglob("*") if path.is_file())
    found = {str(path.relative_to(half)): path.stat().st_size for path in files}
    return {name: size for name, size in found.items() if name != "backup_manifest" and not name.startswith("pg_wal/")}


@pytest.mark.parametrize("method", ["stream", "fetch"])
def test_plain_halves_hold_what_their_manifests_list(replay_server: ReplayServer, tmp_path: Path, method: str) -> None:
    local, shared = tmp_path / "local", tmp_path / "shared"
    run_polarvault(
        "basebackup", "-D", local, "--polardata", shared, "-X", method, "--no-slot", *connection(replay_server)
    )
    for half in (local, shared):
        assert on_disk(half) == listed(half / "backup_manifest")
    assert (shared / "pg_wal/000000010000000000000001").stat().st_size == 16 << 20
    assert "global/pg_control" in listed(shared / "backup_manifest")
    assert not any(name.startswith("polar_fullpage/0") for name in listed(shared / "backup_manifest"))


def test_tar_files_hold_both_halves(replay_server: ReplayServer, tmp_path: Path) -> None:
    run_polarvault("basebackup", "-D", tmp_path / "tars", "-Ft", "--no-slot", *connection(replay_server))
    with tarfile.open(tmp_path / "tars/base.tar") as local, tarfile.open(tmp_path / "tars/data.tar") as shared:
        assert "backup_label" in local.getnames()
        assert "global/pg_control" not in local.getnames()
        assert "global/pg_control" in shared.getnames()


def test_the_whole_recorded_backup_with_all_its_caches_arrives(replay_server: ReplayServer, tmp_path: Path) -> None:
    run_polarvault("basebackup", "-D", tmp_path / "whole", "--keep-all", "--no-slot", *connection(replay_server))
    shared = tmp_path / "whole/polar_shared_data"
    assert on_disk(shared) == listed(shared / "backup_manifest")


def test_nothing_is_asked_that_this_server_breaks(replay_server: ReplayServer, tmp_path: Path) -> None:
    run_polarvault("basebackup", "-D", tmp_path / "backup", "-X", "fetch", "--no-slot", *connection(replay_server))
    (command,) = (c for c in replay_server.commands if c.startswith("BASE_BACKUP"))
    assert "WAIT 0" in command
    assert "TABLESPACE_MAP" not in command
    assert ", WAL," not in command
