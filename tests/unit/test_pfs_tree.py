"""PFS behind its helper: what hangs, dies, refuses or is full, in words; and nothing that writes unless it is meant."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polarvault.storage.files import storage_failed
from polarvault.storage.trees.pfs.host_ids import free_host_ids, used_host_ids
from polarvault.storage.trees.pfs.messages import Call, Request
from polarvault.storage.trees.pfs.mount import LIBRARY_VARIABLE, MOST_HOST_ID
from polarvault.storage.trees.pfs.problems import TOO_FEW_HOSTS, PfsProblem
from polarvault.storage.trees.pfs.room import parse_room
from polarvault.storage.trees.pfs.tree import PfsTree
from support.fake_pfs import DISK, FakeDisk
from support.waiting import wait_until


@pytest.fixture
def disk(tmp_path: Path) -> FakeDisk:
    found = FakeDisk(tmp_path)
    (found.root / DISK / "data").mkdir()
    (found.root / DISK / "data/file").write_bytes(b"content")
    return found


def test_a_mount_for_reading_refuses_to_write_in_the_helper_itself(disk: FakeDisk) -> None:
    tree = disk.tree()
    for call in (Call.CREATE, Call.REMOVE, Call.MAKE_DIRECTORY, Call.RENAME, Call.MAKE_ROOT, Call.REMOVE_ROOT):
        with pytest.raises(OSError, match="reading only") as refused:
            tree._connection.ask(Request(call, payload=b"file"), "file")
        assert refused.value.errno == errno.EROFS
    assert (disk.root / DISK / "data/file").read_bytes() == b"content"
    tree.close()


@pytest.mark.parametrize("name", [b"../other", b"/loop9/other", b"a/../../other", b"a//b", b".", b"..", b""])
def test_the_helper_resolves_nothing_outside_of_its_directory(disk: FakeDisk, name: bytes) -> None:
    (disk.root / DISK / "other").write_bytes(b"somebody else's")
    tree = disk.writable_tree()
    calls = [Call.CREATE, Call.REMOVE, Call.RENAME, Call.REMOVE_DIRECTORY]
    for call in calls if not name else [*calls, Call.OPEN, Call.LIST, Call.STATUS, Call.MAKE_DIRECTORY]:
        with pytest.raises(OSError, match="Invalid argument"):
            tree._connection.ask(Request(call, payload=name + b"\0file" if call is Call.RENAME else name), "x")
    assert (disk.root / DISK / "other").read_bytes() == b"somebody else's"
    assert sorted(path.name for path in (disk.root / DISK).iterdir()) == ["data", "other"]
    tree.close()


def test_a_call_that_never_returns_is_given_up_and_says_what_to_look_at(disk: FakeDisk) -> None:
    tree = disk.tree(disk.mount(call_timeout_s=1.0), faults="hang=file")
    began = time.monotonic()
    with pytest.raises(PfsProblem, match="did not answer within 1 s") as silent:
        tree.open("file")
    assert silent.value.errno == errno.ETIMEDOUT
    assert "/var/log/pfsd-loop9/pfsd.log" in (silent.value.hint or "")
    # What hangs in the library never comes back: everything else fails at once, and the end is quick.
    with pytest.raises(PfsProblem, match="did not answer"):
        tree.list("")
    tree.close()
    assert time.monotonic() - began < 10


def test_a_helper_that_dies_is_named_with_its_last_words(disk: FakeDisk) -> None:
    tree = disk.tree(faults="die=file")
    with pytest.raises(PfsProblem, match=r"has ended by signal 6; its last words: assertion failed"):
        tree.open("file")
    with pytest.raises(PfsProblem, match="has ended"):
        tree.status("")
    tree.close()
    tree.close()


def test_a_helper_that_is_killed_leaves_an_error_and_no_hanging_thread(disk: FakeDisk) -> None:
    tree = disk.tree()
    os.kill(tree._connection._process.pid, signal.SIGKILL)
    with pytest.raises(PfsProblem, match="has ended by signal 9"):
        tree.list("")
    tree.close()


def test_the_helper_goes_with_its_parent(disk: FakeDisk, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from support.fake_pfs import FakeDisk\n"
        f"tree = FakeDisk(Path({str(tmp_path)!r})).tree()\n"
        "print(tree._connection._process.pid, flush=True); time.sleep(600)"
    )
    tests = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tests) as parent:
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{helper}/cmdline").exists() or not Path(f"/proc/{helper}/cmdline").read_bytes(),
               "the helper has gone")  # fmt: skip


def test_an_interrupt_in_the_middle_of_a_call_leaves_no_reply_for_another(disk: FakeDisk) -> None:
    tree = disk.writable_tree(faults="slow=slow")
    (disk.root / DISK / "data/slow").write_bytes(b"s" * 100)
    signal.signal(signal.SIGALRM, interrupt)
    for attempt in range(3):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            tree.open("slow")
        # On the very same channel: the last one that was given back is taken first.
        assert {entry.name for entry in tree.list("")} == {"file", "slow", *map(str, range(attempt))}
        written = tree.create(str(attempt), 0o600)
        written.write(0, memoryview(b"content"))
        written.close()
        assert (disk.root / DISK / f"data/{attempt}").read_bytes() == b"content"
    tree.close()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_full_of_blocks_or_of_files_and_says_which(disk: FakeDisk) -> None:
    tree = disk.writable_tree(faults="bytes=10000,files=3")
    file = tree.create("new", 0o600)
    with pytest.raises(OSError, match="no block is free") as full:
        file.write(8192, memoryview(bytes(8192)))
    failed = storage_failed(full.value, "write", "pfsd:///loop9/data/new")
    assert failed.exit_code == storage_failed(OSError(errno.ENOSPC, "full"), "write", "x").exit_code
    assert "pfs -C disk info loop9" in (failed.hint or "")
    with pytest.raises(OSError, match="no inode is free") as many:
        tree.create("one more", 0o600)
    assert many.value.errno == errno.ENOSPC
    tree.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "refused to mount"), (errno.ETIMEDOUT, "did not answer within"),
        (TOO_FEW_HOSTS, "host id 7 is larger than disk loop9 was made for"),
    ],
)  # fmt: skip
def test_a_mount_that_fails_names_disk_and_host(disk: FakeDisk, number: int, words: str) -> None:
    disk.run_directory.mkdir()
    with daemon(disk), pytest.raises(PfsProblem, match=words) as refused:
        disk.tree(faults=f"refuse={number}")
    assert DISK in str(refused.value)
    assert "pfs" in (refused.value.hint or "")


def test_no_daemon_is_said_with_where_it_would_be(disk: FakeDisk) -> None:
    with pytest.raises(PfsProblem, match="no pfsd serves disk loop9") as missing:
        disk.tree(faults=f"refuse={errno.ETIMEDOUT}")
    assert "start_pfsd.sh -p loop9" in (missing.value.hint or "")


def test_no_library_is_said_with_what_was_tried(disk: FakeDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere/libpfsd.so")
    with pytest.raises(PfsProblem, match="libpfsd, the library for PFS, was not found") as missing:
        PfsTree(disk.mount())
    assert "/nowhere/libpfsd.so" in (missing.value.hint or "")


def test_a_disk_for_few_hosts_is_read_as_one_of_these(disk: FakeDisk) -> None:
    tree = disk.tree(disk.mount(host_id=None), faults="hosts=8")
    assert tree.host_id == 8
    assert [entry.name for entry in tree.list("")] == ["file"]
    tree.close()


def test_a_daemon_that_goes_while_it_is_waited_for_is_noticed_at_once(disk: FakeDisk) -> None:
    disk.run_directory.mkdir()
    with daemon(disk) as lock:
        tree = disk.tree(faults="hang=file")
        threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        began = time.monotonic()
        with pytest.raises(PfsProblem, match="pfsd of disk loop9 has gone"):
            tree.open("file")
        assert time.monotonic() - began < 10
        tree.close()


@contextmanager
def daemon(disk: FakeDisk) -> Iterator[int]:
    """Hold the lock that pfsd holds while it runs."""
    with open(disk.run_directory / f"pfsd_{DISK}.pid", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def claim(disk: FakeDisk, host_id: int, process: int) -> None:
    """Leave the file that a client of pfsd has while it is connected."""
    directory = disk.run_directory / DISK
    directory.mkdir(parents=True, exist_ok=True)
    asked = struct.pack("=I64s64sii", 1, b"disk", b"loop9", host_id, 0x13)
    (directory / f"{process}.pid").write_bytes(asked + bytes(64))


def test_a_host_id_in_use_is_refused_and_a_free_one_taken_for_reading(disk: FakeDisk) -> None:
    claim(disk, 7, os.getpid())
    claim(disk, 9, 2**22 + 1)  # Of a process that has gone.
    (disk.run_directory / DISK / "1.pid").write_bytes(b"short")
    assert set(used_host_ids(DISK, run_directory=str(disk.run_directory), lock_file="/nowhere/{}")) == {7}
    with pytest.raises(PfsProblem, match=f"7 is in use on this machine, by process {os.getpid()}"):
        disk.writable_tree()
    disk.writable_tree(disk.mount(host_id=9)).close()
    tree = disk.tree(disk.mount(host_id=None))
    assert tree.host_id == 30
    tree.close()
    with pytest.raises(PfsProblem, match="has to be named"):
        disk.writable_tree(disk.mount(host_id=None))


def test_the_locks_of_writers_count(tmp_path: Path) -> None:
    lock = tmp_path / "loop9-paxos-hostid"
    lock.touch()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX, 1024, 3 * 1024)\n"
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        used = used_host_ids(DISK, run_directory=str(tmp_path), lock_file=str(tmp_path / "{}-paxos-hostid"))
        assert used == {3: f"process {writer.pid}"}
        writer.kill()
    assert free_host_ids(dict.fromkeys(range(1, MOST_HOST_ID + 1), "x")) == []
    assert free_host_ids({30: "x", 16: "x"}) == [29, 15, 8, 4, 2]


def test_room_is_what_the_daemon_says_of_blocks_names_and_inodes() -> None:
    answer = """Blktag Info:
 (0)allocnode: id 0, shift 0, nchild=2, nall 5120, nfree 3818, next 0
Direntry Info:
 (0)allocnode: id 0, shift 0, nchild=2, nall 4096, nfree 2800, next 0
Inode Info:
 (0)allocnode: id 0, shift 0, nchild=2, nall 4096, nfree 2815, next 0
"""
    assert parse_room(answer) == (3818 << 22, 2800)
    for damaged in ("", answer.replace("Inode", "Other"), answer.replace("nfree 2815", "nfree -"), "\0" * 100):
        assert parse_room(damaged) is None


def test_a_root_is_made_with_what_is_above_it_and_only_that_is_removed(disk: FakeDisk) -> None:
    tree = disk.writable_tree(disk.mount("data/a/b"))
    assert tree.make_root() == 2
    assert tree.make_root() == 0
    tree.create("file", 0o600).close()
    with pytest.raises(OSError, match="not empty"):
        tree.remove_root(2)
    tree.remove("file")
    tree.remove_root(2)
    assert [path.name for path in (disk.root / DISK / "data").iterdir()] == ["file"]
    tree.close()
