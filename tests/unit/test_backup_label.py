"""backup_label and tablespace_map."""

from __future__ import annotations

import pytest

from polarvault.errors import BackupUnusable
from polarvault.pgfiles.backup_label import parse_backup_label, parse_tablespace_map

LABEL = b"""START WAL LOCATION: 0/50144340 (file 000000020000000000000001)
CHECKPOINT LOCATION: 0/50144378
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 20:59:46 UTC
LABEL: nightly: one
START TIMELINE: 2
"""


def test_a_label_is_read() -> None:
    label = parse_backup_label(LABEL)
    assert str(label.start_lsn) == "0/50144340"
    assert label.start_segment == "000000020000000000000001"
    assert str(label.checkpoint_lsn) == "0/50144378"
    assert label.label == "nightly: one"
    assert label.timeline_id == 2
    assert label.incremental_from_lsn is None
    assert not label.is_from_standby


def test_a_label_from_a_standby_and_an_incremental_one_say_so() -> None:
    content = LABEL.replace(b"FROM: primary", b"FROM: standby") + b"INCREMENTAL FROM LSN: 0/3000028\n"
    label = parse_backup_label(content + b"INCREMENTAL FROM TLI: 1\n")
    assert label.is_from_standby
    assert str(label.incremental_from_lsn) == "0/3000028"


@pytest.mark.parametrize("content", [b"", b"LABEL: x\n", LABEL.splitlines()[0], LABEL.replace(b"0/50144378", b"x")])
def test_a_damaged_label_is_refused(content: bytes) -> None:
    with pytest.raises(BackupUnusable, match="damaged"):
        parse_backup_label(content)


def test_tablespace_map_escapes_are_undone() -> None:
    content = b"16384 /srv/a b\n16385 /srv/x\\\ny\\\\z\r\n"
    assert parse_tablespace_map(content) == {16384: "/srv/a b", 16385: "/srv/x\ny\\z"}
    assert parse_tablespace_map(b"") == {}


def test_a_damaged_tablespace_map_is_refused() -> None:
    with pytest.raises(BackupUnusable, match="tablespace_map"):
        parse_tablespace_map(b"not an oid\n")


@pytest.mark.parametrize("text", ["²", "٣", "-1", "0", "4294967296", "9" * 5000, "1_0", ""])
def test_a_timeline_that_is_none_is_damage(text: str) -> None:
    label = (
        "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n"
        f"START TIMELINE: {text}\n"
    )
    with pytest.raises(BackupUnusable, match="damaged"):
        parse_backup_label(label.encode())


@pytest.mark.parametrize("oid", ["²", "9" * 5000, "-1", "x"])
def test_a_tablespace_map_without_numbers_is_damage(oid: str) -> None:
    with pytest.raises(BackupUnusable, match="tablespace_map is damaged"):
        parse_tablespace_map(f"{oid} /somewhere\n".encode())
