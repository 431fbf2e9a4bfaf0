"""Restores whose shared half goes into PFS, on a stand-in for its library: what lies where, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polarvault.backupset.source import OnDisk
from polarvault.errors import PolarvaultError, StorageFailed, TargetNotEmpty, UsageError
from polarvault.instance.host import Host
from polarvault.model.pfs_address import PfsAddress
from polarvault.report.restore import plan_text
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.places import check_space
from polarvault.restore.run import prepare, restore_backup
from polarvault.storage.occupants import CONTROL_WAITING_NAME, RESTORE_MARK_NAME
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.pfs.tree import PfsTree, PfsWritableTree
from support.cluster import Cluster
from support.fake_pfs import DISK, FakeDisk
from support.program import run_polarvault
from support.two_archive_proxy import TwoArchiveProxy

Pair = tuple[Cluster, TwoArchiveProxy]
ADDRESS = PfsAddress(DISK, "made/data")


class FakeHost(Host):
    """This machine, with a disk in PFS that is a directory."""

    def __init__(self, disk: FakeDisk, faults: str = "") -> None:
        self.disk, self.faults = disk, faults
        self.used: dict[int, str] = {}

    def open_pfs(self, mount: PfsMount) -> PfsTree:
        return self.disk.tree(mount, "" if "bytes" not in self.faults else self.faults)

    def open_writable_pfs(self, mount: PfsMount) -> PfsWritableTree:
        return self.disk.writable_tree(mount, self.faults)

    def host_ids(self, disk: str) -> dict[int, str]:
        return self.used


@pytest.fixture
def disk(tmp_path: Path) -> FakeDisk:
    return FakeDisk(tmp_path)


@pytest.fixture
def backup(two_archives: Pair, workspace: Path) -> Path:
    return take(two_archives, workspace)


def take(pair: Pair, workspace: Path, *options: str) -> Path:
    _, proxy = pair
    conninfo = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
    run_polarvault("basebackup", "-d", conninfo, "-c", "fast", "-N", "-D", workspace / "backup", *options)
    return workspace / "backup"


def request(backup: Path, workspace: Path, **more: Any) -> RestoreRequest:
    given = {"pfs": ADDRESS, "host_id": 5, "sync": False, "shelf": OnDisk()} | more
    return RestoreRequest(backup=str(backup), target=str(workspace / "restored"), **given)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def restore(asked: RestoreRequest, host: Host) -> None:
    plan = prepare(asked, host)
    check_space(plan)
    restore_backup(plan, host, lambda size: None)


@pytest.mark.parametrize("options", [(), ("-Ft",), ("-Ft", "-z")])
def test_the_shared_half_goes_into_pfs_and_pg_control_comes_last(
    two_archives: Pair, workspace: Path, disk: FakeDisk, options: tuple[str, ...]
) -> None:
    backup = take(two_archives, workspace, *options)
    (workspace / "plain").mkdir()
    plain = RestoreRequest(
        backup=str(backup), target=str(workspace / "plain/local"), shared_target=str(workspace / "plain/shared"),
        sync=False,
    )  # fmt: skip
    restore(plain, Host())
    restore(request(backup, workspace), FakeHost(disk))
    expected, found = contents(workspace / "plain/shared"), contents(disk.root / DISK / "made/data")
    assert found == expected
    assert "global/pg_control" in found
    assert not {CONTROL_WAITING_NAME, RESTORE_MARK_NAME} & found.keys()
    directories = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}
                   for root in (workspace / "plain/shared", disk.root / DISK / "made/data")]  # fmt: skip
    assert directories[0] == directories[1]
    restored = workspace / "restored"
    assert not (restored / "polar_shared_data").exists()
    settings = (restored / "postgresql.auto.conf").read_text() + (restored / "postgresql.conf").read_text()
    for line in (
        f"polar_datadir = '{ADDRESS.path}/'", "polar_vfs.localfs_mode = off", f"polar_disk_name = {DISK}",
        "polar_storage_cluster_name = disk", "polar_hostid = 5",
    ):  # fmt: skip
        assert line in settings.splitlines(), settings


def test_the_plan_says_where_and_how_much(backup: Path, workspace: Path, disk: FakeDisk) -> None:
    text = "\n".join(plan_text(prepare(request(backup, workspace), FakeHost(disk))))
    assert f"shared half       {ADDRESS}" in text
    assert f"available for {ADDRESS}" in text
    assert "polar_vfs.pfs_force_mount" not in text
    # Beside a server on the same disk.
    host = FakeHost(disk)
    host.used = {1: "process 4711"}
    assert "polar_vfs.pfs_force_mount" in "\n".join(plan_text(prepare(request(backup, workspace), host)))
    assert not list((disk.root / DISK).iterdir())


def refused(kind: type[PolarvaultError], words: str, asked: RestoreRequest, host: Host) -> str:
    with pytest.raises(kind, match=words) as caught:
        restore(asked, host)
    assert not Path(asked.target).exists()
    return caught.value.hint or ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("made/data/file", "exists but is not empty$"),
        ("made/data/global/pg_control", "a shared half of a PolarDB cluster"),
        (f"made/data/{CONTROL_WAITING_NAME}", "a restore that was cut off"),
        ("made/data", "exists but is not empty$"),
        ("made/global/pg_control", "lies inside of .*made"),
    ],
)
def test_what_holds_something_is_not_touched(
    backup: Path, workspace: Path, disk: FakeDisk, name: str, words: str
) -> None:
    there = disk.root / DISK / name
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody's")
    refused(PolarvaultError, words, request(backup, workspace), FakeHost(disk))
    assert contents(disk.root / DISK) == {name: b"somebody's"}


def test_an_empty_directory_is_taken_and_stays_after_a_failure(backup: Path, workspace: Path, disk: FakeDisk) -> None:
    (disk.root / DISK / "made/data").mkdir(parents=True)
    refused(StorageFailed, "no block is free", request(backup, workspace), Full(disk))
    assert list((disk.root / DISK / "made/data").iterdir()) == []
    restore(request(backup, workspace), FakeHost(disk))
    assert (disk.root / DISK / "made/data/global/pg_control").exists()


class Full(FakeHost):
    """A disk that says that it has room, and has none."""

    def __init__(self, disk: FakeDisk) -> None:
        super().__init__(disk)

    def open_writable_pfs(self, mount: PfsMount) -> PfsWritableTree:
        return self.disk.writable_tree(mount, "bytes=100000")


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(backup: Path, workspace: Path, disk: FakeDisk) -> None:
    hint = refused(StorageFailed, "no block is free", request(backup, workspace), Full(disk))
    assert "pfs -C disk info" in hint
    assert list((disk.root / DISK).iterdir()) == []


@pytest.mark.parametrize(
    ("faults", "words"), [("bytes=1000000", "not enough space"), ("files=300", "not enough inodes")]
)
def test_room_is_looked_at_before(
    backup: Path, workspace: Path, disk: FakeDisk, faults: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost(disk)
    monkeypatch.setattr(host, "open_pfs", lambda mount: disk.tree(mount, faults))
    refused(StorageFailed, words, request(backup, workspace), host)
    assert list((disk.root / DISK).iterdir()) == []


def test_a_helper_that_dies_in_the_middle_leaves_nothing_that_looks_whole(
    backup: Path, workspace: Path, disk: FakeDisk
) -> None:
    host = FakeHost(disk, "die=pg_filenode.map")
    with pytest.raises(StorageFailed, match="helper process for disk loop9 has ended") as caught:
        restore(request(backup, workspace), host)
    assert not (workspace / "restored").exists()
    left = contents(disk.root / DISK / "made/data")
    assert "global/pg_control" not in left
    assert RESTORE_MARK_NAME in left
    assert "no server starts from it" in (caught.value.detail or "")
    # The next one is told what it is.
    refused(TargetNotEmpty, "a restore that was cut off", request(backup, workspace), FakeHost(disk))


def test_a_host_id_in_use_is_refused_with_a_free_one(backup: Path, workspace: Path, disk: FakeDisk) -> None:
    host = FakeHost(disk)
    host.used = {1: "process 1", 5: "process 4711"}
    hint = refused(UsageError, "host id 5 is in use on this machine, by process 4711", request(backup, workspace), host)
    assert hint.endswith("--hostid 2")


def test_pfs_that_does_not_answer_is_said_before_anything_is_made(
    backup: Path, workspace: Path, disk: FakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost(disk)
    monkeypatch.setattr(host, "open_pfs", lambda mount: disk.tree(mount, f"refuse={errno.ETIMEDOUT}"))
    assert "pfsd" in refused(StorageFailed, "no pfsd serves disk loop9", request(backup, workspace), host)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"merge": True}, "--merge puts both halves into -D"),
        ({"delta": True}, "--delta changes directories of this machine only"),
        ({"host_id": 255}, "a host number in PFS is at most 254"),
    ],
)
def test_options_that_have_no_sense_in_pfs(
    backup: Path, workspace: Path, disk: FakeDisk, more: dict[str, Any], words: str
) -> None:
    refused(UsageError, words, request(backup, workspace, **more), FakeHost(disk))


def test_a_plain_backup_has_no_shared_half_for_pfs(
    make_cluster: Callable[..., Cluster], workspace: Path, disk: FakeDisk
) -> None:
    cluster = make_cluster(15)
    run_polarvault("basebackup", "-d", cluster.conninfo(), "-c", "fast", "-N", "-D", workspace / "backup")
    asked = request(workspace / "backup", workspace, host_id=None)
    refused(UsageError, "the backup has no shared half", asked, FakeHost(disk))


def test_the_command_takes_addresses_and_the_official_options(backup: Path, workspace: Path) -> None:
    for places in (
        ["--polardata", f"pfsd:///{DISK}/made/data"],
        ["--polardata", f"/{DISK}/made/data", "--polar_disk_name", DISK, "--polar_storage_cluster_name", "disk"],
    ):
        failed = run_polarvault(
            "restore", backup, "-D", workspace / "restored", *places, "--polar_host_id", "5", check=False,
            environment={"POLARVAULT_LIBPFSD": "/nowhere/libpfsd.so"},
        )  # fmt: skip
        assert failed.returncode == 1
        assert "libpfsd, the library for PFS, was not found" in failed.stderr
    failed = run_polarvault(
        "restore", backup, "-D", workspace / "restored", "--polardata", workspace / "s", "--pfs-force", check=False
    )
    assert failed.returncode == 2
    assert "--pfs-force is for a shared half in PFS" in failed.stderr
    assert not (workspace / "restored").exists()
