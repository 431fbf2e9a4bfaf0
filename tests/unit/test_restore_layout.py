"""Where files go, how backups are recognised, and how their tar files are read."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from polarvault.backupset.inventory import take_inventory
from polarvault.backupset.model import Area, Form, Part
from polarvault.backupset.reading.tarstream import read_tar, scan_tar
from polarvault.backupset.source import find_backup
from polarvault.errors import BackupUnusable, IntegrityError, TargetNotEmpty, UsageError
from polarvault.instance.model import Account
from polarvault.pgfiles.tar import TERMINATOR, MemberData, MemberKind, encode_header, encode_member
from polarvault.restore.model import Layout
from polarvault.restore.plan.routing import Router
from polarvault.restore.write.targets import Targets

FILE, DIRECTORY = MemberKind.FILE, MemberKind.DIRECTORY
PLAIN = Router(Layout("/l", None, {16384: "/ts"}), two_halves=False)
HALVES = Router(Layout("/l", "/s", {}), two_halves=True, log_directory="log")
MERGED = Router(Layout("/l", None, {}, merged=True), two_halves=True, log_directory="log")


@pytest.mark.parametrize(
    ("router", "area", "name", "path"),
    [
        (PLAIN, Area.LOCAL, "base/5/1259", "/l/base/5/1259"),
        (PLAIN, Area.LOCAL, "pg_xact/0000", "/l/pg_xact/0000"),
        (PLAIN, Area.LOCAL, "log/server.log", "/l/log/server.log"),
        (PLAIN, Area.LOCAL, "global/pg_control", "/l/global/pg_control.polarvault"),
        (PLAIN, Area.WAL, "000000010000000000000001", "/l/pg_wal/000000010000000000000001"),
        (PLAIN, Area.TABLESPACE, "PG_15_202209061/5/1", "/ts/PG_15_202209061/5/1"),
        (PLAIN, Area.LOCAL, "standby.signal", None),
        (PLAIN, Area.LOCAL, "backup_manifest", None),
        (PLAIN, Area.LOCAL, "polarvault_backup.json", None),
        (PLAIN, Area.LOCAL, "tablespace_map", None),
        (PLAIN, Area.LOCAL, "../../etc/passwd", None),
        (PLAIN, Area.LOCAL, "file-dio:///s/pg_wal/archive_status/1.done", None),
        (HALVES, Area.LOCAL, "backup_label", "/l/backup_label"),
        (HALVES, Area.LOCAL, "pg_xact/0000", None),
        (HALVES, Area.LOCAL, "log/x_audit.log", None),
        (HALVES, Area.LOCAL, "global/pg_control", None),
        (HALVES, Area.LOCAL, "pg_wal/000000010000000000000001", "/s/pg_wal/000000010000000000000001"),
        (HALVES, Area.LOCAL, "polar_shared_data/base/5/1259", "/s/base/5/1259"),
        (HALVES, Area.LOCAL, "polar_shared_data/global/pg_control", "/s/global/pg_control.polarvault"),
        (HALVES, Area.LOCAL, "polar_replica_booted", None),
        (HALVES, Area.SHARED, "pg_xact/0000", "/s/pg_xact/0000"),
        (HALVES, Area.SHARED, "backup_label", None),
        (HALVES, Area.SHARED, "standby.signal", None),
        (HALVES, Area.SHARED, "polar_fullpage/0000.fp", None),
        (HALVES, Area.SHARED, "polar_non_exclusive_backup_label", None),
        (HALVES, Area.SHARED, "global/pg_control", "/s/global/pg_control.polarvault"),
        (MERGED, Area.SHARED, "pg_xact/0000", "/l/pg_xact/0000"),
        (MERGED, Area.LOCAL, "pg_xact/0000", None),
        (MERGED, Area.WAL, "000000010000000000000001", "/l/pg_wal/000000010000000000000001"),
    ],
)
def test_every_file_has_its_place(router: Router, area: Area, name: str, path: str | None) -> None:
    assert router.path(area, name, FILE, 16384) == path


def test_empty_directories_are_kept_everywhere() -> None:
    for name in ("pg_xact", "polar_fullpage", "log", "base/5"):
        assert HALVES.path(Area.LOCAL, name, DIRECTORY) == f"/l/{name}"


def tar(*members: tuple[str, bytes]) -> bytes:
    return b"".join(encode_member(name, body) for name, body in members) + TERMINATOR


def lz4_frames(content: bytes) -> bytes:
    half = len(content) // 2
    return bytes(lz4.frame.compress(content[:half]) + lz4.frame.compress(content[half:]))


def gzip_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


def zstd_frames(content: bytes) -> bytes:
    half = len(content) // 2
    return zstandard.compress(content[:half]) + zstandard.compress(content[half:])


COMPRESSIONS = {None: bytes, "gz": gzip_members, "lz4": lz4_frames, "zst": zstd_frames}


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
def test_tars_are_read_whatever_they_are_compressed_with(tmp_path: Path, compression: str | None) -> None:
    small, large = b"small" * 7, bytes(range(256)) * 12000
    path = tmp_path / "base.tar"
    path.write_bytes(COMPRESSIONS[compression](tar(("a", small), ("b", large), ("c", b""))))
    part = Part(Area.LOCAL, str(path), True, compression)
    body = b"".join(bytes(view) for event in read_tar(part) if isinstance(event, MemberData) for view in event.views)
    assert body == small + large
    listed = {member.name: content for member, content in scan_tar(part, lambda member: member.size < 1000)}
    assert listed == {"a": small, "b": None, "c": b""}


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
def test_a_cut_tar_is_noticed(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "base.tar"
    whole = COMPRESSIONS[compression](tar(("a", bytes(range(256)) * 12000)))
    path.write_bytes(whole[: len(whole) * 2 // 3])
    part = Part(Area.LOCAL, str(path), True, compression)
    for read in (lambda: list(read_tar(part)), lambda: list(scan_tar(part, lambda member: False))):
        with pytest.raises(IntegrityError, match=r"base\.tar"):
            read()


def test_a_tar_without_terminator_and_padding_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "base.tar"
    path.write_bytes(encode_header("a", 3) + b"abc")
    part = Part(Area.LOCAL, str(path), True)
    assert [member.name for member, _ in scan_tar(part, lambda member: True)] == ["a"]
    assert list(read_tar(part))


def make(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return directory


def test_a_plain_backup_is_recognised(tmp_path: Path) -> None:
    found = find_backup(str(make(tmp_path, "PG_VERSION", "global/pg_control")))
    assert (found.form, [part.area for part in found.parts]) == (Form.PLAIN, [Area.LOCAL])


def test_a_nested_shared_half_is_recognised(tmp_path: Path) -> None:
    make(tmp_path, "PG_VERSION", "polar_shared_data/global/pg_control", "polar_shared_data/pg_wal/x")
    assert [part.area for part in find_backup(str(tmp_path)).parts] == [Area.LOCAL, Area.SHARED]


@pytest.mark.parametrize("recorded", ["../shared", "{root}/shared", "/moved/away/shared"])
def test_a_recorded_shared_half_is_found_even_after_a_move(tmp_path: Path, recorded: str) -> None:
    make(tmp_path / "shared", "global/pg_control", "pg_wal/x")
    local = make(tmp_path / "local", "PG_VERSION")
    (local / "polarvault_backup.json").write_text(json.dumps({"shared_half": recorded.format(root=tmp_path)}))
    assert find_backup(str(local)).parts[1].path == str(tmp_path / "shared")


def test_a_recorded_shared_half_that_is_gone_is_asked_for(tmp_path: Path) -> None:
    local = make(tmp_path / "local", "PG_VERSION")
    (local / "polarvault_backup.json").write_text(json.dumps({"shared_half": "/gone/shared"}))
    with pytest.raises(BackupUnusable) as caught:
        find_backup(str(local))
    assert "--shared-from" in (caught.value.hint or "")


@pytest.mark.parametrize("content", ["{", "[]", '{"shared_half": 7}'])
def test_a_damaged_description_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    make(tmp_path, "PG_VERSION")
    (tmp_path / "polarvault_backup.json").write_text(content)
    assert len(find_backup(str(tmp_path)).parts) == 1


def test_tar_files_are_recognised_with_wal_in_the_place_of_the_real_tool(tmp_path: Path) -> None:
    make(tmp_path, "base.tar.gz", "data.tar.gz", "16384.tar.gz", "backup_manifest", "polar_shared_data/pg_wal.tar.gz")
    found = find_backup(str(tmp_path))
    assert found.form is Form.TAR_DIRECTORY
    assert {part.area for part in found.parts} == {Area.LOCAL, Area.SHARED, Area.TABLESPACE, Area.WAL}
    assert {part.compression for part in found.parts} == {"gz"}


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ((), "neither PG_VERSION nor base.tar"),
        (("global/pg_control", "base/1"), "shared half"),
        (("PG_VERSION", "backup_manifest.tmp"), "interrupted"),
        (("PG_VERSION", "postmaster.pid"), "data directory of a server"),
        (("base.tar", "base.tar.gz"), "more than once"),
    ],
)
def test_what_is_no_backup_is_refused_with_a_reason(tmp_path: Path, names: tuple[str, ...], match: str) -> None:
    with pytest.raises(BackupUnusable, match=match) as caught:
        find_backup(str(make(tmp_path, *names)))
    assert caught.value.hint


def test_an_incomplete_backup_can_be_forced(tmp_path: Path) -> None:
    assert find_backup(str(make(tmp_path, "PG_VERSION", "backup_manifest.tmp")), force=True).parts


def test_a_shared_half_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shared-from"):
        find_backup(str(tmp_path), shared_from=str(tmp_path / "none"))


def test_a_combined_tar_is_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "all.tar"
    path.write_bytes(
        tar(
            ("PG_VERSION", b"15\n"),
            ("postgresql.conf", b"port = 1\n"),
            ("polar_shared_data/base/5/1259", bytes(8192)),
            ("polar_shared_data/pg_wal/000000010000000000000001", bytes(512)),
        )
    )
    found = take_inventory(find_backup(str(path)))
    assert found.has_shared_half
    assert found.wal == {"000000010000000000000001": 512}
    assert found.file("postgresql.conf") == b"port = 1\n"
    assert not found.has_control


@pytest.fixture
def targets() -> Targets:
    return Targets(Account("me", os.getuid(), os.getgid()), directory_mode=0o700, sync=False)


def test_undo_removes_what_was_made_and_keeps_what_was_there(tmp_path: Path, targets: Targets) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    targets.claim([str(empty), str(tmp_path / "new/deep")])
    make(empty, "a/b")
    make(tmp_path / "new/deep", "c")
    assert empty.stat().st_mode & 0o777 == 0o700
    targets.undo()
    targets.undo()
    assert list(tmp_path.iterdir()) == [empty]
    assert list(empty.iterdir()) == []
    assert empty.stat().st_mode & 0o777 == 0o755


def test_a_target_filled_since_the_plan_is_not_touched(tmp_path: Path, targets: Targets) -> None:
    full = make(tmp_path / "full", "precious")
    with pytest.raises(TargetNotEmpty):
        targets.claim([str(tmp_path / "new"), str(full)])
    targets.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (full / "precious").exists()
