"""Point-in-time recovery on real servers: the table is what it was before the disaster, whatever names the moment."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.demo.server import SUPERUSER
from support.cluster import Cluster
from support.servers import ServerPool, missing_reason
from support.story import RESTORE_POINT, Recoveries, Story, archive_all, resume, start_story, tell, timeline_of
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@dataclass(frozen=True)
class Archived:
    """A story whose WAL went into an archive by archive_command."""

    story: Story
    archive: Path

    @property
    def where(self) -> tuple[Cluster, Path, str, Path]:
        """The first arguments of a recovery: source, backup and --wal."""
        return self.story.source, self.story.backup, "--wal", self.archive


@pytest.fixture(scope="module", params=[13, 15, 16, 17, 18, 19])
def archived(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Archived]:
    """One story for each version; tests only read it."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"story{major}"
    source = Cluster.made(servers.installations[major], directory)
    try:
        archive = start_story(source, directory / "archive")
        story = tell(source, directory / "backup")
        archive_all(source, archive)
        yield Archived(story, archive)
    finally:
        source.remove()


@pytest.fixture
def recover(workspace: Path) -> Iterator[Recoveries]:
    """A function that restores with --start and returns the server and the JSON result."""
    recoveries = Recoveries(workspace)
    yield recoveries
    recoveries.close()


# What a target looks like, and which state of the table it leads to.
TARGETS = {
    "name": (lambda s: ["--target-name", RESTORE_POINT], "good"),
    "time": (lambda s: ["--target-time", s.good_time.isoformat()], "good"),
    "time after the disaster": (lambda s: ["--target-time", s.disaster_time.isoformat(" ")], "bad"),
    "xid": (lambda s: ["--target-xid", s.disaster_xid], "bad"),
    "xid exclusive": (lambda s: ["--target-xid", s.disaster_xid, "--target-exclusive"], "good"),
    "first xid": (lambda s: ["--target-xid", s.first_xid], "inserted"),
    "lsn": (lambda s: ["--target-lsn", s.disaster_lsn], "good"),
    "lsn exclusive": (lambda s: ["--target-lsn", s.disaster_lsn, "--no-target-inclusive"], "good"),
    "immediate": (lambda s: ["--target", "immediate"], "at_backup"),
    "latest": (lambda s: ["--target", "latest"], "end"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_the_table_is_what_it_was_at_the_target(archived: Archived, recover: Recoveries, kind: str) -> None:
    options, state = TARGETS[kind]
    server, result = recover(*archived.where, *options(archived.story))
    wanted = getattr(archived.story, state)
    assert server.hash_of("accounts") == wanted
    outcome, planned = result["outcome"], result["recovery"]
    if kind == "latest":
        assert outcome["ended"] == "promoted"
    else:
        assert outcome["ended"] == "paused"
        assert server.query("SELECT pg_is_in_recovery()") == [(True,)]
        resume(server)
    assert server.hash_of("accounts") == wanted
    assert timeline_of(server) == 2
    # The plan had named the record before anything was written.
    stop = planned["stop"]
    if stop is not None and kind != "immediate":
        assert outcome["lsn"] == (stop["lsn"] if stop["where"] == "before" else stop["end_lsn"])
    if planned["last_transaction"] is not None and not kind.startswith("lsn"):
        assert outcome["time"] == planned["last_transaction"]["time"]


@pytest.mark.parametrize("archived", [13, 15, 18], indirect=True)
def test_exclusive_at_a_transactions_own_time_leaves_it_out(archived: Archived, recover: Recoveries) -> None:
    story = archived.story
    planned = recover.plan(*archived.where, "--target-xid", story.disaster_xid)
    moment = planned["stop"]["time"]
    server, _ = recover(*archived.where, "--target-time", moment, "--target-exclusive")
    assert server.hash_of("accounts") == story.good
    server, result = recover(*archived.where, "--target-time", moment, "--target-action", "promote")
    assert server.hash_of("accounts") == story.bad
    assert result["outcome"]["time"] == moment


@pytest.mark.parametrize("archived", [15, 18], indirect=True)
@pytest.mark.parametrize("action", ["promote", "shutdown"])
def test_the_action_at_the_target_is_carried_out(archived: Archived, recover: Recoveries, action: str) -> None:
    server, result = recover(*archived.where, "--target-name", RESTORE_POINT, "--target-action", action)
    outcome = result["outcome"]
    assert outcome["time"] == result["recovery"]["last_transaction"]["time"]
    if action == "promote":
        assert outcome["ended"] == "promoted"
        assert outcome["lsn"] == result["recovery"]["stop"]["end_lsn"]
        assert RESTORE_POINT in outcome["reason"]
        assert result["server"]["timeline"] == timeline_of(server) == 2
    else:
        assert outcome["ended"] == "shut down"
        assert RESTORE_POINT in outcome["reason"]
        assert result["server"] is None
        assert not server.is_running()


@pytest.mark.parametrize(
    ("archived", "setting", "kind"),
    [
        (13, "log_destination=syslog", "time"),
        (15, "log_min_messages=panic", "immediate"),
        (15, "log_destination=syslog", "xid exclusive"),
        (18, "log_destination=syslog", "lsn exclusive"),
        (18, "log_min_messages=panic", "name"),
    ],
    indirect=["archived"],
)
def test_a_shutdown_at_the_target_is_known_without_a_log(
    archived: Archived, recover: Recoveries, setting: str, kind: str
) -> None:
    options, _ = TARGETS[kind]
    server, result = recover(
        *archived.where, *options(archived.story), "--target-action", "shutdown", "--set", setting,
        "--set", "syslog_ident=polarvault-test",
    )  # fmt: skip
    outcome, stop = result["outcome"], result["recovery"]["stop"]
    assert outcome["ended"] == "shut down"
    assert outcome["lsn"] == (stop["lsn"] if stop["where"] == "before" else stop["end_lsn"])
    assert outcome["reason"] is None
    assert not server.is_running()


@pytest.mark.parametrize("archived", [15], indirect=True)
def test_the_time_of_a_promotion_is_known_without_a_log(archived: Archived, recover: Recoveries) -> None:
    _, result = recover(
        *archived.where, "--target-name", RESTORE_POINT, "--target-action", "promote", "--set", "log_min_messages=panic"
    )
    assert result["outcome"]["ended"] == "promoted"
    assert result["outcome"]["time"] == result["recovery"]["last_transaction"]["time"]


def typed(server: Cluster, line: str) -> None:
    """Type a line of the program's output into a shell, as the server's user, who has no need of su."""
    words = shlex.split(line)
    line = words[3] if words[0] == "su" else line
    account = server.account
    with open(server.directory / "typed.log", "ab") as output:
        subprocess.run(
            ["sh", "-c", line], check=True, cwd=server.directory,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=account.environment(server.directory) | {"PGUSER": SUPERUSER, "PGDATABASE": "postgres"},
            **account.run_as,
        )  # fmt: skip


def line_of(output: str, start: str) -> str:
    """Return what the output tells to type after these words."""
    found = re.search(rf"^  {start} +(.*)$", output, re.MULTILINE)
    assert found, output
    return found[1]


@pytest.mark.parametrize("archived", [13, 18], indirect=True)
def test_what_the_output_says_to_type_works(archived: Archived, recover: Recoveries) -> None:
    story = archived.story
    server, finished = recover.run(*archived.where, "--target-xid", story.first_xid)
    assert "replayed up to LSN" in finished.stderr
    assert server.hash_of("accounts") == story.inserted
    later = line_of(finished.stdout, "to go on").replace("LATER", str(story.disaster_xid))
    typed(server, later)
    wait_until(lambda: server.hash_of("accounts") == story.bad, "recovery goes on to the later target")
    psql = line_of(finished.stdout, "to promote it").replace("psql", str(server.installation.program("psql")), 1)
    # Our own server has psql on no path.
    typed(server, psql)
    wait_until(lambda: server.query("SELECT pg_is_in_recovery()") == [(False,)], "the server is promoted")
    assert timeline_of(server) == 2


@pytest.mark.parametrize("archived", [18], indirect=True)
def test_a_server_that_was_shut_down_at_its_target_can_be_looked_at_and_promoted(
    archived: Archived, recover: Recoveries
) -> None:
    story = archived.story
    server, finished = recover.run(*archived.where, "--target-name", RESTORE_POINT, "--target-action", "shutdown")
    typed(server, line_of(finished.stdout, "to look at it"))
    assert server.hash_of("accounts") == story.good
    server.stop()
    typed(server, line_of(finished.stdout, "to promote it"))
    wait_until(lambda: server.query("SELECT pg_is_in_recovery()") == [(False,)], "the server is promoted")
    assert server.hash_of("accounts") == story.good


def test_a_pause_without_hot_standby_ends_with_the_server_shut_down(archived: Archived, recover: Recoveries) -> None:
    story = archived.story
    server, result = recover(*archived.where, "--target-name", RESTORE_POINT, "--set", "hot_standby=off")
    assert result["outcome"]["ended"] == "shut down"
    assert not server.is_running()
    assert story.source.is_running()


@pytest.mark.parametrize("archived", [13, 18], indirect=True)
def test_the_outcome_is_known_when_the_server_lets_nobody_in(archived: Archived, recover: Recoveries) -> None:
    story = archived.story
    nobody = recover.workspace / "pg_hba.nobody"
    nobody.write_text("local all all reject\nhost all all all reject\n")
    story.source.account.own(nobody)
    options = ["--target-xid", story.disaster_xid, "--set", f"hba_file={nobody}"]
    _, result = recover(*archived.where, *options)
    assert (result["outcome"]["ended"], result["outcome"]["lsn"] is None) == ("paused", False)
    assert str(story.disaster_xid) in result["outcome"]["reason"]
    _, result = recover(*archived.where, *options, "--target-action", "promote")
    assert result["outcome"]["ended"] == "promoted"
    assert result["outcome"]["lsn"] == result["recovery"]["stop"]["end_lsn"]
    assert result["outcome"]["timeline"] == 2


@pytest.mark.parametrize("archived", [15, 18], indirect=True)
def test_recovery_that_fails_shows_the_servers_reason(archived: Archived, recover: Recoveries) -> None:
    # The plan cannot know what a restore_command of the user's own will do.
    source, backup, _, _ = archived.where
    server, finished = recover.run(
        source, backup, "--target-name", RESTORE_POINT, "--set", "restore_command=false", check=False
    )
    assert finished.returncode == 4
    assert "recovery ended before configured recovery target was reached" in finished.stderr
    assert "cannot be looked into" in finished.stderr
    assert server.data.exists()


@pytest.mark.parametrize("archived", [15, 18], indirect=True)
def test_archiving_is_off_unless_it_is_to_be_kept(archived: Archived, recover: Recoveries) -> None:
    def switch_and_stop(server: Cluster) -> set[str]:
        server.query("CREATE TABLE written_here AS SELECT 1")
        server.query("SELECT pg_switch_wal()")
        server.stop()
        return {path.name for path in archived.archive.iterdir()}

    before = {path.name for path in archived.archive.iterdir()}
    promoted = ["--target-name", RESTORE_POINT, "--target-action", "promote"]
    server, _ = recover(*archived.where, *promoted)
    assert server.query("SHOW archive_mode") == [("off",)]
    assert switch_and_stop(server) == before
    server, _ = recover(
        *archived.where, "--target-name", RESTORE_POINT, "--target-action", "promote", "--keep-archiving"
    )
    assert server.query("SHOW archive_mode") == [("on",)]
    try:
        assert "00000002.history" in switch_and_stop(server) - before
    finally:
        # The other tests of this module find the archive as it was.
        for name in {path.name for path in archived.archive.iterdir()} - before:
            (archived.archive / name).unlink()


@pytest.mark.parametrize("archived", [13, 18], indirect=True)
def test_old_recovery_targets_of_the_backup_do_not_count(
    archived: Archived, recover: Recoveries, workspace: Path
) -> None:
    source, backup, *wal = archived.where
    copy = workspace / "copy"
    subprocess.run(["cp", "-a", backup, copy], check=True)
    with open(copy / "postgresql.auto.conf", "a", encoding="utf-8") as settings:
        settings.write("recovery_target_xid = '5'\nrecovery_target_action = 'shutdown'\n")
        settings.write("recovery_target_timeline = '7'\nrecovery_target_inclusive = off\n")
    server, _ = recover(source, copy, *wal, "--target-name", RESTORE_POINT)
    assert server.hash_of("accounts") == archived.story.good
