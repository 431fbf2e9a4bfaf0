"""Images: WAL is replayed into copies of copies; each is a full backup, and the one before it stays as it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from support.clones import Clones, ask, photograph, processes_below
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import run_polarvault, start_polarvault
from support.snapshots import SUMS, Images, Snapshots, disk_of
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@dataclass(slots=True)
class Site:
    """A server that archives, a backup of it, and images and clones on the backup's file system."""

    source: Cluster
    backup: Path
    archive: Path
    images: Images
    clones: Clones

    def archived(self) -> str:
        """Have all WAL archived, and return the position up to which it is."""
        lsn = str(self.source.query("SELECT pg_switch_wal()")[0][0])
        name = self.source.query("SELECT pg_walfile_name(%s)", [lsn])[0][0]
        wait_until(lambda: (self.archive / name).exists(), f"{name} is archived")
        return lsn

    def work(self) -> str:
        """Have pgbench write for a moment; return the position up to which WAL is archived."""
        with self.source.pgbench():
            time.sleep(0.3)
            # What is replayed gets a checkpoint, from which the next one goes on.
            self.source.query("CHECKPOINT")
            time.sleep(0.3)
        return self.archived()


@contextmanager
def site_on(kind: str, binaries: Binaries, workspace: Path) -> Iterator[Site]:
    with disk_of(kind, workspace) as (disk, home):
        archive, backup = home / "archive", home / "backup"
        # A promoted copy may want to archive what its primary has archived already.
        command = f"test -f {archive}/%f || {{ cp %p {archive}/%f.$$ && mv {archive}/%f.$$ {archive}/%f; }}"
        settings = {"archive_mode": "on", "archive_command": command, "work_mem": "7MB"}
        with Cluster.made(binaries, workspace / "c", settings=settings) as source:
            source.account.make_directory(archive)
            moved = f"{source.add_tablespace('space')}={home / 'space'}"
            run_polarvault("basebackup", "-d", source.conninfo(), "-D", backup, "-c", "fast", "-T", moved)
            site = Site(source, backup, archive, Images(disk.path / "images"), Clones(disk.path / "clones"))
            try:
                yield site
            finally:
                site.clones.remove_all()


@pytest.mark.parametrize(("kind", "major"), [("xfs", 18), ("btrfs", 15)])
def test_wal_is_replayed_into_image_after_image(
    installation: Callable[[int], Binaries], workspace: Path, kind: str, major: int
) -> None:
    with site_on(kind, installation(major), workspace) as site:
        images, clones = site.images, site.clones
        ends = [site.work()]
        made = [images.make("create", site.backup, "--name", "shop", "--wal", site.archive, "--keep", 3)]
        for _ in range(3):
            ends.append(site.work())
            before = photograph(Path(made[-1]["backup"]))
            made.append(images.make("advance", "shop"))
            # The image that it was made of was only read.
            assert photograph(Path(made[-2]["backup"])) == before
        for one, end in zip(made, ends, strict=True):
            assert Lsn.parse(one["lsn"]) >= Lsn.parse(end) - 64
            assert one["timeline_id"] == 1
        assert all(one["shares"] for one in made)
        assert made[-1]["own_bytes"] < 64 << 20
        assert images.names() == ["shop.2", "shop.3", "shop.4"]
        assert processes_below(images.at) == []
        # What is in it is what a server would see, and its settings are the source's.
        clone = clones.create(made[-1]["backup"])
        assert len(set(ask(clone, SUMS)[0])) == 1
        rows = site.source.query("SELECT count(*) FROM pgbench_history")
        assert ask(clone, "SELECT count(*) FROM pgbench_history") == rows
        assert ask(clone, "SELECT count(*) FROM in_space") == [(5000,)]
        clones.remove_all()
        newest = Path(made[-1]["backup"])
        for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"):
            assert (newest / name).read_bytes() == (site.backup / name).read_bytes()
        assert not list(newest.glob("*.signal"))
        # It is a backup for every other command.
        run_polarvault("drill", newest, "--scratch", site.images.at.parent, "--report", workspace / "report", "-N")
        images.run("remove", "shop")
        assert images.left() == []


def test_a_clone_takes_the_nearest_image_snapshot_or_backup_before_its_target(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with site_on("xfs", installation(18), workspace) as site:
        repository = workspace / "repository"
        run_polarvault("repo", "init", repository)
        in_repository = ("--repo", repository)
        run_polarvault("backup", "shop", *in_repository, "-d", site.source.conninfo())
        first = site.work()
        site.work()
        images, snapshots = site.images, Snapshots(site.images.at.parent / "snapshots")
        image = images.make("create", site.backup, "--name", "shop", "--wal", site.archive)
        middle = site.work()
        taken = snapshots.create(site.source)
        last = site.work()
        for segment in sorted(site.archive.iterdir()):
            run_polarvault("wal", "push", segment, "--cluster", "shop", *in_repository)
        beside = ("--images", images.at, "--snapshots", snapshots.at)
        for word, where in (("shop", in_repository), (site.backup.parent, ("--wal", site.archive))):
            for target, source in ((last, taken["backup"]), (middle, image["backup"]), (first, None)):
                clone = site.clones.create(word, *where, *beside, "--target-lsn", target, "--target-exclusive")
                assert len(set(ask(clone, SUMS)[0])) == 1
                if source is None:
                    assert clone["source"] not in (image["backup"], taken["backup"])
                else:
                    assert clone["source"] == source
                site.clones.remove_all()
            clone = site.clones.create(word, *where, *beside)
            assert clone["source"] == taken["backup"]
            rows = site.source.query("SELECT count(*) FROM pgbench_history")
            assert ask(clone, "SELECT count(*) FROM pgbench_history") == rows
            site.clones.remove_all()
        clone = site.clones.create("image:shop", "--images", images.at, "--wal", site.archive)
        assert clone["source"] == image["backup"]
        assert site.clones.refused("image:other", "--images", images.at)["id"] == "image-not-found"


def test_a_target_is_gone_to_and_earlier_ones_are_refused(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with site_on("xfs", installation(18), workspace) as site:
        images = site.images
        middle = site.work()
        end = site.work()
        first = images.make("create", site.backup, "--name", "shop", "--wal", site.archive, "--target-lsn", middle)
        assert Lsn.parse(middle) <= Lsn.parse(first["lsn"]) < Lsn.parse(end)
        early = images.run("advance", "shop", "--target-lsn", "0/2000100", status=1)["error"]
        assert early["id"] == "target-unreachable"
        assert images.names() == ["shop.1"]
        # The target of the first one is behind it.
        second = images.make("advance", "shop")
        assert Lsn.parse(second["lsn"]) >= Lsn.parse(end) - 64
        # Nothing new is no error, and WAL that is missing is one.
        third = images.make("advance", "shop")
        assert third["lsn"] == second["lsn"]
        assert images.run("create", site.backup, "--name", "shop", status=1)["error"]["id"] == "image-refused"
        assert images.run("advance", "other", status=1)["error"]["id"] == "image-not-found"
        assert images.run("create", site.backup, "--name", "a.b", status=2)["error"]["hint"]
        site.work()
        names = sorted(path.name for path in site.archive.iterdir() if len(path.name) == 24)
        site.work()
        (site.archive / names[-1]).unlink()
        assert images.run("advance", "shop", status=1)["error"]["id"] == "wal-gap"
        assert images.names() == ["shop.1", "shop.2", "shop.3"]
        assert len(images.left()) == 3


def test_a_timeline_that_nobody_asked_for_is_not_followed(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with site_on("xfs", installation(18), workspace) as site:
        images = site.images
        site.work()
        images.make("create", site.backup, "--name", "shop", "--wal", site.archive)
        # A copy is promoted, and archives to the same place; the old primary goes on.
        copy = workspace / "copy"
        moved = f"{workspace / 'c' / 'tablespace_space'}={workspace / 'space'}"
        words = ("-D", str(copy), "-c", "fast", "-R", "-T", moved)
        site.source.run("pg_basebackup", "-d", site.source.conninfo(), *words)
        with Cluster.adopt(installation(18), copy, workspace / "run") as promoted:
            promoted.start()
            promoted.promote()
            promoted.query("CREATE TABLE on_two AS SELECT 1 AS n")
            lsn = str(promoted.query("SELECT pg_switch_wal()")[0][0])
            name = promoted.query("SELECT pg_walfile_name(%s)", [lsn])[0][0]
            wait_until(lambda: (site.archive / name).exists(), "it is archived")
            wait_until(lambda: (site.archive / "00000002.history").exists(), "the history is archived")
            on_one = site.work()
            second = images.make("advance", "shop")
            assert second["timeline_id"] == 1
            assert Lsn.parse(second["lsn"]) >= Lsn.parse(on_one) - 64
            assert any("--target-timeline 2" in warning for warning in second["warnings"])
            images.run("remove", "shop.2")
            third = images.make("advance", "shop", "--target-timeline", "2")
            assert third["timeline_id"] == 2
            promoted.query("CREATE TABLE more AS SELECT 1 AS n")
            lsn = str(promoted.query("SELECT pg_switch_wal()")[0][0])
            name = promoted.query("SELECT pg_walfile_name(%s)", [lsn])[0][0]
            wait_until(lambda: (site.archive / name).exists(), "it is archived")
            fourth = images.make("advance", "shop")
            assert fourth["timeline_id"] == 2
            assert Lsn.parse(fourth["lsn"]) >= Lsn.parse(lsn) - 64
            clone = site.clones.create(fourth["backup"])
            assert ask(clone, "SELECT count(*) FROM more") == [(1,)]


def test_sigkill_at_any_moment_leaves_the_last_image_good(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with site_on("xfs", installation(18), workspace) as site:
        images = site.images
        first = images.make("create", site.backup, "--name", "shop", "--wal", site.archive, "--keep", 1)
        site.work()
        before = photograph(Path(first["backup"]))
        for delay_s in (0.5, 0.8, 1.1, 1.4, 1.7, 2.0):
            running = start_polarvault("image", "advance", "shop", "--at", images.at)
            time.sleep(delay_s)
            running.send_signal(signal.SIGKILL)
            running.communicate()
            if photograph(Path(first["backup"])) != before:
                # It was done, and the first one has gone as it should.
                break
        made = images.make("advance", "shop")
        # What is left is swept once nobody can be at work on it any more.
        wait_until(lambda: len(images.names()) == 1 and len(images.left()) == 1, "what was left is gone", timeout_s=60)
        assert processes_below(images.at) == []
        clone = site.clones.create(made["backup"])
        assert len(set(ask(clone, SUMS)[0])) == 1


def test_an_image_goes_on_with_the_wal_of_a_repository(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    with site_on("xfs", installation(18), workspace) as site:
        repository = workspace / "repository"
        run_polarvault("repo", "init", repository)
        words = ("--repo", repository)
        run_polarvault("backup", "shop", *words, "-d", site.source.conninfo())

        def pushed() -> None:
            site.work()
            for segment in sorted(site.archive.iterdir()):
                run_polarvault("wal", "push", segment, "--cluster", "shop", *words)

        pushed()
        first = site.images.make("create", "shop", *words)
        pushed()
        second = site.images.make("advance", "shop")
        assert not first["shares"]
        assert second["shares"]
        assert Lsn.parse(second["lsn"]) > Lsn.parse(first["lsn"])
        clone = site.clones.create(second["backup"])
        rows = site.source.query("SELECT count(*) FROM pgbench_history")
        assert ask(clone, "SELECT count(*) FROM pgbench_history") == rows


def test_without_room_the_last_image_is_as_it_was(installation: Callable[[int], Binaries], workspace: Path) -> None:
    with site_on("xfs", installation(18), workspace) as site:
        images = site.images
        first = images.make("create", site.backup, "--name", "shop", "--wal", site.archive)
        site.work()
        site.source.query("CREATE TABLE big AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 120000)")
        site.archived()
        before = photograph(Path(first["backup"]))
        filler = site.backup.parent / "filler"
        with filler.open("wb", buffering=0) as stream:
            block = bytes(1 << 20)
            try:
                while True:
                    stream.write(block)
            except OSError:
                pass
        assert images.run("advance", "shop", status=1)["error"]["id"] == "disk-full"
        # It becomes full while WAL is replayed.
        with filler.open("r+b") as stream:
            stream.truncate(filler.stat().st_size - (80 << 20))
        error = images.run("advance", "shop", status=4)["error"]
        assert "what was made is removed" in error["hint"], error
        assert images.names() == ["shop.1"]
        assert len(images.left()) == 1
        assert processes_below(images.at) == []
        assert photograph(Path(first["backup"])) == before
        filler.unlink()
        assert images.make("advance", "shop")["name"] == "shop.2"


@pytest.mark.polardb
def test_both_halves_of_a_polardb_are_an_image(polardb_installation: Binaries, workspace: Path) -> None:
    with disk_of("xfs", workspace) as (disk, home):
        archive, backup = home / "archive", home / "backup"
        settings = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}
        with PolarCluster.made_polar(polardb_installation, workspace / "c", settings=settings) as source:
            source.account.make_directory(archive)
            run_polarvault("basebackup", "-d", source.conninfo(), "-D", backup, "-c", "fast")
            images, clones = Images(disk.path / "images"), Clones(disk.path / "clones")
            made = [images.make("create", backup, "--name", "shop", "--wal", archive)]
            with source.pgbench():
                time.sleep(1)
            source.query("SELECT pg_switch_wal()")
            wait_until(lambda: len(list(archive.iterdir())) > 1, "WAL is archived")
            made.append(images.make("advance", "shop"))
            assert all(one["is_polardb"] and one["shared"] for one in made)
            assert made[1]["shares"]
            try:
                clone = clones.create(made[1]["backup"])
                assert len(set(ask(clone, SUMS)[0])) == 1
                assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
            finally:
                clones.remove_all()
