"""Segments while they are received: what is flushed can be read, and nothing that was durable is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.errors import DiskFull, StorageFailed
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.walarchive.store.segment_file import REPLACING, open_segment
from polarvault.walarchive.store.writer import DirectoryWriter
from polarvault.walfiles.files import wal_file
from support.backups import open_plain
from support.small_disk import small_disk
from support.wal_segments import segment_content

MB = 1 << 20
SEGMENT = WalSegment(1, 7, MB)
CONTENT = segment_content(SEGMENT)
SPECIFICATIONS = ["none", "gzip", "gzip:1", "gzip:9", "lz4", "lz4:9", "zstd", "zstd:1"]
COMPRESSED = [text for text in SPECIFICATIONS if text != "none"]

MakeFiles = Callable[..., DirectoryWriter]


def decoded(path: Path) -> bytes:
    """Return what of a file can be read, ended or not."""
    return b"".join(map(bytes, wal_file(str(path.parent), path.name, in_pg_wal=False).views()))


def name_of(text: str, ending: str = "") -> str:
    return SEGMENT.file_name + Compression.parse(text).suffix + ending


@pytest.fixture(params=[False, True], ids=["thread", "inline"])
def make_files(tmp_path: Path, request: pytest.FixtureRequest) -> MakeFiles:
    """A function that opens a DirectoryWriter on a temporary directory, with a thread for syncs or without."""

    def make(text: str, segment_size_bytes: int = MB) -> DirectoryWriter:
        return DirectoryWriter(
            str(tmp_path),
            segment_size_bytes=segment_size_bytes,
            compression=Compression.parse(text),
            mode=0o600,
            sync=True,
            synchronous=request.param,
            wake=lambda: None,
            on_segment=lambda segment: None,
        )

    return make


def cut(content: bytes, piece_bytes: int = 30_000) -> list[memoryview]:
    return [memoryview(content[at : at + piece_bytes]) for at in range(0, len(content), piece_bytes)]


def sync(files: DirectoryWriter) -> None:
    files.sync()
    files.wait(60)


@pytest.mark.parametrize("text", SPECIFICATIONS)
def test_what_was_flushed_can_be_decoded_although_the_segment_has_not_ended(
    tmp_path: Path, make_files: MakeFiles, text: str
) -> None:
    files = make_files(text)
    files.begin(SEGMENT.start, 1)
    path = tmp_path / name_of(text, ".partial")
    for size in (1, 100, 8192, 300_000, 3):
        files.write(cut(CONTENT[files.received - SEGMENT.start :][:size]))
        sync(files)
        assert files.flushed == files.received
        there = decoded(path)[: files.flushed - SEGMENT.start]
        assert there == CONTENT[: files.flushed - SEGMENT.start]
    files.write(cut(CONTENT[files.received - SEGMENT.start :]))
    files.close()
    assert [entry.name for entry in tmp_path.iterdir()] == [name_of(text)]
    with open_plain(tmp_path / name_of(text)) as whole:
        assert whole.read() == CONTENT


@pytest.mark.parametrize("text", COMPRESSED)
def test_a_compressed_partial_is_replaced_only_by_one_that_holds_as_much(tmp_path: Path, text: str) -> None:
    compression = Compression.parse(text)
    partial = tmp_path / name_of(text, ".partial")
    earlier = open_segment(str(tmp_path), SEGMENT, compression, mode=0o600, sync=True, reserve=False)
    earlier.write([memoryview(CONTENT[:500_000])])
    earlier.flush()
    earlier.sync()
    before = partial.read_bytes()

    later = open_segment(str(tmp_path), SEGMENT, compression, mode=0o600, sync=True, reserve=False)
    for end in (100_000, 499_999):
        later.write([memoryview(CONTENT[later.position : end])])
        later.flush()
        later.sync()
        assert not later.settle(later.position)
        assert partial.read_bytes() == before
    later.write([memoryview(CONTENT[later.position : 500_000])])
    later.flush()
    later.sync()
    assert later.settle(later.position)
    assert decoded(partial) == CONTENT[:500_000]
    assert not partial.with_name(partial.name + REPLACING).exists()
    later.close()
    with open_plain(partial.rename(tmp_path / name_of(text))) as whole:
        assert whole.read() == CONTENT[:500_000]


@pytest.mark.parametrize("text", COMPRESSED)
def test_a_run_that_got_less_far_leaves_the_earlier_partial_alone(
    tmp_path: Path, make_files: MakeFiles, text: str
) -> None:
    for size in (500_000, 400_000, 10):
        files = make_files(text)
        files.begin(SEGMENT.start, 1)
        files.write(cut(CONTENT[:size]))
        files.close()
        assert [entry.name for entry in tmp_path.iterdir()] == [name_of(text, ".partial")]
        assert decoded(tmp_path / name_of(text, ".partial")) == CONTENT[:500_000]


def test_a_plain_partial_is_written_over_and_never_shorter(tmp_path: Path, make_files: MakeFiles) -> None:
    path = tmp_path / name_of("none", ".partial")
    path.write_bytes(CONTENT[:500_000])
    files = make_files("none")
    files.begin(SEGMENT.start, 1)
    files.write(cut(CONTENT[:10_000]))
    sync(files)
    assert path.read_bytes() == CONTENT[:500_000].ljust(MB, b"\0")
    files.close()


def test_zeros_replace_what_an_earlier_run_left(tmp_path: Path, make_files: MakeFiles) -> None:
    path = tmp_path / name_of("none", ".partial")
    path.write_bytes(b"x" * MB)
    files = make_files("none")
    files.begin(SEGMENT.start, 1)
    files.write(cut(CONTENT[:100_000] + bytes(MB - 100_000)))
    files.close()
    assert (tmp_path / name_of("none")).read_bytes() == CONTENT[:100_000] + bytes(MB - 100_000)


def test_the_zeros_of_a_switched_segment_take_no_space(tmp_path: Path, make_files: MakeFiles) -> None:
    files = make_files("none", 32 * MB)
    files.begin(Lsn(32 * MB), 1)
    files.write(cut(CONTENT[:16384]))
    for end in range(MB, 33 * MB, MB):
        files.write(cut(bytes(32 * MB + end - files.received)))
    files.close()
    (whole,) = tmp_path.iterdir()
    assert whole.read_bytes() == CONTENT[:16384] + bytes(32 * MB - 16384)
    # A few megabytes may have been reserved.
    assert whole.stat().st_blocks * 512 < 8 * MB


def test_a_batch_over_several_segments_finishes_each(tmp_path: Path, make_files: MakeFiles) -> None:
    files = make_files("none")
    files.begin(SEGMENT.start, 1)
    content = b"".join(segment_content(WalSegment(1, number, MB)) for number in (7, 8, 9))
    files.write(cut(content[: 2 * MB + 100], piece_bytes=700_001))
    files.write([])
    files.close()
    names = [WalSegment(1, number, MB).file_name for number in (7, 8, 9)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [names[0], names[1], names[2] + ".partial"]
    assert b"".join((tmp_path / name).read_bytes() for name in names[:2]) == content[: 2 * MB]
    assert files.flushed == files.received == SEGMENT.start + 2 * MB + 100


def test_a_stream_goes_on_in_an_open_segment_and_between_two(make_files: MakeFiles) -> None:
    files = make_files("none")
    assert not files.can_go_on(0)
    assert not files.can_go_on(1)
    files.begin(SEGMENT.start, 1)
    assert files.can_go_on(1)
    assert not files.can_go_on(2)
    files.write(cut(CONTENT[:-1]))
    assert files.can_go_on(1)
    files.write(cut(CONTENT[-1:]))
    # Its file is being finished; what follows begins a new one.
    assert files.can_go_on(1)
    files.write(cut(CONTENT[:10]))
    files.end_segment()
    # The middle of a segment that was closed: it has to be opened, and written, from its start.
    assert not files.can_go_on(1)
    files.close()


@pytest.mark.parametrize("text", ["none", "gzip:1", "lz4", "zstd:1"])
def test_a_full_disk_acknowledges_nothing_that_is_not_there(tmp_path: Path, make_files: MakeFiles, text: str) -> None:
    with small_disk(tmp_path, "400k"):
        files = make_files(text)
        files.begin(SEGMENT.start, 1)
        noise = CONTENT[:40] + os.urandom(MB - 40)
        flushed = Lsn(0)

        def fill_up() -> None:
            nonlocal flushed
            for at in range(0, MB, 10_000):
                files.write(cut(noise[at : at + 10_000]))
                sync(files)
                flushed = files.flushed

        with pytest.raises(DiskFull, match="No space left on device"):
            fill_up()
        files.abandon()
        assert flushed > SEGMENT.start
        there = decoded(tmp_path / name_of(text, ".partial"))[: flushed - SEGMENT.start]
        assert there == noise[: flushed - SEGMENT.start]


def test_what_cannot_be_written_is_named(tmp_path: Path, make_files: MakeFiles) -> None:
    files = make_files("none")
    files.begin(SEGMENT.start, 1)
    (tmp_path / name_of("none", ".partial")).mkdir()
    with pytest.raises(StorageFailed, match=name_of("none")):
        files.write(cut(CONTENT[:10]))
    files.abandon()


@pytest.mark.parametrize("text", ["none", "gzip"])
def test_a_fifo_in_the_place_of_a_segment_is_refused_and_not_waited_for(
    tmp_path: Path, make_files: MakeFiles, text: str
) -> None:
    files = make_files(text)
    files.begin(SEGMENT.start, 1)
    os.mkfifo(tmp_path / name_of(text, ".partial"))
    with pytest.raises(StorageFailed, match=f"{name_of(text)}.*not a regular file"):
        files.write(cut(CONTENT[:10]))
    files.abandon()
