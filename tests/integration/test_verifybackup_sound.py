"""No false alarms: sound backups of every kind pass, as they do with pg_verifybackup."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.backups import back_up, back_up_with_postgres, run_program
from support.cluster import Cluster
from support.verifying import findings, ours, read_member, rewrite_tar, set_aside, theirs

pytestmark = pytest.mark.postgres

GOOD = "backup successfully verified\n"


def assert_sound(cluster: Cluster, backup: Path, *, warnings: Sequence[str] = ()) -> None:
    """Check that both verifiers accept a backup, and that ours warns of nothing else."""
    mine = ours(backup)
    assert mine.output == GOOD, mine.errors
    assert [check for _, check, _ in findings(backup)] == list(warnings)
    is_plain = (backup / "PG_VERSION").exists()
    if is_plain or cluster.installation.major >= 18:
        assert theirs(cluster.installation, *(() if is_plain else ("-n",)), backup).is_good


@contextmanager
def relations_come_and_go(cluster: Cluster) -> Iterator[None]:
    """Extend, truncate and drop tables and indexes until the end."""
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            cluster.query(
                f"CREATE TABLE come{number} AS SELECT n, repeat('x', 200) FROM generate_series(1, 3000) n;"
                f"CREATE UNLOGGED TABLE fast{number} AS SELECT n FROM generate_series(1, 3000) n;"
                f"CREATE INDEX ON come{number} (n);"
            )
            if number > 2:
                cluster.query(f"DROP TABLE come{number - 2}, fast{number - 2}; TRUNCATE come{number - 1}")

    thread = threading.Thread(target=churn)
    with cluster.pgbench(clients=2):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("major", [15, 18])
def test_backups_taken_while_everything_changes(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    # WAL that is fetched at the end has to be there still.
    cluster = make_cluster(major, settings={"wal_keep_size": "2GB"})
    taken = []
    with relations_come_and_go(cluster):
        # Slow enough for the server to change what is yet to be sent; without its own checks it sends torn pages, too.
        for name, take, options in (
            ("theirs", back_up_with_postgres, ["--no-verify-checksums"]),
            ("ours", back_up, []),
            ("tars", back_up_with_postgres, ["-Ft", "-z"]),
            ("unsummed", back_up_with_postgres, ["--manifest-checksums=NONE", "-X", "fetch"]),
        ):
            take(cluster, workspace / name, "--max-rate=60M", *options)
            taken.append(workspace / name)
    for backup in taken:
        assert_sound(cluster, backup)


def test_backups_of_a_standby_that_replays(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    primary = make_cluster(18, settings={"wal_keep_size": "2GB"})
    back_up_with_postgres(primary, workspace / "data", "-R")
    standby = Cluster.adopt(primary.installation, workspace / "data", workspace / "standby")
    try:
        with relations_come_and_go(primary):
            standby.start()
            standby.wait_until_consistent()
            back_up_with_postgres(standby, workspace / "plain", "--max-rate=30M", "-R")
            back_up(standby, workspace / "tar", "--max-rate=30M", "-Ft")
    finally:
        standby.remove()
    assert_sound(primary, workspace / "plain")
    assert_sound(primary, workspace / "tar")


def test_everything_out_of_the_ordinary_at_once(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, settings={"allow_in_place_tablespaces": "on"})
    cluster.query("CREATE TABLESPACE inside LOCATION ''")
    cluster.query("CREATE TABLE in_place TABLESPACE inside AS SELECT generate_series(1, 1000) n")
    names = [b"odd \xff\nname", b"two words", b"tab\t", b'quote"', b"back\\slash", "ümlaut 中".encode(), b" ", b"-e"]
    for name in names:
        (cluster.data / os.fsdecode(name)).write_bytes(name)
    many = cluster.data / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"{number}").write_bytes(b"")
    cluster.account.own(cluster.data)
    # In-place tablespaces come in tars of their own, which no map mentions: worth a word, and no more.
    for name, take, options, warnings in (
        ("plain", back_up_with_postgres, ["-R", f"--waldir={workspace}/wal"], ()),
        ("encoded", back_up_with_postgres, ["--manifest-force-encode"], ()),
        ("ours", back_up, ["-R"], ()),
        ("tar", back_up_with_postgres, ["-R", "-Ft"], ("tablespace-map",)),
        ("fetched", back_up_with_postgres, ["-Ft", "-z", "-X", "fetch"], ("tablespace-map",)),
        ("our tar", back_up, ["-Ft", "-Z", "zstd"], ("tablespace-map",)),
    ):
        take(cluster, workspace / name, *options)
        if name != "our tar":
            assert_sound(cluster, workspace / name, warnings=warnings)
        else:
            assert findings(workspace / name) == [
                ("warning", "tablespace-map", next((workspace / name).glob("[0-9]*.tar.zst")).name.removesuffix(".zst"))
            ]


def test_incremental_backups_and_what_is_combined_of_them(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, wal_segment_mb=1)
    back_up_with_postgres(cluster, workspace / "full")
    cluster.query("INSERT INTO accounts SELECT n, 'x', 1 FROM generate_series(100000, 120000) n")
    options = ["--incremental", str(workspace / "full/backup_manifest")]
    back_up_with_postgres(cluster, workspace / "increment", *options)
    back_up_with_postgres(cluster, workspace / "tar", "-Ft", *options)
    assert_sound(cluster, workspace / "increment", warnings=["incremental"])
    assert_sound(cluster, workspace / "tar", warnings=["incremental"])
    parts = [str(workspace / "full"), str(workspace / "increment")]
    combined = run_program(cluster.installation, "pg_combinebackup", *parts, "-o", str(workspace / "combined"))
    assert combined.returncode == 0, combined.stderr
    assert_sound(cluster, workspace / "combined")


def test_a_backup_of_a_later_timeline_and_its_history(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18, wal_segment_mb=1)
    cluster.stop()
    (cluster.data / "standby.signal").touch()
    cluster.account.own(cluster.data)
    cluster.start()
    cluster.promote()
    for method in ("stream", "fetch"):
        back_up_with_postgres(cluster, workspace / method, "-X", method)
        assert_sound(cluster, workspace / method)
    # Nothing but recovery itself looks at this file: it has no checksum, and no manifest lists it.
    history = workspace / "stream/pg_wal/00000002.history"
    (switch,) = re.findall(r"\t([0-9A-F/]+)\t", history.read_text())
    for damaged in (b"", b"1\t", b"\0" * 42, f"1\t{switch.replace('0/', '9/')}\tlater\n".encode(), b"2\t0/1\tno\n"):
        with set_aside(history, aside=workspace) as path:
            path.write_bytes(damaged)
            assert findings(workspace / "stream") == [("problem", "wal-history", "pg_wal/00000002.history")]
    # In tar files it lies among the WAL, or behind it.
    contents = (b"", history.read_bytes(), b"2\t0/1\tno\n")
    for name, options in (
        ("pg_wal.tar", []),
        ("pg_wal.tar.gz", ["-z"]),
        ("base.tar", ["-X", "fetch"]),
        ("base.tar.gz", ["-z", "-X", "fetch"]),
    ):
        tars = workspace / f"tars of {name}"
        back_up_with_postgres(cluster, tars, "-Ft", *options)
        tar = tars / name.removesuffix(".gz")
        if name.endswith(".gz"):
            tar.write_bytes(gzip.decompress((tars / name).read_bytes()))
            (tars / name).unlink()
        member = "00000002.history" if name.startswith("pg_wal") else "pg_wal/00000002.history"
        assert read_member(tar, member) == contents[1]
        for content in contents:
            rewrite_tar(tar, {member: content})
            if name.endswith(".gz"):
                (tars / name).write_bytes(gzip.compress(tar.read_bytes(), 1))
                with set_aside(tar, aside=workspace) as path:
                    path.unlink()
                    found = findings(tars)
            else:
                found = findings(tars)
            expected = [] if content == contents[1] else [("problem", "wal-history", f"{tars / name}: {member}")]
            assert found == expected, name
        shutil.rmtree(tars)
