"""Campaigns of damaged answers and damaged backups against the whole program; each case has a number of its own.

A case is repeated by its number: ``cd tests && python -m support.fuzz_campaigns backup --first 4711 --cases 1 -v``.
`make fuzz` runs them for as long as ARGS says.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import lz4.frame
import zstandard

from polarvault.pgfiles.manifest import encode_manifest, parse_manifest
from support import backend_messages as wire
from support.fuzzing import Messages, Outcome, Sandbox, Worker, change_header, mutate
from support.hostile_server import HostileServer
from support.small_recording import (
    LOCATION,
    Recording,
    base_backup_answer,
    load_recording,
    wal_answer,
    with_tablespace_map,
)

# The way that TLS and GSS connections go, without either.
_THROUGH_LIBPQ = (
    "from polarvault.server.connection import Connection\nConnection.is_encrypted = property(lambda connection: True)\n"
)
_SUFFIXES = {"gzip": ".gz", "zstd": ".zst", "lz4": ".lz4"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that did not end as it must."""

    campaign: str
    number: int
    problem: str
    detail: str

    def __str__(self) -> str:
        return f"{self.campaign} case {self.number}: {self.problem}\n{self.detail}"


def run_cases(worker: Worker, campaign: str, numbers: Iterator[int]) -> Iterator[tuple[int, Outcome, Failure | None]]:
    """Run cases; yield number, outcome, and what is wrong with it."""
    case = CAMPAIGNS[campaign]
    for number in numbers:
        with Sandbox() as sandbox:
            outcome, targets, notes = case(worker, sandbox, random.Random(f"{campaign} {number}"))
            problem = outcome.problem()
            if escaped := sandbox.escaped(*targets):
                problem = f"it writes outside: {', '.join(escaped[:5])}"
            detail = f"{notes}\n{outcome.errors[-3000:]}"
            yield number, outcome, Failure(campaign, number, problem, detail) if problem else None


Case = tuple[Outcome, list[str], str]


def _backup_case(worker: Worker, sandbox: Sandbox, rng: random.Random) -> Case:
    """A base backup from a server that sends something wrong."""
    version = rng.choice(("18.0", "18.0", "15.5", "13.5"))
    form = rng.choice(("plain", "plain", "tar", "tar gzip", "stdout", "server", "polardb plain", "polardb tar"))
    recording = load_recording()
    options: list[str] = ["-X", rng.choice(("stream", "stream", "none")), "--no-sync"]
    if form == "server" and not version.startswith("13"):
        algorithm = rng.choice(sorted(_SUFFIXES))
        recording = _compressed(algorithm)
        options += ["-Z", f"server-{algorithm}", rng.choice(("-Ft", "-Fp"))]
    elif form == "stdout":
        recording, options = _without_tablespaces(), ["-Ft", "-X", "none"]
    elif form.startswith("polardb"):
        recording = polardb_recording()
        options.append("-Fp" if "plain" in form else "-Ft")
        version = "15.5"
    elif form == "tar gzip":
        options += ["-Ft", "-z"]
    else:
        options.append("-Ft" if form == "tar" else "-Fp")
    options += ["-D", "-"] if form == "stdout" else ["-D", "t"]
    for oid, location, *_ in recording.tablespaces:
        if oid and "-Fp" in options:
            options += ["-T", f"{location}={sandbox.work}/space"]
    verb = rng.choice(
        ("BASE_BACKUP",) * 8 + ("START_REPLICATION", "TIMELINE_HISTORY", "IDENTIFY", "SHOW", "CREATE_REP")
    )
    with HostileServer(recording, version=version) as server:
        server.answers[_pattern(verb, server, rng)] = _mutated(server, verb, version, rng)
        way = rng.choice(("", "", "", _THROUGH_LIBPQ))
        words = ["basebackup", "-d", server.conninfo, "-c", "fast", *options]
        outcome = worker.run(words, sandbox.work, prelude=way)
    return outcome, ["t", "space"], f"{version} {form}, {verb} changed, libpq: {bool(way)}, options {options}"


def _wal_case(worker: Worker, sandbox: Sandbox, rng: random.Random) -> Case:
    """Receiving WAL from a server that sends something wrong, into a directory that holds some or none."""
    recording = load_recording()
    (sandbox.work / "w").mkdir()
    options = [
        "-n",
        "--endpos",
        recording.stop[0],
        *rng.choice(((), ("-Z", "gzip"), ("--synchronous",), ("--no-sync",))),
    ]
    if rng.random() < 0.7:
        options += ["-S", "slot"]
    if rng.random() < 0.4:
        name = f"{recording.timeline:08X}{0:08X}{recording.wal_start // (1 << 20) - 1:08X}"
        (sandbox.work / "w" / name).write_bytes(bytes(1 << 20))
    verb = rng.choice(("START_REPLICATION",) * 5 + ("TIMELINE_HISTORY",) * 2 + ("IDENTIFY", "SHOW", "READ_REPLICATION"))
    with HostileServer(recording) as server:
        server.answers[_pattern(verb, server, rng)] = _mutated(server, verb, "18.0", rng)
        way = rng.choice(("", "", "", _THROUGH_LIBPQ))
        outcome = worker.run(["receivewal", "-d", server.conninfo, "-D", "w", *options], sandbox.work, prelude=way)
    return outcome, ["w"], f"{verb} changed, libpq: {bool(way)}, options {options}"


def _directory_case(worker: Worker, sandbox: Sandbox, rng: random.Random) -> Case:
    """A backup on disk in which something is wrong, given to what reads backups."""
    form = rng.choice(("-Fp", "-Fp", "-Ft", "-Ft -z"))
    shutil.copytree(_taken(worker, form), sandbox.work / "b", symlinks=True)
    names = sorted(str(path.relative_to(sandbox.work / "b")) for path in (sandbox.work / "b").rglob("*"))
    done = [_damage(sandbox.work / "b", names, sandbox, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    command = rng.choice(
        (
            ["verifybackup", "b"],
            ["verifybackup", "b", "--no-parse-wal"],
            ["verifybackup", "b", "--json"],
            ["restore", "b", "-D", "r", "--plan", "--bindir", "/nonexistent"],
            ["restore", "b", "-D", "r", "-N", "-j", "1"],
            ["restore", "b", "-D", "r", "-N", "-j", "1", "--force"],
            ["drill", "b", "--bindir", "/nonexistent", "--report", "report"],
        )
    )
    if command[0] == "restore":
        command = [*command, "-T", f"{_SPACE if form == '-Fp' else LOCATION}={sandbox.work}/space"]
    outcome = worker.run(command, sandbox.work)
    return outcome, ["b", "r", "space", "report.json", "report.html", "report.log"], f"{form}: {done}; {command}"


CAMPAIGNS: dict[str, Callable[[Worker, Sandbox, random.Random], Case]] = {
    "backup": _backup_case,
    "wal": _wal_case,
    "directory": _directory_case,
}


def _pattern(verb: str, server: HostileServer, rng: random.Random) -> str:
    return f"SHOW {rng.choice(sorted(server.recording.settings))}$" if verb == "SHOW" else f"^{verb}"


def _mutated(server: HostileServer, verb: str, version: str, rng: random.Random) -> bytes:
    recording = server.recording
    if verb == "BASE_BACKUP":
        return mutate(base_backup_answer(recording, before_15=version.startswith("13")), rng)
    if verb == "START_REPLICATION":
        ends = _split(wire.result([("tli", wire.TEXT_OID), ("pos", wire.TEXT_OID)], [["3", recording.stop[0]]]))
        messages = wal_answer(recording, recording.wal_start, piece_bytes=rng.choice((1024, 32768, 131072)))
        if rng.random() < 0.4:
            messages = [*messages, (b"c", b""), *ends, (b"C", b"START_REPLICATION\0"), (b"Z", b"I")]
        return mutate(messages, rng)
    commands = {"TIMELINE_HISTORY": "TIMELINE_HISTORY 2", "IDENTIFY": "IDENTIFY_SYSTEM", "SHOW": "SHOW block_size"}
    slots = {"CREATE_REP": "CREATE_REPLICATION_SLOT", "READ_REPLICATION": "READ_REPLICATION_SLOT"}
    return mutate(_split(server.usual_answer((commands | slots)[verb])), rng)


def _split(raw: bytes) -> Messages:
    messages, at = [], 0
    while at < len(raw):
        length = int.from_bytes(raw[at + 1 : at + 5], "big")
        messages.append((raw[at : at + 1], raw[at + 5 : at + 1 + length]))
        at += 1 + length
    return messages


# Recordings of other shapes


@cache
def _compressed(algorithm: str) -> Recording:
    recording = load_recording()
    compress = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress, "lz4": lz4.frame.compress}[
        algorithm
    ]
    archives = {name + _SUFFIXES[algorithm]: bytes(compress(content)) for name, content in recording.archives.items()}
    return replace(recording, archives=archives)


@cache
def _without_tablespaces() -> Recording:
    recording = load_recording()
    return replace(
        recording,
        tablespaces=[row for row in recording.tablespaces if row[0] is None],
        archives={"base.tar": recording.archives["base.tar"]},
    )


@cache
def polardb_recording() -> Recording:
    """A shared half made of the tablespace's files, listed behind those of the local half, as PolarDB does."""
    recording = load_recording()
    local = _without_links(recording.archives["base.tar"])
    shared = next(content for name, content in recording.archives.items() if name != "base.tar")
    parsed = parse_manifest(recording.manifest)
    ours = [entry for entry in parsed.files if not entry.path.startswith("pg_tblspc/")]
    theirs = [entry._replace(path=entry.path.split("/", 2)[2]) for entry in parsed.files if entry not in ours]
    settings = {
        "polar_enable_shared_storage_mode": "on", "polar_datadir": "file-dio:///shared", "polar_version": "2.0.15.2.0"
    }  # fmt: skip
    return replace(
        recording,
        settings=recording.settings | settings,
        tablespaces=[[None, None, "1", None], [None, None, "1", "1"]],
        archives={"base.tar": local, "data.tar": shared},
        manifest=encode_manifest(replace(parsed, files=ours + theirs)),
    )


def _without_links(archive: bytes) -> bytes:
    """Return an archive without links to tablespaces, of which PolarDB has none."""
    changed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as reading, tarfile.open(fileobj=changed, mode="w") as writing:
        for member in reading:
            if not member.issym():
                writing.addfile(member, reading.extractfile(member) if member.isfile() else None)
    return changed.getvalue()


# Backups on disk

_SPACE = "/tmp/pv-fuzz-space"
_TAKEN: dict[str, Path] = {}


def _taken(worker: Worker, form: str) -> Path:
    """Return a sound backup, taken once."""
    if form not in _TAKEN:
        keep = Sandbox()
        recording, options = load_recording(), form.split()
        if form == "-Fp":
            options += ["-T", f"{LOCATION}={_SPACE}"]
            shutil.rmtree(_SPACE, ignore_errors=True)
        else:
            recording = with_tablespace_map(recording)
        with HostileServer(recording) as server:
            outcome = worker.run(["basebackup", "-d", server.conninfo, "-c", "fast", "-D", "t", *options], keep.work)
        assert outcome.status == 0, outcome.errors
        _TAKEN[form] = keep.work / "t"
    return _TAKEN[form]


def remove_taken() -> None:
    """Remove the sound backups."""
    for path in _TAKEN.values():
        shutil.rmtree(path.parents[1], ignore_errors=True)
    shutil.rmtree(_SPACE, ignore_errors=True)
    _TAKEN.clear()


def _damage(root: Path, names: list[str], sandbox: Sandbox, rng: random.Random) -> str:
    names = [name for name in names if (root / name).exists() and not (root / name).is_symlink()]
    important = [
        name for name in names
        if name.startswith(("backup_manifest", "backup_label", "base.tar", "global/pg_control", "pg_wal"))
    ]  # fmt: skip
    name = rng.choice(important if important and rng.random() < 0.6 else names)
    path = root / name
    action = rng.choice(_DAMAGES)
    if not path.is_file() and action in (_flip_file, _cut_file, _grow_file, _nest, _member):
        action = _replace_by_link
    action(path, sandbox, rng)
    return f"{action.__name__} {name}"


def _flip_file(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(mutate([(b"", content)], rng)[5:] if len(content) < 1 << 20 else content[:100] + content[200:])


def _cut_file(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    os.truncate(path, rng.choice((0, 1, 512, 728, max(0, path.stat().st_size - 1), path.stat().st_size // 2)))


def _grow_file(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size + rng.choice((1, 512, 10240, 64 << 20)))


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        subprocess.run(["rm", "-rf", str(path)], check=True)
    else:
        path.unlink()


def _remove(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    _clear(path)


def _replace_by_link(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    _clear(path)
    path.symlink_to(
        rng.choice((str(sandbox.outside), str(sandbox.outside / "victim"), "/etc/passwd", "/dev/zero", "loop"))
    )


def _replace_by_fifo(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    _clear(path)
    os.mkfifo(path)


def _replace_by_directory(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    _clear(path)
    path.mkdir()


def _add_deep(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    place = path if path.is_dir() else path.parent
    descriptor = os.open(place, os.O_RDONLY)
    for _ in range(rng.choice((70, 1200))):
        with suppress(FileExistsError):
            os.mkdir("d" * 200, dir_fd=descriptor)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def _add_stranger(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    place = path if path.is_dir() else path.parent
    name = os.fsencode(place) + b"/" + rng.choice((b"\xff\xfe", b"new\nline", b"0" * 24, b"postmaster.pid", b"1.tar"))
    with open(name, "wb") as stream:
        stream.write(rng.randbytes(100))


def _nest(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    texts = ("[" * 100_000, '{"a":' * 100_000, '{"Files": [' + "[" * 50_000, "1" * 10_000, '{"Files": 1e999}', "\0", "")
    path.write_text(rng.choice(texts))


def _member(path: Path, sandbox: Sandbox, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    places = [at for at in range(0, len(content) - 512, 512) if content[at + 257 : at + 262] == b"ustar"]
    if not places:
        _flip_file(path, sandbox, rng)
        return
    at = rng.choice(places)
    content[at : at + 512] = change_header(bytes(content[at : at + 512]), rng)
    path.write_bytes(content)


_DAMAGES: tuple[Callable[[Path, Sandbox, random.Random], None], ...] = (
    _flip_file, _flip_file, _flip_file, _cut_file, _grow_file, _remove, _replace_by_link, _replace_by_fifo,
    _replace_by_directory, _add_deep, _add_stranger, _nest, _member, _member, _member,
)  # fmt: skip


def main() -> int:
    """Run campaigns from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaigns", nargs="*", help="backup, wal, directory; default: all")
    parser.add_argument("--seconds", type=float, default=600, help="for how long, all campaigns together")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="how many of each campaign")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every case")
    given = parser.parse_args()
    chosen = given.campaigns or list(CAMPAIGNS)
    failures = 0
    for campaign in chosen:
        count, slowest, peak, began = 0, 0.0, 0, time.monotonic()
        statuses: dict[int | None, int] = {}
        with Worker() as worker:
            last = began
            for number, outcome, failure in run_cases(
                worker, campaign, iter(range(given.first, given.first + given.cases))
            ):
                count, now = count + 1, time.monotonic()
                slowest, last, peak = max(slowest, now - last), now, max(peak, outcome.peak_bytes)
                statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
                if given.verbose:
                    print(f"{campaign} {number}: {outcome.status} {outcome.errors[-500:]}")
                if failure is not None:
                    failures += 1
                    print(failure, flush=True)
                if now - began > given.seconds / len(chosen):
                    break
        said = ", ".join(f"{number} with status {status}" for status, number in sorted(statuses.items(), key=str))
        print(f"{campaign}: {count} cases ({said}), slowest {slowest:.1f} s, at most {peak >> 20} MB, "
              f"{failures} failures so far", flush=True)  # fmt: skip
    remove_taken()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
