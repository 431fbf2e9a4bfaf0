"""WAL directories as a source: which file is chosen, and what is read of it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.segment import WalSegment
from polarvault.wal.source import segment_numbers
from polarvault.walfiles.choice import find, history_of
from polarvault.walfiles.directory import WalDirectory
from polarvault.walfiles.files import WalFile, forms_of, read_segment_header, wal_file
from polarvault.walfiles.search_list import SearchList, wal_places
from support.wal_segments import PAGE_BYTES, SYSTEM_IDENTIFIER, segment_content

MB = 1 << 20
SEGMENT = WalSegment.parse("000000010000000000000002", MB)
NAME = SEGMENT.file_name
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "lz4": lambda plain: lz4.frame.compress(plain, content_checksum=True),
    "zst": zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress,
}


def directory(root: Path, files: dict[str, bytes], *, pg_wal: bool = False) -> str:
    root.mkdir()
    if pg_wal:
        (root / "archive_status").mkdir()
    for name, content in files.items():
        (root / name).write_bytes(content)
    return str(root)


def chosen(*paths: str) -> str | None:
    found = find(wal_places(paths), SEGMENT)
    return os.path.relpath(found.where, Path(paths[0]).parent) if found else None


def numbers(source: SearchList, timeline_id: int) -> list[int]:
    return list(segment_numbers(source.ranges(timeline_id, MB), MB))


def plain(file: WalFile) -> bytes:
    return b"".join(map(bytes, file.views()))


@pytest.mark.parametrize(
    ("name", "stem", "compression", "partial"),
    [
        (NAME, NAME, None, False),
        (NAME + ".gz", NAME, "gz", False),
        (NAME + ".gz.partial", NAME, "gz", True),
        (NAME + ".lz4.partial", NAME, "lz4", True),
        (NAME + ".partial", NAME, None, True),
        ("00000002.history.zst", "00000002.history", "zst", False),
        (NAME + ".00000028.backup", NAME + ".00000028.backup", None, False),
        ("partial", "partial", None, False),
        ("", "", None, False),
    ],
)
def test_a_file_s_name_tells_its_form(name: str, stem: str, compression: str | None, partial: bool) -> None:
    file = wal_file("/wal", name, in_pg_wal=False)
    assert (file.path, file.name, file.compression, file.partial) == (f"/wal/{name}", stem, compression, partial)


def test_whole_wins_over_partial_and_the_first_directory_over_the_second_and_plain_over_compressed(
    tmp_path: Path,
) -> None:
    whole, part = segment_content(SEGMENT), segment_content(SEGMENT, pages=5)
    first = directory(tmp_path / "first", {NAME + ".partial": part})
    second = directory(tmp_path / "second", {NAME + ".gz": gzip.compress(whole)})
    third = directory(tmp_path / "third", {NAME + ".gz": gzip.compress(whole), NAME: whole})
    assert chosen(first) == f"first/{NAME}.partial"
    assert chosen(first, second) == f"second/{NAME}.gz"
    assert chosen(first, second, third) == f"second/{NAME}.gz"
    assert chosen(third, second) == f"third/{NAME}"
    assert chosen(third, directory(tmp_path / "fourth", {NAME: whole})) == f"third/{NAME}"
    assert chosen(directory(tmp_path / "empty", {})) is None


@pytest.mark.parametrize(
    "content", [b"", bytes(MB), segment_content(SEGMENT, pages=9), segment_content(SEGMENT.next())]
)
def test_a_finished_file_that_no_fetch_would_serve_is_passed_over_for_a_good_one(
    tmp_path: Path, content: bytes
) -> None:
    first = directory(tmp_path / "first", {NAME: content})
    second = directory(tmp_path / "second", {NAME + ".gz": gzip.compress(segment_content(SEGMENT))})
    assert chosen(first) == f"first/{NAME}"
    assert chosen(first, second) == f"second/{NAME}.gz"
    (tmp_path / "first" / NAME).unlink()
    (tmp_path / "first" / NAME).mkdir()
    assert chosen(first, second) == f"second/{NAME}.gz"


@pytest.mark.parametrize("compression", ["gz", "lz4", "zst"])
def test_of_partial_ones_the_longest_valid_content_wins(tmp_path: Path, compression: str) -> None:
    """Not the longest file: one tool pads with zeros, and a recycled file ends in old WAL."""
    short = segment_content(SEGMENT, pages=4, used_of_last=100)
    longer = segment_content(SEGMENT, pages=4, used_of_last=101)
    older = segment_content(WalSegment(1, 1, MB))
    padded = directory(tmp_path / "padded", {NAME + ".partial": short.ljust(MB, b"\0")})
    recycled = directory(tmp_path / "recycled", {NAME + ".partial": short + older[len(short) :]})
    packed = directory(tmp_path / "packed", {f"{NAME}.{compression}.partial": COMPRESS[compression](longer)})
    assert chosen(padded, recycled) == f"padded/{NAME}.partial"
    assert chosen(padded, recycled, packed) == f"packed/{NAME}.{compression}.partial"
    cut = directory(tmp_path / "cut", {NAME + ".partial": longer[: 3 * PAGE_BYTES + 101]})
    assert chosen(padded, cut) == f"cut/{NAME}.partial"


def test_in_pg_wal_a_whole_segment_may_be_the_shorter_one(tmp_path: Path) -> None:
    ours = directory(tmp_path / "pg_wal", {NAME: segment_content(SEGMENT, pages=3).ljust(MB, b"\0")}, pg_wal=True)
    longer = directory(tmp_path / "received", {NAME + ".partial": segment_content(SEGMENT, pages=4)})
    assert chosen(ours) == f"pg_wal/{NAME}"
    assert chosen(ours, longer) == f"received/{NAME}.partial"


def test_segments_that_wait_in_pg_wal_to_be_overwritten_are_not_there(tmp_path: Path) -> None:
    older = segment_content(WalSegment(1, 0, MB))
    path = directory(tmp_path / "pg_wal", {NAME: older, SEGMENT.next().file_name: bytes(MB)}, pg_wal=True)
    assert find(WalDirectory(path), SEGMENT) is None
    assert find(WalDirectory(path), SEGMENT.next()) is None


def test_what_is_there_is_listed_by_timeline(tmp_path: Path) -> None:
    content = segment_content(SEGMENT, pages=1)
    first = directory(tmp_path / "first", {NAME: content, SEGMENT.next().file_name + ".gz.partial": b""})
    names = [
        "00000002.history.gz",
        WalSegment(3, 5000, MB).file_name,
        "RECOVERYXLOG",
        NAME + ".00000028.backup",
        "receivewal.lock",
    ]
    second = directory(tmp_path / "second", dict.fromkeys([NAME, *names], gzip.compress(b"1\t0/28\tx\n")))
    source = wal_places([first, second])
    assert numbers(source, 1) == [2, 3]
    assert numbers(source, 3) == [5000]
    assert numbers(source, 2) == []
    assert source.timelines() == [1, 2, 3]
    assert history_of(source, 2) == b"1\t0/28\tx\n"
    assert history_of(source, 3) is None


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    source = wal_places([str(tmp_path / "gone")])
    with pytest.raises(StorageFailed, match=r'could not read directory ".*gone": No such file'):
        source.ranges(1, MB)
    with pytest.raises(StorageFailed, match=r'could not read directory ".*gone": No such file'):
        source.first_header()


@pytest.mark.parametrize("compression", ["gz", "lz4", "zst"])
def test_compressed_content_is_read_whole_in_several_members(tmp_path: Path, compression: str) -> None:
    content = segment_content(SEGMENT)
    compress = COMPRESS[compression]
    path = tmp_path / f"{NAME}.{compression}"
    path.write_bytes(compress(content[: 300 << 10]) + compress(content[300 << 10 :]))
    assert plain(wal_file(str(tmp_path), path.name, in_pg_wal=False)) == content


@pytest.mark.parametrize("compression", ["gz", "lz4", "zst"])
def test_a_cut_compressed_file_is_damaged_and_a_cut_partial_just_ends(tmp_path: Path, compression: str) -> None:
    content = os.urandom(300 << 10)
    cut = COMPRESS[compression](content)[: 250 << 10]
    whole, part = tmp_path / f"{NAME}.{compression}", tmp_path / f"{NAME}.{compression}.partial"
    whole.write_bytes(cut)
    part.write_bytes(cut)
    with pytest.raises(IntegrityError, match=f'"{whole}" ends at byte {250 << 10}, before its compressed content'):
        plain(wal_file(str(tmp_path), whole.name, in_pg_wal=False))
    got = plain(wal_file(str(tmp_path), part.name, in_pg_wal=False))
    assert content.startswith(got)
    assert len(got) > 100 << 10


def test_a_partial_with_a_damaged_tail_is_read_to_the_last_byte_that_can_be_decoded(tmp_path: Path) -> None:
    """A power cut leaves zeros where the file had grown and the blocks had not arrived."""
    packer = zlib.compressobj(wbits=31)
    content = os.urandom(20_000)
    flushed = packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)
    path = tmp_path / f"{NAME}.gz.partial"
    path.write_bytes(flushed + b"\xff" * 5000)
    assert plain(wal_file(str(tmp_path), path.name, in_pg_wal=False)) == content


@pytest.mark.parametrize("compression", ["gz", "lz4", "zst"])
def test_damage_is_named_with_file_and_position(tmp_path: Path, compression: str) -> None:
    packed = bytearray(COMPRESS[compression](os.urandom(300 << 10)))
    packed[200_000:200_064] = b"\xff" * 64
    packed[-20:] = bytes(20)
    path = tmp_path / f"{NAME}.{compression}"
    path.write_bytes(packed)
    with pytest.raises(IntegrityError, match=rf'"{path}" cannot be decompressed at byte \d+ or shortly after: '):
        plain(wal_file(str(tmp_path), path.name, in_pg_wal=False))


@pytest.mark.parametrize("size_mb", [1, 16, 64, 1024])
@pytest.mark.parametrize("compression", [None, "gz", "lz4", "zst"])
def test_the_first_page_tells_the_segment_size(tmp_path: Path, size_mb: int, compression: str | None) -> None:
    segment = WalSegment(7, 9, size_mb * MB)
    content = segment_content(segment, pages=2)
    name = segment.file_name + (f".{compression}.partial" if compression else "")
    path = directory(
        tmp_path / "wal", {name: COMPRESS[compression](content) if compression else content, "README": b""}
    )
    header = WalDirectory(path).first_header()
    assert header is not None
    assert (header.segment_size_bytes, header.system_identifier) == (size_mb * MB, SYSTEM_IDENTIFIER)
    assert (header.timeline_id, header.page_address) == (7, segment.start)
    (file,) = forms_of(path, segment.file_name)
    assert read_segment_header(file).page_bytes == PAGE_BYTES


def test_a_file_without_wal_is_refused_and_a_directory_without_segments_knows_no_size(tmp_path: Path) -> None:
    path = directory(tmp_path / "wal", {NAME: b"some text"})
    with pytest.raises(IntegrityError, match=f'"{path}/{NAME}" does not begin with the first page of a WAL segment'):
        read_segment_header(wal_file(path, NAME, in_pg_wal=False))
    assert WalDirectory(path).first_header() is None


def test_a_fetch_loads_nothing_that_would_slow_it_down() -> None:
    heavy = ["dataclasses", "typing", "enum", "functools", "collections", "re", "ctypes", "pathlib", "click", "rich"]
    modules = "polarvault.cli.wal_fetch, polarvault.walarchive.fetch, polarvault.walfiles.directory"
    program = f"import sys, {modules}; print(*(sys.modules.keys() & set({heavy})))"
    # -S: what site-packages adds to every start-up is not ours.
    path = os.pathsep.join(part for part in sys.path if part)
    finished = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, env={"PYTHONPATH": path}, check=True
    )
    assert finished.stdout.split() == []
