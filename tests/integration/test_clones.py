"""Clones of real servers: they are there at once, hold what they must, and leave everything else as it was."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.clones import (
    Clones,
    ask,
    can_reach,
    moment_behind_backup,
    photograph,
    postmaster_of,
    processes_below,
    sharing_disk,
)
from support.cluster import Cluster
from support.program import run_polarvault, start_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres
SUM_OF_PGBENCH = """
    SELECT count(*), md5(string_agg(line, ',' ORDER BY line)) FROM (SELECT t::text AS line FROM pgbench_accounts t) s
"""
ROWS = "SELECT count(*), sum(balance) FROM accounts"


class Site:
    """A source with an archive, a backup of it on a file system that shares extents, and clones there."""

    def __init__(self, source: Cluster, disk: Path) -> None:
        self.source, self.disk = source, disk
        self.archive = source.directory / "archive"
        self.backup = disk / "backup"
        self.clones = Clones(disk / "clones", source.installation.directory)

    def back_up(self, *words: object) -> Path:
        run_polarvault(
            "basebackup", "-d", self.source.conninfo(), "-c", "fast", "-N", "-D", self.backup, *words, as_server=True
        )
        return self.backup

    def archive_all(self) -> None:
        [[name]] = self.source.query("SELECT pg_walfile_name(pg_switch_wal())")
        wait_until(lambda: (self.archive / name).exists(), "the segment is archived")


@pytest.fixture
def site(make_cluster: Callable[..., Cluster], workspace: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    major = getattr(request, "param", 18)
    source = make_cluster(major, start=False)
    archive = source.account.make_directory(source.directory / "archive")
    source.configure({"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"})
    source.start()
    source.fill()
    with sharing_disk(workspace) as disk:
        made = Site(source, disk)
        yield made
        made.clones.remove_all()
        assert processes_below(disk) == []


@pytest.mark.parametrize("site", [15, 18], indirect=True)
def test_clones_go_to_their_moments_and_leave_the_backup_as_it_was(site: Site) -> None:
    location = site.source.add_tablespace("space")
    with site.source.pgbench():
        site.back_up("-T", f"{location}={site.disk}/space")
    then = site.source.hash_of("pgbench_accounts")
    moment = moment_behind_backup(site.source)
    site.source.query("INSERT INTO accounts SELECT n, 'later', 1 FROM generate_series(100001, 100100) n")
    site.source.query("DELETE FROM in_space")
    site.archive_all()
    # From now on nobody but a clone could change anything.
    site.source.stop()
    watched = (site.backup, site.disk / "space", site.archive, location, site.source.data)
    before = photograph(*watched)
    first = site.clones.create(site.backup)
    assert ask(first, "SELECT pg_is_in_recovery(), current_setting('autovacuum')") == [(False, "on")]
    latest = site.clones.create(site.backup, "--wal", site.archive, "--name", "latest")
    past = site.clones.create(site.backup, "--wal", site.archive, "--target-time", moment, "--name", "past")
    again = site.clones.create(site.backup, "--wal", site.archive, "--target-time", moment, "--name", "again")
    assert ask(latest, "SELECT count(*) FROM accounts WHERE owner = 'later'") == [(100,)]
    assert ask(latest, "SELECT count(*) FROM in_space") == [(0,)]
    for clone in (past, again):
        assert ask(clone, "SELECT count(*) FROM accounts WHERE owner = 'later'") == [(0,)]
        assert ask(clone, "SELECT count(*) FROM in_space") == [(5000,)]
        assert ask(clone, SUM_OF_PGBENCH) == [then]
    ask(past, "DELETE FROM accounts; DELETE FROM in_space; CHECKPOINT")
    ask(past, "CREATE TABLE mine AS SELECT n FROM generate_series(1, 100000) n")
    assert ask(again, "SELECT count(*) FROM in_space") == [(5000,)]
    # The places of all tables lie in the clone: nothing outside of it was written, by clones that wrote a lot.
    assert photograph(*watched) == before
    assert ask(past, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'")[0][0].startswith(
        past["directory"]
    )
    assert past["own_bytes"] < 60 << 20
    assert site.clones.bases() == []


def test_a_clone_reaches_nobody_and_only_its_user_reaches_it(site: Site) -> None:
    site.back_up()
    from support.ports import hold_port

    holder = object.__new__(Site)
    port = hold_port(holder)
    private = site.clones.create(site.backup, "--name", "private")
    listening = site.clones.create(site.backup, "--name", "listening", "--port", port)
    assert listening["port"] == port
    assert "host=127.0.0.1" in listening["connection"]
    for clone in (private, listening):
        assert not can_reach(clone, site.source.port)
        [[settings]] = ask(
            clone,
            "SELECT string_agg(current_setting(name), ',') FROM unnest(ARRAY['archive_mode', 'primary_conninfo',"
            " 'max_logical_replication_workers', 'listen_addresses']) name",
        )
        assert settings == ("off,,0," if clone is private else "off,,0,127.0.0.1")
        socket = Path(clone["socket_directory"])
        assert socket.stat().st_mode & 0o777 == 0o700
    # The source's own rules hold for TCP.
    site.source.set_hba(auth="reject")
    assert ask(listening, "SELECT 1") == [(1,)]
    taken = site.clones.refused(site.backup, "--port", port)
    assert str(port) in taken["message"]


@pytest.mark.parametrize("site", [13, 18], indirect=True)
def test_a_read_only_clone_stays_in_recovery(site: Site) -> None:
    site.back_up()
    moment = moment_behind_backup(site.source)
    site.source.query("DELETE FROM accounts WHERE id > 100")
    site.archive_all()
    latest = site.clones.create(site.backup, "--wal", site.archive, "--read-only", "--name", "latest")
    past = site.clones.create(
        site.backup, "--wal", site.archive, "--read-only", "--target-time", moment, "--name", "past"
    )
    for clone, rows in ((latest, 100), (past, 5000)):
        assert ask(clone, "SELECT pg_is_in_recovery()") == [(True,)]
        assert ask(clone, "SELECT count(*) FROM accounts") == [(rows,)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            ask(clone, "CREATE TABLE t ()")
        assert (Path(clone["directory"]) / "run" / "data" / "standby.signal").exists()
    site.clones.run("stop", "past")
    assert site.clones.states() == {"latest": "running", "past": "stopped"}
    started = site.clones.run("start", "past")["clone"]
    assert ask(started, "SELECT pg_is_in_recovery(), count(*) FROM accounts") == [(True, 5000)]


def test_a_reset_brings_back_the_moment_although_wal_has_come_since(site: Site) -> None:
    site.back_up()
    site.source.query("DELETE FROM accounts WHERE id > 4000")
    site.archive_all()
    clone = site.clones.create(site.backup, "--wal", site.archive, "--name", "it")
    ask(clone, "DROP TABLE accounts")
    site.source.query("DELETE FROM accounts WHERE id > 10")
    site.archive_all()
    for _ in range(2):
        again = site.clones.run("reset", "it")["clone"]
        assert ask(again, "SELECT count(*) FROM accounts") == [(4000,)]
        ask(again, "DELETE FROM accounts")
    assert site.clones.states() == {"it": "running"}
    assert len(site.clones.left()) == 1
    # A reset that cannot be done leaves the old one as it was.
    site.archive.rename(site.archive.with_name("away"))
    assert site.clones.run("reset", "it", status=2)["error"]
    assert site.clones.states() == {"it": "running"}
    assert ask(site.clones.run("list")["clones"][0], "SELECT count(*) FROM accounts") == [(0,)]


def test_limits_of_time_size_and_room_are_enforced_after_the_shell_has_gone(site: Site) -> None:
    site.back_up()
    short = site.clones.create(site.backup, "--name", "short", "--ttl", "8s")
    small = site.clones.create(site.backup, "--name", "small", "--max-size", "60MB")
    with suppress(psycopg.errors.AdminShutdown):
        ask(small, "CREATE TABLE big AS SELECT md5(n::text) AS v FROM generate_series(1, 900000) n; CHECKPOINT")
    wait_until(lambda: not Path(short["directory"]).exists(), "the first is removed", timeout_s=60)
    wait_until(lambda: site.clones.states() == {"small": "stopped"}, "the second is stopped", timeout_s=60)
    [status] = site.clones.run("list")["clones"]
    assert "--max-size" in status["stopped"]
    os.statvfs(site.disk)
    error = site.clones.refused(site.backup, "--min-free", "100GB")
    assert error["id"] == "disk-full"
    careful = site.clones.create(site.backup, "--name", "careful", "--min-free", "300MB")
    free = os.statvfs(site.disk)
    with (site.disk / "filler").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free.f_bavail * free.f_frsize - (200 << 20))
    wait_until(lambda: site.clones.states()["careful"] == "stopped", "the third is stopped", timeout_s=60)
    assert careful["least_free_bytes"] == 300 << 20


def test_what_died_or_was_left_is_seen_and_cleaned_up(site: Site) -> None:
    site.back_up()
    before = photograph(site.backup)
    died = site.clones.create(site.backup, "--name", "died")
    restarted = site.clones.create(site.backup, "--name", "restarted")
    for clone in (died, restarted):
        os.kill(postmaster_of(clone), signal.SIGKILL)
    record = Path(restarted["directory"]) / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot_id": "another"}))
    wait_until(lambda: not processes_below(site.disk), "the servers are gone")
    assert site.clones.states() == {"died": "died", "restarted": "host restarted"}
    for name in ("died", "restarted"):
        assert ask(site.clones.run("start", name)["clone"], "SELECT count(*) FROM accounts") == [(5000,)]
    assert photograph(site.backup) == before


def test_sigkill_at_any_moment_leaves_the_source_and_the_next_run_cleans_up(site: Site) -> None:
    site.back_up()
    before = photograph(site.backup)
    words = ["clone", "create", site.backup, "--at", site.clones.area]
    for delay_s in (0.6, 1.0, 1.4, 1.8, 2.3):
        running = start_polarvault(*words)
        time.sleep(delay_s)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    assert photograph(site.backup) == before
    # Younger ones might be just begun.
    for path in site.clones.area.glob("polarvault-clone-*"):
        os.utime(path, (1, 1))
    site.clones.run("list")
    assert "unfinished" not in site.clones.states().values()
    interrupted = start_polarvault(*words)
    time.sleep(1.2)
    interrupted.send_signal(signal.SIGINT)
    interrupted.communicate(timeout=60)
    assert "unfinished" not in site.clones.states().values()


def test_a_backup_in_a_repository_gets_one_base_for_all_clones(site: Site, workspace: Path) -> None:
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    words = ("--repo", repository)
    run_polarvault("backup", "shop", *words, "-d", site.source.conninfo())
    moment = moment_behind_backup(site.source)
    site.source.query("DELETE FROM accounts WHERE id > 7")
    [[last]] = site.source.query("SELECT pg_walfile_name(pg_switch_wal())")
    wait_until(lambda: (site.archive / last).exists(), "the segment is archived")
    for segment in sorted(site.archive.iterdir()):
        run_polarvault("wal", "push", segment, "--cluster", "shop", *words)
    before = photograph(repository / "shop") if (repository / "shop").exists() else {}
    latest = site.clones.create("shop", *words, "--name", "latest")
    past = site.clones.create("shop", *words, "--name", "past", "--target-time", moment)
    assert len(site.clones.bases()) == 1
    assert ask(latest, "SELECT count(*) FROM accounts") == [(7,)]
    assert ask(past, "SELECT count(*) FROM accounts") == [(5000,)]
    assert before == (photograph(repository / "shop") if before else {})
    again = site.clones.run("reset", "past")["clone"]
    assert ask(again, ROWS) == [(5000, sum(n * 7 for n in range(1, 5001)))]
    base = site.clones.bases()[0].rpartition("-")[2]
    assert "past" in site.clones.run("remove", base, status=1)["error"]["message"]
    site.clones.run("remove", "past", "latest")
    site.clones.run("remove", base)
    assert site.clones.bases() == []


@pytest.mark.parametrize("form", ["-Ft", "-Fp"])
def test_other_forms_and_other_file_systems_work_too(site: Site, workspace: Path, form: str) -> None:
    site.backup = workspace / "backup"
    site.back_up(form)
    before = photograph(site.backup)
    for name in ("one", "two"):
        clone = site.clones.create(site.backup, "--name", name)
        assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
        assert clone["shares"]
    assert len(site.clones.bases()) == 1
    # A file system that shares nothing: whole copies, and that is said.
    plain = Clones(workspace / "plain", site.source.installation.directory)
    try:
        clone = plain.create(site.backup)
        assert not clone["shares"]
        assert ask(clone, "SELECT count(*) FROM accounts") == [(5000,)]
    finally:
        plain.remove_all()
    assert photograph(site.backup) == before


def test_what_cannot_be_is_refused_and_leaves_nothing(site: Site) -> None:
    site.back_up()
    [[moment]] = site.source.query("SELECT (clock_timestamp() - interval '1 day')::text")
    clone = site.clones.create(site.backup, "--name", "taken")
    for source in (Path(clone["directory"]) / "run" / "data", clone["directory"]):
        error = site.clones.refused(source)
        assert error["id"] == "clone-refused"
        assert "a clone of a clone" in error["message"]
    assert site.clones.refused(site.backup, "--name", "taken")["id"] == "clone-refused"
    assert site.clones.refused(site.backup, "--target-time", moment)["id"] == "target-unreachable"
    assert site.clones.refused(site.backup, "--target-lsn", "FF/0")["id"] == "target-unreachable"
    assert site.clones.refused(site.source.data)["id"] == "backup-unusable"
    assert site.clones.refused(site.backup, "--set", "archive_command=x", status=2)["id"] == "usage"
    assert site.clones.refused(site.backup, "--name", "../x", status=2)["id"] == "usage"
    assert site.clones.refused(site.disk / "nothing")["id"] == "backup-unusable"
    assert site.clones.run("remove", "nothing", status=1)["error"]["id"] == "clone-not-found"
    precious = site.clones.area / "polarvault-clone-0123456789abcdef"
    precious.mkdir()
    (precious / "precious").write_text("somebody's")
    site.clones.run("remove", "0123456789abcdef", status=1)
    assert (precious / "precious").exists()
    (precious / "precious").unlink()
    precious.rmdir()


def test_what_of_the_source_could_still_act_is_told(site: Site) -> None:
    site.source.query("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    site.source.query("CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1')")
    site.source.query("SELECT pg_create_physical_replication_slot('kept', true)")
    site.back_up()
    # As a copy by other means would hold it, which has no manifest either.
    (site.backup / "backup_manifest").unlink()
    slot = site.backup / "pg_replslot" / "kept"
    slot.mkdir()
    (slot / "state").write_bytes((site.source.data / "pg_replslot" / "kept" / "state").read_bytes())
    site.source.account.own(slot)
    clone: dict[str, Any] = site.clones.create(site.backup)
    assert any("other" in warning and "foreign servers" in warning for warning in clone["warnings"])
    assert ask(clone, "SELECT count(*) FROM pg_replication_slots") == [(0,)]
    site.source.query("SELECT pg_drop_replication_slot('kept')")
