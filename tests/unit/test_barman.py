"""What Barman says of a backup, wherever it says it, and what a stranger may have put there."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from polarvault.errors import BackupUnusable
from polarvault.exchange.barman import read_barman
from polarvault.model.lsn import Lsn

INFO = {
    "begin_time": "2026-11-26 15:33:02.820455+00:00", "end_time": "2026-11-26 15:33:03+01:00", "status": "DONE",
    "end_xlog": "0/4000000", "timeline": "2", "version": "150018", "compression": "None", "encryption": "None",
    "tablespaces": "[('far', 16394, '/srv/far')]", "error": "None",
}  # fmt: skip


def made(directory: Path, *, in_meta: bool = False, **changed: str) -> Path:
    backup = directory / "main" / "base" / "20261126T153302"
    (backup / "data").mkdir(parents=True)
    place = backup / "backup.info"
    if in_meta:
        place = directory / "main" / "meta" / "20261126T153302-backup.info"
        place.parent.mkdir()
    place.write_text("".join(f"{name}={value}\n" for name, value in (INFO | changed).items()))
    return backup


@pytest.mark.parametrize("in_meta", [False, True])
@pytest.mark.parametrize("below", ["", "data"])
def test_both_places_and_both_spellings_of_a_backup_are_understood(tmp_path: Path, in_meta: bool, below: str) -> None:
    backup = made(tmp_path, in_meta=in_meta)
    wals = tmp_path / "main" / "wals"
    (wals / "0000000200000000").mkdir(parents=True)
    info = read_barman(str(backup / below))
    assert info is not None
    assert (info.data, info.stop_lsn, info.timeline_id) == (str(backup / "data"), Lsn(0x4000000), 2)
    assert (info.server_version, dict(info.locations)) == (150018, {16394: "/srv/far"})
    assert info.began == datetime(2026, 11, 26, 15, 33, 2, 820455, UTC)
    names = ["000000020000000000000003", "000000020000000100000000"]
    assert info.wal_directories(names) == [str(wals / "0000000200000000"), str(wals)]


def test_another_directory_is_none_of_barman(tmp_path: Path) -> None:
    assert read_barman(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"status": "FAILED"}, "the backup is FAILED"),
        ({"compression": "gzip"}, "compressed or encrypted by Barman"),
        ({"encryption": "gpg"}, "compressed or encrypted by Barman"),
        ({"end_xlog": "nowhere"}, "cannot be understood"),
        ({"timeline": "x"}, "cannot be understood"),
        ({"begin_time": "yesterday"}, "cannot be understood"),
        ({"tablespaces": "__import__('os')"}, "cannot be understood"),
        ({"tablespaces": "[" * 5000}, "cannot be understood"),
        ({"tablespaces": "[(1, 2)]"}, "cannot be understood"),
    ],
)
def test_what_cannot_be_imported_or_understood_is_refused(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    with pytest.raises(BackupUnusable, match=words):
        read_barman(str(made(tmp_path, **changed)))
