"""Segments of a repository that are fetched ahead of the server's asking, by real processes; no server is needed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.cli.wal_fetch import FAILED, NOT_THERE, SERVED
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.walarchive.fetch import Fetcher
from polarvault.walarchive.fetching.ahead import Ahead
from polarvault.walarchive.fetching.prefetcher import Prefetcher, refuse_to_warn
from polarvault.walarchive.push import Pusher
from polarvault.walfiles.directory import wal_sources
from support.program import run_polarvault
from support.repositories import new_repository
from support.waiting import wait_until
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content

MB = 1 << 20
SEGMENTS = [WalSegment(1, number, MB) for number in range(3, 33)]


class Site:
    """A repository with some segments, and a server's directory that wants them."""

    def __init__(self, root: Path) -> None:
        self.root, self.repository, self.data = root, root / "repository", root / "data"
        (self.data / "pg_wal").mkdir(parents=True)
        (root / "wal").mkdir()
        self.make(self.repository, SEGMENTS)

    def make(self, place: Path, segments: list[WalSegment]) -> None:
        LocalStore.make_root(str(place))
        repository = new_repository(WriteOnce(LocalStore(str(place))))
        repository.ensure_generation("shop", Generation(SYSTEM_IDENTIFIER, 150_000, False, MB, 1 << 30, True))
        for segment in segments:
            path = self.root / "wal" / segment.file_name
            path.write_bytes(segment_content(segment))
            Pusher(repository, "shop").push(str(path))

    def fetch(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = ["--repo", str(self.repository), "--cluster", "shop", *more, name, "pg_wal/RECOVERYXLOG"]
        return run_polarvault(
            "wal", "fetch", *words, check=False, directory=self.data,
            environment={"XDG_STATE_HOME": str(self.root / "state")},
        )  # fmt: skip

    def served(self, segment: WalSegment, *more: str) -> None:
        done = self.fetch(segment.file_name, *more)
        assert (done.returncode, done.stderr) == (SERVED, "")
        target = self.data / "pg_wal" / "RECOVERYXLOG"
        assert target.read_bytes() == segment_content(segment)
        target.unlink()

    def ahead(self) -> list[str]:
        return sorted(
            path.name for path in (self.root / "state").glob("polarvault/fetched/*/0000*") if len(path.name) == 24
        )

    def workers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"--prefetch-into" in b" ".join(words) and str(self.root).encode() in b" ".join(words):
                    found.append(int(entry.name))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for pid in site.workers():
        os.kill(pid, signal.SIGKILL)


def names(numbers: range) -> list[str]:
    return [WalSegment(1, number, MB).file_name for number in numbers]


def test_the_next_segments_wait_for_the_server_and_a_killed_prefetcher_is_no_harm(site: Site) -> None:
    (site.data / "postmaster.pid").touch()
    site.served(SEGMENTS[0])
    # Sixteen are kept, and no more.
    wait_until(lambda: site.ahead() == names(range(4, 20)), "the next ones are there", timeout_s=30)
    (worker,) = site.workers()
    # Taken from there: the repository is not needed.
    away = site.repository.rename(site.root / "away")
    for segment in SEGMENTS[1:9]:
        site.served(segment)
    assert site.workers() == [worker]
    away.rename(site.repository)
    # What a killed one leaves is not served, because nobody knows whether it is whole.
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: site.workers() == [], "it is dead")
    for path in (site.root / "state").glob("polarvault/fetched/*/0000*"):
        path.write_bytes(segment_content(WalSegment.parse(path.name[:24], MB), system_identifier=5))
    site.served(SEGMENTS[9])
    wait_until(lambda: names(range(13, 29)) == site.ahead(), "another one has taken over", timeout_s=30)
    for segment in SEGMENTS[10:]:
        site.served(segment)
    assert site.fetch(names(range(33, 34))[0]).returncode == NOT_THERE
    # The server is gone, so is the prefetcher, with all that it had.
    (site.data / "postmaster.pid").unlink()
    wait_until(lambda: site.workers() == [], "it has ended", timeout_s=30)
    assert list((site.root / "state").glob("polarvault/fetched/*")) == []


def test_without_a_place_or_a_wish_nothing_is_fetched_ahead(site: Site) -> None:
    site.served(SEGMENTS[0], "--no-prefetch")
    assert not (site.root / "state").exists()
    (site.root / "state").write_text("no directory")
    site.served(SEGMENTS[1])
    assert site.workers() == []


def test_a_place_that_is_away_is_passed_over_but_is_never_the_end_of_the_wal(site: Site) -> None:
    second = site.root / "second"
    site.make(second, SEGMENTS[:2])
    more = ["--no-prefetch", "--repo", str(second)]
    away = site.repository.rename(site.root / "away")
    done = site.fetch(SEGMENTS[1].file_name, *more)
    assert done.returncode == SERVED
    assert "is used instead" in done.stderr
    done = site.fetch(SEGMENTS[2].file_name, *more)
    assert done.returncode == FAILED
    assert str(site.repository) in done.stderr
    spool = site.root / "spool" / "shop"
    spool.mkdir(parents=True)
    (spool / SEGMENTS[2].file_name).write_bytes(segment_content(SEGMENTS[2]))
    # Directories are asked before repositories are.
    site.served(SEGMENTS[2], *more, "--spool", str(site.root / "spool"))
    away.rename(site.repository)
    # A damaged copy in the first place, a good one in the second.
    (lost,) = (site.repository / "clusters" / "shop" / "wal").rglob(f"{SEGMENTS[0].file_name}/*")
    content = bytearray(lost.read_bytes())
    content[len(content) // 2] ^= 1
    lost.chmod(0o600)
    lost.write_bytes(content)
    done = site.fetch(SEGMENTS[0].file_name, *more)
    assert done.returncode == SERVED
    assert "is used instead" in done.stderr
    assert (site.data / "pg_wal" / "RECOVERYXLOG").read_bytes() == segment_content(SEGMENTS[0])
    assert site.fetch(names(range(40, 41))[0], *more).returncode == NOT_THERE


def test_a_prefetcher_that_nobody_asks_ends(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    for segment in SEGMENTS[:3]:
        (tmp_path / "wal" / segment.file_name).write_bytes(segment_content(segment))
    (tmp_path / "wal" / SEGMENTS[3].file_name).write_bytes(b"cut short")
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / SEGMENTS[9].file_name).write_bytes(b"left by another")
    ahead = Ahead(str(tmp_path / "ahead"), system_identifier=SYSTEM_IDENTIFIER)
    ahead.ask(SEGMENTS[0].file_name, MB)
    sources = wal_sources([str(tmp_path / "wal")])
    seen: list[list[str]] = []

    def is_wanted() -> bool:
        seen.append(sorted(name for name in os.listdir(tmp_path / "ahead") if not name.startswith(".")))
        return True

    fetcher = Fetcher(sources, grace_s=0, warn=refuse_to_warn)
    Prefetcher(str(tmp_path / "ahead"), sources, fetcher, idle_s=0.3, is_wanted=is_wanted).run()
    assert not (tmp_path / "ahead").exists()
    # The one that is damaged is left to the fetch that needs it.
    assert seen[-1] == [SEGMENTS[1].file_name, SEGMENTS[2].file_name]
