"""Point-in-time recovery from all kinds of WAL directories, over timelines, and refused where no WAL leads."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.story import (
    RESTORE_POINT,
    Hash,
    Recoveries,
    Story,
    archive_all,
    back_up,
    change,
    start_story,
    switch_wal,
    tell,
    timeline_of,
)

pytestmark = pytest.mark.postgres

Make = Callable[..., Cluster]


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recoveries]:
    """A function that restores with --start and returns the server and the JSON result."""
    recoveries = Recoveries(workspace)
    yield recoveries
    recoveries.close()


def check_good(recover: Recoveries, story: Story, wal: Path) -> None:
    """Recover to the restore point and compare the table."""
    server, result = recover(story.source, story.backup, "--wal", wal, "--target-name", RESTORE_POINT)
    assert server.hash_of("accounts") == story.good
    assert result["outcome"]["lsn"] == result["recovery"]["stop"]["end_lsn"]


def receive(source: Cluster, slot: str, directory: Path, *options: str, ours: bool) -> None:
    """Receive all WAL since the slot was made, into a directory that then ends with a partial segment."""
    end = source.query("SELECT pg_current_wal_flush_lsn()::text")[0][0]
    # A receiver ends only when it gets something from behind the end, which an idle server never writes.
    source.query("SELECT txid_current()")
    arguments = ["-d", source.conninfo(), "-S", slot, "--endpos", end, "-D", str(directory), *options]
    if ours:
        run_polarvault("receivewal", *arguments, as_server=True)
    else:
        source.run("pg_receivewal", *arguments)


# Who receives, and how: slots of one server, which tells its story to all of them.
RECEIVERS: dict[int, dict[str, tuple[bool, list[str]]]] = {
    15: {"theirs": (False, []), "theirs_lz4": (False, ["-Z", "lz4"]), "ours_gzip": (True, ["-Z", "gzip:5"])},
    18: {"theirs": (False, []), "theirs_gzip": (False, ["-Z", "5"]), "ours": (True, []),
         "ours_zstd": (True, ["-Z", "zstd"])},
}  # fmt: skip


@pytest.fixture(scope="module")
def received(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[tuple[Story, Path]]:
    """A story, and a directory with what each receiver has of it; tests only read it."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"received{major}"
    with Cluster.made(servers.installations[major], directory, wal_segment_mb=1) as source:
        for slot in RECEIVERS[major]:
            source.query("SELECT pg_create_physical_replication_slot(%s, true)", [slot])
        story = tell(source, directory / "backup")
        for slot, (ours, options) in RECEIVERS[major].items():
            receive(source, slot, source.account.make_directory(directory / slot), *options, ours=ours)
        yield story, directory


@pytest.mark.parametrize(
    ("received", "slot"), [(major, slot) for major, slots in RECEIVERS.items() for slot in slots], indirect=["received"]
)
def test_wal_of_a_receiver_is_used_up_to_the_partial_segment(
    received: tuple[Story, Path], recover: Recoveries, slot: str
) -> None:
    story, directory = received
    names = sorted(path.name for path in (directory / slot).iterdir())
    assert any(name.endswith(".partial") for name in names), names
    server, result = recover(story.source, story.backup, "--wal", directory / slot)
    assert server.hash_of("accounts") == story.end
    assert result["recovery"]["stop"] is None
    where = story.source, story.backup, "--wal", directory / slot
    planned = recover.plan(*where, "--target-name", RESTORE_POINT)
    assert planned["reachable"]["latest"] == result["recovery"]["reachable"]["latest"]
    assert planned["stop"]["name"] == RESTORE_POINT


def test_segments_of_1_gb_are_recovered_from(make_cluster: Make, recover: Recoveries) -> None:
    source = make_cluster(18, wal_segment_mb=1024, settings={"wal_init_zero": "off"})
    source.query("SELECT pg_create_physical_replication_slot('receiver', true)")
    story = tell(source, source.directory / "backup", ["-X", "none"])
    received = source.account.make_directory(source.directory / "received")
    receive(source, "receiver", received, ours=True)
    (segment,) = [path for path in received.iterdir() if path.name.endswith(".partial")]
    assert segment.stat().st_blocks * 512 < 64 << 20
    check_good(recover, story, received)
    planned = recover.plan(source, story.backup, "--wal", received, "--target-time", story.good_time.isoformat())
    assert planned["segments"] == 2


def test_gzipped_segments_of_an_archive_command_and_two_directories_are_used(
    make_cluster: Make, recover: Recoveries
) -> None:
    source = make_cluster(15, wal_segment_mb=1)
    archive = start_story(source, source.directory / "archive")
    story = tell(source, source.directory / "backup")
    archive_all(source, archive)
    other = source.account.make_directory(source.directory / "other")
    for path in sorted(archive.glob("0" * 7 + "1*"))[::2]:
        (other / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    source.account.own(other)
    server, result = recover(
        source, story.backup, "--wal", archive, "--wal", other, "--target-xid", story.disaster_xid, "--target-exclusive"
    )
    assert server.hash_of("accounts") == story.good
    assert result["recovery"]["wal_directories"] == [str(archive), str(other)]


FORMS = {"tar": ["-Ft"], "gzip": ["-Ft", "-z"], "fetch": ["-Ft", "-X", "fetch"], "no_wal": ["-X", "none"]}


@pytest.fixture(scope="module")
def forms(servers: ServerPool) -> Iterator[tuple[Story, Path]]:
    """A story with a backup in every form, and its archive; tests only read them."""
    if 15 not in servers.installations:
        pytest.skip(missing_reason(15))
    directory = servers.directory / "forms"
    with Cluster.made(servers.installations[15], directory, wal_segment_mb=1) as source:
        archive = start_story(source, directory / "archive")
        for form, options in FORMS.items():
            back_up(source, directory / form, options)
        story = tell(source, directory / "backup")
        archive_all(source, archive)
        yield story, archive


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_backup_is_recovered(forms: tuple[Story, Path], recover: Recoveries, form: str) -> None:
    story, archive = forms
    story = replace(story, backup=story.backup.parent / form)
    source = story.source
    check_good(recover, story, archive)
    if form == "no_wal":
        # Without the WAL after its start the backup is worth nothing.
        said = recover.refused(source, story.backup, "--target", "immediate")
        assert re.search(r"segment 0000000100000000000000\w\w \(timeline 1, LSN 0/\w+\) is missing", said)
        return
    server, result = recover(source, story.backup, "--target", "immediate", "--target-action", "promote")
    assert server.hash_of("accounts") == story.at_backup
    assert result["recovery"]["segments_in_backup"] == result["recovery"]["segments"] > 0


def test_a_backup_of_a_standby_is_consistent_where_its_control_file_says(
    make_cluster: Make, recover: Recoveries, start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    source = make_cluster(15, wal_segment_mb=1)
    archive = start_story(source, source.directory / "archive")
    follower = back_up(source, source.directory / "follower", ["-R"])
    standby = start_restored(15, follower)
    change(source, "INSERT INTO accounts VALUES (150000, 'standby', 1)")
    source.query("CHECKPOINT")
    backup = back_up(standby, source.directory / "of_standby")
    source.query("SELECT pg_create_restore_point('after_the_standby')")
    hashed = source.hash_of("accounts")
    change(source, "DELETE FROM accounts")
    archive_all(source, archive)
    server, _ = recover(source, backup, "--wal", archive, "--target-name", "after_the_standby")
    assert server.hash_of("accounts") == hashed


def copied(archive: Path, target: Path, story: Story) -> Path:
    """Copy a WAL archive, to take something out of it."""
    shutil.copytree(archive, target)
    story.source.account.own(target)
    return target


# Timelines


@dataclass(frozen=True)
class Forked:
    """Timeline 1 with the disaster; 2 from before it, with a row of its own; 3 from 2, with one more.

    late_backup: of timeline 1, after 2 had left it; late_xid: the last one there, which no other timeline has.
    """

    story: Story
    archive: Path
    late_backup: Path
    late_xid: int
    end: dict[int, Hash]


@pytest.fixture(scope="module", params=[15, 18])
def forked(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Forked]:
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"forked{major}"
    source = Cluster.made(servers.installations[major], directory, wal_segment_mb=1)
    forks = Recoveries(directory)
    try:
        archive = start_story(source, directory / "archive")
        story = tell(source, directory / "backup")
        late_backup = back_up(source, directory / "late")
        for number in range(8):
            late_xid, _ = change(source, f"INSERT INTO accounts VALUES (40000{number}, 'after the late backup', 1)")
        source.query("SELECT pg_create_restore_point('on_1')")
        archive_all(source, archive)
        end = {1: source.hash_of("accounts")}
        ways = [["--target-name", RESTORE_POINT, "--target-action", "promote"], ["--target", "latest"]]
        for timeline, way in enumerate(ways, 2):
            fork, _ = forks(source, story.backup, "--wal", archive, "--keep-archiving", *way)
            assert timeline_of(fork) == timeline
            change(fork, f"INSERT INTO accounts VALUES ({timeline}000000, 'on {timeline}', 1)")
            fork.query("SELECT pg_create_restore_point(%s)", [f"on_{timeline}"])
            end[timeline] = fork.hash_of("accounts")
            archive_all(fork, archive)
            fork.stop()
        yield Forked(story, archive, late_backup, late_xid, end)
    finally:
        forks.close()
        source.remove()


@pytest.mark.parametrize(
    ("options", "state"),
    [
        (["--target", "latest"], 3),
        (["--target-timeline", "1"], 1),
        (["--target-timeline", "current", "--target", "latest"], 1),
        (["--target-timeline", "2", "--target", "latest"], 2),
        (["--target-name", "on_2", "--target-action", "promote"], 2),
        (["--target-timeline", "3", "--target-name", "on_3", "--target-action", "promote"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_recovery_follows_the_timeline_that_was_chosen(
    forked: Forked, recover: Recoveries, options: list[str], state: int
) -> None:
    server, result = recover(forked.story.source, forked.story.backup, "--wal", forked.archive, *options)
    assert server.hash_of("accounts") == forked.end[state]
    # 2 and 3 are taken, whichever timeline it came from.
    assert timeline_of(server) == result["outcome"]["timeline"] == 4


def test_a_target_that_only_another_timeline_has_is_refused_with_its_number(
    forked: Forked, recover: Recoveries
) -> None:
    story = forked.story
    wanted = ["--wal", forked.archive, "--target-xid", story.disaster_xid]
    # Timeline 2 used the same number for a transaction of its own, before 3 began: that one is found, and shown.
    assert recover.plan(story.source, story.backup, *wanted)["timeline"] == 2
    server, _ = recover(story.source, story.backup, *wanted, "--target-timeline", "1")
    assert server.hash_of("accounts") == story.bad
    said = recover.refused(
        story.source, story.backup, "--wal", forked.archive, "--target-name", "on_3", "--target-timeline", "2"
    )
    assert 'no restore point "on_3" on timeline 2' in said
    assert '"on_2"' in said
    assert "others in the WAL directories: 1, 3" in said


def test_the_newest_timeline_is_followed_with_a_warning_where_another_goes_on(
    forked: Forked, recover: Recoveries
) -> None:
    where = forked.story.source, forked.story.backup, "--wal", forked.archive
    _, finished = recover.run(*where, "--target", "latest", "--plan", start=False)
    assert re.search(
        r"timeline 1 is not followed beyond 0/\w+, where timeline 3 parted from it, and goes on there: its last "
        r"transaction is \d+ at .*; to follow it: --target-timeline 1",
        finished.stderr,
    )
    for chosen in ("1", "3"):
        _, finished = recover.run(*where, "--target", "latest", "--target-timeline", chosen, "--plan", start=False)
        assert "is not followed" not in finished.stderr


def test_a_name_or_a_transaction_on_a_timeline_that_is_not_followed_is_named_with_it(
    forked: Forked, recover: Recoveries
) -> None:
    where = forked.story.source, forked.story.backup, "--wal", forked.archive
    said = recover.refused(*where, "--target-name", "on_1")
    assert re.search(r'restore point "on_1" at 0/\w+, .*is on timeline 1', said)
    assert "--target-timeline 1" in said
    said = recover.refused(*where, "--target-xid", forked.late_xid)
    assert f"transaction {forked.late_xid}" in said
    assert "is on timeline 1" in said
    server, _ = recover(*where, "--target-name", "on_1", "--target-timeline", "1")
    assert server.hash_of("accounts") == forked.end[1]


def test_a_timeline_that_left_before_the_end_of_the_backup_is_named(forked: Forked, recover: Recoveries) -> None:
    source = forked.story.source
    said = recover.refused(
        source, forked.late_backup, "--wal", forked.archive, "--target", "latest", "--target-timeline", "2"
    )
    assert re.search(r"timeline 2 cannot be reached .* it left timeline 1 at 0/\w+, before the end of the backup", said)
    server, finished = recover.run(source, forked.late_backup, "--wal", forked.archive)
    for timeline in (2, 3):
        assert f"timeline {timeline} is not followed: it left timeline 1 at" in finished.stderr
    assert server.hash_of("accounts") == forked.end[1]


def test_a_timeline_without_its_history_file_is_not_followed(
    forked: Forked, recover: Recoveries, workspace: Path
) -> None:
    copy = copied(forked.archive, workspace / "wal", forked.story)
    (copy / "00000003.history").unlink()
    story = forked.story
    said = recover.refused(story.source, story.backup, "--wal", copy, "--target-timeline", "3")
    assert "there is no 00000003.history" in said
    assert recover.plan(story.source, story.backup, "--wal", copy)["timeline"] == 2


@pytest.mark.parametrize("content", [b"", bytes(60)], ids=["empty", "zeros"])
def test_a_history_file_at_which_the_server_would_stop_is_found_before_anything_is_written(
    forked: Forked, recover: Recoveries, workspace: Path, content: bytes
) -> None:
    copy = copied(forked.archive, workspace / "wal", forked.story)
    where = forked.story.source, forked.story.backup, "--wal", copy
    # The server asks for it when all has been replayed, to see whether 4 is free.
    (copy / "00000004.history").write_bytes(content)
    said = recover.refused(*where, "--target", "latest")
    assert '"00000004.history" in the WAL directories is empty or full of zeros' in said
    assert f"find {copy} -name '00000004.history*'" in said
    # A good one elsewhere is what a fetch takes.
    other = workspace / "other"
    other.mkdir()
    (other / "00000004.history").write_bytes((copy / "00000003.history").read_bytes() + b"3\t0/FFFFFFFF\ttest\n")
    forked.story.source.account.own(other)
    assert recover.plan(*where, "--wal", other, "--target-timeline", "3")["timeline"] == 3


def test_a_wal_directory_may_have_any_name(forked: Forked, recover: Recoveries, workspace: Path) -> None:
    copy = copied(forked.archive, workspace / '100%full\'s "%f" %p $x', forked.story)
    server, _ = recover(forked.story.source, forked.story.backup, "--wal", copy, "--target", "latest")
    assert server.hash_of("accounts") == forked.end[3]


def test_wal_that_lacks_the_segment_in_which_a_timeline_began_leads_only_to_its_beginning(
    forked: Forked, recover: Recoveries, workspace: Path
) -> None:
    copy = copied(forked.archive, workspace / "wal", forked.story)
    first = min(path for path in copy.iterdir() if re.match("00000002[0-9A-F]{16}$", path.name))
    first.unlink()
    story = forked.story
    said = recover.refused(story.source, story.backup, "--wal", copy, "--target-timeline", "2")
    assert f"segment {first.name} of timeline 2 is missing, which began at 0/" in said
    server, _ = recover(
        story.source, story.backup, "--wal", copy, "--target-timeline", "2", "--target-xid", story.first_xid
    )
    assert server.hash_of("accounts") == story.inserted


# What is refused


@dataclass(frozen=True)
class Long:
    """A story over many segments of 1 MB, with a second backup after the disaster."""

    story: Story
    archive: Path
    backups: Path
    second: Path
    last: Hash


@pytest.fixture(scope="module")
def long_story(servers: ServerPool) -> Iterator[Long]:
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    directory = servers.directory / "long"
    source = Cluster.made(servers.installations[18], directory, wal_segment_mb=1)
    try:
        archive = start_story(source, directory / "archive")
        backups = source.account.make_directory(directory / "backups")
        story = tell(source, backups / "monday")
        for _ in range(3):
            change(source, "UPDATE accounts SET balance = balance + 1")
            switch_wal(source)
        second = back_up(source, backups / "a_tuesday")
        source.query("SELECT pg_create_restore_point('twice')")
        change(source, "INSERT INTO accounts VALUES (500000, 'between', 1)")
        source.query("SELECT pg_create_restore_point('twice')")
        change(source, "UPDATE accounts SET balance = balance + 1")
        last = source.hash_of("accounts")
        archive_all(source, archive)
        source.account.make_directory(backups / "not_a_backup")
        yield Long(story, archive, backups, second, last)
    finally:
        source.remove()


def segments_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if re.match("[0-9A-F]{24}$", path.name))


def before(planned: dict[str, Any], directory: Path) -> Path:
    """Return a segment of 1 MB that has to be replayed before the stop."""
    stop = int(planned["stop"]["lsn"].split("/")[1], 16)
    return next(path for path in segments_of(directory) if int(path.name[16:], 16) << 20 >= stop - (2 << 20))


def test_a_gap_is_named_with_what_can_be_reached(long_story: Long, recover: Recoveries, workspace: Path) -> None:
    story = long_story.story
    copy = copied(long_story.archive, workspace / "wal", story)
    planned = recover.plan(story.source, story.backup, "--wal", copy, "--target-name", "twice")
    removed = before(planned, copy)
    removed.unlink()
    for options in (["--target-name", "twice"], ["--target", "latest"], ["--target-lsn", planned["stop"]["lsn"]]):
        said = recover.refused(story.source, story.backup, "--wal", copy, *options)
        following = f"{int(removed.name, 16) + 1:024X}"
        assert f"segment {removed.name} (timeline 1, LSN 0/" in said
        assert f"is missing, while {following} is there" in said
        assert "earliest: LSN 0/" in said
        assert "latest: LSN 0/" in said
    # What lies before the gap can be reached all the same.
    server, _ = recover(story.source, story.backup, "--wal", copy, "--target-time", story.good_time.isoformat())
    assert server.hash_of("accounts") == story.good


def test_a_damaged_segment_ends_the_wal_and_is_named(long_story: Long, recover: Recoveries, workspace: Path) -> None:
    story = long_story.story
    copy = copied(long_story.archive, workspace / "wal", story)
    planned = recover.plan(story.source, story.backup, "--wal", copy, "--target-name", "twice")
    broken = before(planned, copy)
    content = bytearray(broken.read_bytes())
    # Behind the page header of 40 bytes there is a record in every segment.
    content[100:140] = bytes(byte ^ 0xFF for byte in content[100:140])
    broken.write_bytes(content)
    said = recover.refused(story.source, story.backup, "--wal", copy, "--target-name", "twice")
    assert f'"{broken}" is valid only up to 0/' in said
    assert "and more segments follow" in said


def test_wal_of_another_cluster_is_refused(long_story: Long, make_cluster: Make, recover: Recoveries) -> None:
    story = long_story.story
    other = make_cluster(18, wal_segment_mb=1)
    archive = start_story(other, other.directory / "archive")
    for _ in range(12):
        other.query("CREATE TABLE t AS SELECT 1; DROP TABLE t")
        archive_all(other, archive)
    said = recover.refused(story.source, story.backup, "--wal", archive, "--target-name", RESTORE_POINT)
    assert re.search(r"segment \w+ \(timeline 1, LSN 0/\w+\) in .* is of another cluster: its system identifier", said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target-name", "nonsense"], ['no restore point "nonsense"', f'"{RESTORE_POINT}"', '"twice"']),
        (["--target-xid", "4000000"], ["transaction 4000000 neither commits nor aborts", "--target latest"]),
        (["--target-time", "2050-01-01 00:00Z"], ["is not reached", "the last transaction in the WAL ends at 20"]),
        (["--target-lsn", "FF/0"], ["no record begins there or later", "the WAL ends at 0/"]),
        (["--target-lsn", "0/100000"], ["lies before the end of the backup", "older backup", "--target immediate"]),
        (["--target-time", "2020-01-01 00:00Z"], ["lies before the backup", "which began at 20", "older backup"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_target_that_cannot_be_reached_is_refused_with_what_can(
    long_story: Long, recover: Recoveries, options: list[str], words: list[str]
) -> None:
    story = long_story.story
    said = recover.refused(story.source, story.backup, "--wal", long_story.archive, *options)
    for word in (*words, "what can be reached", "earliest: LSN 0/", "latest: LSN 0/", "timeline 1"):
        assert word in said


def test_a_name_that_occurs_twice_stops_at_the_first_and_warns(long_story: Long, recover: Recoveries) -> None:
    _, finished = recover.run(
        long_story.story.source, long_story.second, "--wal", long_story.archive, "--target-name", "twice", "--plan",
        start=False,
    )  # fmt: skip
    assert 'restore point "twice" occurs 2 times; recovery stops at the first one' in finished.stderr
    second = re.search(r"not at (0/\w+)", finished.stderr)
    assert second is not None
    server, _ = recover(
        long_story.story.source, long_story.second, "--wal", long_story.archive, "--target-lsn", second[1]
    )
    assert server.query("SELECT count(*) FROM accounts WHERE id = 500000") == [(1,)]


def test_the_newest_backup_that_reaches_the_target_is_chosen(long_story: Long, recover: Recoveries) -> None:
    story, wal = long_story.story, ["--wal", long_story.archive]
    server, result = recover(story.source, long_story.backups, *wal, "--target-time", story.good_time.isoformat())
    assert server.hash_of("accounts") == story.good
    assert result["backup"] == str(story.backup)
    ((path, why),) = [(one["path"], one["why"]) for one in result["recovery"]["rejected_backups"]]
    assert path == str(long_story.second)
    assert "lies before the backup" in why
    server, result = recover(story.source, long_story.backups, *wal)
    assert (result["backup"], result["recovery"]["rejected_backups"]) == (str(long_story.second), [])
    assert server.hash_of("accounts") == long_story.last
    said = recover.refused(story.source, long_story.backups, *wal, "--target-name", "nonsense")
    assert "none of the 2 backups" in said
    assert str(story.backup) in said
    # What can be reached is that of both: the points behind the older one, and where that one begins.
    alone = recover.plan(story.source, story.backup, *wal)["reachable"]["earliest"]["lsn"]
    assert f"earliest: LSN {alone}" in said
    assert f'"{RESTORE_POINT}"' in said
    said = recover.refused(story.source, long_story.backups)
    assert "holds 2 backups and is none itself" in said
    assert str(long_story.second) in said


def test_what_several_backups_reach_is_from_the_oldest_to_the_end_of_the_wal(
    long_story: Long, recover: Recoveries
) -> None:
    story, wal = long_story.story, ["--wal", long_story.archive]
    oldest = recover.plan(story.source, story.backup, *wal)["reachable"]
    planned = recover.plan(story.source, long_story.backups, *wal)
    (window,) = planned["windows"]
    assert window["backups"] == [str(story.backup), str(long_story.second)]
    assert window["earliest"]["lsn"] == oldest["earliest"]["lsn"]
    assert window["latest"] == planned["reachable"]["latest"] == oldest["latest"]
    _, finished = recover.run(story.source, long_story.backups, *wal, "--plan", start=False)
    assert re.search(
        rf"reachable from    LSN {oldest['earliest']['lsn']}\b.*, with {story.backup}\n"
        rf"  reachable to      LSN {oldest['latest']['lsn']}, last transaction",
        finished.stdout,
    )
    # What was printed is accepted.
    back = recover.plan(story.source, long_story.backups, *wal, "--target-lsn", window["earliest"]["lsn"])
    assert back["backup"]["path"] == str(story.backup)


def test_an_older_backup_that_a_hole_in_the_wal_cuts_off_is_named(
    long_story: Long, recover: Recoveries, workspace: Path
) -> None:
    story = long_story.story
    copy = copied(long_story.archive, workspace / "wal", story)
    end = recover.plan(story.source, story.backup, "--wal", copy, "--target-xid", story.disaster_xid)["stop"]["end_lsn"]
    begin = recover.plan(story.source, long_story.second, "--wal", copy)["backup"]["start_lsn"]
    first, last = (int(lsn.split("/")[1], 16) >> 20 for lsn in (end, begin))
    hole = next(path for path in segments_of(copy) if first < int(path.name[16:], 16) < last)
    hole.unlink()
    _, finished = recover.run(story.source, long_story.backups, "--wal", copy, "--plan", start=False)
    assert f'"{story.backup}": a hole in the WAL cuts it off: segment {hole.name} is missing' in finished.stderr
    assert f"then {hole.name} is missing" in finished.stdout
    # The newest one is sound, and what lies before the hole is still reached with the older one.
    planned = recover.plan(
        story.source, long_story.backups, "--wal", copy, "--target-time", story.good_time.isoformat()
    )
    assert [window["backups"] for window in planned["windows"]] == [[str(story.backup)], [str(long_story.second)]]
    assert planned["windows"][0]["missing"] == hole.name
    said = recover.refused(story.source, long_story.backups, "--wal", copy, "--target-name", "nonsense")
    assert f"segment {hole.name} is missing" in said
    drilled = run_polarvault(
        "drill", long_story.backups, "--wal", copy, "--target", "latest", "--json", "--set", "fsync=off", "-N",
        "--bindir", story.source.installation.directory, "--scratch", scratch_in(workspace), check=False,
        directory=workspace,
    )  # fmt: skip
    findings = json.loads(drilled.stdout)["findings"]
    ((subject, message),) = [(one["subject"], one["message"]) for one in findings if one["check"] == "older-backup"]
    assert subject == str(story.backup)
    assert hole.name in message


def scratch_in(workspace: Path) -> Path:
    """Make a directory that the server's user gets through."""
    directory = workspace / "scratch"
    directory.mkdir()
    directory.chmod(0o711)
    return directory


def test_the_plan_is_shown_and_nothing_is_written(long_story: Long, recover: Recoveries) -> None:
    story = long_story.story
    server, finished = recover.run(story.source, story.backup, "--wal", long_story.archive, "--plan", start=False)
    assert not server.data.exists()
    for words in ("recovery to the end of the WAL, then promote", "reachable from", "stops             at the end"):
        assert words in finished.stdout


def test_a_time_without_a_zone_is_local_time_and_that_is_said(long_story: Long, recover: Recoveries) -> None:
    from zoneinfo import ZoneInfo

    story = long_story.story
    local = story.good_time.astimezone(ZoneInfo("Asia/Shanghai"))
    wal = ["--wal", long_story.archive, "--target-time", f"{local:%Y-%m-%d %H:%M:%S.%f}"]
    server, finished = recover.run(story.source, story.backup, *wal, environment={"TZ": "Asia/Shanghai"})
    assert "UTC+08:00 (CST), this machine's, is assumed" in finished.stderr
    assert re.search(r"recovery stopped at LSN 0/\w+, last transaction at .*\+08", finished.stdout)
    written = server.query("SHOW recovery_target_time")[0][0]
    assert written == f"{story.good_time:%Y-%m-%d %H:%M:%S.%f}".rstrip("0") + "+00"
    assert server.hash_of("accounts") == story.good


def test_an_unreadable_wal_directory_is_refused_in_the_plan(long_story: Long, recover: Recoveries) -> None:
    story = long_story.story
    closed = copied(long_story.archive, recover.workspace / "closed", story)
    os.chown(closed, os.geteuid(), os.getegid())
    closed.chmod(0o700)
    if story.source.account.switches:
        said = recover.refused(story.source, story.backup, "--wal", closed, "--target-name", RESTORE_POINT)
        assert f'user {story.source.account.name}, who runs the restored server, cannot read "{closed}"' in said
    closed.chmod(0o755)
    check_good(recover, story, closed)
