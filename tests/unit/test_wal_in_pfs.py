"""WAL into and out of PFS, on a stand-in for its library: whole under its name or not there, and holes stay holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.errors import StorageFailed, UsageError
from polarvault.model.pfs_address import PfsAddress
from polarvault.walarchive.in_pfs import _filled, fetch_into_pfs, push_out_of_pfs, wal_place
from polarvault.walarchive.restore_command import restore_command
from polarvault.walfiles.search_list import SearchList
from support.fake_pfs import DISK, FakeDisk

NAME = "000000010000000000000007"
TARGET = PfsAddress(DISK, "shared/pg_wal/RECOVERYXLOG")
CONTENT = b"W" * 8192 + bytes(5 << 20) + b"A" * 100 + bytes(8092)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDisk]:
    found = FakeDisk(tmp_path)
    (found.root / DISK / "shared/pg_wal").mkdir(parents=True)
    (found.root / DISK / "shared/global").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    yield found
    assert list((tmp_path / "data").iterdir()) == []


def wal(disk: FakeDisk) -> Path:
    return disk.root / DISK / "shared/pg_wal"


def fetch(disk: FakeDisk, *, finds: bool = True, faults: str = "") -> tuple[bool, dict[str, bytes]]:
    """Fetch into the disk; return the answer and what lay beside the file that was filled."""
    beside: dict[str, bytes] = {}

    def fill(target: str) -> bool:
        directory = Path(target).parent
        beside.update({path.name: path.read_bytes() for path in directory.iterdir()})
        if finds:
            Path(target).write_bytes(CONTENT)
        return finds

    answer = fetch_into_pfs(
        fill, NAME, TARGET, "disk",
        reading=lambda place, _: disk.tree(disk.mount(place.directory, host_id=None)),
        writing=lambda place, _: disk.writable_tree(disk.mount(place.directory, host_id=0), faults),
    )  # fmt: skip
    return answer, beside


def test_a_segment_arrives_whole_with_its_holes_in_place_of_what_had_the_name(disk: FakeDisk) -> None:
    (wal(disk) / "RECOVERYXLOG").write_bytes(b"of an earlier fetch")
    (wal(disk) / "RECOVERYXLOG.polarvault").write_bytes(b"of a killed one")
    assert fetch(disk) == (True, {})
    (found,) = wal(disk).iterdir()
    assert (found.name, found.read_bytes()) == ("RECOVERYXLOG", CONTENT)
    assert found.stat().st_blocks * 512 < 1 << 20


def test_what_is_not_there_leaves_nothing(disk: FakeDisk) -> None:
    assert fetch(disk, finds=False) == (False, {})
    assert list(wal(disk).iterdir()) == []


def test_the_server_s_own_segment_is_seen_by_the_fetch(disk: FakeDisk) -> None:
    (wal(disk) / NAME).write_bytes(CONTENT[:9000])
    assert fetch(disk) == (True, {NAME: CONTENT[:9000]})


def test_a_full_disk_is_an_error_and_the_name_is_not_given(disk: FakeDisk) -> None:
    with pytest.raises(StorageFailed, match="no block is free"):
        fetch(disk, faults="bytes=4096")
    assert not (wal(disk) / "RECOVERYXLOG").exists()


def test_a_push_gets_the_file_with_what_it_looks_for_beside_it(disk: FakeDisk) -> None:
    files = {f"pg_wal/{NAME}": CONTENT, "pg_wal/00000001.history": b"history", "global/pg_control": b"control"}
    for name, content in files.items():
        (disk.root / DISK / "shared" / name).write_bytes(content)
    seen: dict[str, bytes] = {}

    def push(path: str) -> None:
        root = Path(path).parents[1]
        seen.update({str(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()})
        assert os.path.basename(path) == NAME

    address = PfsAddress(DISK, f"shared/pg_wal/{NAME}")
    push_out_of_pfs(push, address, "disk", reading=lambda place, _: disk.tree(disk.mount(place.directory)))
    assert seen == files
    with pytest.raises(StorageFailed, match="it is not there"):
        push_out_of_pfs(
            push, PfsAddress(DISK, "shared/pg_wal/0" * 2), "disk",
            reading=lambda place, _: disk.tree(disk.mount(place.directory)),
        )  # fmt: skip


def test_what_killed_calls_have_left_is_removed_and_links_are_not_followed(disk: FakeDisk, tmp_path: Path) -> None:
    left = tmp_path / f"data/pgsql_tmp_polarvault_{2**22 + 1}"
    (left / "pg_wal").mkdir(parents=True)
    (left / "pg_wal/file").write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_bytes(b"x")
    (left / "link").symlink_to(tmp_path / "outside")
    assert fetch(disk)[0]
    assert (tmp_path / "outside/kept").exists()


def test_stretches_are_what_is_no_zeros() -> None:
    page = 8192
    content = memoryview(bytes(page) + b"a" * page + b"\0" * (page - 1) + b"b" + bytes(2 * page) + b"\0c")
    assert list(_filled(content)) == [(page, 3 * page), (5 * page, 5 * page + 2)]
    assert list(_filled(memoryview(bytes(100)))) == []


def test_a_path_of_this_machine_is_none_of_pfs() -> None:
    for path in ("pg_wal/RECOVERYXLOG", "/tmp/pg_wal/RECOVERYXLOG", "/nodisk/pg_wal/RECOVERYXLOG"):
        assert wal_place(path) is None
    assert wal_place("pfsd:///loop9/shared/pg_wal/RECOVERYXLOG") == PfsAddress("loop9", "shared/pg_wal/RECOVERYXLOG")
    with pytest.raises(UsageError, match="no file in a pg_wal"):
        wal_place("pfsd:///loop9/RECOVERYXLOG")


def test_a_restore_command_brings_its_library_along() -> None:
    places = SearchList(())
    command = restore_command(places, pfs_cluster="disk", environment={"POLARVAULT_LIBPFSD": "/a b/libpfsd.so"})
    assert "; POLARVAULT_LIBPFSD='/a b/libpfsd.so' " in command
    assert "--polar_storage_cluster_name disk" in command
    assert "exec " in restore_command(places)
