"""Segments that a process pushes ahead of the server's asking, by real processes; the server's part is played."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polarvault.cli.wal_push import ARCHIVED, FAILED
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from support.program import run_polarvault, start_polarvault
from support.repositories import new_repository
from support.waiting import wait_until
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content

MB = 1 << 20
SEGMENTS = [WalSegment(1, number, MB) for number in range(3, 43)]


class Site:
    """A repository, and a data directory whose archive_status says what is to be archived."""

    def __init__(self, root: Path) -> None:
        self.root, self.repository, self.data = root, root / "repository", root / "data"
        self.wal = self.data / "pg_wal"
        self.status = self.wal / "archive_status"
        self.status.mkdir(parents=True)
        LocalStore.make_root(str(self.repository))
        self.repo = new_repository(WriteOnce(LocalStore(str(self.repository))))
        self.repo.ensure_generation("shop", Generation(SYSTEM_IDENTIFIER, 150_000, False, MB, 1 << 30, True))
        self.environment = {"XDG_STATE_HOME": str(root / "state")}

    def make(self, segments: list[WalSegment]) -> list[str]:
        for segment in segments:
            (self.wal / segment.file_name).write_bytes(segment_content(segment))
            (self.status / f"{segment.file_name}.ready").touch()
        return [segment.file_name for segment in segments]

    def words(self, name: str) -> list[str]:
        return ["wal", "push", "--cluster", "shop", "--repo", str(self.repository), f"pg_wal/{name}"]

    def push(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        return run_polarvault(
            *self.words(name), *more, check=False, directory=self.data, environment=self.environment
        )  # fmt: skip

    def archive(self, name: str) -> None:
        """Do what the server's archiver does with one file."""
        done = self.push(name)
        assert (done.returncode, done.stderr) == (ARCHIVED, "")
        # At this moment it is durable, whoever did it.
        self.see(name)
        (self.status / f"{name}.ready").rename(self.status / f"{name}.done")

    def see(self, name: str) -> None:
        wal = self.repo.wal_of("shop", SYSTEM_IDENTIFIER)
        content, _ = wal.read_segment(WalSegment.parse(name, MB))
        assert content == segment_content(WalSegment.parse(name, MB))

    def marks(self) -> list[str]:
        return sorted(path.name for path in (self.root / "state").glob("polarvault/pushed/*/0000*"))

    def workers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"--push-ahead-of=" in words and str(self.root).encode() in words:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for pid in site.workers():
        os.kill(pid, signal.SIGKILL)


def test_the_call_answers_for_its_own_file_and_the_rest_goes_on_behind_it(site: Site) -> None:
    names = site.make(SEGMENTS)
    (site.data / "postmaster.pid").touch()
    # It answers while the process lives: nobody waits for the end of its output.
    site.archive(names[0])
    (worker,) = site.workers()
    wait_until(lambda: os.readlink(f"/proc/{worker}/cwd") == "/", "it has left the data directory")
    assert {os.readlink(f"/proc/{worker}/fd/{number}") for number in range(3)} == {os.devnull}
    opened = {os.readlink(path) for path in Path(f"/proc/{worker}/fd").iterdir() if path.is_symlink()}
    assert not [path for path in opened if path.startswith(("pipe:", "socket:"))]
    wait_until(lambda: site.marks() == names[1:], "all others are archived", timeout_s=30)
    for name in names[1:-8]:
        site.archive(name)
    assert site.workers() == [worker]
    assert site.marks() == names[-8:]
    # What comes now is taken by the same one.
    more = site.make([WalSegment(1, number, MB) for number in range(60, 64)])
    wait_until(lambda: site.marks() == names[-8:] + more, "those as well", timeout_s=30)
    assert site.workers() == [worker]
    # The server is gone, and so is the process; the marks are good for the next one.
    (site.data / "postmaster.pid").unlink()
    wait_until(lambda: site.workers() == [], "it has ended", timeout_s=30)
    for name in names[-8:] + more:
        site.archive(name)
    assert site.marks() == []


def test_for_one_file_or_two_no_process_is_started(site: Site) -> None:
    names = site.make(SEGMENTS[:2])
    site.archive(names[0])
    assert site.workers() == []
    site.archive(names[1])
    site.make(SEGMENTS[2:9])
    # Nor for what is pushed alone, by hand.
    assert site.push(SEGMENTS[2].file_name, "--one").returncode == ARCHIVED
    assert site.workers() == []
    assert site.marks() == []


def test_killed_at_any_moment_nothing_is_lost_and_nothing_is_marked_that_is_not_there(site: Site) -> None:
    names = site.make(SEGMENTS)
    moments = random.Random(11)
    killed = 0
    for name in names:
        site.archive(name)
        time.sleep(moments.random() * 0.05)
        for pid in site.workers():
            os.kill(pid, signal.SIGKILL)
            killed += 1
            wait_until(lambda: site.workers() == [], "it is dead")
        for marked in site.marks():
            site.see(marked)
    assert killed > 3
    checked = run_polarvault("repo", "check", "--read-data", "--repo", str(site.repository))
    assert checked.returncode == 0


def test_a_call_that_is_killed_while_it_waits_is_made_again(site: Site) -> None:
    names = site.make(SEGMENTS[:20])
    moments = random.Random(7)
    site.archive(names[0])
    for name in names[1:]:
        call = start_polarvault(*site.words(name), directory=site.data, environment=site.environment)
        time.sleep(moments.random() * 0.2)
        call.kill()
        call.communicate()
        site.archive(name)


def test_calls_at_the_same_time_start_one_process(site: Site) -> None:
    names = site.make(SEGMENTS)
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(site.push, names[:4]):
            assert (done.returncode, done.stderr) == (ARCHIVED, "")
    wait_until(lambda: len(site.workers()) <= 1, "the others have seen that there is one")
    wait_until(lambda: len(site.marks()) >= len(names) - 4, "all are archived", timeout_s=30)
    for name in names:
        site.see(name)


def test_what_is_wrong_with_one_is_said_by_its_own_call_and_keeps_no_other(site: Site) -> None:
    names = site.make(SEGMENTS[:12])
    (site.wal / names[6]).write_bytes(bytes(MB))
    for name in names[:6]:
        site.archive(name)
    refused = site.push(names[6])
    assert refused.returncode == FAILED
    assert "does not begin with a WAL page" in refused.stderr
    # The server asks for nothing else now; what is behind it is in the repository all the same.
    wait_until(lambda: site.marks() == names[7:], "the others are archived", timeout_s=30)
    site.make([SEGMENTS[6]])
    for name in names[6:]:
        site.archive(name)


def test_a_repository_that_is_away_is_said_at_once_and_starts_nothing(site: Site) -> None:
    names = site.make(SEGMENTS)
    away = site.repository.rename(site.root / "away")
    refused = site.push(names[0])
    assert refused.returncode == FAILED
    assert str(site.repository) in refused.stderr
    assert site.workers() == []
    away.rename(site.repository)
    site.archive(names[0])
    wait_until(lambda: site.marks() == names[1:], "the others are archived", timeout_s=30)
    # Another one is made in its place: no mark holds for it.
    site.repository.rename(site.root / "away")
    assert site.push(names[1]).returncode == FAILED


def test_what_is_in_the_spool_goes_first(site: Site) -> None:
    names = site.make(SEGMENTS[:12])
    spool = site.root / "spool"
    more = ["--spool", str(spool), "--spool-max", "1GB"]
    away = site.repository.rename(site.root / "away")
    assert site.push(names[0], *more).returncode == ARCHIVED
    away.rename(site.repository)
    (spool / "shop" / ".away").unlink()
    assert [path.name for path in (spool / "shop").glob("0*")] == names[:1]
    assert site.push(names[1], *more).returncode == ARCHIVED
    assert site.workers() == []
    site.see(names[0])
    assert site.push(names[2], *more).returncode == ARCHIVED
    wait_until(lambda: set(names[3:]) <= set(site.marks()), "the others are archived", timeout_s=30)
