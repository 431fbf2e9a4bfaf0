"""What every tree promises to those who read and write databases: directories of this machine, and PFS.

A new implementation adds a function to `TREES` that opens an empty tree below a scratch directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from polarvault.storage.trees.local import LocalTree, LocalWritableTree
from polarvault.storage.trees.model import EntryKind, WritableTree
from support.fake_pfs import FakeDisk
from support.pfs_disks import MISSING, pfs_disks, scratch_tree

MIB = 1 << 20
NO_ENTRY = "nothing"
# Which errno a refusal has is each implementation's affair, unless a test says so.
REFUSED = (OSError,)


def local(scratch: Path) -> AbstractContextManager[WritableTree]:
    return closing(LocalWritableTree(str(scratch)))


def fake_pfs(scratch: Path) -> AbstractContextManager[WritableTree]:
    tree = FakeDisk(scratch).writable_tree()
    tree.make_root()
    return closing(tree)


def pfs(scratch: Path) -> AbstractContextManager[WritableTree]:
    if not pfs_disks():
        pytest.skip(MISSING)
    return scratch_tree(pfs_disks()[0])


TREES: list[Callable[[Path], AbstractContextManager[WritableTree]]] = [local, fake_pfs, pfs]


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WritableTree]:
    with request.param(tmp_path) as opened:
        yield opened


def put(tree: WritableTree, name: str, content: bytes) -> None:
    file = tree.create(name, 0o600)
    if content:
        file.write(0, memoryview(content))
    file.close()


def get(tree: WritableTree, name: str) -> bytes:
    file = tree.open(name)
    try:
        buffer = bytearray(file.size())
        assert file.read_into(0, memoryview(buffer)) == len(buffer)
        return bytes(buffer)
    finally:
        file.close()


class TestReading:
    """What is there is told and read as it is."""

    def test_a_listing_has_kinds_and_sizes_sorted(self, tree: WritableTree) -> None:
        tree.make_directory("base", 0o700)
        put(tree, "b", b"12345")
        put(tree, "a", b"")
        found = [(entry.name, entry.kind, entry.size_bytes) for entry in tree.list("") if entry.kind is EntryKind.FILE]
        assert found == [("a", EntryKind.FILE, 0), ("b", EntryKind.FILE, 5)]
        assert [entry.name for entry in tree.list("")] == ["a", "b", "base"]
        assert tree.status("base").kind is EntryKind.DIRECTORY

    def test_names_below_directories(self, tree: WritableTree) -> None:
        tree.make_directory("base", 0o700)
        tree.make_directory("base/5", 0o700)
        put(tree, "base/5/1259", b"page")
        assert [entry.name for entry in tree.list("base")] == ["5"]
        assert [entry.name for entry in tree.list("base/5")] == ["1259"]
        assert get(tree, "base/5/1259") == b"page"

    def test_the_root_has_a_status(self, tree: WritableTree) -> None:
        assert tree.status("").kind is EntryKind.DIRECTORY

    def test_a_read_is_short_only_at_the_end(self, tree: WritableTree) -> None:
        content = os.urandom(5 * MIB + 17)
        put(tree, "long", content)
        file = tree.open("long")
        buffer = bytearray(5 * MIB - 100)
        assert file.read_into(100, memoryview(buffer)) == len(buffer)
        assert buffer == content[100 : 100 + len(buffer)]
        assert file.read_into(len(content) - 3, memoryview(buffer)) == 3
        assert file.read_into(len(content) + 8192, memoryview(buffer)) == 0
        file.close()
        file.close()

    def test_a_file_that_grew_is_read_to_its_new_end(self, tree: WritableTree) -> None:
        writer = tree.create("growing", 0o600)
        writer.write(0, memoryview(b"one"))
        reader = tree.open("growing")
        writer.write(3, memoryview(b"two"))
        buffer = bytearray(6)
        assert (reader.size(), reader.read_into(0, memoryview(buffer)), bytes(buffer)) == (6, 6, b"onetwo")
        writer.close()
        reader.close()

    def test_several_threads_read_one_file(self, tree: WritableTree) -> None:
        content = os.urandom(4 * MIB)
        put(tree, "shared", content)
        file = tree.open("shared")

        def read(part: int) -> bytes:
            buffer = bytearray(MIB // 4)
            file.read_into(part * len(buffer), memoryview(buffer))
            return bytes(buffer)

        with ThreadPoolExecutor(8) as pool:
            assert b"".join(pool.map(read, range(16))) == content
        file.close()

    @pytest.mark.parametrize("ask", ["status", "open", "list", "link_target"])
    def test_what_is_not_there(self, tree: WritableTree, ask: str) -> None:
        with pytest.raises(FileNotFoundError):
            getattr(tree, ask)(NO_ENTRY)

    @pytest.mark.parametrize("name", ["../outside", "base/../../outside", "/etc/passwd", "./base", "base//1"])
    @pytest.mark.parametrize("ask", ["status", "open", "list"])
    def test_names_that_lead_out_are_refused(self, tree: WritableTree, ask: str, name: str) -> None:
        tree.make_directory("base", 0o700)
        with pytest.raises(REFUSED):
            getattr(tree, ask)(name)

    def test_a_directory_is_not_opened_as_a_file(self, tree: WritableTree) -> None:
        tree.make_directory("base", 0o700)
        with pytest.raises(REFUSED):
            tree.open("base")

    def test_a_file_is_not_listed(self, tree: WritableTree) -> None:
        put(tree, "file", b"x")
        with pytest.raises(NotADirectoryError):
            tree.list("file")

    def test_a_file_is_no_link(self, tree: WritableTree) -> None:
        put(tree, "file", b"x")
        with pytest.raises(REFUSED) as problem:
            tree.link_target("file")
        assert problem.value.errno == errno.EINVAL

    def test_messages_name_the_tree(self, tree: WritableTree) -> None:
        assert tree.path("base/5") == f"{tree.address.rstrip('/')}/base/5"

    def test_there_is_room_or_it_is_not_known(self, tree: WritableTree) -> None:
        room = tree.room()
        assert room.available_bytes is None or room.available_bytes > 0
        assert room.available_files is None or room.available_files > 0


class TestWriting:
    """What is written is there, and nothing else is touched."""

    def test_parts_in_any_order_and_holes(self, tree: WritableTree) -> None:
        file = tree.create("sparse", 0o600)
        file.write(2 * MIB, memoryview(b"end"))
        file.write(5, memoryview(b"start"))
        file.truncate(3 * MIB)
        file.sync()
        file.close()
        content = get(tree, "sparse")
        assert len(content) == 3 * MIB
        assert content[:12] == b"\0" * 5 + b"start" + b"\0\0"
        assert content[2 * MIB : 2 * MIB + 4] == b"end\0"
        assert not content[12 : 2 * MIB].strip(b"\0")

    def test_truncate_cuts(self, tree: WritableTree) -> None:
        file = tree.create("cut", 0o600)
        file.write(0, memoryview(b"123456"))
        file.truncate(2)
        file.close()
        file.close()
        assert get(tree, "cut") == b"12"

    def test_a_file_that_is_there_gets_another_length(self, tree: WritableTree) -> None:
        put(tree, "file", b"123456")
        tree.set_length("file", 3)
        assert get(tree, "file") == b"123"
        tree.set_length("file", 2 * MIB)
        content = get(tree, "file")
        assert (len(content), content[:5]) == (2 * MIB, b"123\0\0")
        tree.make_directory("directory", 0o700)
        with pytest.raises(OSError, match="directory"):
            tree.set_length("directory", 1)
        with pytest.raises(FileNotFoundError):
            tree.set_length(NO_ENTRY, 1)

    def test_threads_write_parts_of_one_file(self, tree: WritableTree) -> None:
        content = os.urandom(4 * MIB)
        file = tree.create("parts", 0o600)
        step = MIB // 4
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda at: file.write(at, memoryview(content)[at : at + step]), range(0, 4 * MIB, step)):
                pass
        file.close()
        assert get(tree, "parts") == content

    def test_nothing_is_replaced(self, tree: WritableTree) -> None:
        put(tree, "taken", b"mine")
        tree.make_directory("directory", 0o700)
        for name in ("taken", "directory"):
            with pytest.raises(FileExistsError):
                tree.create(name, 0o600)
            with pytest.raises(FileExistsError):
                tree.make_directory(name, 0o700)
        assert get(tree, "taken") == b"mine"

    def test_a_directory_must_be_there_first(self, tree: WritableTree) -> None:
        with pytest.raises(FileNotFoundError):
            tree.create("missing/file", 0o600)
        with pytest.raises(FileNotFoundError):
            tree.make_directory("missing/directory", 0o700)

    def test_rename_replaces_a_file(self, tree: WritableTree) -> None:
        put(tree, "new", b"new")
        put(tree, "old", b"old")
        tree.make_directory("below", 0o700)
        tree.rename("new", "old")
        assert get(tree, "old") == b"new"
        tree.rename("old", "below/old")
        tree.sync_directory("below")
        tree.sync_directory("")
        assert [entry.name for entry in tree.list("")] == ["below"]

    def test_remove(self, tree: WritableTree) -> None:
        tree.make_directory("base", 0o700)
        put(tree, "base/file", b"x")
        with pytest.raises(REFUSED) as problem:
            tree.remove_directory("base")
        assert problem.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
        tree.remove("base/file")
        tree.remove_directory("base")
        assert tree.list("") == []
        for remove in (tree.remove, tree.remove_directory):
            with pytest.raises(FileNotFoundError):
                remove("base")

    @pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "base/../../outside"])
    def test_nothing_outside_is_written(self, tree: WritableTree, tmp_path: Path, name: str) -> None:
        tree.make_directory("base", 0o700)
        for write in (
            lambda: tree.create(name, 0o600),
            lambda: tree.make_directory(name, 0o700),
            lambda: tree.rename("base", name),
            lambda: tree.remove(name),
        ):
            with pytest.raises(REFUSED):
                write()
        assert not (tmp_path.parent / "outside").exists()


class TestDirectoriesOfThisMachine:
    """What only they have: links and special files."""

    def test_links_are_told_and_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"x")
        root = tmp_path / "root"
        root.mkdir()
        (root / "link").symlink_to(outside)
        tree = LocalTree(str(root))
        assert tree.status("link").kind is EntryKind.LINK
        assert tree.link_target("link") == str(outside)
        for ask in (tree.list, tree.open):
            with pytest.raises(REFUSED):
                ask("link")
        with pytest.raises(REFUSED):
            tree.open("link/secret")
        tree.close()

    def test_the_links_of_the_layout_are_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"x")
        root = tmp_path / "root"
        root.mkdir()
        (root / "pg_wal").symlink_to(outside)
        tree = LocalTree(str(root), links=lambda name: name == "pg_wal")
        assert tree.status("pg_wal").kind is EntryKind.DIRECTORY
        assert [entry.name for entry in tree.list("pg_wal")] == ["file"]
        tree.open("pg_wal/file").close()
        assert tree.link_target("pg_wal") == str(outside)
        tree.close()

    def test_a_fifo_is_told_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        tree = LocalTree(str(tmp_path))
        assert tree.status("fifo").kind is EntryKind.OTHER
        with pytest.raises(REFUSED):
            tree.open("fifo")
        tree.close()

    def test_modes_are_set_whatever_the_umask(self, tmp_path: Path) -> None:
        tree = LocalWritableTree(str(tmp_path))
        tree.create("file", 0o666).close()
        tree.make_directory("directory", 0o777)
        assert {entry.name: entry.mode for entry in tree.list("")} == {"file": 0o666, "directory": 0o777}
        tree.close()
        tree.close()

    def test_allocated_bytes_tell_of_holes(self, tmp_path: Path) -> None:
        tree = LocalWritableTree(str(tmp_path))
        file = tree.create("hole", 0o600)
        file.truncate(64 * MIB)
        file.close()
        allocated = tree.status("hole").allocated_bytes
        assert allocated is not None
        assert allocated < MIB
        tree.close()
