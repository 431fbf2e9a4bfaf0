"""`restore -`: one tar from a pipe is restored as the same tar in a file is, and leaves nothing behind if it is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.made_backups import PACKERS, SEGMENT, MadeBackup
from support.program import command_line, program_environment

TABLE = "base/5/16384"


def restore(tar: bytes, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        command_line("restore", "-", "-D", target, "-N", *options), input=tar, capture_output=True, cwd="/",
        env=program_environment(), timeout=120, check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(
        finished.args, finished.returncode, finished.stdout.decode(), finished.stderr.decode()
    )


def refused(tar: bytes, target: Path, *options: str, status: int = 3) -> str:
    finished = restore(tar, target, *options)
    assert finished.returncode == status, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    assert not target.exists()
    return finished.stderr


@pytest.mark.parametrize("suffix", list(PACKERS))
def test_a_tar_from_a_pipe_is_restored(workspace: Path, suffix: str) -> None:
    made = MadeBackup().seal()
    finished = restore(made.one_tar(suffix), workspace / "r")
    assert finished.returncode == 0, finished.stderr
    assert (workspace / "r" / TABLE).read_bytes() == made.content[TABLE]
    assert (workspace / "r/global/pg_control").exists()
    assert not list((workspace / "r").glob(".polarvault*"))
    assert not (workspace / "r/backup_manifest").exists()


def test_it_goes_into_an_empty_directory_that_is_there(workspace: Path) -> None:
    (workspace / "r").mkdir()
    assert restore(MadeBackup().seal().one_tar(), workspace / "r").returncode == 0


def test_what_is_there_already_is_not_touched(workspace: Path) -> None:
    (workspace / "r").mkdir()
    (workspace / "r/mine").touch()
    assert restore(MadeBackup().one_tar(), workspace / "r").returncode != 0
    assert [path.name for path in (workspace / "r").iterdir()] == ["mine"]


def test_a_tar_that_is_cut_leaves_nothing(workspace: Path) -> None:
    tar = MadeBackup().seal().one_tar()
    assert "on standard input is damaged or incomplete" in refused(tar[: len(tar) // 3], workspace / "r")
    assert "it is empty" in refused(b"", workspace / "r")


def test_a_tar_that_is_not_what_its_manifest_says_leaves_nothing(workspace: Path) -> None:
    made = MadeBackup().seal()
    made.content[TABLE] = made.content[TABLE][:-1] + b"?"
    said = refused(made.one_tar(), workspace / "r")
    assert f"the tar on standard input does not agree with its manifest: 1 file has another checksum: {TABLE}" in said
    del made.content[TABLE]
    assert f"{TABLE}: is missing" in refused(made.one_tar(), workspace / "r")


def test_an_encrypted_stream_is_called_encrypted(workspace: Path) -> None:
    assert "encrypted with openssl" in refused(b"Salted__" + bytes(range(250)) * 50, workspace / "r", status=1)


def test_both_halves_of_polardb_come_through_a_pipe(workspace: Path) -> None:
    made = MadeBackup()
    names = [TABLE, "base/1/1255", "global/1262", "global/pg_control"]
    shared = {f"polar_shared_data/{name}": made.content.pop(name) for name in names}
    made.content["postgresql.conf"] = (
        b"polar_enable_shared_storage_mode = on\npolar_datadir = 'file-dio:///live'\npolar_vfs.localfs_mode = on\n"
    )
    made.content |= shared | {f"polar_shared_data/pg_wal/{SEGMENT}": made.wal}
    finished = restore(made.one_tar(), workspace / "r", "--polardata", str(workspace / "s"))
    assert finished.returncode == 0, finished.stderr
    assert (workspace / "s" / TABLE).read_bytes() == shared[f"polar_shared_data/{TABLE}"]
    assert (workspace / "s/global/pg_control").exists()


def test_a_pipe_goes_with_no_plan_and_no_other_backup(workspace: Path) -> None:
    assert "read once" in refused(b"", workspace / "r", "--plan", status=2)
