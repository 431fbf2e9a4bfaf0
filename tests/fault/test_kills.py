"""Ended at any system call, by SIGKILL or a power cut: what is left is the old state, whole, or known as unfinished.

Here a tenth of the cases, always the same; `make soak` runs all of them (`support.kill_campaigns`).
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.errors import StartFailed
from support.backups import back_up, left_behind
from support.cluster import Cluster
from support.fuzzing import Worker
from support.kill_campaigns import CASES, Broken, length, run_case, run_cases
from support.sync_sites import sync_sites
from support.system_calls import AT_END, Fault, prelude, read_trace
from support.waiting import wait_until

SEED = 9
TURNS = 12


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.mark.parametrize("campaign", sorted(CASES))
def test_what_was_ended_anywhere_is_whole_or_known_as_unfinished(worker: Worker, campaign: str) -> None:
    numbers = sorted(random.Random(SEED).sample(range(CASES[campaign]), CASES[campaign] // 10))
    found = list(run_cases(worker, campaign, numbers))
    failures = [str(failure) for _, failure in found if failure is not None]
    assert not failures, "\n\n".join(failures)
    # If few were ended, little would have been tried.
    assert sum(was_ended for was_ended, _ in found) > len(numbers) / 2


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("basebackup plain", "files.py fsync_tree fsync_paths"),
        ("receivewal plain", "segment_file.py sync fdatasync"),
        ("receivewal gzip", "segment_file.py sync fdatasync"),
        ("restore plain", "files.py fsync_tree fsync_paths"),
        ("repository backups", "local.py _put fsync"),
    ],
)
def test_a_power_cut_shows_what_was_not_synced(worker: Worker, name: str, site: str) -> None:
    """The cases above would find it: without one fsync a power cut leaves what must not be."""
    # Two classes may have a function of that name; the one that is not at work here changes nothing.
    sites = [one.lines for one in sync_sites() if one.text == site]
    # A receiver acknowledges from the beginning on; the others have made something valid at their end.
    moments = range(12, length(worker, name)) if name.startswith("receivewal") else [AT_END]
    # Whether something is lost, and what, is a matter of chance; of many chances one is enough.
    for turn, kill_at, without in itertools.product(range(TURNS), moments, sites):
        try:
            run_case(worker, name, Fault(without, kill_at, f"{turn}"))
        except Broken:
            return
    pytest.fail(f"without {site} nothing was ever lost")


@pytest.mark.parametrize("turn", range(3))
def test_a_server_never_starts_from_half_a_restore(
    worker: Worker, pg15: Cluster, workspace: Path, start_restored: Callable[..., Cluster], turn: int
) -> None:
    back_up(pg15, workspace / "backup")
    pg15.account.own(workspace / "backup")
    words = ["restore", str(workspace / "backup"), "-D", str(workspace / "target" / "data")]
    (workspace / "target").mkdir()
    pg15.account.own(workspace / "target")
    watched = workspace / "target"
    whole = worker.run(words, workspace, prelude=prelude(workspace / "whole", watched))
    assert whole.status == 0, whole.errors
    calls = max(event["number"] for event in read_trace(workspace / "whole"))
    shutil.rmtree(watched / "data")
    # Copying, syncing, and the moment of truth.
    kill_at = (calls // 3, calls * 9 // 10, calls - 1)[turn]
    fault = Fault(kill_at=kill_at, power_cut=str(turn) if turn else None)
    killed = worker.run(words, workspace, prelude=prelude(workspace / "trace", watched, fault))
    assert killed.status == -9, killed.errors
    data = watched / "data"
    if (data / "global/pg_control").exists():
        assert start_restored(15, data).hashes() == pg15.hashes()
        return
    with pytest.raises(StartFailed):
        start_restored(15, data)
    again = worker.run(words, workspace)
    assert again.status != 0
    assert "is not empty: it is a restore that was cut off" in again.errors


def test_a_backup_that_was_killed_leaves_nothing_on_the_server_and_is_no_backup(
    worker: Worker, pg15: Cluster, workspace: Path
) -> None:
    target = workspace / "target" / "backup"
    words = ["basebackup", "-d", pg15.conninfo(), "-c", "fast", "-D", str(target)]
    target.parent.mkdir()
    whole = worker.run(words, workspace, prelude=prelude(workspace / "whole", target.parent))
    assert whole.status == 0, whole.errors
    calls = max(event["number"] for event in read_trace(workspace / "whole"))
    shutil.rmtree(target)
    for turn, kill_at in enumerate(random.Random(SEED).sample(range(10, calls), 4)):
        fault = Fault(kill_at=kill_at, power_cut=str(turn) if turn % 2 else None)
        killed = worker.run(words, workspace, prelude=prelude(workspace / f"trace{turn}", target.parent, fault))
        assert killed.status == -9, killed.errors
        if target.exists():
            assert "polarvault_backup_in_progress" in os.listdir(target)
            assert worker.run(["verifybackup", str(target)], workspace).status != 0
            shutil.rmtree(target)
    wait_until(lambda: left_behind(pg15) == ([], 0), "slots and WAL senders are gone")
