"""A backup that lacks a database, because the server skipped its directory: its manifest agrees, and it is lost.

A directory of the data directory that is a link is skipped by every server, with a warning only. pg_verifybackup calls
such a backup good.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from support.backups import back_up_with_postgres
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import EXPECTED, ServerPool, found_installations, missing_reason
from support.verifying import copy, findings, ours, remove, set_aside, theirs

pytestmark = pytest.mark.postgres

GOOD = "backup successfully verified\n"
MAJORS = sorted({*found_installations(), *EXPECTED} & set(range(13, 19)))


@dataclass(frozen=True, slots=True)
class Lab:
    """Backups of a server with the databases `here`, `elsewhere` (a link) and `spaced` (in a tablespace)."""

    installation: Binaries
    directory: Path
    place: str
    kept: str
    spaced: str


@pytest.fixture(scope="module")
def labs(servers: ServerPool) -> Iterator[Callable[[int], Lab]]:
    made: dict[int, Lab] = {}
    root = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    root.chmod(0o755)

    def get(major: int) -> Lab:
        if major not in servers.installations:
            pytest.skip(missing_reason(major))
        if major not in made:
            made[major] = make_lab(servers.installations[major], root / str(major))
        return made[major]

    yield get
    shutil.rmtree(root)


def make_lab(installation: Binaries, directory: Path) -> Lab:
    directory.mkdir()
    directory.chmod(0o777)
    with Cluster.made(installation, directory / "cluster", wal_segment_mb=1) as cluster:
        location = cluster.add_tablespace("one", rows=1)
        for name, options in (("here", ""), ("elsewhere", ""), ("spaced", " TABLESPACE one"), ("gone", "")):
            cluster.query(f"CREATE DATABASE {name}{options}")
        oids = {str(name): str(oid) for name, oid in cluster.query("SELECT datname, oid FROM pg_database")}
        cluster.query("DROP DATABASE gone")
        ((spaced,),) = cluster.query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'one'")
        (in_space,) = [path for path in Path(str(spaced)).rglob(oids["spaced"]) if path.is_dir()]
        # A copy with everything, then one whose database directory is a link.
        mapping = ["-T", f"{location}={directory}/whole_space"]
        back_up_with_postgres(cluster, directory / "whole", *mapping)
        cluster.stop()
        database = cluster.data / "base" / oids["elsewhere"]
        shutil.move(database, directory / "moved")
        database.symlink_to(directory / "moved")
        cluster.account.own(directory / "moved")
        cluster.start()
        back_up_with_postgres(cluster, directory / "plain", "-T", f"{location}={directory}/space")
        back_up_with_postgres(cluster, directory / "tar", "-Ft")
        back_up_with_postgres(cluster, directory / "gz", "-Ft", "-z")
        cluster.stop()
        # A cold copy: no manifest, no label.
        copy(cluster.data, directory / "cold")
    (space,) = (directory / "plain/pg_tblspc").iterdir()
    version_directory = in_space.parent.name
    return Lab(
        installation,
        directory,
        f"base/{oids['elsewhere']}",
        f"base/{oids['here']}",
        f"pg_tblspc/{space.name}/{version_directory}/{oids['spaced']}",
    )


@pytest.fixture(params=MAJORS, ids=[f"pg{major}" for major in MAJORS])
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    return labs(request.param)


def test_a_backup_with_every_database_is_good(lab: Lab) -> None:
    mine = ours(lab.directory / "whole")
    assert (mine.status, mine.output, mine.errors) == (0, GOOD, "")


@pytest.mark.parametrize("kind", ["plain", "tar", "gz"])
def test_a_database_that_the_server_skipped_is_missed(lab: Lab, kind: str) -> None:
    backup = lab.directory / kind
    if kind == "plain":
        assert theirs(lab.installation, backup).output == GOOD
    for options in ([], ["-n"]):
        assert [found for found in findings(*options, backup) if found[0] == "problem"] == [
            ("problem", "missing-database", lab.place)
        ]
    mine = ours(backup)
    assert mine.status == 1
    assert f'database "elsewhere" is not in the backup: there is nothing in "{lab.place}"' in mine.errors
    assert "find DATADIR -type l" in mine.errors
    assert ours("-i", lab.place, backup).output == GOOD


def test_a_drill_misses_it_before_it_copies(lab: Lab, workspace: Path) -> None:
    if lab.installation.major not in EXPECTED:
        pytest.skip("one old and one new version tell enough")
    scratch = workspace / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    finished = run_polarvault(
        "drill", lab.directory / "plain", "--scratch", scratch, "--report", workspace / "report", "-N",
        "--read", "none", "--bindir", lab.installation.directory, "--json", check=False,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stderr
    report = json.loads(finished.stdout)
    missing = [found for found in report["findings"] if found["check"] == "missing-database"]
    assert [(found["severity"], found["subject"]) for found in missing] == [("problem", lab.place)]
    assert list(scratch.iterdir()) == []


def test_a_cold_copy_in_which_a_database_is_a_link_is_not_good(lab: Lab) -> None:
    found = findings(lab.directory / "cold")
    assert ("problem", "link-outside", lab.place) in found
    assert not [check for _, check, _ in found if check == "missing-database"]


def test_databases_without_a_directory_are_named_where_no_manifest_lists_them(lab: Lab) -> None:
    whole = lab.directory / "whole"
    for name in (lab.kept, lab.spaced):
        with (
            set_aside(whole / "backup_manifest", aside=lab.directory) as manifest,
            set_aside(whole / name, aside=lab.directory) as path,
        ):
            remove(manifest)
            remove(path)
            subjects = [subject for _, check, subject in findings(whole) if check == "missing-database"]
            (said,) = subjects
            assert said.split("/")[:2] == name.split("/")[:2]
            assert said.rpartition("/")[2] == name.rpartition("/")[2]


def test_what_the_manifest_lists_is_missing_file_by_file_and_not_twice(lab: Lab) -> None:
    whole = lab.directory / "whole"
    with set_aside(whole / lab.kept, aside=lab.directory) as path:
        remove(path)
        checks = {check for _, check, _ in findings(whole)}
        assert "missing-file" in checks
        assert "missing-database" not in checks


@pytest.mark.parametrize("name", ["pg_xact", "global", "base", "pg_multixact"])
def test_a_directory_that_is_never_empty_is_missed(lab: Lab, name: str) -> None:
    # As if the server had skipped it: neither on disk nor in the manifest.
    whole = lab.directory / "whole"
    with (
        set_aside(whole / "backup_manifest", aside=lab.directory) as manifest,
        set_aside(whole / name, aside=lab.directory) as path,
    ):
        remove(manifest)
        remove(path)
        assert ("problem", "missing-directory", name) in findings("-n", whole)


def test_a_database_that_was_dropped_during_the_backup_is_not_missed(lab: Lab, workspace: Path) -> None:
    major = lab.installation.major
    start, stop = ("pg_start_backup", "pg_stop_backup") if major < 15 else ("pg_backup_start", "pg_backup_stop")
    settings = {"wal_keep_size": "256MB"}
    with Cluster.made(lab.installation, workspace / "cluster", wal_segment_mb=1, settings=settings) as cluster:
        cluster.query("CREATE DATABASE dropped")
        cluster.query("CHECKPOINT")
        backup = workspace / "backup"
        with cluster.connect() as session:
            more = ", false" if major < 15 else ""
            session.execute(f"SELECT {start}('by hand', true{more})")
            copy(cluster.data, backup)
            ((oid,),) = cluster.query("SELECT oid FROM pg_database WHERE datname = 'dropped'")
            # As if its directory had been copied late, and was gone by then.
            cluster.query("DROP DATABASE dropped")
            remove(backup / "base" / str(oid))
            stopped = session.execute(f"SELECT labelfile FROM {stop}({'false' if major < 15 else ''})").fetchone()
            assert stopped is not None
            (backup / "backup_label").write_text(stopped[0])
            cluster.query("SELECT pg_switch_wal()")
        cluster.stop()
        found = findings("-w", cluster.data / "pg_wal", backup)
    assert found == [("problem", "manifest", "backup_manifest")]
    # Without the WAL nobody can tell.
    assert ("problem", "missing-database", f"base/{oid}") in findings("-n", backup)
