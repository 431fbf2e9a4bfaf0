"""A segment that a standby archives before it has received all of it: only what is WAL counts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from polarvault.errors import IntegrityError
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.walarchive.push import Pusher
from polarvault.walarchive.pushing.directory import DirectoryPusher
from polarvault.walarchive.pushing.files import look_at_segment
from support.repositories import new_repository
from support.wal_bytes import XLOG, WalBuilder

MB = 1 << 20
SEGMENT = WalSegment(1, 1, MB)


def built(seed: int, *, switched: bool, longest: int = 9000) -> bytes:
    """Return WAL of one segment, not full, and with a switch to the next one or none."""
    rng = random.Random(seed)
    wal = WalBuilder()
    for _ in range(rng.randrange(1, 60)):
        wal.add(rng.randbytes(rng.randrange(longest)))
        if len(wal.content) > MB - 3 * longest:
            break
    if switched:
        wal.add(rmgr=XLOG, info=0x40)
    return bytes(wal.content)[:MB]


def looked_at(path: Path) -> int:
    with path.open("rb") as stream:
        return look_at_segment(stream, str(path))[1]


@pytest.mark.parametrize("longest", [30, 9000, 150_000])
@pytest.mark.parametrize("seed", range(12))
def test_a_switched_segment_is_whole_and_one_that_ends_in_zeros_is_not(tmp_path: Path, seed: int, longest: int) -> None:
    path = tmp_path / SEGMENT.file_name
    path.write_bytes(built(seed, switched=True, longest=longest).ljust(MB, b"\0"))
    assert looked_at(path) == MB
    content = built(seed, switched=False, longest=longest)
    path.write_bytes(content.ljust(MB, b"\0"))
    assert looked_at(path) == len(content.rstrip(b"\0"))


def test_a_switch_that_lies_on_two_pages_is_one(tmp_path: Path) -> None:
    for room in range(8, 64, 8):
        wal = WalBuilder()
        wal.add_up_to(wal.start + 3 * 8192 - room)
        wal.add(rmgr=XLOG, info=0x40)
        path = tmp_path / SEGMENT.file_name
        path.write_bytes(bytes(wal.content).ljust(MB, b"\0")[:MB])
        assert looked_at(path) == MB, room


def test_an_unfinished_segment_and_then_the_whole_one_are_archived(tmp_path: Path) -> None:
    wal = WalBuilder()
    rng = random.Random(1)
    while len(wal.content) < MB + 100:
        wal.add(rng.randbytes(3000))
    whole = bytes(wal.content)[:MB]
    source = tmp_path / "pg_wal"
    source.mkdir()
    path = source / SEGMENT.file_name
    repository = new_repository()
    repository.ensure_generation("shop", Generation(77, 180000, False, MB, 1 << 30, True))
    pusher = Pusher(repository, "shop")
    archive = tmp_path / "archive"
    archive.mkdir()
    for length in (300_000, 300_001, 700_000):
        path.write_bytes(whole[:length].ljust(MB, b"\0"))
        pusher.push(str(path))
        DirectoryPusher(str(archive)).push(str(path))
        there, _ = repository.wal_of("shop").read_segment(SEGMENT)
        assert there == whole[:length].rstrip(b"\0")
        assert [one.name for one in archive.glob("0*")] == [f"{SEGMENT.file_name}.partial"]
    path.write_bytes(whole)
    pusher.push(str(path))
    DirectoryPusher(str(archive)).push(str(path))
    assert repository.wal_of("shop").read_segment(SEGMENT) == (whole, SEGMENT.end)
    assert (archive / SEGMENT.file_name).read_bytes() == whole
    # Zeros are no WAL that could contradict what is there; other WAL does.
    path.write_bytes(whole[:1000].ljust(MB, b"\0"))
    assert pusher.push(str(path)) == 0
    path.write_bytes(whole[: MB - 100] + b"x" * 100)
    with pytest.raises(IntegrityError):
        pusher.push(str(path))
