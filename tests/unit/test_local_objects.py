"""Objects in a directory: what only a file system can do to them."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.errors import ObjectExists, ObjectMissing, StorageFailed, StoreForbidden, StoreFull
from polarvault.storage.objects.local import LocalStore
from support.small_disk import small_disk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    LocalStore.make_root(str(tmp_path / "a" / "repository"))
    return tmp_path / "a" / "repository"


@pytest.fixture
def store(root: Path) -> Iterator[LocalStore]:
    opened = LocalStore(str(root))
    yield opened
    opened.close()


@pytest.mark.parametrize("umask", [0, 0o077])
def test_nobody_else_may_read_what_is_written_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        LocalStore.make_root(str(tmp_path / "x" / "y"))
        store = LocalStore(str(tmp_path / "x" / "y"))
        store.put_new("a/b/1", [b"x"])
        store.close()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "x").rglob("*")}
    assert modes == {"y": 0o700, "a": 0o700, "b": 0o700, "1": 0o600, ".incoming": 0o700, ".reserve": 0o600}
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700


def test_a_root_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    LocalStore.make_root(str(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_a_missing_root_says_what_to_look_for(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="there is no directory") as caught:
        LocalStore(str(tmp_path / "none"))
    assert not isinstance(caught.value, ObjectMissing)
    assert "mounted" in (caught.value.hint or "")


def test_a_file_in_the_place_of_a_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageFailed, match="is not a directory"):
        LocalStore.make_root(str(tmp_path / "file"))


@pytest.mark.parametrize("planted", ["a", "a/b", "a/b/1"])
def test_a_link_inside_of_the_store_leads_nowhere(store: LocalStore, root: Path, tmp_path: Path, planted: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1").write_text("secret")
    (root / planted).parent.mkdir(parents=True, exist_ok=True)
    (root / planted).symlink_to(outside / "1" if planted.endswith("1") else outside)
    with pytest.raises((StorageFailed, ObjectExists)):
        store.put_new("a/b/1", [b"x"])
    with pytest.raises(StorageFailed):
        store.get("a/b/1", most_bytes=100)
    assert list(store.list_objects()) == []
    assert (outside / "1").read_text() == "secret"
    assert os.listdir(outside) == ["1"]


def test_what_is_no_object_is_not_listed(store: LocalStore, root: Path) -> None:
    store.put_new("a/1", [b"x"])
    (root / "a" / ".nfs0001").write_text("x")
    (root / "lost+found").mkdir()
    (root / "a" / "with blank").write_text("x")
    os.mkfifo(root / "a" / "fifo")
    assert [one.name for one in store.list_objects()] == ["a/1"]
    assert store.list_folders() == ["a"]


def test_leftovers_of_killed_writers_are_removed_and_files_in_use_are_not(root: Path) -> None:
    (root / ".incoming").mkdir()
    (root / ".incoming" / "dead").write_bytes(b"half an obj")
    in_use = os.open(root / ".incoming" / "alive", os.O_WRONLY | os.O_CREAT)
    fcntl.flock(in_use, fcntl.LOCK_EX)
    store = LocalStore(str(root))
    store.put_new("a/1", [b"x"])
    assert os.listdir(root / ".incoming") == ["alive"]
    os.close(in_use)
    store.close()


def test_a_writer_killed_in_the_middle_leaves_no_object(root: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from polarvault.storage.objects.local import LocalStore\n"
        "real = os.fsync\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalStore(sys.argv[1]).put_new('a/1', [b'x' * 100_000])\n"
    )
    (root / ".reserve").touch()
    killed = subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    assert killed.returncode == -9
    assert len(os.listdir(root / ".incoming")) == 1
    store = LocalStore(str(root))
    assert list(store.list_objects()) == []
    store.put_new("a/1", [b"y"])
    assert store.get("a/1", most_bytes=1) == b"y"
    assert os.listdir(root / ".incoming") == []
    store.close()


def test_a_full_disk_still_takes_what_makes_room(tmp_path: Path) -> None:
    with small_disk(tmp_path, "8m"):
        store = LocalStore(str(tmp_path))

        def fill() -> None:
            for number in range(100):
                store.put_new(f"packs/{number}", [bytes(100_000)])

        with pytest.raises(StoreFull, match="No space left"):
            fill()
        kept = [one.name for one in store.list_objects()]
        with pytest.raises(StoreFull):
            store.put_new("packs/more", [bytes(100_000)])
        # Nothing half-written, and nothing that takes up the space of a real object.
        assert [one.name for one in store.list_objects()] == kept
        assert os.listdir(tmp_path / ".incoming") == []
        for number in range(100):
            store.put_new(f"states/b{number}/000001-tombstone", [b"x" * 300], from_reserve=True)
        for name in kept[:40]:
            store.delete(name)
        assert (tmp_path / ".reserve").stat().st_size == 2 << 20
        store.put_new("packs/more", [bytes(100_000)])
        store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_the_right_to_write_is_said(root: Path) -> None:
    root.chmod(0o500)
    with pytest.raises(StoreForbidden, match="Permission denied") as caught:
        LocalStore(str(root)).put_new("a/1", [b"x"])
    assert "ls -ld" in (caught.value.hint or "")


def test_a_read_only_file_system_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path, "4m"):
        remounted = subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], capture_output=True, check=False)
        if remounted.returncode != 0:
            pytest.skip("a read-only file system needs the right to mount one")
        store = LocalStore(str(tmp_path))
        with pytest.raises(StoreForbidden, match="Read-only file system"):
            store.put_new("a/1", [b"x"])
        store.close()
