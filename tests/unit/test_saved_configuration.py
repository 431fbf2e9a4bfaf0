"""DIR.configuration: what was written is read back, and nothing in it leads anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polarvault.backupset.saved_configuration import (
    SavedConfiguration,
    read_configuration,
    saved_beside,
    write_configuration,
)
from polarvault.errors import BackupUnusable

SAVED = SavedConfiguration(
    data_directory="/var/lib/postgresql/15/main",
    places={
        "config_file": "/etc/postgresql/15/main/postgresql.conf",
        "hba_file": "/etc/postgresql/15/main/pg_hba.conf",
        "ident_file": "/etc/postgresql/15/main/pg_ident.conf",
    },
    files={
        "/etc/postgresql/15/main/postgresql.conf": b"port = 5433\n",
        "/etc/postgresql/15/main/pg_hba.conf": b"local all all peer\n",
        "/etc/with space/\udcff.conf": b"\xff",
    },
    directories=("/etc/postgresql/15/main/conf.d",),
    missing=("/etc/postgresql/15/main/pg_ident.conf",),
)


def test_the_copy_lies_beside_the_backup() -> None:
    assert saved_beside("/b/full/") == "/b/full.configuration"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_configuration(str(tmp_path), SAVED, sync=True)
    assert read_configuration(str(tmp_path)) == SAVED
    # It may hold passwords (primary_conninfo), so that it is for its owner alone.
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")} == {0}


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["/etc/../../etc/shadow"]},
        {"files": ["relative"]},
        {"files": ["//etc/x"]},
        {"files": "x"},
        {"files": [7]},
        {"config_file": None},
        {"config_file": "../x"},
        {"hba_file": ["x"]},
        {"directories": ["/a/./b"]},
        {"format": 2},
        {"data_directory": 7},
    ],
    ids=str,
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_configuration(str(tmp_path), SAVED, sync=False)
    index = json.loads((tmp_path / "configuration.json").read_text())
    (tmp_path / "configuration.json").write_text(json.dumps(index | change))
    with pytest.raises(BackupUnusable):
        read_configuration(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, "null"])
def test_what_is_no_index_is_called_that(tmp_path: Path, content: str) -> None:
    (tmp_path / "configuration.json").write_text(content)
    with pytest.raises(BackupUnusable):
        read_configuration(str(tmp_path))
    with pytest.raises(BackupUnusable, match="holds no configuration"):
        read_configuration(str(tmp_path / "absent"))


def test_a_link_among_the_files_is_not_followed(tmp_path: Path) -> None:
    write_configuration(str(tmp_path), SAVED, sync=False)
    kept = tmp_path / "files/etc/postgresql/15/main/pg_hba.conf"
    kept.unlink()
    kept.symlink_to("/etc/passwd")
    with pytest.raises(BackupUnusable):
        read_configuration(str(tmp_path))
