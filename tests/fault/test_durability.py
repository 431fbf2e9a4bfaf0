"""Everything that is made durable survives a power cut, and these tests notice when one fsync is taken away.

The program is watched by `support.system_calls`, its calls are judged by `support.durability` against the rules of
`support.durable_scenarios`. What counts is the worst a file system may do with what was not synced.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.backups import back_up
from support.cluster import Cluster
from support.durability import Rules, judge
from support.durable_scenarios import as_json, ran, scenarios
from support.fuzzing import Worker
from support.power_cut import Event
from support.program import program_environment
from support.servers import has_program
from support.sync_sites import SyncSite, sync_sites
from support.system_calls import Fault, prelude, read_trace

# Calls that no scenario leads through, and why their absence would be noticed all the same, or does not matter.
ELSEWHERE = {
    "copied_configuration.py commit write_configuration": "a scenario of its own calls it",
    "export.py export_backup write_configuration": "the same",
    "session.py _stream sync": "asks another thread, which is judged itself",
    "session.py _housekeeping sync": "asks another thread, as above",
    "run.py _make_durable sync": "asks another thread, as above",
    "btrfs.py _make fsync_path": "needs btrfs; a subvolume that is cut off is known by its mark, which comes first",
    "btrfs.py _make fsync_parent": "the same",
    "commands.py _make write_durably": "needs a user's commands; it is the scenario of a document",
    "local.py sync fsync": "no command writes through a local tree: it is what PFS is compared with",
    "finish.py finish_image fsync_tree": "needs a server; an image that is cut off before its record is none",
    "small_files.py write_file sync": "writes into PFS only, which a power cut here is not",
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.fixture(scope="module")
def reached(worker: Worker) -> dict[str, set[tuple[str, int]]]:
    """The places in the program that led to a sync, for each scenario."""
    found = {}
    for name, scenario in scenarios().items():
        with ran(worker, scenario) as run:
            found[name] = {(path, line) for event in run.events for path, line in event.get("sites", ())}
    return found


@pytest.mark.parametrize("name", sorted(scenarios()))
def test_a_power_cut_at_any_moment_leaves_nothing_that_only_looks_whole(worker: Worker, name: str) -> None:
    scenario = scenarios()[name]
    with ran(worker, scenario) as run:
        assert run.outcome.status in scenario.statuses, run.outcome.errors
        assert not run.problems, "\n".join([*run.problems, as_json(run.events)])
        # A run that syncs nothing would keep every rule but the last.
        assert any(event["op"] in ("sync", "syncfs") for event in run.events)


def test_each_fsync_is_missed_when_it_is_taken_away(worker: Worker, reached: dict[str, set[tuple[str, int]]]) -> None:
    unnoticed = []
    for site in sync_sites():
        names = [name for name, lines in reached.items() if _leads_through(lines, site)]
        if names and not any(_is_missed(worker, name, site) for name in names):
            unnoticed.append(f"{site.text}, line {site.first_line}: taken away, nobody notices in {', '.join(names)}")
    assert not unnoticed, "\n".join(unnoticed)


def test_every_place_that_syncs_is_in_a_scenario(reached: dict[str, set[tuple[str, int]]]) -> None:
    lines = set().union(*reached.values())
    missing = {site.text for site in sync_sites() if not _leads_through(lines, site)}
    assert missing - set(ELSEWHERE) == set(), "give each a scenario in support/durable_scenarios.py"
    assert set(ELSEWHERE) <= {site.text for site in sync_sites()}, "ELSEWHERE names what is not there any more"


def test_no_sync_waits_for_nothing(worker: Worker) -> None:
    """The rules are about --sync: without it none is kept, and the checker says so."""
    for name in ("basebackup plain", "basebackup tar", "restore plain"):
        scenario = scenarios()[name]
        with ran(worker, scenario, more=["--no-sync"]) as run:
            assert run.outcome.status == 0, run.outcome.errors
            assert not [event for event in run.events if event["op"] in ("sync", "syncfs")]
            assert judge(run.events, scenario.rules)


def test_a_chain_that_another_program_combines_is_durable(worker: Worker, pg18: Cluster, workspace: Path) -> None:
    """What pg_combinebackup has written counts as not synced, whatever it did."""
    if not has_program(pg18.installation, "pg_combinebackup"):
        pytest.skip("there is no pg_combinebackup beside PostgreSQL 18")
    back_up(pg18, workspace / "full")
    back_up(pg18, workspace / "newer", "-i", str(workspace / "full/backup_manifest"))
    for name in ("full", "newer", "."):
        pg18.account.own(workspace / name)
    words = [
        "restore",
        str(workspace / "newer"),
        "-D",
        str(workspace / "target"),
        "--bindir",
        pg18.installation.directory,
    ]
    watched = prelude(workspace / "trace", workspace)
    outcome = worker.run(words, workspace, prelude=watched, timeout_s=120)
    assert outcome.status == 0, outcome.errors
    events = read_trace(workspace / "trace")
    news = (".stdout", ".stderr")
    assert judge(events, Rules(commits=(("rename", "pg_control"),), news=news)) == []
    # As many moved files as a cluster has.
    assert len([event for event in events if event["op"] == "rename"]) > 100


def test_strace_sees_what_the_recorder_sees(workspace: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or not _may_trace(strace):
        pytest.skip("strace is not installed, or may not trace here")
    trace, calls = workspace / "trace", workspace / "calls"
    target = workspace / "target"
    target.mkdir()
    script = prelude(trace, target) + (
        "from polarvault.storage.below import Below\n"
        "from polarvault.storage.files import fsync_tree, make_directories, write_durably\n"
        f"root = {str(target)!r}\n"
        "make_directories(root + '/a/b', 0o700, sync=True)\n"
        "write_durably(root + '/a/one', b'1')\n"
        "with Below(root) as below:\n"
        "    below.write('a/two.tmp', b'2', 0o600, sync=True)\n"
        "    below.rename('a/two.tmp', 'a/two')\n"
        "    below.symlink('two', 'a/link')\n"
        "    below.sync_parent('a/two')\n"
        "    below.unlink('a/one')\n"
        "fsync_tree(root + '/a')\n"
        "fsync_tree(root + '/a', method='syncfs')\n"
    )
    names = "fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,symlink,symlinkat"
    subprocess.run(
        [strace, "-f", "-y", "-qq", "-e", f"trace={names}", "-o", str(calls), sys.executable, "-c", script],
        env=program_environment({"PYTHONPATH": str(Path(__file__).parents[1])}), cwd="/", check=True,
    )  # fmt: skip
    recorded = Counter(
        (event["op"], os.path.basename(event["path"])) for event in read_trace(trace) if event["op"] not in _CONTENTS
    )
    assert recorded == _seen(calls.read_text(), str(target))


_CONTENTS = ("create", "write", "exists")
_KINDS = {"fdatasync": "sync", "fsync": "sync"}


def _seen(text: str, root: str) -> Counter[tuple[str, str]]:
    """Return the calls below a directory as strace wrote them down, by kind and last name."""
    found: Counter[tuple[str, str]] = Counter()
    for line in text.splitlines():
        match = re.search(r"(\w+)\((.*)", line)
        if match is None or root not in line or "= -1" in line or "resumed" in line:
            continue
        kind = re.sub(r"at2?$", "", match[1])
        # The last of the paths is the new name; a sync has its descriptor's path only.
        quoted = re.findall(r'"([^"]*)"', match[2])
        opened = re.findall(r"<(/[^>]*)>", match[2])
        found[_KINDS.get(kind, kind), os.path.basename(quoted[-1] if quoted else opened[-1])] += 1
    return found


def _may_trace(strace: str) -> bool:
    return subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def _is_missed(worker: Worker, name: str, site: SyncSite) -> bool:
    scenario = scenarios()[name]
    with ran(worker, scenario, Fault(without=site.lines)) as run:
        return run.outcome.status not in scenario.statuses or bool(run.problems)


def _leads_through(lines: set[tuple[str, int]], site: SyncSite) -> bool:
    return any(path == site.path and site.first_line <= line <= site.last_line for path, line in lines)


# The checker itself: what it must see in traces made by hand.


def _events(*lines: tuple[str, str, int]) -> list[Event]:
    """Return events from (op, path, inode); a write covers ten bytes, a sync all that came before."""
    events: list[Event] = []
    for number, (op, path, inode) in enumerate(lines, 1):
        event: Event = {"op": op, "path": path, "inode": [1, inode], "number": number, "start": 0, "end": 10}
        old, _, new = path.partition(" ")
        if op == "rename":
            event |= {"old": old, "path": new}
        events.append(event | {"since": number})
    return events


def test_the_checker_knows_what_a_durable_write_is() -> None:
    rules = Rules(commits=(("rename", "final"),), renames=True)
    made = ("create", "/d/t", 5), ("write", "/d/t", 5)
    synced, renamed, named = ("sync", "/d/t", 5), ("rename", "/d/t /d/final", 5), ("sync", "/d", 2)
    good = _events(*made, synced, renamed, named)
    assert judge(good, rules) == []
    for left_out, complaint in ((2, "its own content"), (4, "at the end")):
        assert complaint in "\n".join(judge(good[:left_out] + good[left_out + 1 :], rules))
    assert "its own content" in "\n".join(judge(_events(*made, renamed, synced, named), rules))
    assert "there is no rename of final" in "\n".join(judge([], rules))


def test_a_sync_that_was_under_way_does_not_cover_what_came_after_it_had_begun() -> None:
    events = _events(("create", "/d/t", 5), ("write", "/d/t", 5), ("sync", "/d/t", 5), ("sync", "/d", 2))
    events[2]["since"] = 2
    assert "the content of /d/t" in "\n".join(judge(events, Rules()))


def test_what_makes_others_valid_comes_last() -> None:
    rules = Rules(commits=(("rename", "first"), ("rename", "last")))
    one, other = ("rename", "/d/a /d/first", 5), ("rename", "/d/b /d/last", 6)
    made, named = (("create", "/d/a", 5), ("create", "/d/b", 6)), ("sync", "/d", 2)
    assert judge(_events(*made, named, one, named, other, named), rules) == []
    assert "not in this order: first, last" in "\n".join(judge(_events(*made, named, other, named, one, named), rules))
