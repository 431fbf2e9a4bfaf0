"""A segment that a standby archives before it has received all of it is refused until it is whole."""

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


def segment_of_a_server(data: Path) -> Path:
    (data / "pg_wal").mkdir(exist_ok=True)
    return data / "pg_wal" / SEGMENT.file_name


def looked_at(path: Path) -> int:
    """Return what a standby would archive of a segment."""
    (path.parent.parent / "standby.signal").touch()
    with path.open("rb") as stream:
        return look_at_segment(stream, str(path))[1]


@pytest.mark.parametrize("longest", [30, 9000, 150_000])
@pytest.mark.parametrize("seed", range(12))
def test_a_switched_segment_is_whole_and_one_that_ends_in_zeros_is_not(tmp_path: Path, seed: int, longest: int) -> None:
    path = segment_of_a_server(tmp_path)
    path.write_bytes(built(seed, switched=True, longest=longest).ljust(MB, b"\0"))
    assert looked_at(path) == MB
    content = built(seed, switched=False, longest=longest)
    path.write_bytes(content.ljust(MB, b"\0"))
    with pytest.raises(
        IntegrityError, match=f"not whole yet: its WAL ends after {len(content.rstrip(bytes(1)))} bytes"
    ):
        looked_at(path)


def test_a_switch_that_lies_on_two_pages_is_one(tmp_path: Path) -> None:
    for room in range(8, 64, 8):
        wal = WalBuilder()
        wal.add_up_to(wal.start + 3 * 8192 - room)
        wal.add(rmgr=XLOG, info=0x40)
        path = segment_of_a_server(tmp_path)
        path.write_bytes(bytes(wal.content).ljust(MB, b"\0")[:MB])
        assert looked_at(path) == MB, room


def test_an_unfinished_segment_is_refused_until_it_is_whole(tmp_path: Path) -> None:
    """Success would lose the rest: the server tells by one and the same .ready file that it has come."""
    wal = WalBuilder()
    rng = random.Random(1)
    while len(wal.content) < MB + 100:
        wal.add(rng.randbytes(3000))
    whole = bytes(wal.content)[:MB]
    archive = tmp_path / "archive"
    archive.mkdir()
    path = segment_of_a_server(tmp_path)
    (tmp_path / "standby.signal").touch()
    repository = new_repository()
    repository.ensure_generation("shop", Generation(77, 180000, False, MB, 1 << 30, True))
    pushes = (Pusher(repository, "shop").push, DirectoryPusher(str(archive)).push)
    for length in (300_000, 300_001, 700_000):
        path.write_bytes(whole[:length].ljust(MB, b"\0"))
        for push in pushes:
            with pytest.raises(IntegrityError, match="not whole yet"):
                push(str(path))
        assert repository.wal_of("shop").ranges(1) == []
        assert not list(archive.glob("0*"))
    path.write_bytes(whole)
    for push in pushes:
        push(str(path))
    assert repository.wal_of("shop").read_segment(SEGMENT) == (whole, SEGMENT.end)
    assert (archive / SEGMENT.file_name).read_bytes() == whole


def test_what_a_promoted_server_has_left_is_archived_as_far_as_it_goes(tmp_path: Path) -> None:
    """No rest comes, and the server asks for nothing that is newer before it is archived."""
    content = built(3, switched=False)
    useful = len(content.rstrip(b"\0"))
    archive = tmp_path / "archive"
    archive.mkdir()
    path = segment_of_a_server(tmp_path)
    path.write_bytes(content.ljust(MB, b"\0"))
    repository = new_repository()
    repository.ensure_generation("shop", Generation(77, 180000, False, MB, 1 << 30, True))
    pushes = (Pusher(repository, "shop").push, DirectoryPusher(str(archive)).push)
    for name in ("standby.signal", "recovery.signal", "replica.signal"):
        (tmp_path / name).touch()
        for push in pushes:
            with pytest.raises(IntegrityError, match="not whole yet"):
                push(str(path))
        (tmp_path / name).unlink()
    for push in pushes:
        push(str(path))
        assert push(str(path)) == 0
    assert repository.wal_of("shop").read_segment(SEGMENT) == (content[:useful], SEGMENT.start + useful)
    assert [one.name for one in archive.glob("0*")] == [f"{SEGMENT.file_name}.partial"]
    assert (archive / f"{SEGMENT.file_name}.partial").read_bytes() == path.read_bytes()


def test_a_damaged_page_ends_neither_archiving_nor_the_segment(tmp_path: Path) -> None:
    """A server archives what it has written; refused for ever, its disk would fill up."""
    rng = random.Random(2)
    wal = WalBuilder()
    while len(wal.content) < MB + 100:
        wal.add(rng.randbytes(3000))
    whole = bytearray(wal.content[:MB])
    whole[MB // 2 : MB // 2 + 24] = rng.randbytes(24)
    path = segment_of_a_server(tmp_path)
    path.write_bytes(whole)
    assert looked_at(path) == MB


def test_wal_pages_of_another_size_are_not_judged(tmp_path: Path) -> None:
    path = segment_of_a_server(tmp_path)
    content = bytearray(built(4, switched=False).ljust(MB, b"\0"))
    content[36:40] = (4096).to_bytes(4, "little")
    path.write_bytes(content)
    assert looked_at(path) == MB
