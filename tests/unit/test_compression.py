"""What -Z means, and what the end of a WAL stream leaves behind."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from polarvault.errors import UsageError
from polarvault.model.compression import Compression
from polarvault.model.segment import WalSegment
from polarvault.pipeline.byte_sinks import FileBytes
from polarvault.pipeline.wal_sinks import WalDirectory, WalTar

SEGMENT = WalSegment(1, 1, 1 << 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", ("none", None, None, None, False)),
        ("none", ("none", None, None, None, False)),
        ("7", ("gzip", None, 7, None, False)),
        ("gzip", ("gzip", None, None, None, False)),
        ("client-gzip:3", ("gzip", "client", 3, None, False)),
        ("client-lz4:level=12", ("lz4", "client", 12, None, False)),
        # What the server is to do it judges itself.
        ("server-lz4:level=99", ("lz4", "server", None, None, False)),
        ("server-new:level", ("new", "server", None, None, False)),
        ("", ("none", None, None, None, False)),
        (" 3", ("gzip", None, 3, None, False)),
        ("gzip:+3", ("gzip", None, 3, None, False)),
        ("none:0", ("none", None, None, None, False)),
        ("-1", ("gzip", None, None, None, False)),
        ("lz4:0", ("lz4", None, None, None, False)),
        ("zstd:level=-5,workers=4,long", ("zstd", None, -5, 4, True)),
        ("zstd:long=off", ("zstd", None, None, None, False)),
    ],
)
def test_specifications_are_understood(text: str, expected: tuple[object, ...]) -> None:
    found = Compression.parse(text)
    assert (found.algorithm, found.location, found.level, found.workers, found.long) == expected


@pytest.mark.parametrize(
    "text",
    [
        "zip",
        " ",
        "3 ",
        "server",
        "gzip:",
        "gzip:0",
        "gzip:long",
        "gzip:5,level=3",
        "zstd:long=true",
        "lz4:13",
        "zstd:23",
        "zstd:workers=x",
        "zstd:,",
        "none:1",
    ],
)
def test_wrong_specifications_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Compression.parse(text)


@pytest.mark.parametrize("complete", [True, False])
def test_only_a_complete_segment_is_marked_as_archived(tmp_path: Path, *, complete: bool) -> None:
    content = memoryview(b"w" * (SEGMENT.size_bytes if complete else 1000))
    directory = WalDirectory(str(tmp_path / "pg_wal"), file_mode=0o600, directory_mode=0o700, sync=False)
    tar = WalTar(FileBytes(str(tmp_path / "pg_wal.tar"), mode=0o600, writeback=False), str(tmp_path / "pg_wal.tar"))
    for sink in (directory, tar):
        sink.write(SEGMENT, 0, content)
        sink.segment_done(SEGMENT)
        sink.finish()
        assert sink.read(SEGMENT, 990, 10) == b"w" * 10
    assert (tmp_path / "pg_wal" / SEGMENT.file_name).stat().st_size == SEGMENT.size_bytes
    assert (tmp_path / "pg_wal" / "archive_status" / f"{SEGMENT.file_name}.done").exists() is complete
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "pg_wal.tar").read_bytes())) as archive:
        assert archive.getmember(SEGMENT.file_name).size == SEGMENT.size_bytes
        assert (f"archive_status/{SEGMENT.file_name}.done" in archive.getnames()) is complete


def test_zeros_after_the_end_take_no_room(tmp_path: Path) -> None:
    directory = WalDirectory(str(tmp_path), file_mode=0o600, directory_mode=0o700, sync=False)
    directory.write(SEGMENT, 0, memoryview(b"w" * 8192))
    directory.write(SEGMENT, 8192, memoryview(bytes(SEGMENT.size_bytes - 8192)))
    directory.segment_done(SEGMENT)
    written = tmp_path / SEGMENT.file_name
    assert written.read_bytes() == b"w" * 8192 + bytes(SEGMENT.size_bytes - 8192)
    assert written.stat().st_blocks * 512 < 100_000
    assert (tmp_path / "archive_status" / f"{SEGMENT.file_name}.done").exists()
