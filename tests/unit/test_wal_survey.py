"""Looking at WAL directories while a receiver is at work in them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from polarvault.backupset.model import Form, Inventory
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.errors import StorageFailed
from polarvault.model.segment import WalSegment
from polarvault.recovery.wal.stock import WalStock, stock_of
from polarvault.walfiles.search_list import wal_places
from support.wal_segments import segment_content

MB = 1 << 20
NOTHING = Inventory({}, {}, {}, {}, frozenset(), (), True, None, False, 0)


def stock(directory: Path) -> WalStock:
    return stock_of(BackupOnDisk("/backup", Form.PLAIN, ()), NOTHING, wal_places([str(directory)]), MB)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_segment_that_is_finished_between_two_looks_is_read_under_its_final_name(tmp_path: Path, suffix: str) -> None:
    segment = WalSegment(1, 3, MB)
    content = segment_content(segment)
    partial = tmp_path / f"{segment.file_name}{suffix}.partial"
    partial.write_bytes(gzip.compress(content, 1) if suffix else content)
    found = stock(tmp_path)
    file = found.files(0)[1, 3]
    assert file.partial
    partial.rename(tmp_path / (segment.file_name + suffix))
    header = found.look_at_start(file).header
    assert header is not None
    assert header.page_address == segment.start
    assert b"".join(found.read(file)) == content
    os.unlink(tmp_path / (segment.file_name + suffix))
    with pytest.raises(StorageFailed, match="No such file"):
        list(found.read(file))


def test_a_name_that_leads_nowhere_is_no_segment(tmp_path: Path) -> None:
    (tmp_path / WalSegment(1, 3, MB).file_name).symlink_to("/nowhere/at/all")
    assert stock(tmp_path).files(0) == {}
