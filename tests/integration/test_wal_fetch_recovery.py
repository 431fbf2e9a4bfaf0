"""Recoveries of real servers with `polarvault wal fetch`, from directories that the real tools filled."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from polarvault.errors import StartFailed
from polarvault.instance.account import server_account
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.source import segment_numbers
from polarvault.walarchive.restore_command import restore_command
from polarvault.walfiles.choice import find
from polarvault.walfiles.directory import WalDirectory
from polarvault.walfiles.files import read_segment_header
from polarvault.walfiles.search_list import wal_places
from support.cluster import Cluster
from support.receiving import end_of_wal
from support.servers import features_of
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

MB = 1 << 20
SMALL = {"wal_keep_size": "512MB"}
MAJORS = [13, 15, 17, 18, 19]


@pytest.fixture(autouse=True)
def _reachable(workspace: Path) -> None:
    """The server runs the restore_command as its own user, who must be able to run this interpreter."""
    if not server_account().can_run(sys.executable, "-I", "-S", "-c", "pass"):
        pytest.skip(f"user {server_account().name} cannot run {sys.executable}")


def base_backup(cluster: Cluster, target: Path) -> Path:
    """Take a backup without any WAL: recovery has to get all of it from elsewhere."""
    cluster.run("pg_basebackup", "-d", cluster.conninfo(), "-c", "fast", "-N", "-X", "none", "-D", str(target))
    return target


def receive(cluster: Cluster, directory: Path, *options: str) -> None:
    """Let the real pg_receivewal fetch everything up to now, and stop it cleanly inside a segment."""
    (now,) = cluster.query("SELECT pg_current_wal_flush_lsn()::text")[0]
    # It stops at the first byte after --endpos, which an idle server would not send for 15 s.
    cluster.query("SELECT pg_logical_emit_message(true, '', '')")
    cluster.run(
        "pg_receivewal", "-d", cluster.conninfo(), "-n", "--no-sync", "-D", str(directory), "--endpos", now, *options
    )


def load(cluster: Cluster, table: str, rows: int = 40_000) -> None:
    cluster.query(f"CREATE TABLE {table} AS SELECT n, md5(n::text) AS filling FROM generate_series(1, {rows}) n")


def directory(cluster: Cluster, path: Path) -> Path:
    return cluster.account.make_directory(path)


def wait_until_recovered(cluster: Cluster) -> None:
    """Wait for the end of recovery; a hot standby answers long before."""
    wait_until(lambda: cluster.query("SELECT pg_is_in_recovery()") == [(False,)], "the recovery ends")


def system_identifier(cluster: Cluster) -> int:
    return int(cluster.query("SELECT system_identifier FROM pg_control_system()")[0][0])


def ask_for_recovery(cluster: Cluster, data: Path, *, standby: bool = False) -> None:
    signal_file = data / ("standby.signal" if standby else "recovery.signal")
    signal_file.touch()
    cluster.account.own(signal_file)


def recovery_settings(*directories: Path, **options: object) -> dict[str, str]:
    return {"restore_command": restore_command(wal_places(list(map(str, directories))), **options)}  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4"])
@pytest.mark.parametrize("major", MAJORS)
def test_recovery_from_what_pg_receivewal_received_ends_at_its_last_byte(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path,
    major: int, compression: str,
) -> None:  # fmt: skip
    cluster = make_cluster(major, wal_segment_mb=1, settings=SMALL)
    if compression == "lz4" and (major < 15 or "lz4" not in features_of(cluster.installation)):
        pytest.skip(f"pg_receivewal {major} is built without lz4")
    method = {"none": [], "gzip": ["-Z", "5" if major < 15 else "gzip"], "lz4": ["-Z", "lz4"]}[compression]
    received = directory(cluster, workspace / "received with 100% luck")
    receive(cluster, received, *method)
    data = base_backup(cluster, workspace / "data")
    load(cluster, "several_segments")
    load(cluster, "in_the_last_segment", rows=20)
    receive(cluster, received, *method)
    suffix = {"none": "", "gzip": ".gz", "lz4": ".lz4"}[compression]
    assert len(list(received.glob(f"*{suffix}.partial"))) == 1
    assert len(list(received.glob("0" * 7 + "1" + "?" * 16 + suffix))) > 1
    header = WalDirectory(str(received)).first_header()
    assert header is not None
    assert (header.segment_size_bytes, header.system_identifier) == (MB, system_identifier(cluster))

    ask_for_recovery(cluster, data)
    settings = recovery_settings(received, system_identifier=system_identifier(cluster))
    restored = start_restored(major, data, settings=settings)
    wait_until_recovered(restored)
    assert restored.hashes() == cluster.hashes()
    assert "polarvault:" not in restored.log_text()


@pytest.mark.parametrize("command", ["cp %p {}/%f", "gzip -c %p > {}/%f.gz"])
@pytest.mark.parametrize("major", [13, 18])
def test_recovery_from_an_archive_and_along_a_promotion(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path,
    major: int, command: str,
) -> None:  # fmt: skip
    """Timeline 2 begins inside a segment; its history file and the old timeline's .partial are in the archive."""
    archive = workspace / "archive"
    cluster = make_cluster(
        major, wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": command.format(archive)}
    )
    directory(cluster, archive)
    first = base_backup(cluster, workspace / "first")
    second = base_backup(cluster, workspace / "second")
    load(cluster, "on_timeline_1")
    switch_segment(cluster)

    ask_for_recovery(cluster, first)
    promoted = start_restored(major, first, settings=recovery_settings(archive))
    wait_until_recovered(promoted)
    load(promoted, "on_timeline_2", rows=3000)
    switch_segment(promoted)
    assert list(archive.glob("00000002.history*"))

    ask_for_recovery(cluster, second)
    restored = start_restored(major, second, settings=recovery_settings(archive) | {"archive_mode": "off"})
    wait_until_recovered(restored)
    assert restored.hashes() == promoted.hashes()
    assert "on_timeline_2" in restored.hashes()
    assert "polarvault:" not in restored.log_text()


def switch_segment(cluster: Cluster) -> None:
    """Finish the segment and wait until it is in the archive."""
    ((name,),) = cluster.query("SELECT pg_walfile_name(pg_switch_wal())")
    wait_until(
        lambda: (cluster.query("SELECT last_archived_wal FROM pg_stat_archiver")[0][0] or "") >= name,
        f"{name} is archived",
    )


def test_recovery_from_the_pg_wal_of_a_dead_server(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    """Its newest segment is not finished, and behind it lie old segments under new names."""
    cluster = make_cluster(15, wal_segment_mb=1, settings={"wal_keep_size": "8MB", "min_wal_size": "32MB"})
    # A checkpoint renames what lies far enough behind it for later use.
    load(cluster, "before", rows=200_000)
    cluster.hashes()  # The first look at rows writes hint bits, and so WAL: once and for all now.
    cluster.query("CHECKPOINT")
    data = base_backup(cluster, workspace / "data")
    load(cluster, "after", rows=4000)
    expected = cluster.hashes()
    # Nothing is left in memory that the server would write yet.
    current = WalSegment.holding(end_of_wal(cluster), 1, MB).file_name
    cluster.kill()
    pg_wal = cluster.data / "pg_wal"
    names = sorted(path.name for path in pg_wal.glob("0" * 7 + "?" * 17))
    assert names[-1] > current, "the server has recycled no segment"
    source = WalDirectory(str(pg_wal))
    held = [WalSegment(1, number, MB) for number in segment_numbers(source.ranges(1, MB), MB)]
    assert max(segment for segment in held if find(source, segment)) == WalSegment.parse(current, MB)

    ask_for_recovery(cluster, data)
    restored = start_restored(15, data, settings=recovery_settings(pg_wal))
    wait_until_recovered(restored)
    assert restored.hashes() == expected


def test_recovery_from_two_directories_that_overlap(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, settings=SMALL)
    older, newer = directory(cluster, workspace / "older"), directory(cluster, workspace / "newer")
    receive(cluster, older)
    data = base_backup(cluster, workspace / "data")
    load(cluster, "one")
    receive(cluster, older)
    receive(cluster, newer, "-Z", "gzip")
    load(cluster, "two")
    receive(cluster, newer, "-Z", "gzip")
    assert list(older.glob("*.partial"))

    ask_for_recovery(cluster, data)
    restored = start_restored(18, data, settings=recovery_settings(older, newer))
    wait_until_recovered(restored)
    assert restored.hashes() == cluster.hashes()


def test_a_gigabyte_segment_that_holds_little_takes_little(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    settings = {"wal_init_zero": "off", "max_wal_size": "4GB", "wal_keep_size": "4GB"}
    cluster = make_cluster(18, wal_segment_mb=1024, settings=settings)
    received = directory(cluster, workspace / "received")
    receive(cluster, received, "-Z", "gzip")
    data = base_backup(cluster, workspace / "data")
    load(cluster, "little")
    receive(cluster, received, "-Z", "gzip")
    expected = cluster.hashes()

    # A standby keeps asking: it goes on from a partial segment and never promotes, which would copy a gigabyte.
    ask_for_recovery(cluster, data, standby=True)
    restored = start_restored(18, data, settings=recovery_settings(received))
    wait_until(lambda: restored.query("SELECT to_regclass('little')") != [(None,)], "the table is replayed")
    assert restored.hashes() == expected
    segments = list((data / "pg_wal").glob("0" * 7 + "?" * 17))
    assert segments
    for segment in segments:
        assert segment.stat().st_size == 1 << 30
        assert segment.stat().st_blocks * 512 < 64 * MB


@pytest.fixture
def ready(make_cluster: Callable[..., Cluster], workspace: Path) -> tuple[Cluster, Path, Path]:
    """A cluster, its backup without WAL, and a directory with all segments of it, the last one partial."""
    cluster = make_cluster(15, wal_segment_mb=1, settings=SMALL)
    received = directory(cluster, workspace / "received")
    receive(cluster, received)
    data = base_backup(cluster, workspace / "data")
    load(cluster, "rows")
    receive(cluster, received)
    ask_for_recovery(cluster, data)
    return cluster, data, received


def needed_segment(cluster: Cluster, data: Path, received: Path) -> Path:
    """Return a finished segment that recovery needs, neither the first nor the last."""
    label = (data / "backup_label").read_text()
    start = Lsn.parse(label.split("START WAL LOCATION: ")[1].split()[0])
    return received / WalSegment.holding(start, 1, MB).next().file_name


def refused(start: Callable[[], Cluster]) -> str:
    """Return the server's log of a start that must fail."""
    with pytest.raises(StartFailed) as caught:
        start()
    return "\n".join(caught.value.__notes__)


def test_a_directory_that_is_not_mounted_stops_the_recovery_and_no_row_is_lost(
    ready: tuple[Cluster, Path, Path], start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    cluster, data, received = ready
    received.rename(workspace / "elsewhere")
    said = refused(lambda: start_restored(15, data, settings=recovery_settings(received, refuse_empty=True)))
    assert f'polarvault: error: WAL directory "{received}" cannot be read: No such file or directory' in said
    assert "FATAL:  could not restore file" in said
    assert "exit code 200" in said
    directory(cluster, received)
    said = refused(lambda: start_restored(15, data))
    assert f'polarvault: error: WAL directory "{received}" is empty' in said
    received.rmdir()
    (workspace / "elsewhere").rename(received)
    restored = start_restored(15, data)
    wait_until_recovered(restored)
    assert restored.hashes() == cluster.hashes()


@pytest.mark.parametrize("damage", ["compressed", "cut", "another segment", "another cluster", "unreadable program"])
def test_what_is_wrong_stops_the_recovery(
    ready: tuple[Cluster, Path, Path], start_restored: Callable[..., Cluster], damage: str
) -> None:
    cluster, data, received = ready
    settings = recovery_settings(received)
    # Nobody is copying these files: what is too short stays so.
    settings["restore_command"] = settings["restore_command"].replace("--wal", "--grace 0 --wal")
    segment = needed_segment(cluster, data, received)
    if damage == "compressed":
        subprocess.run(["gzip", str(segment)], check=True)
        packed = segment.with_name(segment.name + ".gz")
        content = bytearray(packed.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        packed.write_bytes(content)
        says = f'polarvault: error: "{packed}" '
    elif damage == "cut":
        os.truncate(segment, 500_000)
        says = f'polarvault: error: "{segment}" ends after 500000 of 1048576 bytes'
    elif damage == "another segment":
        shutil.copyfile(received / WalSegment.parse(segment.name, MB).next().file_name, segment)
        says = f'polarvault: error: "{segment}" holds the content of segment'
    elif damage == "another cluster":
        settings = recovery_settings(received, system_identifier=4711)
        says = f"is of the cluster with system identifier {system_identifier(cluster)}, not of 4711"
    else:
        settings["restore_command"] = settings["restore_command"].replace("__main__.py", "gone.py")
        says = "exit code 200"
    said = refused(lambda: start_restored(15, data, settings=settings))
    assert says in said
    assert "FATAL:  could not restore file" in said


def test_a_shutdown_during_a_fetch_is_no_failure(
    ready: tuple[Cluster, Path, Path], start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    """The fetch waits for a segment that somebody copies; the server is stopped and started meanwhile."""
    cluster, data, received = ready
    segment = needed_segment(cluster, data, received)
    content = segment.read_bytes()
    segment.write_bytes(content[:500_000])
    settings = recovery_settings(received)
    settings["restore_command"] = settings["restore_command"].replace("--wal", "--grace 3600 --wal")
    (data / "recovery.signal").unlink()
    ask_for_recovery(cluster, data, standby=True)
    restored = Cluster.adopt(cluster.installation, data, workspace / "stopped")
    restored.configure(settings)
    # Without -w: it cannot answer before the segment is there.
    restored.run("pg_ctl", "-D", str(data), "-l", str(restored.log), "-W", "start")
    try:
        wait_until(lambda: fetches_of(segment.name), "the server asks for the segment")
    finally:
        restored.stop("fast")
    assert "FATAL" not in restored.log_text().replace("FATAL:  the database system is", "")
    wait_until(lambda: not fetches_of(segment.name), "the fetch has ended")
    assert not list((data / "pg_wal").glob("RECOVERY*"))
    segment.write_bytes(content)
    again = start_restored(15, data)
    wait_until(lambda: again.query("SELECT to_regclass('rows')") != [(None,)], "the table is replayed")
    assert again.hashes() == cluster.hashes()


def fetches_of(segment_name: str) -> list[int]:
    """Return the processes that fetch a segment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fetch" in words and segment_name.encode() in words:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("step", ["copy_file_range", "ftruncate", "link", "rename"])
def test_a_fetch_killed_at_any_step_leaves_no_half_segment(
    ready: tuple[Cluster, Path, Path], workspace: Path, step: str
) -> None:
    cluster, data, received = ready
    segment = needed_segment(cluster, data, received)
    target = workspace / "pg_wal" / "RECOVERYXLOG"
    target.parent.mkdir()
    arguments = ["--wal", str(received), segment.name, str(target)]
    program = (
        f"import os, signal; from polarvault.cli import wal_fetch\n"
        f"os.{step} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"wal_fetch.run({arguments})"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    # Before the rename there is a name for a moment, and what has it is complete.
    leftover = list(target.parent.iterdir())
    assert [path.name for path in leftover] == (["RECOVERYXLOG.polarvault"] if step == "rename" else [])
    served = subprocess.run([sys.executable, "-m", "polarvault", "wal", "fetch", *arguments], check=False)
    assert served.returncode == 0
    assert target.read_bytes() == segment.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["RECOVERYXLOG"]


@pytest.mark.parametrize("form", ["", ".gz", ".lz4", ".zst"])
def test_the_line_works_in_a_shell_without_any_environment(
    ready: tuple[Cluster, Path, Path], workspace: Path, form: str
) -> None:
    """Also where it has to load a library from site-packages, which it leaves out to be quick."""
    cluster, data, received = ready
    odd = workspace / "it's $HOME 50%"
    received.rename(odd)
    segment = needed_segment(cluster, data, odd)
    content = segment.read_bytes()
    if form:
        segment.unlink()
        pack = {".gz": gzip.compress, ".lz4": lz4.frame.compress, ".zst": zstandard.compress}[form]
        segment.with_name(segment.name + form).write_bytes(pack(content))
    line = restore_command(WalDirectory(str(odd)), system_identifier=system_identifier(cluster))
    target = workspace / "served"
    # As the server does it: two percent signs are one, %f and %p are put in as they are.
    line = line.replace("%%", "\0").replace("%f", segment.name).replace("%p", str(target)).replace("\0", "%")
    finished = subprocess.run(["sh", "-c", line], env={}, cwd="/", capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    assert target.read_bytes() == content
    absent = subprocess.run(
        ["sh", "-c", line.replace(segment.name, "00000009.history")], env={}, cwd="/", capture_output=True, check=False
    )
    assert (absent.returncode, absent.stdout, absent.stderr) == (1, b"", b"")
    (file,) = [found for found in [find(WalDirectory(str(odd)), WalSegment.parse(segment.name, MB))] if found]
    assert read_segment_header(file).timeline_id == 1
