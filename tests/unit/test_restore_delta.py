"""What `restore --delta` accepts as a target, what it leaves when it fails, and that it goes on from there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from polarvault.errors import ObjectDamaged, PolarvaultError, TargetNotEmpty, UsageError
from polarvault.instance.account import server_account
from polarvault.instance.host import Host
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.control import parse_control
from polarvault.report.restore import plan_text
from polarvault.report.units import format_bytes
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.restore import run
from polarvault.restore.delta.own_wal import segments_to_keep
from polarvault.restore.delta.run import compare
from polarvault.restore.model import DeltaCounts, RestorePlan, RestoreRequest
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.storage.occupants import CONTROL_ASIDE_NAME, CONTROL_WAITING_NAME, RESTORE_MARK_NAME
from support.made_backups import MadeBackup, files, table
from support.made_repositories import ShelfOfOne, back_up_made
from support.memory_wal import MemoryWal
from support.repositories import new_repository
from support.small_files import IN_PRODUCTION, control_bytes
from support.wal_segments import segment_content

SHUT_DOWN = 1


@dataclass
class Place:
    """A backup in a repository, and a directory in which it has been restored."""

    backup: BackupInRepository
    target: Path
    store: MemoryStore

    def request(self, *, delta: bool = True, backup: BackupInRepository | None = None) -> RestoreRequest:
        backup = backup or self.backup
        return RestoreRequest(backup.path, str(self.target), sync=False, delta=delta, shelf=ShelfOfOne(backup), jobs=2)

    def elsewhere(self) -> RestoreRequest:
        return replace(self.request(delta=False), target=f"{self.target}-elsewhere")

    def restore(self, *, delta: bool = True, backup: BackupInRepository | None = None) -> run.RestoreResult:
        plan = run.prepare(self.request(delta=delta, backup=backup), Host())
        return run.restore_backup(plan, Host(), lambda size: None)

    def counts(self) -> DeltaCounts:
        found = self.restore().plan.delta
        assert found is not None
        return found

    def content(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.target)): path.read_bytes() for path in self.target.rglob("*") if path.is_file()
        }

    def write(self, name: str, content: bytes) -> Path:
        path = self.target / name
        path.write_bytes(content)
        status = self.target.stat()
        os.chown(path, status.st_uid, status.st_gid)
        return path


@pytest.fixture
def place(workspace: Path) -> Place:
    store = MemoryStore()
    backup = back_up_made(
        new_repository(WriteOnce(store)), MadeBackup({**files(), "base/5/16390": table(7, 3_000_000)})
    )
    found = Place(backup, workspace / "target", store)
    account = server_account()
    if os.geteuid() == 0:
        # The restored files belong to whoever the directory is of.
        found.target.mkdir()
        account.own(found.target)
    found.restore(delta=False) if os.geteuid() else found.restore()
    (found.target / "recovery.signal").unlink()
    found.write("postmaster.opts", b"")
    return found


def test_nothing_but_the_pages_that_differ_is_written(place: Place) -> None:
    before = place.content()
    path = place.target / "base/5/16390"
    content = bytearray(path.read_bytes())
    content[100 * 8192 + 5] ^= 1
    path.write_bytes(content)
    place.write("base/5/77777", b"not of the backup")
    counts = place.counts()
    after = place.content()
    assert after.pop("recovery.signal") == b""
    before.pop("postmaster.opts")
    assert after == before
    # pg_control's new copy is not there before, and postgresql.auto.conf is not the backup's.
    assert 8192 < counts.written_bytes < 3 * 8192
    assert counts.fetched_bytes < 600_000
    assert counts.removed_files >= 2
    assert counts.compared_bytes > 3_000_000


def test_a_plan_changes_nothing_and_says_what_would_be_done(place: Place) -> None:
    place.write("base/5/16384", b"short")
    before = place.content()
    plan = run.prepare(place.request(), Host())
    planned = compare(plan, lambda size: None).delta
    assert place.content() == before
    assert planned is not None
    assert planned.written_bytes > 200_000
    done = place.counts()
    assert (planned.written_bytes, planned.fetched_bytes) == (done.written_bytes, done.fetched_bytes)


def test_the_space_needed_is_what_files_grow_by(place: Place) -> None:
    place.write("base/5/16390", bytes(1_000_000))
    [need] = run.prepare(place.request(), Host()).space
    wal = 16 << 20
    assert need.needed == 2_000_000 + 8192 + wal


def test_what_a_whole_restore_fetches_is_known_from_the_backup(place: Place) -> None:
    for path in place.target.glob("base/*/*"):
        path.unlink()
    planned = compare(run.prepare(place.request(), Host()), lambda size: None).delta
    assert planned is not None
    whole = place.backup.fetched_bytes
    assert whole is not None
    # Besides the data there is the index.
    assert planned.fetched_bytes < whole < planned.fetched_bytes + 100_000
    text = "\n".join(plan_text(run.prepare(place.elsewhere(), Host())))
    assert f"to fetch          {format_bytes(whole)}, and WAL" in text
    name = ClusterNames.of("shop").backup(place.backup.reader.record.label, "refs")
    place.store.delete(name)
    del place.backup.fetched_bytes
    assert "to fetch" not in "\n".join(plan_text(run.prepare(place.elsewhere(), Host())))


def stopped_elsewhere(place: Place) -> None:
    place.write("postmaster.pid", b"1\n")


def of_another_cluster(place: Place) -> None:
    place.write("global/pg_control", control_bytes(timeline=1, checkpoint=0x2000060, redo=0x2000028, system=5))


def without_identity(place: Place) -> None:
    (place.target / "global/pg_control").unlink()


def a_backup(place: Place) -> None:
    (place.target / "postmaster.opts").unlink()
    place.write("backup_manifest", b"{}")


def a_backup_without_a_manifest(place: Place) -> None:
    (place.target / "postmaster.opts").unlink()
    assert (place.target / "backup_label").exists()


def something_else(place: Place) -> None:
    for name in ("PG_VERSION", "backup_label", "postmaster.opts", "global/pg_control"):
        (place.target / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (stopped_elsewhere, "postmaster.pid is there"),
        (of_another_cluster, "is another cluster: its system identifier is 5"),
        (without_identity, "nothing proves whose files these are"),
        (a_backup, "it is a backup"),
        (a_backup_without_a_manifest, "it is a backup"),
        (something_else, "is not empty"),
    ],
)
def test_what_is_not_certainly_the_stopped_cluster_is_not_touched(
    place: Place, spoil: Callable[[Place], None], says: str
) -> None:
    spoil(place)
    before = place.content()
    with pytest.raises(TargetNotEmpty, match=says):
        run.prepare(place.request(), Host())
    assert place.content() == before


def test_what_the_restore_needs_is_not_removed_by_it(place: Place) -> None:
    key = place.write("base/key", b"")
    options = ["--repo", "/elsewhere", "--key-file", str(key)]
    place.backup.archives[0].fetch_options = lambda: options  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"base/key\" lies in the target"):
        run.prepare(place.request(), Host())


def test_a_backup_in_files_has_no_page_sums(place: Place, workspace: Path) -> None:
    directory = MadeBackup().seal().plain(workspace / "backup")
    request = RestoreRequest(str(directory), str(place.target), delta=True)
    with pytest.raises(UsageError, match="page sums, which a repository has"):
        run.prepare(request, Host())


def test_an_empty_target_is_filled(place: Place, workspace: Path) -> None:
    whole = place.content()
    place.target = workspace / "another"
    owner = server_account().name if os.geteuid() == 0 else None
    request = RestoreRequest(
        place.backup.path, str(place.target), sync=False, delta=True, shelf=ShelfOfOne(place.backup), owner=owner
    )
    result = run.restore_backup(run.prepare(request, Host()), Host(), lambda size: None)
    assert result.plan.delta is None
    assert place.content().keys() - {"recovery.signal"} == whole.keys() - {"postmaster.opts"}


def damage(place: Place) -> Callable[[], None]:
    """Flip a byte of every data chunk; return what undoes it."""
    folder = ClusterNames.of("shop")
    label = place.backup.reader.record.label
    name = folder.pack(label, 0)
    good = place.store.get(name, most_bytes=1 << 30)
    bad = bytearray(good)
    for at in range(100_000, len(bad) - 20_000, 100_000):
        bad[at] ^= 1
    place.store.delete(name)
    place.store.put_new(name, [bytes(bad)])

    def undo() -> None:
        place.store.delete(name)
        place.store.put_new(name, [good])

    return undo


def test_damage_leaves_a_target_that_says_so_and_goes_on_when_it_is_repaired(place: Place) -> None:
    before = place.content()
    place.write("base/5/16390", b"nothing is left")
    undo = damage(place)
    with pytest.raises(ObjectDamaged) as caught:
        place.restore()
    message = caught.value.message
    assert "'base/5/16390' cannot be read at block" in message
    assert "is unfinished, and no server starts from it" in message
    assert not (place.target / "global/pg_control").exists()
    assert (place.target / RESTORE_MARK_NAME).exists()
    assert (place.target / CONTROL_ASIDE_NAME).exists()
    undo()
    place.restore()
    after = place.content()
    assert after.pop("recovery.signal") == b""
    before.pop("postmaster.opts")
    assert after == before


@pytest.mark.parametrize("left", [CONTROL_ASIDE_NAME, CONTROL_WAITING_NAME])
def test_whatever_an_interrupted_one_left_proves_whose_it_is(place: Place, left: str) -> None:
    control = place.target / "global/pg_control"
    control.rename(place.target / left)
    place.write(RESTORE_MARK_NAME, b"")
    place.restore()
    assert control.exists()
    assert not {CONTROL_ASIDE_NAME, CONTROL_WAITING_NAME, RESTORE_MARK_NAME} & place.content().keys()


def test_two_at_once_are_not_let_in(place: Place) -> None:
    mark = place.write(RESTORE_MARK_NAME, b"")
    plan: RestorePlan = run.prepare(place.request(), Host())
    with mark.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TargetNotEmpty, match="another restore works on"):
            run.restore_backup(plan, Host(), lambda size: None)
    assert (place.target / "global/pg_control").exists()


def test_wal_in_another_place_stays_there(place: Place, workspace: Path) -> None:
    elsewhere = workspace / "wal"
    (place.target / "pg_wal").rename(elsewhere)
    (place.target / "pg_wal").symlink_to(elsewhere)
    (elsewhere / "000000010000000000000099").write_bytes(b"old")
    status = place.target.stat()
    os.lchown(place.target / "pg_wal", status.st_uid, status.st_gid)
    place.restore()
    assert (place.target / "pg_wal").is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["000000010000000000000002", "archive_status"]


@pytest.mark.parametrize(
    ("archived", "state", "kept"),
    [
        # Of four segments, of which the last one was recycled and holds no WAL of its own: what an archive has of them.
        ([], IN_PRODUCTION, [1, 2, 3]),
        ([(1, 3)], IN_PRODUCTION, [3]),
        ([(1, 2), (2, 2.5)], IN_PRODUCTION, [2, 3]),
        ([(1, 4)], IN_PRODUCTION, []),
        # Shut down: behind the checkpoint there is nothing.
        ([(1, 3.5)], SHUT_DOWN, []),
        ([(1, 3.2)], SHUT_DOWN, [3]),
        ([(1, 3.5)], IN_PRODUCTION, [3]),
    ],
)
def test_wal_that_nobody_else_has_is_kept(
    tmp_path: Path, archived: list[tuple[float, float]], state: int, kept: list[int]
) -> None:
    size = 1 << 20
    archive = MemoryWal()
    for first, last in archived:
        archive.add(1, int(first * size), bytes(int((last - first) * size)))
    (tmp_path / "pg_wal").mkdir()
    for number in (1, 2, 3, 4):
        content = segment_content(WalSegment(1, number if number < 4 else 0, size), magic=0xD110)
        (tmp_path / "pg_wal" / WalSegment(1, number, size).file_name).write_bytes(content)
    checkpoint = int(3.4 * size) // 8 * 8
    control = control_bytes(timeline=1, checkpoint=checkpoint, redo=checkpoint, segment=size, state=state)
    found = segments_to_keep(str(tmp_path), parse_control(control), [archive])
    assert found == tuple(WalSegment(1, number, size).file_name for number in kept)


def test_options_that_make_no_sense_are_refused(place: Place) -> None:
    with pytest.raises(PolarvaultError, match="--yes-shared is for --delta"):
        run.check_request(RestoreRequest("b", "/t", yes_shared=True))
