"""WAL that is received goes on where the directory's ends, or is refused: it may be another history's."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.errors import TimelineDiverged
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.history import TimelineHistory
from polarvault.walarchive.receive.continuity import continuity
from polarvault.walarchive.store.directory import DirectoryStore
from polarvault.walarchive.store.writer import DirectoryWriter
from support.wal_bytes import XLOG, WalBuilder

MB = 1 << 20
SWITCH = 0x40


def writer_at(directory: Path, lsn: int, *, compression: str = "none") -> DirectoryWriter:
    """Return a writer for which the next byte is that at the LSN, after what is in the directory."""
    writer = DirectoryStore(str(directory), compression=Compression.parse(compression), synchronous=True).open(
        segment_size_bytes=MB, group_access=False, wake=lambda: None, on_segment=lambda segment: None
    )
    writer.timeline_id, writer.received = 1, Lsn(lsn)
    return writer


def written(seed: int, *, longest: int = 9000) -> WalBuilder:
    """Return two segments and more of records, from segment 1 on."""
    chosen, builder = random.Random(seed), WalBuilder()
    while len(builder.content) < 3 * MB:
        builder.add(chosen.randbytes(chosen.randrange(1, longest)))
    return builder


def pieces(content: bytes, size: int) -> Iterator[memoryview]:
    return (memoryview(content)[at : at + size] for at in range(0, len(content), size))


def check(files: DirectoryWriter, following: bytes, *, piece_bytes: int = 100_000) -> bool:
    """Return whether anything could be said; raise TimelineDiverged if it does not continue."""
    found = continuity(files, TimelineHistory(1), hint="next", reset_hint="anew")
    if found is None:
        return False
    for piece in pieces(following, piece_bytes):
        found.check([piece])
    return found.is_settled()


def keep(directory: Path, content: bytes, suffix: str = "") -> None:
    name = WalSegment(1, 1, MB).file_name + suffix
    (directory / name).write_bytes(gzip.compress(content, 1) if suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("longest", [300, 9000, 400_000])
def test_the_next_segment_has_to_continue_the_one_that_is_here(tmp_path: Path, suffix: str, longest: int) -> None:
    one, other = written(1, longest=longest), written(2, longest=longest)
    keep(tmp_path, one.content[:MB], suffix)
    files = writer_at(tmp_path, 2 * MB)
    for piece_bytes in (100_000, 7):
        assert check(files, one.content[MB : MB + 700_000], piece_bytes=piece_bytes)
        with pytest.raises(TimelineDiverged, match=r"from 0/200000 on .* does not continue what is kept"):
            check(files, other.content[MB : MB + 700_000], piece_bytes=piece_bytes)


def test_a_segment_that_is_open_has_to_be_continued(tmp_path: Path) -> None:
    one, other = written(1), written(2)
    ends = [end for _, end in one.records if MB < end - one.start < 2 * MB]
    for end in (ends[3], ends[20], ends[-1]):
        files = writer_at(tmp_path, 2 * MB)
        files.write([memoryview(one.content[MB : end - one.start])])
        assert files.received == end
        assert check(files, one.content[end - one.start :][:100_000])
        with pytest.raises(TimelineDiverged):
            check(files, other.content[end - one.start :][:100_000])
        files.close()


def test_nothing_is_said_where_nothing_can_be_known(tmp_path: Path) -> None:
    other = written(2).content[MB:]
    # No segment, one that is not finished, one that is damaged.
    files = writer_at(tmp_path, 2 * MB)
    assert not check(files, other)
    keep(tmp_path, written(1).content[:MB], ".partial")
    assert not check(files, other)
    # Beside a partial one with WAL an empty one would not count.
    next(tmp_path.glob("*.partial")).unlink()
    keep(tmp_path, bytes(MB))
    assert check(files, other)
    # Behind a segment that was switched early there is nothing that could be continued.
    switched = WalBuilder()
    switched.add(b"record")
    switched.add(rmgr=XLOG, info=SWITCH)
    keep(tmp_path, bytes(switched.content))
    assert check(files, other)
    # An open compressed segment; the very first byte.
    files = writer_at(tmp_path, 2 * MB, compression="gzip")
    files.write([memoryview(other[:8192])])
    assert not check(files, other)
    assert not check(writer_at(tmp_path, 0), other)
    files.close()


def test_what_pg_resetwal_has_begun_right_behind_a_whole_segment_is_refused(tmp_path: Path) -> None:
    """The segment was switched early, so that the last record that is here tells nothing of the next."""
    builder = WalBuilder()
    builder.add(b"some")
    builder.add(b"", rmgr=XLOG, info=SWITCH)
    keep(tmp_path, bytes(builder.content))
    begun = WalBuilder(segment=2)
    begun.add(b"a checkpoint, before which there is no record")
    anew = bytes(begun.content)
    files = writer_at(tmp_path, 2 * MB)
    for piece_bytes in (100_000, 7):
        with pytest.raises(TimelineDiverged, match=r"00000001.*02 was begun by pg_resetwal") as caught:
            check(files, anew, piece_bytes=piece_bytes)
        assert caught.value.hint == "anew"
    # The first segment of all begins like that, too, and follows nothing.
    (tmp_path / "empty").mkdir()
    assert not check(writer_at(tmp_path / "empty", 2 * MB), anew)
