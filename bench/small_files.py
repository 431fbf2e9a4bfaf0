"""Many small files: basebackup, verifybackup and restore of a cluster with a hundred thousand relations.

usage: python bench/small_files.py [--runs 3] [--relations 100000] [--only NAME,NAME] [--json FILE] [--bindir DIR] ...

The relations are empty tables and their primary keys, in five databases. basebackup and verifybackup run beside
pg_basebackup and pg_verifybackup, alternating; restore, which has no counterpart, alone. Wall time, median of the runs,
start-up included; everything is in the page cache. Outputs are durable, but for tmpfs, which has no disk to wait for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import Runs, add_place_options, choose_installation, print_machine, run_once
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries

_DATABASES = 5
_STEP = 2000


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison; {out} is a directory that does not exist yet, {backup} a backup. theirs: None: there is none."""

    name: str
    place: str
    ours: Sequence[str]
    theirs: Sequence[str] | None
    target: float | None = None
    target_s: float | None = None


_BASEBACKUP = ("-D", "{out}", "-X", "stream", "-c", "fast", "{server}")
CASES = (
    Case("basebackup-tmpfs", "tmpfs", ("basebackup", *_BASEBACKUP), ("pg_basebackup", *_BASEBACKUP), 0.8),
    Case("basebackup-disk", "disk", ("basebackup", *_BASEBACKUP), ("pg_basebackup", *_BASEBACKUP), 0.8),
    Case("verifybackup", "disk", ("verifybackup", "{backup}"), ("pg_verifybackup", "{backup}"), 1.0),
    Case("restore-disk", "disk", ("restore", "{backup}", "-D", "{out}"), None, target_s=10),
)


def make_server(installation: Binaries, directory: Path, relations: int) -> ThrowawayServer:
    """Make a server with so many relations."""
    server = ThrowawayServer(installation, directory)
    checksums = [] if installation.major >= 18 else ["--data-checksums"]
    settings = {"fsync": "off", "autovacuum": "off", "shared_buffers": "512MB", "max_wal_size": "8GB"}
    server.create(options=checksums, settings={**settings, "max_locks_per_transaction": "1024"})
    server.start(timeout_s=300)
    server.query("CREATE DATABASE many0")
    tables = relations // 2 // _DATABASES
    for first in range(0, tables, _STEP):
        server.query(
            f"DO $$ BEGIN FOR i IN {first}..{min(tables, first + _STEP) - 1} LOOP "
            "EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); END LOOP; END $$",
            dbname="many0",
        )
    how = " STRATEGY file_copy" if installation.major >= 15 else ""
    for number in range(1, _DATABASES):
        server.query(f"CREATE DATABASE many{number} TEMPLATE many0{how}")
    server.query("CHECKPOINT")
    return server


def compare(case: Case, server: ThrowawayServer, place: Path, backup: Path, rounds: int) -> tuple[Runs, Runs | None]:
    """Run ours and theirs in turn; who begins changes every round."""
    out = place / "out"
    connection = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]

    def filled(words: Sequence[str]) -> list[str]:
        found: list[str] = []
        for word in words:
            found += connection if word == "{server}" else [word.format(out=out / "made", backup=backup)]
        return found

    ours, theirs = Runs(), Runs()
    pairs = [([sys.executable, "-m", "polarvault", *filled(case.ours)], ours)]
    if case.theirs is not None:
        program, *options = filled(case.theirs)
        pairs.append(([str(server.installation.program(program)), *options], theirs))
    for number in range(rounds):
        for command, runs in pairs if number % 2 == 0 else reversed(pairs):
            run_once(command, runs, out)
    return ours, theirs if case.theirs is not None else None


def main() -> None:
    """Parse the command line, make the cluster, run the cases, print the table."""
    options = _parse()
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.tmpfs) as tmpfs,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        places = {"disk": Path(disk), "tmpfs": Path(tmpfs)}
        for place in (*places.values(), Path(sockets)):
            place.chmod(0o755)
        print_machine(places)
        installation = reachable(options.installation, server_account(), Path(sockets))
        with make_server(installation, Path(sockets) / "c", options.relations) as server:
            backup = places["disk"] / "backup"
            program = str(installation.program("pg_basebackup"))
            where = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]
            run_once([program, *where, "-D", str(backup), "-c", "fast", "-N"], Runs(), places["disk"] / "out")
            count = sum(path.is_file() for path in backup.rglob("*"))
            print(f"\n{installation}, {count} files\n{_HEADING}", flush=True)
            for case in CASES:
                if options.only and case.name not in options.only:
                    continue
                ours, theirs = compare(case, server, places[case.place], backup, options.runs)
                print(_line(case, ours, theirs), flush=True)
                rows.append({"case": case.name, "ours": asdict(ours), "theirs": asdict(theirs) if theirs else None})
            shutil.rmtree(backup)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


_HEADING = (
    f"{'case':<18} {'ours':>9} {'theirs':>9} {'ratio':>6} {'target':>7}   {'our CPU':>9} {'their CPU':>10}"
    f" {'our peak':>9}"
)


def _line(case: Case, ours: Runs, theirs: Runs | None) -> str:
    if theirs is None:
        other, ratio, their_cpu = f"{'-':>9}", f"{'-':>6}", f"{'-':>10}"
    else:
        other, ratio = f"{theirs.median_s:>7.2f} s", f"{ours.median_s / theirs.median_s:>6.2f}"
        their_cpu = f"{statistics.median(theirs.cpu_seconds):>8.2f} s"
    target = f"{case.target:>7.1f}" if case.target else f"{case.target_s or 0:>5.0f} s"
    return (
        f"{case.name:<18} {ours.median_s:>7.2f} s {other} {ratio} {target}   "
        f"{statistics.median(ours.cpu_seconds):>7.2f} s {their_cpu} {ours.peak_mb:>6.0f} MB"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--relations", type=int, default=100_000, help="tables and primary keys together")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"cases: {', '.join(c.name for c in CASES)}")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
