"""WAL archived into a repository by a real server, and recovered from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import polarvault
from polarvault.cli.wal_push import ARCHIVED, FAILED
from polarvault.instance.account import server_account
from polarvault.model.segment import WalSegment
from support.archiving import Archived
from support.cluster import Cluster
from support.program import command_line, program_environment, run_polarvault
from support.waiting import wait_until
from support.wal_segments import segment_content

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("major", [15, 18])
def test_every_moment_behind_a_backup_is_reached_from_the_repository_alone(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    site = Archived(make_cluster(major, wal_segment_mb=4), workspace)
    cluster = site.cluster
    # The first push has made the generation; no backup was there.
    site.switch()
    first = site.back_up()
    cluster.query("CREATE TABLE later AS SELECT n FROM generate_series(1, 50000) n")
    cluster.query("SELECT pg_create_restore_point('here')")
    wanted = cluster.hashes()
    cluster.query("DROP TABLE accounts")
    site.switch()
    site.back_up()
    cluster.query("CREATE TABLE last AS SELECT 1 AS one")
    at_the_end = cluster.hashes()
    site.switch()
    listed = json.loads(site.run("list", "shop", "--repo", site.repository, "--json").stdout)
    ends = [one["wal_end"] for one in listed["clusters"][0]["backups"]]
    # No hole behind the first backup: both lead to the same end.
    assert ends[0] == ends[1]
    status = json.loads(site.run("wal", "status", "shop", "--repo", site.repository, "--json").stdout)
    (line,) = status["clusters"][0]["generations"][0]["timelines"]
    assert [len(window["backups"]) for window in line["windows"]] == [2]
    assert (line["windows"][0]["end"], line["gaps"]) == (ends[1], [])
    for name, target, hashes in (
        ("named", ["--target-name", "here"], wanted),
        ("end", ["--target", "latest"], at_the_end),
    ):
        action = ["--target-action", "promote"] if name == "named" else []
        server = site.restored(name, *target, *action)
        try:
            assert server.hashes() == hashes
        finally:
            server.stop("immediate")
    assert first["parent"] is None
    checked = json.loads(site.run("repo", "check", "--read-data", "--repo", site.repository, "--json").stdout)
    assert checked["problems"] == []


def test_the_same_again_is_a_success_and_other_bytes_are_refused(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    site = Archived(make_cluster(15, wal_segment_mb=1), workspace)
    segment = site.switch()
    path = site.cluster.data / "pg_wal" / segment
    before = sorted(site.repository.rglob("*"))
    assert site.push(path).returncode == ARCHIVED
    assert sorted(site.repository.rglob("*")) == before
    other = server_account().make_directory(workspace / "other") / segment
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    other.write_bytes(content)
    server_account().own(other)
    refused = site.push(other)
    assert refused.returncode == FAILED
    assert "two servers write the same timeline" in refused.stderr
    assert sorted(site.repository.rglob("*")) == before
    for name, text in (
        (segment[:23] + "Z", "is not the name"),
        (segment[:16] + "000000FF", "holds the content of segment"),
    ):
        (other.parent / name).write_bytes(path.read_bytes())
        server_account().own(other.parent / name)
        wrong = site.push(other.parent / name)
        assert wrong.returncode == FAILED
        assert text in wrong.stderr
    (other.parent / segment).write_bytes(path.read_bytes()[:-8192])
    assert "is not archived" in site.push(other.parent / segment).stderr


def test_a_partial_segment_serves_a_recovery_as_far_as_it_goes(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    site = Archived(make_cluster(15, wal_segment_mb=1), workspace)
    site.back_up()
    site.cluster.query("CREATE TABLE later AS SELECT 1 AS one")
    ((segment,),) = site.cluster.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    wanted = site.cluster.hashes()
    # As a promoted standby archives the segment that it has left.
    partial = server_account().make_directory(workspace / "left") / f"{segment}.partial"
    partial.write_bytes((site.cluster.data / "pg_wal" / str(segment)).read_bytes())
    server_account().own(partial)
    assert site.push(partial).returncode == ARCHIVED
    assert site.push(partial).returncode == ARCHIVED
    server = site.restored("end", "--target", "latest")
    try:
        assert server.hashes() == wanted
    finally:
        server.stop("immediate")
    # The whole segment comes later: what is there agrees with it.
    assert site.switch() == segment


def test_what_cannot_be_archived_ends_below_126_so_that_the_server_tries_again(workspace: Path, tmp_path: Path) -> None:
    nowhere = workspace / "nowhere"
    for words in (
        ["wal", "push", "/x/000000010000000000000001", "--cluster", "shop", "--repo", nowhere],
        ["wal", "push", "/x/000000010000000000000001", "--cluster", "shop"],
        ["wal", "push", "--cluster", "shop", "--repo", nowhere],
        ["wal", "push", "a", "b", "--cluster", "shop"],
        ["wal", "push", "--unknown", "x"],
    ):
        done = run_polarvault(*map(str, words), check=False, environment={"XDG_CONFIG_HOME": str(tmp_path)})
        assert done.returncode == FAILED, words
        assert done.stderr.startswith("polarvault: error: ")
        assert "Traceback" not in done.stderr


def test_what_waits_is_archived_behind_one_call_and_the_next_ones_answer_by_its_marks(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    site = Archived(make_cluster(15, wal_segment_mb=1), workspace)
    site.switch()
    # The archiver is held up while a good deal of WAL is written.
    works = site.cluster.query("SHOW archive_command")[0][0]
    site.cluster.configure({"archive_command": "false"})
    site.cluster.query("SELECT pg_reload_conf()")
    site.cluster.query("CREATE TABLE much AS SELECT n, repeat('x', 100) t FROM generate_series(1, 100000) n")
    site.cluster.query("SELECT pg_switch_wal()")
    status = site.cluster.data / "pg_wal" / "archive_status"
    ready = sorted(path.name.removesuffix(".ready") for path in status.glob("*.ready"))
    assert len(ready) > 8
    state = server_account().make_directory(workspace / "state")
    push = ["wal", "push", site.cluster.data / "pg_wal" / ready[0], "--cluster", "shop", "--repo", site.repository]
    environment = {"XDG_STATE_HOME": str(state)}

    def pushed(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        push[2] = site.cluster.data / "pg_wal" / name
        return run_polarvault(
            *map(str, push), *more, as_server=True, check=False, directory=workspace, environment=environment
        )

    assert pushed(ready[0], "--one").returncode == ARCHIVED
    assert list(state.rglob("0000*")) == []
    assert pushed(ready[0]).returncode == ARCHIVED

    def marked() -> list[str]:
        return sorted(path.name for path in state.rglob("0000*"))

    wait_until(lambda: marked() == ready[1:], "the others are archived behind the call")
    marks = marked()
    there = {
        path.parent.name for path in (site.repository / "clusters" / "shop" / "wal").rglob("*-*") if path.is_file()
    }
    assert set(marks) <= there
    # Answered by the mark: what is in the repository is not looked at, and the mark is gone.
    (lost,) = (site.repository / "clusters" / "shop" / "wal").rglob(f"{ready[1]}/*")
    content = lost.read_bytes()
    lost.unlink()
    assert pushed(ready[1]).returncode == ARCHIVED
    assert not lost.exists()
    assert pushed(ready[1]).returncode == ARCHIVED
    assert lost.read_bytes() == content
    # The archiver itself, in the end.
    site.cluster.configure({"archive_command": works})
    site.cluster.query("SELECT pg_reload_conf()")
    site.switch()
    checked = json.loads(site.run("repo", "check", "--read-data", "--repo", site.repository, "--json").stdout)
    assert checked["problems"] == []


@pytest.mark.parametrize("major", [15, 18])
def test_a_server_that_stops_waits_for_no_process_and_loses_nothing(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    site = Archived(make_cluster(major, wal_segment_mb=1), workspace)
    cluster = site.cluster
    site.back_up()
    state = server_account().make_directory(workspace / "state")
    works = f"XDG_STATE_HOME={state} {cluster.query('SHOW archive_command')[0][0]}"

    def is_ahead() -> bool:
        return any(state.rglob("0000*"))

    for mode in ("fast", "immediate"):
        cluster.configure({"archive_command": "false"})
        cluster.query("SELECT pg_reload_conf()")
        cluster.query(f"CREATE TABLE t_{mode} AS SELECT n, repeat('x', 100) t FROM generate_series(1, 100000) n")
        cluster.configure({"archive_command": works})
        cluster.query("SELECT pg_reload_conf()")
        # A segment that is done wakes the archiver, which else waits for a minute behind a command that failed.
        cluster.query("SELECT pg_switch_wal()")
        wait_until(is_ahead, "a process pushes ahead")
        cluster.stop(mode)
        cluster.start()
        site.switch()
    wanted = cluster.hashes()
    site.switch()
    server = site.restored("end", "--target", "latest")
    try:
        assert server.hashes() == wanted
    finally:
        server.stop("immediate")
    checked = json.loads(site.run("repo", "check", "--read-data", "--repo", site.repository, "--json").stdout)
    assert checked["problems"] == []


def test_a_server_that_was_promoted_elsewhere_is_refused(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    site = Archived(make_cluster(15, wal_segment_mb=1), workspace)
    first = site.switch()
    repository = site.repository / "clusters" / "shop" / "wal"
    wal = server_account().make_directory(workspace / "copy")
    (timeline,) = repository.glob("*/00000001")

    def history(name: str, text: str) -> subprocess.CompletedProcess[str]:
        (wal / name).write_text(text)
        server_account().own(wal / name)
        return site.push(wal / name)

    assert history("00000002.history", "1\t0/5000000\tone\n").returncode == ARCHIVED
    assert history("00000002.history", "1\t0/5000000\tone\n").returncode == ARCHIVED
    other = history("00000002.history", "1\t0/4000000\ttwo\n")
    assert other.returncode == FAILED
    assert "began at 0/4000000 of timeline 1 here, and at 0/5000000 of timeline 1 there" in other.stderr
    # Its segments do not come either, although the server would ask for them one by one.
    segment = bytearray((site.cluster.data / "pg_wal" / first).read_bytes())
    segment[4:8] = (2).to_bytes(4, "little")
    path = wal / f"00000002{first[8:]}"
    path.write_bytes(segment)
    server_account().own(path)
    refused = site.push(path)
    assert refused.returncode == FAILED
    assert "two servers were promoted" in refused.stderr
    assert not (timeline.parent / "00000002" / path.name).exists()
    # A third timeline that names other ancestors does not continue what is there.
    refused = history("00000003.history", "1\t0/4000000\ttwo\n2\t0/6000000\tthree\n")
    assert refused.returncode == FAILED
    assert "there timeline 2 has other ancestors" in refused.stderr
    assert history("00000003.history", "1\t0/3000000\tfrom a backup\n").returncode == ARCHIVED


def test_wal_written_while_the_repository_is_away_comes_later_and_completely(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    site = Archived(make_cluster(15, wal_segment_mb=1), workspace)
    site.switch()
    site.back_up()
    spool = server_account().make_directory(workspace / "spool")
    how = ["--cluster", "shop", "--repo", site.repository, "--spool", spool, "--spool-max", "200MB"]
    site.cluster.configure({"archive_command": " ".join(command_line("wal", "push", "%p", *map(str, how)))})
    site.cluster.query("SELECT pg_reload_conf()")
    away = site.repository.rename(workspace / "away")
    for number in range(4):
        site.cluster.query(f"CREATE TABLE t{number} AS SELECT n, repeat('x', 100) t FROM generate_series(1, 20000) n")
    last = site.switch()
    kept = sorted(path.name for path in (spool / "shop").glob("0000*"))
    assert len(kept) > 8
    assert kept[-1] == last
    assert site.cluster.query("SELECT failed_count FROM pg_stat_archiver") == [(0,)]
    # Away for good: the timer's call says so, and everything stays.
    failed = site.run("wal", "push", "--flush-spool", *how, check=False)
    assert failed.returncode == FAILED
    assert str(site.repository) in failed.stderr
    assert sorted(path.name for path in (spool / "shop").glob("0000*")) == kept
    away.rename(site.repository)
    assert site.run("wal", "push", "--flush-spool", *how).returncode == ARCHIVED
    assert list((spool / "shop").glob("0000*")) == []
    wanted = site.cluster.hashes()
    server = site.restored("end", "--target", "latest")
    try:
        assert server.hashes() == wanted
    finally:
        server.stop("immediate")


def test_a_call_that_a_mark_answers_loads_next_to_nothing(workspace: Path) -> None:
    repository, wal = workspace / "repository", workspace / "pg_wal"
    run_polarvault("repo", "init", repository)
    wal.mkdir()
    segment = WalSegment(1, 3, 1 << 20)
    path = wal / segment.file_name
    path.write_bytes(segment_content(segment))
    words = [str(path), "--cluster", "shop", "--repo", str(repository)]
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from polarvault.cli import wal_push; words = sys.argv[2:]; "
        "from polarvault.storage.state_directory import data_directories; "
        "from polarvault.walarchive.pushing.marks import file_identity, open_marks; "
        "from polarvault.config.places import candidate_files; "
        "told = repr((sorted(wal_push._parse(words)[0].items()), os.getcwd(), "
        "wal_push._first(candidate_files(None, os.environ)))); "
        "marks = open_marks(os.environ, told, outside=data_directories(words[0])); "
        "marks.leave(words[0], file_identity(words[0]), []); "
        "status = wal_push.run(words); "
        "heavy = ('dataclasses', 'typing', 'tomllib', 'inspect', 'polarvault.repository', 'zstandard', 'blake3', "
        "'fcntl', 'polarvault.cli.messages', 'polarvault.walarchive.detached'); "
        "print(status, [m for m in heavy if m in sys.modules])"
    )
    environment = program_environment() | {"XDG_STATE_HOME": str(workspace / "state")}
    source = str(Path(polarvault.__file__).parents[1])
    # Without site-packages, as the docs advise it for many small segments: their startup hooks are not ours.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, source, *words],
        capture_output=True, text=True, check=True, env=environment, cwd=workspace,
    )  # fmt: skip
    assert done.stdout.strip() == "0 []", done.stderr
