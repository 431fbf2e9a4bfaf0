"""A drill's copy is closed to the world, and nothing of it stays: interrupted, killed, kept."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from support.cluster import Cluster
from support.drills import Drills, Stock, copied, make_stock, sql_files, with_settings
from support.program import run_polarvault, start_polarvault
from support.servers import ServerPool, missing_reason
from support.small_disk import small_disk
from support.story import back_up
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def stock(servers: ServerPool) -> Iterator[Stock]:
    """A PostgreSQL 18 with backups; tests only read them."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    with make_stock(servers, 18, "closed") as made:
        yield made


@pytest.fixture
def drills(workspace: Path) -> Drills:
    """Drills in a scratch directory of the test's own."""
    return Drills(workspace)


def test_nothing_is_archived_and_no_commit_waits_for_a_standby(stock: Stock, drills: Drills) -> None:
    outside = stock.source.account.make_directory(drills.workspace / "outside")
    copy = with_settings(
        copied(stock.plain, drills.workspace / "copy"),
        "synchronous_standby_names = 'nobody'\narchive_mode = on\nlogging_collector = on\n"
        f"archive_command = 'touch {outside}/%f'\n"
        f"restore_command = 'touch {outside}/%f; false'\nrecovery_end_command = 'touch {outside}/ended'\n",
    )
    before = sorted(path.name for path in stock.archive.iterdir())
    (closed,) = sql_files(
        drills.workspace,
        closed="SELECT current_setting('archive_mode') = 'off' AND current_setting('listen_addresses') = ''"
        " AND current_setting('synchronous_standby_names') = '' AND current_setting('zero_damaged_pages') = 'off'"
        " AND current_setting('cron.launch_active_jobs') = 'off' AND current_setting('logging_collector') = 'off'",
    )
    # Installing amcheck commits, which would wait for ever.
    drills.run(stock.source, copy, "--amcheck", "--read", "none", "--sql", closed)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in stock.archive.iterdir()) == before


def test_a_subscription_of_the_copy_does_not_touch_its_publisher(
    make_cluster: Callable[..., Cluster], drills: Drills
) -> None:
    publisher = make_cluster(15, settings={"wal_level": "logical"})
    publisher.query("CREATE PUBLICATION everything FOR TABLE accounts")
    subscriber = make_cluster(15, fill=False)
    subscriber.query("CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL)")
    conninfo = publisher.conninfo().replace("'", "''")
    subscriber.query(f"CREATE SUBSCRIPTION follower CONNECTION '{conninfo}' PUBLICATION everything")
    wait_until(lambda: subscriber.hash_of("accounts") == publisher.hash_of("accounts"), "the subscriber has caught up")
    backup = back_up(subscriber, drills.workspace / "backup")
    subscriber.stop()
    wait_until(lambda: publisher.backends("walsender") == 0, "nobody streams")
    publisher.query("INSERT INTO accounts VALUES (999999, 'after the backup', 1)")
    slots = "SELECT slot_name, confirmed_flush_lsn::text, restart_lsn::text FROM pg_replication_slots"
    before, log = publisher.query(slots), publisher.log_text().count("START_REPLICATION")
    assert log
    (enabled,) = sql_files(
        drills.workspace,
        enabled="SELECT subenabled AND NOT EXISTS (SELECT FROM accounts WHERE id = 999999) FROM pg_subscription",
    )
    drills.run(subscriber, backup, "--sql", enabled)
    assert publisher.query(slots) == before
    assert publisher.log_text().count("START_REPLICATION") == log


def test_tablespaces_and_included_files_of_the_source_are_left_alone(
    make_cluster: Callable[..., Cluster], drills: Drills
) -> None:
    source = make_cluster(18)
    location = source.add_tablespace("fast", rows=100)
    included = drills.workspace / "included.conf"
    included.write_text("listen_addresses = '*'\nno_such_setting_at_all = 1\n")
    included.chmod(0o644)
    tar = with_included = back_up(source, drills.workspace / "tar", ["-Ft"])
    plain = back_up(source, drills.workspace / "backup", ["-T", f"{location}={drills.workspace}/mapped"])
    with_included = with_settings(copied(plain, drills.workspace / "copy"), f"include '{included}'\n")
    before = {path: path.stat().st_mtime_ns for path in location.rglob("*")}
    for backup in (with_included, tar):
        report = drills.run(source, backup)
        assert any(one["name"] == "in_fast" and one["rows"] == 100 for one in report["relations"])
    assert {path: path.stat().st_mtime_ns for path in location.rglob("*")} == before


@pytest.mark.parametrize(
    "setting", ["listen_addresses=*", "archive_mode=on", "restore_command=false", "Port=1", "recovery_target_xid=5"]
)
def test_set_cannot_open_the_copy(stock: Stock, drills: Drills, setting: str) -> None:
    finished = run_polarvault(*drills.options(stock.source, stock.plain, "--set", setting), check=False)
    assert finished.returncode == 2
    assert "--set" in finished.stderr
    drills.check_nothing_is_left()


# Interrupted, killed, kept


def wait_for_line(stream: IO[str], words: str) -> None:
    """Read a program's output up to a line with these words."""
    for line in stream:
        if words in line:
            return
    raise AssertionError(f"the program ended without saying {words!r}")


@pytest.fixture
def sleeping(stock: Stock, drills: Drills) -> Iterator[subprocess.Popen[str]]:
    """A drill in the middle of an assertion that takes for ever."""
    (sleep,) = sql_files(drills.workspace, sleep="SELECT pg_sleep(3600) IS NOT NULL")
    process = start_polarvault(*drills.options(stock.source, stock.plain, "--read", "none", "--sql", sleep))
    with process:
        assert process.stderr is not None
        try:
            wait_for_line(process.stderr, "assertions:")
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drill_cleans_up(
    sleeping: subprocess.Popen[str], drills: Drills, number: signal.Signals
) -> None:
    sleeping.send_signal(number)
    _, errors = sleeping.communicate(timeout=60)
    assert sleeping.returncode == 128 + number
    assert "interrupted" in errors
    drills.check_nothing_is_left()
    assert not Path(f"{drills.report}.json").exists()


def test_what_a_killed_drill_left_is_named_with_the_line_that_removes_it(
    stock: Stock, sleeping: subprocess.Popen[str], drills: Drills
) -> None:
    sleeping.kill()
    sleeping.wait()
    (left,) = drills.scratch.iterdir()
    finished = run_polarvault(*drills.options(stock.source, stock.plain, "--read", "none"))
    assert str(left) in finished.stdout
    assert "its server still runs" in finished.stdout
    (advice,) = (line.split("next: ")[1] for line in finished.stdout.splitlines() if "next: " in line)
    subprocess.run(["sh", "-c", advice], check=True)
    wait_until(lambda: not left.exists(), "the leftover is removed")
    wait_until(lambda: not any(drills.scratch.iterdir()), "nothing is left")


def test_a_copy_that_is_kept_can_be_started_looked_into_and_removed(stock: Stock, drills: Drills) -> None:
    finished = run_polarvault(*drills.options(stock.source, stock.plain, "--keep", "--read", "none", "--json"))
    kept = json.loads(finished.stdout)["kept"]
    account = stock.source.account
    environment = os.environ | {"PATH": f"{stock.source.installation.directory}:{os.environ['PATH']}"}

    def type_line(line: str) -> str:
        words = shlex.split(line)
        # Without su: the tests may run where there is none.
        line = words[-1] if words[0] == "su" else line
        with open(drills.workspace / "typed.log", "w+") as output:
            subprocess.run(["sh", "-c", line], check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                           cwd="/", env=environment, **account.run_as)  # fmt: skip
            output.seek(0)
            return output.read()

    type_line(kept["start"])
    answer = type_line(kept["connect"] + " -Atc 'SELECT count(*) FROM accounts'")
    assert answer.strip() == str(stock.story.at_backup[0])
    # Kept on purpose, so the next drill does not call it a leftover.
    again = run_polarvault(*drills.options(stock.source, stock.plain, "--read", "none"))
    assert "leftover" not in again.stdout
    type_line(kept["stop"])
    subprocess.run(["sh", "-c", kept["remove"]], check=True)
    drills.check_nothing_is_left()


def test_a_long_scratch_path_gets_its_socket_elsewhere(stock: Stock, drills: Drills) -> None:
    drills.scratch = drills.scratch / ("long" * 20)
    drills.scratch.mkdir()
    drills.scratch.chmod(0o711)
    before = set(Path("/tmp").glob("polarvault-drill-*"))
    assert drills.run(stock.source, stock.plain, "--read", "none")["held"]
    assert set(Path("/tmp").glob("polarvault-drill-*")) <= before


def test_too_little_space_is_found_before_anything_is_written(stock: Stock, drills: Drills) -> None:
    with small_disk(drills.scratch, "20m"):
        report = drills.run(stock.source, stock.plain, status=1)
    assert report["failure"]["part"] == "plan"
    assert "not enough space" in report["failure"]["message"]
    assert report["facts"]["bytes"] > 20 << 20


def test_of_a_directory_of_backups_the_newest_that_can_be_used_is_drilled(stock: Stock, drills: Drills) -> None:
    backups = drills.workspace / "backups"
    backups.mkdir()
    older, newer = copied(stock.tar, backups / "older"), copied(stock.plain, backups / "newer")
    (newer / "global" / "pg_control").unlink()
    report = drills.run(stock.source, backups, "--read", "none", status=1)
    assert report["facts"]["path"] == str(older)
    (passed_over,) = (finding for finding in report["findings"] if finding["check"] == "newer-backup")
    assert (passed_over["severity"], passed_over["subject"]) == ("problem", str(newer))
