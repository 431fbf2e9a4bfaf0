"""Where a real archive ends: damage is an error before anything is written, and an ordinary end is no alarm."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.program import run_polarvault, start_polarvault
from support.servers import ServerPool, missing_reason
from support.story import Recoveries, Story, archive_all, change, start_story, tell
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

Make = Callable[..., Cluster]


@dataclass(frozen=True)
class Archived:
    """A story, its archive, and the archive's last segment, which ends in a switch."""

    story: Story
    archive: Path
    last: str


@pytest.fixture(scope="module", params=[13, 15, 18])
def archived(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Archived]:
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"ends{major}"
    source = Cluster.made(servers.installations[major], directory, wal_segment_mb=1)
    try:
        archive = start_story(source, directory / "archive")
        story = tell(source, directory / "backup")
        archive_all(source, archive)
        change(source, "INSERT INTO accounts VALUES (400000, 'in the last segment', 1)")
        change(source, "INSERT INTO accounts VALUES (400001, 'as well', 1)")
        archive_all(source, archive)
        last = max(path.name for path in archive.iterdir() if re.fullmatch("[0-9A-F]{24}", path.name))
        yield Archived(story, archive, last)
    finally:
        source.remove()


@pytest.fixture
def wal(archived: Archived, workspace: Path) -> Path:
    """A copy of the archive, to break."""
    shutil.copytree(archived.archive, workspace / "wal")
    archived.story.source.account.own(workspace / "wal")
    return workspace / "wal"


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recoveries]:
    recoveries = Recoveries(workspace)
    yield recoveries
    recoveries.close()


def damage(content: bytes) -> bytes:
    return content[:200] + b"\xff" * 16 + content[216:]


ENDS = {
    "damaged record": ("", damage, r"WAL of this segment goes on at 0/"),
    "damaged record, compressed": (
        ".gz",
        lambda content: gzip.compress(damage(content)),
        "WAL of this segment goes on",
    ),
    "empty": ("", lambda content: b"", "is empty"),
    "empty, compressed": (".gz", lambda content: b"", "is empty"),
    "short": ("", lambda content: content[:300], "the file ends after 300 bytes"),
    "half a header": ("", lambda content: content[:30], "ends after 30 bytes"),
    "cut, compressed": (".gz", lambda content: gzip.compress(content)[:100], "ends (after|at byte)"),
    "zeros": ("", lambda content: bytes(len(content)), "begins with zeros"),
    "gzip under a plain name": ("", gzip.compress, "is compressed with gzip"),
    "another form": (".bz2", lambda content: b"BZh", "is not understood here"),
}


# What a file is has nothing to do with the version; what a page is has.
EVERYWHERE = ("damaged record", "zeros")


@pytest.mark.parametrize(
    ("archived", "kind"),
    [(major, kind) for major in (13, 15, 18) for kind in ENDS if major == 15 or kind in EVERYWHERE],
    indirect=["archived"],
)
def test_a_last_segment_that_is_not_whole_is_an_error_and_can_be_accepted(
    archived: Archived, wal: Path, recover: Recoveries, kind: str
) -> None:
    suffix, break_it, says = ENDS[kind]
    content = (wal / archived.last).read_bytes()
    (wal / archived.last).unlink()
    (wal / (archived.last + suffix)).write_bytes(break_it(content))
    archived.story.source.account.own(wal)
    where = archived.story.source, archived.story.backup, "--wal", wal, "--target", "latest"
    said = recover.refused(*where)
    assert re.search(says, said)
    assert (wal / archived.last).name in said
    accepted = re.search(r"--accept-end (\S+)", said)
    assert accepted is not None
    planned = recover.plan(*where, "--accept-end", accepted[1])
    assert planned["reachable"]["latest"]["lsn"] == accepted[1]
    assert "the WAL ends at" in recover.refused(*where, "--accept-end", "0/28")


@pytest.mark.parametrize("archived", [15], indirect=True)
@pytest.mark.parametrize("kind", ["damaged record", "short", "cut, compressed", "empty"])
def test_the_server_ends_where_that_was_accepted(archived: Archived, wal: Path, recover: Recoveries, kind: str) -> None:
    suffix, break_it, _ = ENDS[kind]
    content = (wal / archived.last).read_bytes()
    (wal / archived.last).unlink()
    (wal / (archived.last + suffix)).write_bytes(break_it(content))
    archived.story.source.account.own(wal)
    where = archived.story.source, archived.story.backup, "--wal", wal, "--target", "latest"
    accepted = re.search(r"--accept-end (\S+)", recover.refused(*where))
    assert accepted is not None
    server, result = recover(*where, "--accept-end", accepted[1])
    assert result["outcome"]["lsn"] == accepted[1]
    assert server.hash_of("accounts")[0] >= archived.story.end[0]


@pytest.mark.parametrize("archived", [15], indirect=True)
def test_an_empty_segment_loses_against_a_partial_one_in_the_plan_and_in_the_recovery(
    archived: Archived, wal: Path, recover: Recoveries
) -> None:
    (wal / archived.last).rename(wal / f"{archived.last}.partial")
    (wal / archived.last).touch()
    archived.story.source.account.own(wal)
    where = archived.story.source, archived.story.backup, "--wal", wal
    assert recover.plan(*where)["reachable"] == recover.plan(*where[:3], archived.archive)["reachable"]


@pytest.mark.parametrize("archived", [18], indirect=True)
def test_a_directory_without_wal_is_refused_by_restore_and_drill(
    archived: Archived, workspace: Path, recover: Recoveries
) -> None:
    barman = workspace / "barman"
    barman.mkdir()
    shutil.copytree(archived.archive, barman / archived.last[:16])
    archived.story.source.account.own(barman)
    said = recover.refused(archived.story.source, archived.story.backup, "--wal", barman, "--target", "latest")
    assert "Barman's layout" in said
    assert f"--wal {barman / archived.last[:16]}" in said
    drilled = run_polarvault("drill", archived.story.backup, "--wal", barman, check=False, directory=workspace)
    assert drilled.returncode != 0
    assert "Barman's layout" in drilled.stdout + drilled.stderr
    recover.plan(archived.story.source, archived.story.backup, "--wal", barman / archived.last[:16])


@pytest.mark.parametrize("archived", [13, 18], indirect=True)
def test_every_target_that_a_plan_prints_is_accepted(archived: Archived, recover: Recoveries) -> None:
    where = archived.story.source, archived.story.backup, "--wal", archived.archive
    printed = recover.plan(*where)
    reachable, last = printed["reachable"], printed["last_transaction"]
    targets = [
        ["--target-lsn", reachable["earliest"]["lsn"]],
        ["--target-lsn", reachable["latest"]["lsn"]],
        ["--target-time", reachable["latest"]["time"]],
        ["--target-time", last["time"]],
        ["--target-xid", str(reachable["latest"]["xid"])],
        ["--target-lsn", last["lsn"]],
        *(["--target-name", point["name"]] for point in reachable["restore_points"]),
        *(["--target-lsn", point["lsn"]] for point in reachable["restore_points"]),
    ]
    if reachable["earliest"]["time"]:
        targets.append(["--target-time", reachable["earliest"]["time"]])
    for target in targets:
        planned = recover.plan(*where, *target)
        assert planned["reachable"]["latest"] == reachable["latest"], target


@pytest.mark.parametrize("archived", [15, 18], indirect=True)
def test_the_end_of_the_wal_is_reached_by_its_lsn_and_by_its_time(archived: Archived, recover: Recoveries) -> None:
    where = archived.story.source, archived.story.backup, "--wal", archived.archive
    latest = recover.plan(*where)["reachable"]["latest"]
    for option, value in (("--target-lsn", latest["lsn"]), ("--target-time", latest["time"])):
        server, result = recover(*where, option, value)
        assert result["outcome"]["ended"] == "paused"
        assert result["outcome"]["lsn"] == latest["lsn"]
        assert server.query("SELECT count(*) FROM accounts WHERE id IN (400000, 400001)") == [(2,)]


@pytest.mark.parametrize("major", [15, 18])
def test_a_server_and_a_receiver_that_are_killed_leave_ordinary_ends(
    make_cluster: Make, recover: Recoveries, workspace: Path, major: int
) -> None:
    source = make_cluster(major, wal_segment_mb=1)
    archive = start_story(source, source.directory / "archive")
    backup = source.directory / "backup"
    source.run("pg_basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", str(backup))
    source.query("SELECT pg_create_physical_replication_slot('kept', true)")
    received = source.account.make_directory(source.directory / "received")
    for round_number in range(3):
        receiver = start_polarvault("receivewal", "-d", source.conninfo(), "-S", "kept", "-D", received, as_server=True)
        with source.pgbench(clients=4):
            # Not its status and the file that this is written to first.
            before = len(list(received.glob("0*")))
            wait_until(lambda: len(list(received.glob("0*"))) > before + 1, "the receiver has a new segment")  # noqa: B023
            receiver.send_signal(signal.SIGKILL)
            if round_number % 2:
                source.kill()
            else:
                source.stop("immediate")
        receiver.communicate()
        for directories in ([received], [archive, source.data / "pg_wal"]):
            options = [word for path in directories for word in ("--wal", path)]
            planned = recover.plan(source, backup, *options, "--target", "latest")
            assert planned["stop"] is None
        source.start()


def test_wal_of_a_server_that_ran_with_minimal_wal_leads_only_to_its_beginning(
    make_cluster: Make, recover: Recoveries
) -> None:
    source = make_cluster(15)
    archive = start_story(source, source.directory / "archive")
    backup = source.directory / "backup"
    source.run("pg_basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", str(backup))
    change(source, "INSERT INTO accounts VALUES (700000, 'before', 1)")
    hashed = source.hash_of("accounts")
    source.configure({"max_connections": "222"})
    source.restart()
    source.configure({"wal_level": "minimal", "max_wal_senders": "0", "archive_mode": "off"})
    source.restart()
    change(source, "INSERT INTO accounts VALUES (700001, 'within', 1)")
    source.configure({"wal_level": "replica", "max_wal_senders": "10", "archive_mode": "on"})
    source.restart()
    _, moment = change(source, "INSERT INTO accounts VALUES (700002, 'after', 1)")
    archive_all(source, archive)
    where = source, backup, "--wal", archive
    for target in (["--target", "latest"], ["--target-time", moment.isoformat()]):
        said = recover.refused(*where, *target)
        assert "wal_level was set to minimal" in said
    way = re.search(r"--target-lsn (\S+) --target-exclusive", said)
    assert way is not None
    # The same place, as it is printed for the end of what can be reached.
    assert recover.plan(*where, "--target-lsn", way[1])["reachable"]["latest"]["lsn"] == way[1]
    server, result = recover(*where, "--target-lsn", way[1], "--target-exclusive")
    assert server.hash_of("accounts") == hashed
    assert server.query("SHOW max_connections") == [("222",)]
    assert result["outcome"]["ended"] == "paused"
    assert "needs at least 222" in recover.refused(*where, "--target-lsn", way[1], "--set", "max_connections=100")


@pytest.mark.parametrize("archived", [18], indirect=True)
def test_a_drill_says_the_same_of_a_damaged_end(archived: Archived, wal: Path, workspace: Path) -> None:
    content = (wal / archived.last).read_bytes()
    (wal / archived.last).write_bytes(damage(content))
    archived.story.source.account.own(wal)
    drilled = run_polarvault(
        "drill", archived.story.backup, "--wal", wal, "--json",
        "--bindir", archived.story.source.installation.directory, check=False, directory=workspace,
    )  # fmt: skip
    assert drilled.returncode != 0
    assert "WAL of this segment goes on" in json.dumps(json.loads(drilled.stdout))
