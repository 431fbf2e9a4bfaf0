"""`restore --only`: the wanted database is what it was, the others are closed, and can be dropped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.cluster import Cluster
from support.program import command_line, run_polarvault

_OTHER = [
    "CREATE EXTENSION btree_gin",
    "CREATE TABLE busy AS SELECT n AS id, n % 50 AS grp, repeat('b', 300) AS filler, point(n, n) AS at "
    "FROM generate_series(1, 20000) n",
    "CREATE INDEX ON busy (id)",
    "CREATE INDEX ON busy USING hash (id)",
    "CREATE INDEX ON busy USING gin (grp)",
    "CREATE INDEX ON busy USING gist (at)",
    "CREATE INDEX ON busy USING spgist (at)",
    "CREATE INDEX ON busy USING brin (id)",
    "CREATE UNLOGGED TABLE lost AS SELECT n FROM generate_series(1, 1000) n",
    "CREATE SEQUENCE numbers",
]
_CHANGES = [
    "UPDATE busy SET grp = grp + 1 WHERE id % 7 = 0",
    "DELETE FROM busy WHERE id % 11 = 0",
    "INSERT INTO busy SELECT n, n % 50, repeat('c', 300), point(n, n) FROM generate_series(30000, 34000) n",
    "SELECT nextval('numbers') FROM generate_series(1, 50)",
    "INSERT INTO lost SELECT n FROM generate_series(1, 1000) n",
    "CREATE TABLE made AS SELECT n FROM generate_series(1, 5000) n",
    "DROP TABLE made",
]


class Site:
    """A server with a database that is wanted and one that is not, its WAL and a backup in a repository."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster, self.workspace, self.path = cluster, workspace, workspace / "repository"
        run_polarvault("repo", "init", self.path, as_server=True)
        push = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", "--repo", str(self.path)))
        cluster.configure({"archive_mode": "on", "archive_command": push})
        cluster.restart()
        self.place = cluster.add_tablespace("far")
        cluster.query("CREATE DATABASE wanted")
        cluster.query('CREATE DATABASE "un-wanted" TABLESPACE far')
        cluster.query("CREATE DATABASE other")
        self.run("wanted", ["CREATE TABLE kept AS SELECT n, md5(n::text) AS word FROM generate_series(1, 5000) n"])
        for name in ("un-wanted", "other"):
            self.run(name, _OTHER)

    def run(self, database: str, statements: list[str]) -> None:
        for statement in statements:
            self.cluster.query(statement, dbname=database)

    def back_up(self) -> None:
        run_polarvault("backup", "shop", "--repo", self.path, "-d", self.cluster.conninfo(), as_server=True)

    def end(self, name: str) -> None:
        """Make a restore point, and wait until it is archived."""
        self.cluster.query(f"SELECT pg_create_restore_point('{name}')")
        ((segment,),) = self.cluster.query("SELECT pg_walfile_name(pg_switch_wal())")
        for _ in range(600):
            if self.cluster.query(f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver") == [(True,)]:
                return
        raise AssertionError("the WAL is not archived")

    def restore(self, target: Path, *options: str, check: bool = True) -> tuple[Cluster, Any]:
        copy = Cluster(self.cluster.installation, self.workspace)
        copy.data = target
        done = run_polarvault(
            "restore", "shop", "--repo", self.path, "-D", target, "--port", str(copy.port), "--bindir",
            copy.installation.directory, "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off",
            "-N", "-T", f"{self.place}={target}-far", *options, check=check, as_server=True,
        )  # fmt: skip
        return copy, done


@pytest.fixture
def site(make_cluster: Callable[..., Cluster], workspace: Path, request: pytest.FixtureRequest) -> Site:
    major, checksums = request.param
    return Site(make_cluster(major, checksums=checksums, settings={"autovacuum": "off"}), workspace)


@pytest.mark.parametrize("site", [(15, True), (18, True)], indirect=True, ids=["15", "18"])
def test_the_wanted_database_is_there_and_the_others_are_closed_and_can_be_dropped(site: Site) -> None:
    for name in ("un-wanted", "other"):
        site.run(name, _CHANGES[:3])
    site.back_up()
    for name in ("un-wanted", "other"):
        site.run(name, [*_CHANGES, "VACUUM (FREEZE) busy", "REINDEX TABLE busy"])
    site.run("wanted", ["INSERT INTO kept SELECT n, 'later' FROM generate_series(6000, 7000) n"])
    before = site.cluster.hash_of("kept", dbname="wanted")
    site.end("here")
    site.run("wanted", ["TRUNCATE kept"])
    site.end("after")
    target = site.workspace / "copy"
    planned = site.restore(target, "--only", "wanted", "--target-name", "here", "--plan")[1].stdout
    assert "left out          other, un-wanted: " in planned
    copy, done = site.restore(
        target, "--only", "wanted", "--target-name", "here", "--target-action", "promote", "--start"
    )
    try:
        assert copy.hash_of("kept", dbname="wanted") == before
        assert 'database "un-wanted" was left out and refuses connections' in done.stdout
        closed = copy.query("SELECT datname FROM pg_database WHERE NOT datallowconn ORDER BY 1")
        assert closed == [("other",), ("template0",), ("un-wanted",)]
        for name in ("un-wanted", "other"):
            with pytest.raises(psycopg.OperationalError, match=r"reject|not currently accepting"):
                copy.query("SELECT 1", dbname=name)
        used = sum(
            os.lstat(Path(directory) / name).st_blocks * 512
            for root in (target / "base", Path(f"{target}-far"))
            for directory, _, names in os.walk(root)
            for name in names
        )
        planned_bytes = sum(
            os.lstat(Path(directory) / name).st_size
            for root in (target / "base", Path(f"{target}-far"))
            for directory, _, names in os.walk(root)
            for name in names
        )
        assert used < planned_bytes
        copy.query('DROP DATABASE "un-wanted"')
        copy.query("DROP DATABASE other")
        copy.query("CREATE DATABASE fresh")
        copy.restart()
        assert copy.hash_of("kept", dbname="wanted") == before
        assert copy.query("SELECT count(*) FROM pg_class", dbname="fresh")[0][0] > 300
    finally:
        copy.stop("immediate")


@pytest.mark.parametrize("site", [(15, False)], indirect=True, ids=["15"])
def test_what_recovery_cannot_do_without_is_found_before_anything_is_written(site: Site) -> None:
    site.back_up()
    site.end("before")
    # Without checksums and wal_log_hints vacuum does not log the pages that it marks.
    site.run("other", ["VACUUM busy"])
    site.run("wanted", ["INSERT INTO kept VALUES (0, 'x')"])
    site.end("after")
    target = site.workspace / "copy"
    refused = site.restore(target, "--only", "wanted", "--target-name", "after", check=False)[1]
    assert refused.returncode != 0
    assert (
        "recovery cannot do without the databases that are left out (other, un-wanted): the record at" in refused.stderr
    )
    assert "nothing was written" in refused.stderr
    assert not target.exists()
    unknown = site.restore(target, "--only", "wanted,nobody", check=False)[1]
    assert unknown.returncode == 2
    assert "has no database" in unknown.stderr
    assert "nobody" in unknown.stderr
    # To a target before that, and with the database in which it is.
    copy, _ = site.restore(target, "--only", "wanted", "--target-name", "before", "--start")
    copy.stop("immediate")
    copy, _ = site.restore(site.workspace / "more", "--only", "wanted,other", "--target-name", "after", "--start")
    try:
        assert copy.query("SELECT count(*) FROM busy", dbname="other") == [(20000,)]
        assert copy.query("SELECT count(*) FROM kept", dbname="wanted") == [(5001,)]
    finally:
        copy.stop("immediate")
