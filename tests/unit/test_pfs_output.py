"""The members of an archive into PFS: what is written, what is left out, and what a full disk says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.basebackup.pfs_output import PfsSink
from polarvault.errors import DiskFull, StorageFailed
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind
from polarvault.polardb.layout import KeepRules
from polarvault.storage.trees.pfs.tree import PfsWritableTree
from support.fake_pfs import DISK, FakeDisk


@pytest.fixture
def disk(tmp_path: Path) -> FakeDisk:
    return FakeDisk(tmp_path)


@pytest.fixture
def tree(disk: FakeDisk) -> Iterator[PfsWritableTree]:
    opened = disk.writable_tree()
    opened.make_root()
    yield opened
    opened.close()


def send(sink: PfsSink, name: str, content: bytes | None, *, step: int = 1000) -> None:
    """Send a member as a stream does, in pieces; None is a directory."""
    kind = MemberKind.DIRECTORY if content is None else MemberKind.FILE
    member = Member(name, kind, len(content or b""), 0o777, "", 0, b"")
    sink.accept(MemberBegins(member))
    for at in range(0, len(content or b""), step):
        piece = (content or b"")[at : at + step]
        sink.accept(MemberData([memoryview(piece)], len(piece), at))
    sink.accept(MemberEnds(member))


def test_members_are_written_and_what_is_worthless_is_left_out(disk: FakeDisk, tree: PfsWritableTree) -> None:
    sink = PfsSink(tree, KeepRules(True))
    large = os.urandom(5 << 20)
    send(sink, ".", None)
    send(sink, "base", None)
    send(sink, "polar_fullpage", None)
    send(sink, "polar_fullpage/00000000.fp", b"x" * 5000)
    send(sink, "base/5/1259", large, step=32 << 10)
    send(sink, "base/5/2608", b"")
    send(sink, "file-dio:///x/pg_wal/archive_status/0.done", b"")
    send(sink, "global/pg_control", b"earlier")
    send(sink, "global/pg_control", b"later")
    sink.finish()
    root = disk.root / DISK / "data"
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files == {"base/5/1259": large, "base/5/2608": b"", "global/pg_control": b"later"}
    assert (root / "polar_fullpage").is_dir()
    assert (sink.left_out.count, sink.left_out.size_bytes) == (2, 5000)


@pytest.mark.parametrize("name", ["../outside", "base/../../outside", "/outside"])
def test_names_that_lead_out_are_refused(disk: FakeDisk, tree: PfsWritableTree, name: str) -> None:
    sink = PfsSink(tree, lambda _: True)
    with pytest.raises(StorageFailed):
        send(sink, name, b"x")
    sink.abandon()
    assert [path.name for path in (disk.root / DISK).iterdir()] == ["data"]


def test_a_full_disk_is_said_as_one_and_an_abandoned_file_is_closed(disk: FakeDisk) -> None:
    tree = disk.writable_tree(faults="bytes=100000")
    tree.make_root()
    sink = PfsSink(tree, lambda _: True)
    with pytest.raises(DiskFull, match="no block is free"):
        send(sink, "base/5/1259", bytes(200_000))
    sink.abandon()
    sink.abandon()
    tree.close()
