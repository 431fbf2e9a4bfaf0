"""What `wal push` and `wal fetch` load: they start once for every segment, and loading is most of their time.

By modules and not by time: a measurement says only that something became slower, and not on every machine. What a
module costs is shown by `python -X importtime -I -S src/polarvault/__main__.py wal push ...`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import polarvault
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.storage.objects.opening import open_store
from support.repositories import new_repository
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content

MB = 1 << 20
SEGMENT = WalSegment(1, 3, MB)
SOURCE = str(Path(polarvault.__file__).parents[1])
# Each takes from half a millisecond to some tens, and a push of a segment without encryption needs none of them.
NEEDLESS = {
    "dataclasses", "inspect", "ast", "difflib", "urllib.parse", "ipaddress", "socket", "subprocess", "ctypes",
    "secrets", "random", "hmac", "hashlib", "pathlib", "shutil", "tempfile", "logging", "asyncio", "concurrent.futures",
    "numpy", "rich", "click", "obstore", "psycopg", "llvmlite", "cryptography",
    "polarvault.config.positions", "polarvault.repository.keys", "polarvault.repository.index",
}  # fmt: skip
# What reads TOML needs, and nothing else does.
OF_CONFIGURATIONS = {"tomllib", "datetime", "string"}


def loaded(words: list[str], environment: dict[str, str], workspace: Path) -> set[str]:
    """Run the program as a restore_command does, without site-packages' hooks; return the modules that it loaded."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); words = sys.argv[3:]; "
        "run = getattr(__import__(f'polarvault.cli.wal_{sys.argv[2]}', fromlist=['run']), 'run'); "
        "status = run(words); print(status, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, SOURCE, *words],
        capture_output=True, text=True, check=True, env={"PATH": os.defpath, **environment}, cwd=workspace,
    )  # fmt: skip
    status, *modules = done.stdout.split()
    assert (status, done.stderr) == ("0", "")
    return set(modules)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    store = open_store(str(path), create=True)
    made = new_repository(store)
    made.ensure_generation("shop", Generation(SYSTEM_IDENTIFIER, 180000, False, MB, 1 << 30, True))
    store.close()
    return path


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "pg_wal" / SEGMENT.file_name
    path.parent.mkdir()
    path.write_bytes(segment_content(SEGMENT))
    return path


def test_a_push_and_a_fetch_load_only_what_they_use(repository: Path, segment: Path, tmp_path: Path) -> None:
    place = ["--cluster", "shop", "--repo", str(repository)]
    pushed = loaded(["wal", "push", str(segment), *place, "--one"], {}, tmp_path)
    assert pushed & (NEEDLESS | OF_CONFIGURATIONS) == set()
    assert {"polarvault.walarchive.push", "zstandard", "blake3"} <= pushed
    # A segment now and then: nothing of what pushes others ahead.
    later = segment.with_name(SEGMENT.next().file_name)
    later.write_bytes(segment_content(SEGMENT.next()))
    pushed = loaded(["wal", "push", str(later), *place], {"XDG_STATE_HOME": str(tmp_path / "state")}, tmp_path)
    assert pushed & (NEEDLESS | OF_CONFIGURATIONS | {"polarvault.walarchive.pushing.forerunner"}) == set()
    restored = tmp_path / "RECOVERYXLOG"
    fetched = loaded(["wal", "fetch", SEGMENT.file_name, str(restored), *place], {}, tmp_path)
    assert restored.read_bytes() == segment.read_bytes()
    # Of what a repository holds its times are read, too.
    assert fetched & (NEEDLESS | OF_CONFIGURATIONS) <= {"datetime"}


def test_the_configuration_costs_a_push_what_reading_it_costs(repository: Path, segment: Path, tmp_path: Path) -> None:
    file = tmp_path / "polarvault.toml"
    file.write_text(
        f'[repository.main]\naddress = "{repository}"\nencrypted = false\n\n'
        '[cluster.shop]\nconnection = "host=/run/db"\nrepositories = ["main"]\nretention = { window = "14d" }\n'
    )
    pushed = loaded(["wal", "push", str(segment), "--config", str(file), "--one"], {}, tmp_path)
    assert pushed & NEEDLESS == set()
    assert pushed >= OF_CONFIGURATIONS
