"""The WAL in a compressed tar: read no more often than it has to be."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.backupset.model import Area, Form, Inventory, Part
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.backupset.wal import streamed
from polarvault.backupset.wal.of_backup import wal_of
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import TarEvent
from polarvault.recovery.wal.stock import WalStock
from polarvault.walfiles.search_list import SearchList, wal_places
from support.wal_segments import segment_content

MB = 1 << 20
SEGMENTS = [WalSegment(1, number, MB) for number in range(1, 7)]


@pytest.fixture
def backup(tmp_path: Path) -> tuple[BackupOnDisk, Inventory]:
    """A backup of two tars, of which the second one holds the WAL."""
    parts = []
    for area, name, members in (
        (Area.LOCAL, "base.tar.gz", {"PG_VERSION": b"15"}),
        (Area.SHARED, "data.tar.gz", {f"pg_wal/{one.file_name}": segment_content(one) for one in SEGMENTS}),
    ):
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            for member, content in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        (tmp_path / name).write_bytes(gzip.compress(plain.getvalue(), 1))
        parts.append(Part(area, str(tmp_path / name), is_tar=True, compression="gz"))
    wal = {one.file_name: MB for one in SEGMENTS}
    names = frozenset({(Area.LOCAL, "PG_VERSION"), *((Area.SHARED, f"pg_wal/{name}") for name in wal)})
    inventory = Inventory({}, {}, {}, wal, names, (), True, None, False, 0)
    return BackupOnDisk(str(tmp_path), Form.TAR_DIRECTORY, tuple(parts)), inventory


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tars that are read from their beginning."""
    begun: list[str] = []
    read_tar = streamed.read_tar

    def counted(part: Part) -> Iterator[TarEvent]:
        begun.append(Path(part.path).name)
        return read_tar(part)

    monkeypatch.setattr(streamed, "read_tar", counted)
    return begun


def test_what_a_backup_holds_is_listed_without_reading_it(
    backup: tuple[BackupOnDisk, Inventory], readings: list[str]
) -> None:
    source = wal_of(*backup)
    assert list(source.timelines()) == [1]
    (held,) = source.ranges(1, MB)
    assert (held.start, held.end) == (SEGMENTS[0].start, SEGMENTS[-1].end)
    assert [copy.where.endswith(f"data.tar.gz: {SEGMENTS[2].file_name}")
            for copy in source.copies(SEGMENTS[2].file_name)] == [True]  # fmt: skip
    assert not readings


def test_a_survey_reads_a_compressed_tar_once_for_the_headers_and_once_for_the_wal(
    backup: tuple[BackupOnDisk, Inventory], readings: list[str]
) -> None:
    stock = WalStock(SearchList([]), wal_of(*backup), MB)
    files = [file for _, file in sorted(stock.files(1).items())]
    assert [file.segment for file in files] == SEGMENTS
    for file in (*files, *files):
        header = stock.look_at_start(file).header
        assert header is not None
        assert header.page_address == file.segment.start
    assert readings == ["data.tar.gz"]
    for file in files:
        assert b"".join(map(bytes, stock.read(file))) == segment_content(file.segment)
    assert readings == ["data.tar.gz"] * 2


def test_what_the_archive_has_is_not_looked_for_in_the_backup(
    backup: tuple[BackupOnDisk, Inventory], readings: list[str], tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for segment in SEGMENTS:
        (archive / segment.file_name).write_bytes(segment_content(segment))
    stock = WalStock(wal_places([str(archive)]), wal_of(*backup), MB)
    files = stock.files(1)
    assert len(files) == len(SEGMENTS)
    assert not any(file.in_backup for file in files.values())
    assert stock.paths(list(files.values()))[0] == str(archive / SEGMENTS[0].file_name)
    assert not readings
