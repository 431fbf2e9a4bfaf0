"""A backup that is not what its manifest says is not restored, and the files are named; no server is needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.made_backups import SEGMENT, SYSTEM_IDENTIFIER, MadeBackup, files, manifest, table
from support.program import program_environment, run_polarvault
from support.small_files import control_bytes

TABLE = "base/5/16384"


def restore(backup: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_polarvault("restore", backup, "-D", target, "-N", *options, check=False)


def refused(backup: Path, target: Path, *options: str, status: int = 3) -> str:
    finished = restore(backup, target, *options)
    assert finished.returncode == status, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    assert not target.exists()
    return finished.stderr


def without(made: MadeBackup) -> str:
    del made.content[TABLE]
    return f"{TABLE}: is missing, 200000 bytes expected"


def cut(made: MadeBackup) -> str:
    made.content[TABLE] = made.content[TABLE][:8192]
    return f"{TABLE}: 200000 bytes expected, 8192 bytes found"


def grown(made: MadeBackup) -> str:
    made.content["base/5/16385"] = b"x"
    return "base/5/16385: 0 bytes expected, 1 bytes found"


def extra(made: MadeBackup) -> str:
    made.content["base/5/99999"] = b"xyz"
    return "base/5/99999: 3 bytes, is not in the manifest"


def changed(made: MadeBackup) -> str:
    content = bytearray(made.content[TABLE])
    content[100_000] ^= 1
    made.content[TABLE] = bytes(content)
    return f"{TABLE}: "


FORMS: dict[str, Callable[[MadeBackup, Path], Path]] = {
    "plain": lambda made, path: made.plain(path),
    "tar": lambda made, path: made.tar(path),
    "gz": lambda made, path: made.tar(path, ".gz"),
    "zst": lambda made, path: made.tar(path, ".zst"),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("damage", [without, cut, grown, extra])
def test_a_wrong_name_or_size_is_refused_and_named(
    workspace: Path, form: str, damage: Callable[[MadeBackup], str]
) -> None:
    made = MadeBackup().seal()
    words = damage(made)
    said = refused(FORMS[form](made, workspace / "b"), workspace / "r")
    assert words in said
    assert ("nothing was written" in said) == (form in ("plain", "tar"))


@pytest.mark.parametrize(
    ("form", "algorithm"),
    [
        *((form, "CRC32C") for form in FORMS),
        *(("plain", f"SHA{bits}") for bits in (224, 256, 384, 512)),
        ("zst", "SHA256"),
    ],
)
def test_a_changed_byte_is_found_while_it_is_copied(workspace: Path, form: str, algorithm: str) -> None:
    made = MadeBackup(algorithm=algorithm).seal()
    words = changed(made)
    backup = FORMS[form](made, workspace / "b")
    said = refused(backup, workspace / "r")
    assert f"{words}{algorithm}" in said
    assert "so far has been removed" in said
    assert restore(backup, workspace / "r", "--no-verify-checksums").returncode == 0


@pytest.mark.parametrize(
    ("form", "algorithm"), [*((form, "CRC32C") for form in FORMS), ("plain", "SHA256"), ("plain", None), ("gz", None)]
)
def test_a_whole_backup_is_restored_without_a_word_about_its_files(
    workspace: Path, form: str, algorithm: str | None
) -> None:
    made = MadeBackup(algorithm=algorithm).seal()
    finished = restore(FORMS[form](made, workspace / "b"), workspace / "r")
    assert finished.returncode == 0, finished.stderr
    assert ("without checksums" in finished.stderr) == (algorithm is None)
    assert "not as the manifest" not in finished.stderr
    assert (workspace / "r" / TABLE).read_bytes() == made.content[TABLE]
    assert (workspace / "r/global/pg_control").exists()


@pytest.mark.parametrize("damage", [without, cut, extra, changed])
def test_a_damaged_backup_is_restored_when_it_is_all_there_is(
    workspace: Path, damage: Callable[[MadeBackup], str]
) -> None:
    made = MadeBackup().seal()
    words = damage(made)
    finished = restore(made.plain(workspace / "b"), workspace / "r", "--force")
    assert finished.returncode == 0, finished.stderr
    assert words in finished.stderr


def test_holes_count_as_the_zeros_that_they_read_as(workspace: Path) -> None:
    made = MadeBackup()
    made.content[TABLE] = table(1, 8192) + bytes(2 << 20) + table(2, 8192) + bytes(1 << 20)
    backup = made.seal().plain(workspace / "b")
    subprocess.run(["fallocate", "--dig-holes", str(backup / TABLE)], check=False)
    assert restore(backup, workspace / "r").returncode == 0
    assert (workspace / "r" / TABLE).read_bytes() == made.content[TABLE]


def test_settings_that_somebody_has_edited_are_a_warning(workspace: Path) -> None:
    made = MadeBackup().seal()
    made.content["postgresql.conf"] += b"work_mem = '64MB'\n"
    finished = restore(made.plain(workspace / "b"), workspace / "r")
    assert finished.returncode == 0
    assert "not as the manifest says: postgresql.conf" in finished.stderr


def test_what_a_good_backup_gets_added_is_no_extra_file(workspace: Path) -> None:
    made = MadeBackup().seal()
    made.content |= {"standby.signal": b"", "postgresql.auto.conf": b"primary_conninfo = 'host=x'\n"}
    assert restore(made.plain(workspace / "b"), workspace / "r").returncode == 0


def test_a_backup_without_a_manifest_is_a_warning(workspace: Path) -> None:
    finished = restore(MadeBackup().plain(workspace / "b"), workspace / "r")
    assert finished.returncode == 0
    assert "has no backup_manifest" in finished.stderr


def test_a_damaged_manifest_is_refused(workspace: Path) -> None:
    made = MadeBackup().seal()
    assert made.sealed is not None
    made.sealed = made.sealed.replace(b'"Size": 200000', b'"Size": 200001')
    backup = made.plain(workspace / "b")
    assert "manifest checksum mismatch" in refused(backup, workspace / "r")
    assert restore(backup, workspace / "r", "--force").returncode == 0


def test_the_manifest_of_another_backup_is_refused(workspace: Path) -> None:
    made = MadeBackup()
    made.sealed = manifest(files(), start=0x3000028)
    assert "0/3000028" in refused(made.plain(workspace / "b"), workspace / "r", status=1)


def test_the_manifest_of_another_cluster_is_refused(workspace: Path) -> None:
    made = MadeBackup().seal()
    assert made.sealed is not None
    body = made.sealed[: made.sealed.rindex(b'"Manifest-Checksum"')].replace(
        b'Version": 1,', b'Version": 2,\n"System-Identifier": 42,'
    )
    made.sealed = body + f'"Manifest-Checksum": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()
    said = refused(made.plain(workspace / "b"), workspace / "r")
    assert "system identifier 42" in said
    assert str(SYSTEM_IDENTIFIER) in said


def polardb(path: Path) -> Path:
    local = files()
    shared = {name: local.pop(name) for name in ("base/5/16384", "base/1/1255", "global/1262", "global/pg_control")}
    local |= {
        "polar_settings.conf": b"",
        "postgresql.conf": b"polar_enable_shared_storage_mode = on\npolar_datadir = 'file-dio:///live'\n"
        b"polar_vfs.localfs_mode = on\n",
    }
    MadeBackup(local).seal().plain(path)
    shutil.rmtree(path / "pg_wal")
    MadeBackup(shared).seal().plain(path / "polar_shared_data")
    return path


def test_both_halves_of_a_polardb_backup_are_compared(workspace: Path) -> None:
    backup = polardb(workspace / "b")
    assert restore(backup, workspace / "r").returncode == 0
    shutil.rmtree(workspace / "r")
    (backup / "polar_shared_data" / TABLE).unlink()
    said = refused(backup, workspace / "r")
    assert f"shared half: {TABLE}: is missing" in said


def test_one_manifest_of_both_halves_is_understood(workspace: Path) -> None:
    backup = polardb(workspace / "b")
    shared = backup / "polar_shared_data"
    (shared / "backup_manifest").unlink()
    content = {}
    for half in (backup, shared):
        for path in sorted(half.rglob("*")):
            name = str(path.relative_to(half))
            if path.is_file() and not name.startswith(("polar_shared_data/", "pg_wal", "backup_manifest")):
                content[name] = path.read_bytes()
    (backup / "backup_manifest").write_bytes(manifest(content))
    assert restore(backup, workspace / "r").returncode == 0
    (shared / TABLE).unlink()
    assert f"{TABLE}: is missing" in refused(backup, workspace / "r2")


def two_backups(workspace: Path) -> tuple[Path, Path]:
    older = MadeBackup().seal().plain(workspace / "all/monday")
    newer = MadeBackup(files(0x5000028), start=0x5000028).seal().plain(workspace / "all/tuesday")
    return older, newer


def test_the_older_backup_that_is_whole_is_named(workspace: Path) -> None:
    older, newer = two_backups(workspace)
    MadeBackup(files(0x3000028), start=0x3000028).seal().plain(workspace / "all/later")
    (workspace / "all/later" / TABLE).unlink()
    (newer / TABLE).unlink()
    said = refused(newer, workspace / "r")
    assert f"polarvault restore {older}" in said
    assert "all/later" not in said.replace(str(newer), "")


def test_a_directory_of_backups_says_which_cannot_be_used(workspace: Path) -> None:
    older, newer = two_backups(workspace)
    (newer / TABLE).unlink()
    cut_off = workspace / "all/wednesday"
    cut_off.mkdir()
    (cut_off / "polarvault_backup_in_progress").touch()
    said = refused(workspace / "all", workspace / "r", status=1)
    assert f"the newest that is whole is {older}" in said
    assert f"{newer}: does not agree with its manifest" in said
    assert f"{cut_off}" in said


def test_a_mark_of_a_backup_in_progress_is_refused_unless_forced(workspace: Path) -> None:
    made = MadeBackup()
    made.content["polarvault_backup_in_progress"] = b""
    backup = made.plain(workspace / "b")
    assert "cut off" in refused(backup, workspace / "r", status=1)
    assert restore(backup, workspace / "r", "--force").returncode == 0
    assert not (workspace / "r/polarvault_backup_in_progress").exists()


def test_control_gets_its_name_only_after_all_agrees(workspace: Path) -> None:
    # A file that ends in its own CRC-32C, as pg_control does, has the same CRC-32C whatever is in it.
    made = MadeBackup(algorithm="SHA256").seal()
    made.content["global/pg_control"] = control_bytes(timeline=1, checkpoint=0x2000060, redo=0x2000028, minimum=1)
    said = refused(made.plain(workspace / "b"), workspace / "r")
    assert "global/pg_control: SHA256" in said


def with_tablespace(made: MadeBackup, path: Path, copy: Path) -> Path:
    backup = made.plain(path)
    (backup / "pg_tblspc").mkdir()
    (backup / "pg_tblspc/16400").symlink_to(copy)
    return backup


def test_a_tablespace_whose_copy_is_gone_is_named_and_can_be_restored_empty(workspace: Path) -> None:
    gone = workspace / "gone"
    backup = with_tablespace(MadeBackup().seal(), workspace / "b", gone)
    said = refused(backup, workspace / "r", status=1)
    assert f'tablespace 16400 is missing: pg_tblspc/16400 points to "{gone}"' in said
    assert f"-T {gone}=NEW_DIRECTORY" in said
    assert restore(backup, workspace / "r", "-T", f"{gone}={workspace}/new").returncode == 0
    assert (workspace / "r/pg_tblspc/16400").readlink() == workspace / "new"
    assert (workspace / "new/PG_15_202209061").is_dir()


def test_files_of_a_tablespace_that_appeared_meanwhile_are_left_alone(workspace: Path) -> None:
    live = workspace / "live"
    (live / "PG_15_202209061/5").mkdir(parents=True)
    (live / "PG_15_202209061/5/16500").write_bytes(b"live")
    backup = with_tablespace(MadeBackup().seal(), workspace / "b", live)
    said = refused(backup, workspace / "r", "-T", f"{live}={workspace}/new", status=1)
    assert "was made while the backup was taken" in said
    assert (live / "PG_15_202209061/5/16500").read_bytes() == b"live"


def test_one_tablespace_may_lie_inside_of_another(workspace: Path) -> None:
    made = MadeBackup()
    spaces = {16400: workspace / "copies/outer", 16401: workspace / "copies/outer/inner"}
    for oid in spaces:
        made.content[f"pg_tblspc/{oid}/PG_15_202209061/5/{oid}"] = table(oid)
    made.seal()
    inside = {name: data for name, data in made.content.items() if not name.startswith("pg_tblspc/")}
    outside = {name: data for name, data in made.content.items() if name.startswith("pg_tblspc/")}
    made.content = inside
    backup = with_tablespace(made, workspace / "b", spaces[16400])
    (backup / "pg_tblspc/16401").symlink_to(spaces[16401])
    for name, data in outside.items():
        path = spaces[int(name.split("/")[1])] / name.split("/", 2)[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    new = workspace / "new"
    finished = restore(
        backup, workspace / "r", "-T", f"{spaces[16400]}={new}/outer", "-T", f"{spaces[16401]}={new}/outer/inner"
    )
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in (new / "outer").iterdir()) == ["PG_15_202209061", "inner"]
    for name, data in outside.items():
        assert (workspace / "r" / name).read_bytes() == data


# A copy of one large file that stands still once the signal has been sent, until the work is called off.
INTERRUPTED = """
import os, signal, time
from polarvault.cli.entry import main
from polarvault.restore.write.lay_out import LayOut
made, begin, pread, calls = [], LayOut.__init__, os.pread, iter(range(10 ** 9))
def noted(self, *how, **more):
    begin(self, *how, **more)
    made.append(self)
def standing_still(*how):
    if made and next(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 60
        while not made[0]._stop.is_set():
            assert time.monotonic() < deadline
    return pread(*how)
LayOut.__init__, os.pread = noted, standing_still
main()
"""


def test_a_stop_takes_effect_in_the_middle_of_a_file(workspace: Path) -> None:
    made = MadeBackup()
    made.content[TABLE] = table(1, 5 << 20)
    backup = made.seal().plain(workspace / "b")
    finished = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "restore", backup, "-D", workspace / "r", "-j", "1"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", env=program_environment(), check=False,
    )  # fmt: skip
    assert finished.returncode == 128 + signal.SIGINT, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (workspace / "r").exists()


def shorten(backup: Path, length: int) -> None:
    os.truncate(backup / "pg_wal" / SEGMENT, length)


# The backup begins at 0/2000028, and its manifest says that it ends at 0/2000128.
@pytest.mark.parametrize("length", [0, 100, 0x127])
def test_a_wal_segment_that_ends_before_the_backup_does_is_refused(workspace: Path, length: int) -> None:
    backup = MadeBackup().seal().plain(workspace / "b")
    shorten(backup, length)
    said = refused(backup, workspace / "r")
    assert f"{SEGMENT}" in said
    assert f"it is {length} bytes long" in said
    assert "up to 0/2000128" in said
    assert restore(backup, workspace / "r", "--force").returncode == 0


def test_without_a_manifest_a_wal_segment_has_to_reach_the_start_of_recovery(workspace: Path) -> None:
    backup = MadeBackup().plain(workspace / "b")
    shorten(backup, 0x28)
    assert "0/2000029" in refused(backup, workspace / "r")
    shorten(backup, 0x128)
    assert restore(backup, workspace / "r").returncode == 0


def test_a_wal_segment_that_holds_all_that_is_needed_is_made_whole(workspace: Path) -> None:
    backup = MadeBackup().seal().plain(workspace / "b")
    shorten(backup, 0x128)
    assert restore(backup, workspace / "r").returncode == 0
    assert (workspace / "r/pg_wal" / SEGMENT).stat().st_size == 16 << 20


def test_a_short_wal_segment_is_no_matter_where_another_place_supplies_it(workspace: Path) -> None:
    backup = MadeBackup().seal().plain(workspace / "b")
    shorten(backup, 0)
    assert restore(backup, workspace / "r", "--set", "restore_command=cp /archive/%f %p").returncode == 0


def change_wal(backup: Path, offset: int, bits: int = 1) -> None:
    with open(backup / "pg_wal" / SEGMENT, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bits]))


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (0, "the page at 0/2000000 has magic D111"),
        (12, "the page at 0/2000000 is old content of a recycled segment"),
        (0x80, "the record at 0/2000028 has a wrong checksum"),
        (0x127 - 7, "the record at 0/2000100 has a wrong checksum"),
    ],
)
def test_a_changed_byte_in_the_wal_that_a_backup_needs_is_found(workspace: Path, offset: int, words: str) -> None:
    backup = MadeBackup().seal().plain(workspace / "b")
    change_wal(backup, offset)
    said = refused(backup, workspace / "r")
    assert f'WAL segment {SEGMENT} of "{backup}" is damaged: {words}' in said
    assert f"that is byte {0 if offset < 40 else 40 if offset == 0x80 else 0x100}; what was" in said
    forced = restore(backup, workspace / "r", "--force")
    assert forced.returncode == 0
    assert f"WAL segment {SEGMENT} of the backup is damaged: {words}" in forced.stderr


def test_damage_behind_the_end_of_a_backup_is_no_matter(workspace: Path) -> None:
    backup = MadeBackup().seal().plain(workspace / "b")
    change_wal(backup, 0x128 + 3)
    assert restore(backup, workspace / "r").returncode == 0


def test_a_changed_byte_in_the_wal_is_no_matter_where_another_place_supplies_it_or_nobody_wants_to_know(
    workspace: Path,
) -> None:
    backup = MadeBackup().seal().plain(workspace / "b")
    change_wal(backup, 0x100)
    for number, options in enumerate([("--set", "restore_command=cp /archive/%f %p"), ("--no-verify-checksums",)]):
        assert restore(backup, workspace / f"r{number}", *options).returncode == 0


def test_without_a_manifest_the_wal_is_read_up_to_the_end_of_the_backup(workspace: Path) -> None:
    backup = MadeBackup().plain(workspace / "b")
    change_wal(backup, 0x128 + 3)
    assert restore(backup, workspace / "r").returncode == 0
    change_wal(backup, 0x100)
    assert "wrong checksum" in refused(backup, workspace / "r2")


def test_a_label_that_names_no_place_for_a_record_is_refused(workspace: Path) -> None:
    backup = MadeBackup(files(0x2000029)).plain(workspace / "b")
    assert "names a start where no record can begin: 0/2000029" in refused(backup, workspace / "r", status=1)
