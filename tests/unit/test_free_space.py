"""A file system that does not tell its size is not a full one; /proc is such a file system on every machine."""

from __future__ import annotations

import os
from pathlib import Path

from polarvault.instance.host import Host
from polarvault.storage.free_space import free_space
from polarvault.walarchive.store.space import has_space, space_warning

SILENT = "/proc"


def test_a_file_system_that_tells_is_believed(tmp_path: Path) -> None:
    found = free_space(str(tmp_path))
    assert found is not None
    assert 0 < found.available_bytes <= found.total_bytes
    assert not has_space(str(tmp_path), found.total_bytes + 1)
    assert space_warning(str(tmp_path), found.total_bytes, "add space") is not None


def test_one_that_does_not_tell_is_unknown_and_is_tried() -> None:
    assert os.statvfs(SILENT).f_blocks == 0
    assert free_space(SILENT) is None
    assert Host().available_bytes(SILENT)[1] is None
    assert has_space(SILENT, 1 << 60)
    assert space_warning(SILENT, 1 << 60, "add space") is None


def test_one_that_is_not_there_has_no_space(tmp_path: Path) -> None:
    assert not has_space(str(tmp_path / "none"), 1)
