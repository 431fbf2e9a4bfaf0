"""End base backups, receivers, restores and backups into a repository at any of their system calls; see what is left.

Ended means SIGKILL, and in every second case a power cut besides (`support.power_cut`). What must hold then: a backup
is whole, or everything says that it is not; a receiver goes on and nothing that it acknowledged is gone; a restore is
whole, or no server can start from it and the next one says what is there; and nobody touched what was there before. A
backup that a repository knows is whole, and the next one needs no help.

A case has a number and is the same every time, but for what several threads do at once. `make soak` runs all of them,
`make test` a tenth. One is repeated by: ``cd tests && python -m support.kill_campaigns restore --first 7 --cases 1``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import PolarvaultError, RepositoryNotFound
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.verify import verify_objects
from polarvault.restore.model import STAGING_NAME
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.storage.occupants import CONTROL_ASIDE_NAME, CONTROL_WAITING_NAME, RESTORE_MARK_NAME
from support.durable_scenarios import SEGMENT_BYTES, Run, Scenario, long_recording, ran, scenarios
from support.fuzzing import Outcome, Worker
from support.receiving import segments
from support.repositories import NOW, back_up, restore, two_trees
from support.system_calls import AT_END, Fault

CASES = {"basebackup": 70, "receivewal": 70, "restore": 60, "repository": 60, "delta": 60}
# What only looks like a difference between two runs: times, process numbers, what another thread was at.
_NEWS = ("backup_manifest", "backup_label", "postmaster.opts", "postgresql.auto.conf", "polarvault_backup.json")
_SOURCES = ("backup", "space")
# What a delta restore leaves for its repetition.
_SIGNS = (RESTORE_MARK_NAME, os.path.basename(CONTROL_ASIDE_NAME))
_UNFINISHED = re.compile(f"{MARKER_NAME}|no backup|not a backup|nothing of a backup")


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that left what must not be."""

    campaign: str
    number: int
    problem: str
    detail: str

    def __str__(self) -> str:
        return f"{self.campaign} case {self.number}: {self.problem}\n{self.detail}"


class Broken(Exception):
    """What a case left is not as it must be; says how."""


def run_cases(worker: Worker, campaign: str, numbers: Sequence[int]) -> Iterator[tuple[bool, Failure | None]]:
    """Run cases; yield whether it was ended before its end, and what is wrong with what it left."""
    names = [name for name in scenarios() if name.startswith(campaign + " ")]
    if campaign != "repository":
        # The others are tried by their commands.
        names = [name for name in names if scenarios()[name].words]
    for number in numbers:
        # The names take turns, so that a few cases see all of them.
        name = names[number % len(names)]
        rng = random.Random(f"{campaign} {number}")
        seed = f"{campaign} {number}" if number // len(names) % 2 else None
        # A power cut after everything was said to be done is a moment of its own.
        at_end = seed is not None and rng.randrange(8) == 0
        fault = Fault(kill_at=AT_END if at_end else rng.randint(1, length(worker, name)), power_cut=seed)
        detail = f"{name}, {fault}"
        try:
            yield run_case(worker, name, fault), None
        except Broken as problem:
            yield True, Failure(campaign, number, str(problem), detail)


@cache
def length(worker: Worker, name: str) -> int:
    """Return how many calls a scenario makes, about."""
    with ran(worker, scenarios()[name]) as run:
        return int(max(event["number"] for event in run.events))


@cache
def _whole(worker: Worker, name: str) -> dict[str, str]:
    """Return what a scenario leaves when nobody ends it."""
    with ran(worker, scenarios()[name]) as run:
        assert run.outcome.status == 0, run.outcome.errors
        return _tree(run.work)


def run_case(worker: Worker, name: str, fault: Fault) -> bool:
    """Run a scenario with a fault; raise Broken for what it leaves. False: it came to its end before."""
    scenario, campaign = scenarios()[name], name.split()[0]
    with ran(worker, scenario, fault) as run:
        if run.outcome.status == 0:
            return False  # Fewer calls this time: it was whole before its turn came.
        _expect(run.outcome.status == -9, f"it ended by itself: {run.outcome.errors}")
        if campaign == "basebackup":
            _judge_backup(worker, name, run)
        elif campaign == "receivewal":
            _judge_archive(worker, scenario, run)
        elif campaign == "repository":
            try:
                _judge_repository(run)
            except PolarvaultError as problem:
                raise Broken(f"the repository cannot be used: {problem}") from problem
        elif campaign == "delta":
            _judge_delta(worker, name, run)
        else:
            _judge_restore(worker, name, run)
    return True


# Base backups


def _judge_backup(worker: Worker, name: str, run: Run) -> None:
    target = _target(run.words)
    if target == "-":
        target = str(run.work / "shared")
    is_there = os.path.isdir(target) and bool(os.listdir(target))
    is_marked = os.path.lexists(os.path.join(target, MARKER_NAME))
    verified = _command(worker, run, ["verifybackup", target])
    if is_marked:
        _expect(verified.status != 0, f"unfinished, and verifybackup finds it whole: {verified.errors}")
        restored = _command(worker, run, ["restore", target, "-D", f"{run.work}/restored", "--plan"])
        _expect(restored.status != 0, "unfinished, and a restore takes it")
        _expect(_UNFINISHED.search(restored.errors) is not None, f"no word of its being unfinished: {restored.errors}")
    elif is_there:
        # Without the mark it is whole, in every file.
        # How far the WAL stream gets beyond the end of the backup is a matter of luck; verifybackup reads the WAL.
        differences = [path for path in _differences(_whole(worker, name), _tree(run.work)) if "pg_wal/0" not in path]
        _expect(not differences, f"nothing marks it as unfinished, and these differ: {differences}")
        # The recorded halves are cut down so far that no restore would start: verifybackup sees that.
        if "no manifest" not in name and "stdout" not in name and "two halves" not in name:
            _expect(verified.status == 0, f"whole, and verifybackup says: {verified.errors}")
    before = _tree(run.work)
    again = _again(worker, run)
    if is_there:
        _expect(again.status != 0 and "not empty" in again.errors, f"written over: {again.errors}")
        _expect(_tree(run.work) == before, "the next backup has touched what is there")
    else:
        _expect("not empty" in again.errors or again.status == 0, f"the next backup fails: {again.errors}")


# Receiving


def _judge_archive(worker: Worker, scenario: Scenario, run: Run) -> None:
    recording, archive = long_recording(), run.work / "archive"
    acknowledged = max([event["flushed"] for event in run.events if event["op"] == "acknowledge"], default=0)
    _compare(archive, acknowledged, whole=False)
    assert run.server is not None
    run.server.commands.clear()
    again = _again(worker, run)
    _expect(again.status == 0, f"the next receiver fails: {again.errors}")
    # The server keeps what it was not told of; what it was told of it may have removed.
    asked = [int(command.split("0/")[1].split()[0], 16) for command in run.server.commands if "0/" in command]
    needed = acknowledged // SEGMENT_BYTES * SEGMENT_BYTES
    _expect(all(start >= needed for start in asked), f"it asks for {asked}, and {acknowledged:X} was acknowledged")
    _compare(archive, recording.wal_start + len(recording.wal), whole=True)
    left = {name for name in os.listdir(archive) if name.endswith(".tmp") and not name.startswith(".")}
    _expect(left <= {"00000002.history.tmp"}, f"left lying about: {left}")
    _expect((archive / "00000002.history").read_bytes() == recording.history, "the history file is another one")


def _compare(archive: Path, up_to: int, *, whole: bool) -> None:
    """Compare what is here with what the server has, as far as it was acknowledged."""
    recording = long_recording()
    first, size = recording.wal_start // SEGMENT_BYTES, SEGMENT_BYTES
    for number in range(first, -(-up_to // size) if up_to > recording.wal_start else first):
        name, needed = f"{recording.timeline:08X}{0:08X}{number:08X}", min(size, up_to - number * size)
        at = number * size - recording.wal_start
        theirs = recording.wal[at : at + needed]
        ours = [_front(archive / one)[:needed] for one in segments(archive) if one.startswith(name)]
        _expect(theirs in ours, f"{name} is not what the server has sent up to {up_to:X}")
        complete = [one for one in segments(archive, partial=False) if one.startswith(name)]
        _expect(not whole or needed < size or len(complete) == 1, f"{name} is here as {complete}")


def _front(path: Path) -> bytes:
    """Return the WAL in a file, as far as it can be decoded: a power cut may have left anything behind that."""
    raw = path.read_bytes()
    if ".gz" not in path.suffixes:
        return raw
    decoder, found = zlib.decompressobj(wbits=31), list[bytes]()
    with suppress(zlib.error):
        # One by one: what a step has decoded before it fails is not handed out.
        for at in range(len(raw)):
            found.append(decoder.decompress(raw[at : at + 1]))
    return b"".join(found)


# Restores


def _judge_restore(worker: Worker, name: str, run: Run) -> None:
    target, whole = _target(run.words), _whole(worker, name)
    halves = [word for word in run.words if word.endswith("target_shared")]
    is_there = os.path.isdir(target) and bool(os.listdir(target))
    can_start = any(os.path.exists(os.path.join(place, "global/pg_control")) for place in (target, *halves))
    now = _tree(run.work)
    if can_start:
        differences = _differences(whole, now)
        _expect(not differences, f"a server could start from it, and these differ: {differences}")
    sources = {path: content for path, content in whole.items() if path.startswith(_SOURCES)}
    _expect(not _differences(sources, {path: now.get(path, "") for path in sources}), "the backup has changed")
    again = _again(worker, run)
    if is_there:
        _expect(again.status != 0 and "is not empty" in again.errors, f"written over: {again.errors}")
        # Of two halves only the shared one is known by that for the last moments.
        signs = [os.path.exists(os.path.join(target, name)) for name in (CONTROL_WAITING_NAME, RESTORE_MARK_NAME)]
        # What comes from a pipe is first put together in a directory of its own, from which nobody starts a server.
        is_incoming = os.listdir(target) == [STAGING_NAME]
        _expect(can_start or any(signs) or bool(halves) or is_incoming, "there is no sign that it is unfinished")
        _expect(not any(signs) or "cut off" in again.errors, f"nothing says what is there: {again.errors}")
        _expect(_tree(run.work) == now, "the next restore has touched what is there")
    # Whatever is there: into an empty place the restore works.
    for entry in os.listdir(run.work):
        if not entry.startswith(_SOURCES):
            shutil.rmtree(run.work / entry)
    again = _again(worker, run)
    _expect(again.status == 0, f"the restore cannot be repeated: {again.errors}")
    differences = _differences(whole, _tree(run.work))
    _expect(not differences, f"repeated, these differ: {differences}")


@cache
def _prepared(worker: Worker, name: str) -> dict[str, str]:
    """Return what is there before a scenario has changed anything."""
    with ran(worker, scenarios()[name], Fault(kill_at=1)) as run:
        return _tree(run.work)


def _judge_delta(worker: Worker, name: str, run: Run) -> None:
    target, whole, before = _target(run.words), _whole(worker, name), _prepared(worker, name)
    now = _tree(run.work)
    if os.path.exists(os.path.join(target, "global/pg_control")):
        left = _of_target(now)
        differences = _differences(_of_target(whole), left)
        _expect(
            not differences or not _differences(_of_target(before), left),
            f"a server could start from it, and it is neither what was there nor the backup: {differences}",
        )
    # What a killed one says about itself in the repository stays until somebody ends it.
    kept = {path: content for path, content in before.items() if path.startswith("repository")}
    # How long the restore before took is not the same twice.
    kept = {path: content for path, content in kept.items() if not path.endswith("-restored")}
    changed = _differences(kept, {path: now.get(path, "") for path in kept})
    _expect(not changed, f"the repository has changed: {changed}")
    again = _again(worker, run)
    _expect(again.status == 0, f"it cannot be repeated: {again.errors}")
    differences = _differences(_of_target(whole), _of_target(_tree(run.work)))
    _expect(not differences, f"repeated, these differ: {differences}")


def _of_target(tree: dict[str, str]) -> dict[str, str]:
    """Return what is no part of the repository, and no sign for a repetition."""
    return {
        path: content for path, content in tree.items()
        if not path.startswith("repository") and os.path.basename(path) not in _SIGNS
    }  # fmt: skip


# Repositories


def _judge_repository(run: Run) -> None:
    root, trees = str(run.work / "repository"), two_trees()
    LocalStore.make_root(root)
    store = WriteOnce(LocalStore(root))
    try:
        repository = Repository.open(store)
    except RepositoryNotFound:
        repository = Repository.create(store, now=NOW)
    labels = repository.labels("shop")
    for label, tree in zip(labels, trees, strict=False):
        _expect(restore(repository, label) == tree, f"backup {label} is not what was backed up")
        found = list(verify_objects(store, repository.codec, ClusterNames("shop"), label))
        _expect(not found, f"backup {label}: {found}")
    # What a killed one has left is used or ignored.
    next_one = back_up(repository, trees[1], parent=labels[-1] if labels else None, minutes=5).label
    _expect(restore(repository, next_one) == trees[1], "the next backup is not what was backed up")
    _expect(repository.labels("shop") == [*labels, next_one], "the next backup has changed the others")


# What is there


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise Broken(problem)


def _target(words: Sequence[str]) -> str:
    return words[words.index("-D") + 1]


def _command(worker: Worker, run: Run, words: Sequence[str]) -> Outcome:
    outcome = worker.run(words, run.work.parent, prelude=run.script)
    _expect(outcome.problem() is None, f"{words}: {outcome.problem()}: {outcome.errors}")
    return outcome


def _again(worker: Worker, run: Run) -> Outcome:
    return _command(worker, run, run.words)


def _tree(root: Path) -> dict[str, str]:
    """Return name -> kind or digest of everything below a directory."""
    found = {}
    for directory, directories, names in os.walk(root):
        for name in directories + names:
            path = os.path.join(directory, name)
            if name == ".reserve":
                continue  # Of a repository: random bytes that only take space.
            if os.path.islink(path):
                found[os.path.relpath(path, root)] = f"link {os.path.basename(os.readlink(path))}"
            elif os.path.isdir(path):
                found[os.path.relpath(path, root) + "/"] = "directory"
            else:
                found[os.path.relpath(path, root)] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return found


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the names that differ; of files that tell the time, tars among them, only whether they are there."""
    return sorted(
        path for path in expected.keys() | found.keys()
        if (path in expected) != (path in found)
        or (os.path.basename(path) not in _NEWS and ".tar" not in path and expected[path] != found[path])
    )  # fmt: skip


def main() -> int:
    """Run campaigns from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="*", help=f"{', '.join(CASES)}; default: all")
    parser.add_argument("--cases", type=int, help="how many of each campaign; default: all that make test knows")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    given = parser.parse_args()
    failures, total = 0, 0
    for campaign in given.campaigns or list(CASES):
        began, count = time.monotonic(), given.cases or CASES[campaign]
        with Worker() as worker:
            for _, failure in run_cases(worker, campaign, range(given.first, given.first + count)):
                if failure is not None:
                    failures += 1
                    print(failure, flush=True)
        total += count
        print(f"{campaign}: {count} cases in {time.monotonic() - began:.0f} s, {failures} failures so far", flush=True)
    print(json.dumps({"cases": total, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
