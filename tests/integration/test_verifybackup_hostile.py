"""verifybackup on directories that nobody would call a backup: it ends, and says what it has met."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.story import back_up

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def good(servers: ServerPool) -> Iterator[Path]:
    """A backup that tests only copy."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    with Cluster.made(servers.installations[18], servers.directory / "hostile", fill=False) as source:
        yield back_up(source, servers.directory / "hostile" / "backup")


def fifo_for_manifest(backup: Path) -> None:
    (backup / "backup_manifest").unlink()
    os.mkfifo(backup / "backup_manifest")


def fifo_for_wal(backup: Path) -> None:
    (segment,) = (path for path in (backup / "pg_wal").iterdir() if len(path.name) == 24)
    segment.unlink()
    os.mkfifo(segment)


def deep_manifest(backup: Path) -> None:
    (backup / "backup_manifest").write_bytes(b"[" * 200_000)


def deep_description(backup: Path) -> None:
    (backup / "polarvault_backup.json").write_bytes(b"[" * 200_000)


def links_in_a_circle(backup: Path) -> None:
    (backup / "global" / "here").symlink_to(".")
    (backup / "base" / "up").symlink_to("..")


def relation_without_end(backup: Path) -> None:
    files = (path for path in (backup / "base").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, 2 << 40)


def name_for_a_terminal(backup: Path) -> None:
    (backup / "a\nsuccessfully verified \x1b[2J").touch()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (fifo_for_manifest, "it is not a regular file"),
        (fifo_for_wal, "it is not a regular file"),
        (deep_manifest, "could not parse backup manifest"),
        (deep_description, "is present on disk but not in the manifest"),
        (links_in_a_circle, "is a link to a directory that it lies in"),
        (relation_without_end, "on disk but size"),
        (name_for_a_terminal, '"a?successfully verified ?[2J" is present on disk'),
    ],
)
def test_it_ends_and_says_what_it_has_met(
    good: Path, workspace: Path, damage: Callable[[Path], None], words: str
) -> None:
    backup = workspace / "backup"
    subprocess.run(["cp", "-a", good, backup], check=True)
    damage(backup)
    finished = run_polarvault("verifybackup", str(backup), check=False, timeout_s=60)
    assert finished.returncode == 1
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    shutil.rmtree(backup)


def test_a_page_that_only_looks_new_is_found_and_half_a_page_is_named(good: Path, workspace: Path) -> None:
    backup = workspace / "backup"
    subprocess.run(["cp", "-a", good, backup], check=True)
    relations = (backup / "base" / "1").glob("[0-9]???")
    cleared, cut = sorted(relations, key=lambda path: path.stat().st_size)[-2:]
    with open(cleared, "r+b") as relation:
        # pd_upper: zero in a page that was never written, and there alone.
        relation.seek(8192 + 14)
        relation.write(bytes(2))
    os.truncate(cut, cut.stat().st_size - 4096)
    # As at a source that was damaged already: the manifest agrees, or is not to be believed.
    (backup / "backup_manifest").unlink()
    finished = run_polarvault("verifybackup", str(backup), check=False)
    assert f'1 page with a wrong checksum in "base/1/{cleared.name}": block 1 ' in finished.stderr
    assert f'warning: "base/1/{cut.name}" ends with 4096 bytes of a page of 8192' in finished.stderr


def test_json_is_utf_8_whatever_names_there_are(good: Path, workspace: Path) -> None:
    backup = workspace / "backup"
    shutil.copytree(good, backup, symlinks=True)
    name = os.fsdecode(b"\xff\xfe odd\n")
    (backup / name).write_bytes(b"")
    # As docs/json.md says: a byte that is no text is a lone surrogate, in ASCII.
    finished = run_polarvault("verifybackup", "--json", backup, check=False)
    (found,) = (found for found in json.loads(finished.stdout)["findings"] if found["severity"] == "problem")
    assert (found["check"], found["subject"]) == ("extra-file", name)


def test_a_place_for_wal_that_is_not_there_is_one_finding(good: Path, workspace: Path) -> None:
    finished = run_polarvault("verifybackup", "-w", workspace / "nowhere", good, check=False)
    assert finished.returncode == 1
    assert finished.stderr.count("polarvault: error:") == 1, finished.stderr
    assert f'could not read "{workspace}/nowhere": No such file or directory' in finished.stderr
