"""Backups in a repository against a real server: what comes back is what a directory got from the same stream."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polarvault.backup.request import BackupJob
from polarvault.backup.target import RepositoryTarget
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.destination import Destination
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.request import BackupRequest
from polarvault.config.model import RepositoryConfiguration
from polarvault.repository.catalogue.opening import make_repository, open_repository
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.index.files import FileKind
from polarvault.repository.index.root import PartArea
from polarvault.repository.reading.verify import verify_backup
from polarvault.server.connection import Connection, ConnectionSettings, Connector
from polarvault.server.identity import ServerIdentity
from polarvault.taking.take import Taking
from support.cluster import Cluster
from support.program import run_polarvault, start_polarvault
from support.targets import TeeTarget
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

_TABLES = """
CREATE TABLE plain (id int PRIMARY KEY, grp int, word text, doc jsonb, place point, during int4range);
INSERT INTO plain SELECT n, n % 97, md5(n::text), jsonb_build_object('k', n % 50, 'w', md5((n % 9)::text)),
    point(n % 300, n % 200), int4range(n, n + 10) FROM generate_series(1, 30000) n;
CREATE INDEX ON plain USING hash (grp);
CREATE INDEX ON plain USING gin (doc);
CREATE INDEX ON plain USING gist (during);
CREATE INDEX ON plain USING spgist (place);
CREATE INDEX ON plain USING brin (id);
CREATE UNLOGGED TABLE lost AS SELECT n FROM generate_series(1, 20000) n;
CREATE TABLE emptied AS SELECT n, repeat('x', 200) AS v FROM generate_series(1, 3000) n
"""


class Quiet:
    """A reporter that says nothing."""

    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def notice(self, notice: object) -> None: ...

    def progress(self, progress: object, *, final: bool = False) -> None: ...


class Site:
    """A server and its repository in a directory."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster = cluster
        self.workspace = workspace
        self.path = workspace / "repository"
        make_repository(RepositoryConfiguration("", str(self.path)), os.environ, now=datetime.now(UTC)).close()
        self._count = 0

    @property
    def repository(self) -> Repository:
        return open_repository(RepositoryConfiguration("", str(self.path)), os.environ).repository

    def back_up_twice(self) -> tuple[str, Path]:
        """Take one backup into the repository and into a directory, from one stream."""
        self._count += 1
        directory = self.workspace / f"directory{self._count}"
        spaces = self.workspace / f"spaces{self._count}"
        locations = self.cluster.query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000")
        mapping = {place: str(spaces / Path(place).name) for (place,) in locations}
        job = BackupJob(cluster="shop")
        made: list[RepositoryTarget] = []
        request = BackupRequest(directory=str(directory), tablespace_mapping=mapping, sync=False)

        def open_target(identity: ServerIdentity, connection: Connection) -> TeeTarget:
            files = PlainOutput(Destination(request, identity, Quiet(), CreatedPaths(0o700, sync=False)))
            made.append(RepositoryTarget(self.repository, job, identity, Quiet()))
            return TeeTarget([files, made[0]])

        Taking(job.server_request, Connector(ConnectionSettings(self.cluster.conninfo())), Quiet()).into(open_target)
        recorded = made[0].recorded
        assert recorded is not None
        assert (recorded.parent.label is None) == (self._count == 1), recorded.parent.reason
        return recorded.outcome.label, directory

    def assert_same(self, label: str, directory: Path) -> None:
        """The files of a backup in the repository are those of the directory, WAL apart."""
        reader = self.repository.open_backup("shop", label)
        local = next(number for number, part in enumerate(reader.root.parts) if part.area is PartArea.LOCAL)
        roots = {local: directory}
        for number, part in enumerate(reader.root.parts):
            if part.oid:
                link = directory / "pg_tblspc" / str(part.oid)
                roots[number] = Path(os.readlink(link))
        of_directory = {
            (number, str(path.relative_to(root))): path
            for number, root in roots.items()
            for path in root.rglob("*")
            if path.is_file() and not str(path.relative_to(root)).startswith("pg_wal/")
        }
        for name in ("backup_manifest", "polarvault_backup_in_progress"):
            of_directory.pop((local, name), None)
        rows = {(row.part, row.name): row for row in reader.rows() if row.kind is FileKind.FILE}
        assert rows.keys() == of_directory.keys()
        for key, path in of_directory.items():
            assert b"".join(map(bytes, reader.stream(rows[key]))) == path.read_bytes(), key
        with ThreadPoolExecutor(2) as pool:
            assert list(verify_backup(reader, self.repository.page_key, pool)) == []

    def restored(self, word: str, name: str, *more: str) -> Cluster:
        """Restore and start; the caller stops it."""
        target = self.workspace / name
        cluster = Cluster(self.cluster.installation, self.workspace)
        cluster.data = target
        mapping = []
        for (place,) in self.cluster.query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000"):
            mapping += ["-T", f"{place}={self.workspace / f'{name}-{Path(place).name}'}"]
        run_polarvault(
            "restore", word, "--repo", self.path, "-D", target, "--port", str(cluster.port), "--bindir",
            cluster.installation.directory, "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off",
            "-N", "--start", *mapping, *more,
        )  # fmt: skip
        return cluster


def _churn(cluster: Cluster, rng: random.Random, round_number: int) -> None:
    """Change things as applications and administrators do."""
    steps: list[Callable[[], Any]] = [
        lambda: cluster.query(f"UPDATE plain SET grp = grp + 1 WHERE id % {rng.randrange(40, 90)} = 0"),
        lambda: cluster.query(f"DELETE FROM plain WHERE id BETWEEN {(at := rng.randrange(25000))} AND {at + 400}"),
        lambda: cluster.query("INSERT INTO emptied SELECT n, md5(n::text) FROM generate_series(1, 8000) n"),
        lambda: cluster.query("TRUNCATE emptied; TRUNCATE lost; INSERT INTO lost VALUES (1)"),
        lambda: cluster.query("VACUUM (FREEZE) plain"),
        lambda: cluster.query("VACUUM FULL plain"),
        lambda: cluster.query("REINDEX TABLE plain"),
        lambda: cluster.query(f"CREATE DATABASE d{round_number}{_strategy(cluster, rng)}"),
        # Reads set hint bits, without WAL where there are no checksums.
        lambda: cluster.query("SELECT count(*) FROM plain"),
        lambda: cluster.query(f"ALTER TABLE in_far SET TABLESPACE {rng.choice(['pg_default', 'far'])}"),
        cluster.restart,
    ]
    for step in rng.sample(steps, 4):
        step()
    if round_number == 2:
        # A crash, with its recovery.
        cluster.kill()
        cluster.start()
    if round_number == 3:
        cluster.query("DROP DATABASE IF EXISTS d1")


def _strategy(cluster: Cluster, rng: random.Random) -> str:
    known = cluster.installation.major >= 15
    return f" STRATEGY = {rng.choice(['wal_log', 'file_copy'])}" if known else ""


@pytest.mark.parametrize(
    ("major", "checksums"), [(13, True), (15, False), (16, True), (17, True), (18, True), (19, True)]
)
def test_a_random_workload_comes_back_byte_for_byte(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int, checksums: bool
) -> None:
    cluster = make_cluster(major, checksums=checksums, wal_segment_mb=1)
    rng = random.Random(major)
    cluster.query(_TABLES)
    cluster.add_tablespace("far")
    site = Site(cluster, workspace)
    labels = []
    for round_number in range(5):
        label, directory = site.back_up_twice()
        labels.append((label, directory))
        site.assert_same(label, directory)
        _churn(cluster, rng, round_number)
    # What came later has changed nothing of what was there.
    for label, directory in labels:
        site.assert_same(label, directory)
    # Nor does it when the older ones are removed, what lives of them is moved, and what is dead goes.
    for _ in range(2):
        time.sleep(1.2)  # Longer than the safety time.
        policy = ["--keep", "2", "--safety-time", "1s", "--compact-below", "95"]
        done = run_polarvault("expire", "shop", "--repo", site.path, *policy, "--json")
        (report,) = json.loads(done.stdout)["repositories"]
        assert report["compacted"]["problem"] == ""
    assert report["removed"]["packs"]
    for label, directory in labels[-2:]:
        site.assert_same(label, directory)
    assert run_polarvault("repo", "check", site.path, "--read-data", check=False).returncode == 0
    last = site.back_up_twice()[0]
    before = cluster.hashes()
    restored = site.restored(f"shop@{last}", "back")
    try:
        assert restored.hashes() == before
    finally:
        restored.stop("immediate")


def test_each_backup_restores_by_itself_and_what_lies_between_two_needs_archived_wal(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15)
    site = Site(cluster, workspace)
    first = _backed_up(site)
    cluster.query("CREATE TABLE later AS SELECT 1 AS one; SELECT pg_create_restore_point('here')")
    cluster.query("DROP TABLE accounts")
    second = _backed_up(site)
    assert (first["parent"], second["parent"]) == (None, first["label"])
    assert second["stored_bytes"] < first["stored_bytes"] / 3
    restored = site.restored(f"shop@{second['label']}", "end")
    try:
        assert restored.query("SELECT to_regclass('accounts') IS NULL, one FROM later") == [(True, 1)]
    finally:
        restored.stop("immediate")
    # A backup begins with a segment of its own: what was written before belongs to none.
    refused = run_polarvault(
        "restore", "shop", "--repo", site.path, "-D", workspace / "no", "--target-name", "here", "--plan", check=False
    )
    assert refused.returncode != 0
    assert "is missing" in refused.stderr


def _backed_up(site: Site, *options: str) -> dict[str, Any]:
    done = run_polarvault(
        "backup", "shop", "--repo", site.path, "-d", site.cluster.conninfo(), "--json", *options
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_another_timeline_and_a_copy_under_the_old_name_are_backed_up_in_full_and_said(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18)
    site = Site(cluster, workspace)
    first = _backed_up(site)
    copy = site.restored(f"shop@{first['label']}", "copy")
    try:
        wait_until(lambda: copy.query("SELECT pg_is_in_recovery()") == [(False,)], "the copy is promoted")
        of_copy = Site.__new__(Site)
        of_copy.cluster, of_copy.path = copy, site.path
        other = _backed_up(of_copy)
        assert other["parent"] is None
        assert "timeline 1, and this server writes timeline 2" in other["reason"]
        assert _backed_up(of_copy)["parent"] == other["label"]
    finally:
        copy.stop("immediate")
    again = _backed_up(site)
    assert again["parent"] == first["label"]


def test_damaged_pages_are_recorded_and_the_exit_status_says_so(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    # Of what did not change since the parent such a server would send nothing, and the parent's page is a good one.
    cluster = make_cluster(18, settings={"summarize_wal": "off"})
    site = Site(cluster, workspace)
    first = _backed_up(site)
    assert first["damage"] == []
    ((path,),) = cluster.query("SELECT pg_relation_filepath('accounts')")
    cluster.stop()
    content = bytearray((cluster.data / path).read_bytes())
    content[2 * 8192 + 5000] ^= 0xFF
    (cluster.data / path).write_bytes(content)
    cluster.start()
    done = run_polarvault(
        "backup", "shop", "--repo", site.path, "-d", cluster.conninfo(), "--note", "after the fire", check=False
    )
    assert done.returncode == 1
    assert "1 pages of the server are damaged" in done.stdout
    [record] = [one for one in site.repository.records("shop") if one.label != first["label"]]
    assert [(one.path, one.block) for one in record.facts.damage] == [(path, 2)]
    assert record.facts.details["note"] == "after the fire"
    assert record.parent == first["label"]


def test_a_client_that_is_killed_leaves_what_the_next_backup_goes_on_with(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    import signal
    import subprocess

    from support.program import command_line, program_environment

    cluster = make_cluster(15)
    cluster.query(
        "CREATE TABLE big AS SELECT n, md5(n::text) || md5((n * 7)::text) AS v FROM generate_series(1, 900000) n"
    )
    site = Site(cluster, workspace)
    command = command_line("backup", "shop", "--repo", site.path, "-d", cluster.conninfo(), "--max-rate", "20M")
    with subprocess.Popen(
        command, env=program_environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as client:
        packs = site.path / "clusters" / "shop" / "packs"
        wait_until(lambda: packs.exists() and any(packs.rglob("0*")), "a pack is written")
        client.send_signal(signal.SIGKILL)
        client.wait()
    assert site.repository.labels("shop") == []
    again = _backed_up(site)
    assert again["adopted_bytes"] > 0
    restored = site.restored("shop", "back")
    try:
        assert restored.hashes() == cluster.hashes()
    finally:
        restored.stop("immediate")


def test_a_backup_that_is_nice_waits_while_commits_hang_and_goes_on_when_they_do_not(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18)
    site = Site(cluster, workspace)
    cluster.query("CREATE TABLE large AS SELECT n, repeat('x', 900) AS filler FROM generate_series(1, 100000) n")
    # A standby that never comes: no commit returns.
    cluster.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    cluster.query("SELECT pg_reload_conf()")
    options = ["--nice-to-server", "--commit-limit", "20", "--json"]
    with start_polarvault("backup", "shop", "--repo", site.path, "-d", cluster.conninfo(), *options) as running:
        time.sleep(5)
        assert running.poll() is None
        cluster.query("ALTER SYSTEM RESET synchronous_standby_names")
        cluster.query("SELECT pg_reload_conf()")
        found = json.loads(running.communicate(timeout=60)[0])
    assert found["exit_status"] == 0
    (note,) = [note for note in found["notes"] if "to be nice" in note]
    assert float(note.split()[1]) > 2
    # Without a reason there is no wait.
    again = _backed_up(site, *options[:1])
    assert not [note for note in again["notes"] if "to be nice" in note]


def test_a_torn_page_that_the_wal_repairs_is_no_damage_and_a_new_looking_one_that_it_does_not_is(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18, settings={"full_page_writes": "off"})
    cluster.query("CREATE TABLE pages AS SELECT n, repeat('x', 700) AS filler FROM generate_series(1, 1000) n")
    cluster.query("VACUUM pages")
    cluster.query("CHECKPOINT")
    ((path,),) = cluster.query("SELECT pg_relation_filepath('pages')")
    # They stay in the server's memory as they are: only who reads the files sees what becomes of them.
    assert cluster.query("SELECT count(*) FROM pages") == [(1000,)]
    before = cluster.hashes()
    torn, new_looking = 20, 40
    with (cluster.data / path).open("r+b") as file:
        file.seek(torn * 8192 + 4096)
        file.write(bytes(4096))
        # An LSN of the future: WAL would rewrite the page, if anything in it did.
        file.seek(new_looking * 8192)
        file.write(bytes([0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0x7F]))
    site = Site(cluster, workspace)
    options = ["--repo", site.path, "-d", cluster.conninfo(), "--max-rate", "8M", "--json"]
    with start_polarvault("backup", "shop", "--source", "stream", *options) as running:
        # The backup forces whole pages into the WAL, whatever full_page_writes says.
        wait_until(lambda: bool(cluster.query(_STREAMING)), "the backup streams")
        cluster.query(f"UPDATE pages SET n = n WHERE ctid IN ('({torn},1)', '({torn},2)')")
        found = json.loads(running.communicate(timeout=60)[0])
    assert found["exit_status"] == 1
    assert [(one["path"], one["block"]) for one in found["damage"]] == [(path, new_looking)]
    # The block that is damaged is known; all others are as they were, the torn one too.
    restored = site.restored(f"shop@{found['label']}", "torn")
    try:
        of_page = f"ctid >= '({torn},0)' AND ctid < '({torn + 1},0)'"
        assert restored.query(f"SELECT count(*) > 5 FROM pages WHERE {of_page}") == [(True,)]
    finally:
        restored.stop("immediate")
    assert cluster.hashes() == before


_STREAMING = "SELECT 1 FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'"
