"""What every form of a backup promises to those who read it: directories, tars, one tar, and one that is in no file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polarvault.backupset.backup import Backup, DeliveryStopped, Entry, LocalFile
from polarvault.backupset.source import find_backup
from polarvault.instance.account import server_account
from polarvault.instance.host import Host
from polarvault.pgfiles.tar import MemberKind
from polarvault.restore import run
from polarvault.restore.model import RestoreRequest
from support.made_backups import SEGMENT, MadeBackup
from support.made_repositories import ShelfOfOne, back_up_made
from support.memory_backup import MemoryBackup
from support.repositories import new_repository


def plain(made: MadeBackup, scratch: Path) -> Backup:
    return find_backup(str(made.plain(scratch / "backup")))


def tar(made: MadeBackup, scratch: Path) -> Backup:
    return find_backup(str(made.tar(scratch / "backup")))


def tar_zst(made: MadeBackup, scratch: Path) -> Backup:
    return find_backup(str(made.tar(scratch / "backup", ".zst")))


def one_tar(made: MadeBackup, scratch: Path) -> Backup:
    path = scratch / "backup.tar.gz"
    path.write_bytes(made.one_tar(".gz"))
    return find_backup(str(path))


def memory(made: MadeBackup, scratch: Path) -> Backup:
    return MemoryBackup({**made.content, f"pg_wal/{SEGMENT}": made.wal})


def in_repository(made: MadeBackup, scratch: Path) -> Backup:
    return back_up_made(new_repository(), made)


def in_encrypted_repository(made: MadeBackup, scratch: Path) -> Backup:
    return back_up_made(new_repository(encrypted=True), made)


Make = Callable[[MadeBackup, Path], Backup]


@pytest.fixture(params=[plain, tar, tar_zst, one_tar, memory, in_repository, in_encrypted_repository])
def make(request: pytest.FixtureRequest) -> Make:
    found: Make = request.param
    return found


class Collecting:
    """Collects files by name; takes nothing from an open descriptor."""

    def __init__(self, into: dict[str, bytes], wants: Callable[[Entry], bool] = lambda entry: True) -> None:
        self._into = into
        self._wants = wants
        self._name: str | None = None
        self._parts: list[bytes] = []
        self._placed: dict[str, bytearray] = {}
        self.closed = 0

    def place(self, entry: Entry, offset: int, view: memoryview) -> None:
        if self._wants(entry):
            content = self._placed.setdefault(entry.name, bytearray(entry.size))
            assert not any(content[offset : offset + len(view)]), "delivered twice"
            content[offset : offset + len(view)] = view
            # Made files are never all zeros, so that what was not delivered shows.
            self._into[entry.name] = bytes(content)

    def begin(self, entry: Entry, local: LocalFile | None) -> bool:
        assert self._name is None
        if entry.kind is not MemberKind.FILE or not self._wants(entry) or entry.name.endswith(".done"):
            return False
        if local is not None:
            assert os.fstat(local.descriptor).st_size == local.size == entry.size
        name = f"pg_wal/{entry.name}" if entry.name == SEGMENT else entry.name
        assert name not in self._into, "delivered twice"
        self._name, self._parts = name, []
        return True

    def data(self, views: Sequence[memoryview]) -> None:
        assert self._name is not None, "bytes of a file that was not wanted"
        self._parts += map(bytes, views)

    def end(self) -> None:
        assert self._name is not None
        self._into[self._name], self._name = b"".join(self._parts), None

    def close(self) -> None:
        self.closed += 1


def deliver(
    backup: Backup,
    wanted: Callable[[Entry], bool] = lambda entry: True,
    wants: Callable[[Entry], bool] = lambda e: True,
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    sinks = []
    with (
        backup.shares(backup.look_through(), wanted, tablespaces=()) as shares,
        ThreadPoolExecutor(4) as pool,
    ):
        futures = []
        for share in shares:
            sinks.append(Collecting(found, wants))
            futures.append(pool.submit(share.deliver, sinks[-1], threading.Event()))
        for future in futures:
            future.result()
    assert [sink.closed for sink in sinks] == [1] * len(sinks)
    return found


def without_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "backup_manifest"}


def test_everything_is_delivered_once(make: Make, tmp_path: Path) -> None:
    made = MadeBackup().seal()
    assert without_manifest(deliver(make(made, tmp_path))) == {**made.content, f"pg_wal/{SEGMENT}": made.wal}


def test_what_a_sink_does_not_want_is_passed_over(make: Make, tmp_path: Path) -> None:
    made = MadeBackup().seal()
    found = deliver(make(made, tmp_path), wants=lambda entry: entry.name.startswith("base/"))
    assert found == {name: content for name, content in made.content.items() if name.startswith("base/")}


def test_listed_files_are_asked_about_parents_first(make: Make, tmp_path: Path) -> None:
    made = MadeBackup().seal()
    seen: list[Entry] = []

    def wanted(entry: Entry) -> bool:
        seen.append(entry)
        return False

    found = deliver(make(made, tmp_path), wanted)
    for number, entry in enumerate(seen):
        parent = entry.name.rpartition("/")[0]
        assert not parent or parent in {earlier.name for earlier in seen[:number]}
    # What was asked about and refused is not delivered; a tar is not listed before it is read.
    assert not {entry.name for entry in seen} & found.keys()
    assert bool(seen) != bool(found)


def test_a_delivery_that_is_stopped_says_so_and_closes(make: Make, tmp_path: Path) -> None:
    backup = make(MadeBackup().seal(), tmp_path)
    stop = threading.Event()
    stop.set()
    with backup.shares(backup.look_through(), lambda entry: True, tablespaces=()) as shares:
        sinks = []
        for share in shares:
            sinks.append(Collecting({}))
            with pytest.raises(DeliveryStopped):
                share.deliver(sinks[-1], stop)
    assert [sink.closed for sink in sinks] == [1] * len(sinks)


def test_a_sink_that_fails_ends_the_delivery_and_is_closed(make: Make, tmp_path: Path) -> None:
    class Failing(Collecting):
        def end(self) -> None:
            raise ValueError("full")

        def place(self, entry: Entry, offset: int, view: memoryview) -> None:
            raise ValueError("full")

    backup = make(MadeBackup().seal(), tmp_path)
    with backup.shares(backup.look_through(), lambda entry: True, tablespaces=()) as shares:
        sink = Failing({})
        with pytest.raises(ValueError, match="full"):
            next(shares).deliver(sink, threading.Event())
    assert sink.closed == 1


def test_the_inventory_and_the_wal_are_those_of_the_files(make: Make, tmp_path: Path) -> None:
    made = MadeBackup().seal()
    backup = make(made, tmp_path)
    inventory = backup.look_through()
    assert inventory.has_control
    assert inventory.file("backup_label") == made.content["backup_label"]
    assert set(inventory.wal) == {SEGMENT}
    wal = backup.wal(inventory)
    assert list(wal.timelines()) == [1]
    [copy, *_] = wal.copies(SEGMENT)
    assert b"".join(map(bytes, copy.views())) == made.wal
    assert not wal.copies("000000010000000000000009")


def test_each_is_restored_by_the_same_restore(make: Make, workspace: Path) -> None:
    made = MadeBackup().seal()
    backup = make(made, workspace)
    target = workspace / "restored"
    owner = server_account().name if os.geteuid() == 0 else None
    request = RestoreRequest(backup.path, str(target), sync=False, owner=owner, shelf=ShelfOfOne(backup))
    plan = run.prepare(request, Host())
    run.restore_backup(plan, Host(), lambda size: None)
    for name, content in made.content.items():
        if name != "postgresql.conf":
            assert (target / name).read_bytes() == content, name
    assert (target / "pg_wal" / SEGMENT).read_bytes() == made.wal
