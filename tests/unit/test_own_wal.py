"""The WAL of a backup from its start to its end: which damage counts, and which is somebody else's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from polarvault.model.lsn import Lsn
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.recovery.wal.own_wal import WalDamage, find_damage
from polarvault.storage.trees.local import LocalTree
from support.wal_bytes import XLOG, WalBuilder

SIZE = 1 << 20
SYSTEM = 77


class Made:
    """Three segments full of records; the backup begins in the first and ends in the last."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        builder = WalBuilder(segment=1, segment_bytes=SIZE)
        for number in range(400):
            builder.add(bytes([number % 251]) * 6000)
            if number == 20:
                self.start = builder.lsn + (24 if builder.lsn % 8192 == 0 else 0)
        builder.add_main(struct.pack("<Q", self.start), rmgr=XLOG, info=0x50)
        self.end = builder.lsn
        builder.fill_segment()
        self.content = bytes(builder.content)
        self.write()

    def write(self, timeline: int = 1, skip: int = -1) -> None:
        for number in range(len(self.content) // SIZE):
            if number != skip:
                path = self.directory / f"{timeline:08X}{number + 1:016X}"
                path.write_bytes(self.content[number * SIZE : (number + 1) * SIZE])

    def change(self, lsn: int) -> None:
        content = bytearray(self.content)
        content[lsn - SIZE] ^= 0x10
        self.content = bytes(content)
        self.write()

    def damage(self, *, end: bool = True, timeline: int = 1, end_timeline: int = 1) -> WalDamage | None:
        span = BackupSpan("/b", Lsn(self.start), timeline, Lsn(self.end) if end else None, end_timeline, SIZE)
        return find_damage(LocalTree(str(self.directory)), span, SYSTEM)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.mark.parametrize("end", [True, False])
def test_right_wal_is_right(made: Made, end: bool) -> None:
    assert made.damage(end=end) is None


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("lsn", [0x1F0000, 0x200000, 0x200020, 0x2A5A5A, 0x300007])
def test_one_changed_bit_is_found_in_its_segment(made: Made, end: bool, lsn: int) -> None:
    made.change(lsn)
    found = made.damage(end=end)
    assert found is not None
    assert found.segment.number in (lsn // SIZE, lsn // SIZE - 1)
    assert abs(found.end.lsn - lsn) < 2 * 8192
    assert f"that is byte {found.end.lsn - found.segment.start}" in str(found)


def test_what_lies_before_the_start_or_behind_the_end_does_not_count(made: Made) -> None:
    made.change(0x102000)
    made.change(made.end + 8)
    assert made.damage() is None
    assert made.damage(end=False) is None


def test_zeros_count_only_before_a_known_end(made: Made) -> None:
    at = 0x208000 - SIZE
    made.content = made.content[:at] + bytes(len(made.content) - at)
    made.write()
    found = made.damage()
    assert found is not None
    assert "zeros" in str(found)
    assert made.damage(end=False) is None


def test_wal_that_is_not_there_is_no_damage(made: Made) -> None:
    (made.directory / f"{1:08X}{2:016X}").unlink()
    assert made.damage() is None


def test_what_a_file_holds_behind_its_segment_is_not_read(made: Made) -> None:
    with open(made.directory / f"{1:08X}{2:016X}", "ab") as file:
        file.write(b"?" * 8192)
    assert made.damage() is None


def test_wal_of_another_cluster_is_damage(made: Made) -> None:
    span = BackupSpan("/b", Lsn(made.start), 1, Lsn(made.end), 1, SIZE)
    assert "belongs to the system 77, not to 78" in str(find_damage(LocalTree(str(made.directory)), span, 78))


def test_the_newest_timeline_of_the_backup_counts(made: Made) -> None:
    good = made.content
    made.change(0x2A5A5A)
    made.content = good
    made.write(timeline=2)
    made.write(timeline=9)
    assert made.damage() is not None
    assert made.damage(end_timeline=3) is None


def test_a_start_where_nothing_can_begin_is_refused(made: Made) -> None:
    made.start += 1
    with pytest.raises(ValueError, match="can begin"):
        made.damage()
