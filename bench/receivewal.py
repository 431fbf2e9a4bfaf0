"""polarvault receivewal beside pg_receivewal: same server, same WAL, same run.

usage: python bench/receivewal.py [--runs 5] [--wal-gb 4] [--load-s 60] [--only NAME,NAME] [--json FILE] [--bindir DIR]

catch-up: each program fetches the same WAL from the same slot position, alternating; wall time and CPU time. Both make
every segment durable. load: both receive at the same time what pgbench makes the server write; CPU time per GB, with
start-up and all. Medians of the runs, and the ratios ours / theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import Runs, add_place_options, choose_installation, print_machine, run_once
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import server_account

CASES = ("catch-up-disk", "catch-up-tmpfs", "load", "load-synchronous")
_WALL_TARGET, _CPU_TARGET = 0.7, 1.0
_LOAD_CLIENTS = 4


@dataclass(slots=True)
class Load:
    """What both programs needed for the WAL of one pgbench run."""

    written_gb: float
    our_cpu_s: float
    their_cpu_s: float


def main() -> None:
    """Parse the command line, run the cases, print the tables."""
    options = _parse()
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.tmpfs) as tmpfs,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        places = {"disk": Path(disk), "tmpfs": Path(tmpfs)}
        Path(sockets).chmod(0o755)
        print_machine(places)
        installation = reachable(options.installation, server_account(), Path(sockets))
        with _server(installation, Path(sockets) / "c") as server:
            catching_up = [case for case in options.only if case.startswith("catch-up")]
            end = _write_wal(server, options.wal_gb if catching_up else 0)
            print(f"\n{installation}\n{_HEADING}")
            for case in catching_up:
                ours, theirs = _catch_up(server, places[case.removeprefix("catch-up-")], end, options.runs)
                print(_catch_up_line(case, ours, theirs), flush=True)
                rows.append({"case": case, "ours": asdict(ours), "theirs": asdict(theirs)})
            for case in options.only:
                if case not in catching_up:
                    more = ["--synchronous"] if case == "load-synchronous" else []
                    found = [_under_load(server, places["disk"], options.load_s, more) for _ in range(options.runs)]
                    print(_load_line(case, found), flush=True)
                    rows.append({"case": case, "runs": [asdict(load) for load in found]})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _server(installation: object, directory: Path) -> ThrowawayServer:
    server = ThrowawayServer(installation, directory)  # type: ignore[arg-type]
    server.create(options=[], settings={"shared_buffers": "256MB", "max_wal_size": "64GB", "max_wal_senders": "10"})
    server.start()
    server.query("SELECT pg_create_physical_replication_slot('start', true)")
    return server


def _write_wal(server: ThrowawayServer, size_gb: float) -> str:
    """Have the server write so much WAL, and return where it ends."""
    written = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
    tables = "SELECT to_regclass('pgbench_accounts')"
    while server.query(written)[0][0] < size_gb * 1e9 or not server.query(tables)[0][0]:
        server.run("pgbench", *_where(server), "-i", "-q", "-s", "50", "postgres", timeout_s=1200)
    server.query("SELECT pg_switch_wal()")
    server.query("CHECKPOINT")
    return str(server.query("SELECT pg_current_wal_lsn()")[0][0])


def _where(server: ThrowawayServer) -> list[str]:
    return ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]


def _programs(server: ThrowawayServer) -> tuple[list[str], list[str]]:
    return [sys.executable, "-m", "polarvault", "receivewal"], [str(server.installation.program("pg_receivewal"))]


def _catch_up(server: ThrowawayServer, place: Path, end: str, rounds: int) -> tuple[Runs, Runs]:
    """Fetch the same WAL with both, in turn; who begins changes every round."""
    ours, theirs = _programs(server)
    ours_runs, theirs_runs = Runs(), Runs()
    out = place / "out"
    for number in range(rounds):
        pairs = [(ours, ours_runs), (theirs, theirs_runs)]
        for program, runs in pairs if number % 2 == 0 else reversed(pairs):
            server.query("SELECT pg_copy_physical_replication_slot('start', 'run')")
            # The slot starts where it says; it goes before the next one comes.
            run_once([*program, *_where(server), "-D", str(out), "-S", "run", "-n", "-E", end], runs, out)
            server.query("SELECT pg_drop_replication_slot('run')")
    return ours_runs, theirs_runs


def _under_load(server: ThrowawayServer, place: Path, seconds: int, more: Sequence[str]) -> Load:
    """Run both beside the same pgbench."""
    ours, theirs = _programs(server)
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    before = _position(server)
    with tempfile.TemporaryDirectory(dir=place) as directory:
        for name, program in (("ours", ours), ("theirs", theirs)):
            out = Path(directory) / name
            out.mkdir()
            command = [*program, *_where(server), "-D", str(out), *more]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.append((child, out))
        _wait_for_receivers(server, len(started))
        server.run(
            "pgbench", *_where(server), "-n", "-c", str(_LOAD_CLIENTS), "-T", str(seconds), "postgres",
            timeout_s=seconds + 60,
        )  # fmt: skip
        written_gb = (_position(server) - before) / 1e9
        cpu_s = []
        for child, _ in started:
            # pg_receivewal stops on SIGINT in every version.
            child.send_signal(signal.SIGINT)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode != 0:
                sys.exit(f"{child.args} ended with status {child.returncode}")
            cpu_s.append(usage.ru_utime + usage.ru_stime)
    return Load(written_gb, *cpu_s)


def _position(server: ThrowawayServer) -> int:
    return int(server.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")[0][0])


def _wait_for_receivers(server: ThrowawayServer, count: int) -> None:
    deadline = time.monotonic() + 30
    while server.query("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")[0][0] < count:
        if time.monotonic() > deadline:
            sys.exit("the receivers did not begin to stream")
        time.sleep(0.1)


_HEADING = (
    f"{'case':<18} {'ours':>9} {'theirs':>9} {'ratio':>6} {'target':>6}   {'our CPU':>9} {'their CPU':>9} {'ratio':>6}"
    f" {'target':>6} {'our peak':>9}"
)


def _catch_up_line(case: str, ours: Runs, theirs: Runs) -> str:
    our_cpu, their_cpu = statistics.median(ours.cpu_seconds), statistics.median(theirs.cpu_seconds)
    return (
        f"{case:<18} {ours.median_s:>7.2f} s {theirs.median_s:>7.2f} s {ours.median_s / theirs.median_s:>6.2f}"
        f" {_WALL_TARGET:>6.1f}   {our_cpu:>7.2f} s {their_cpu:>7.2f} s {our_cpu / their_cpu:>6.2f} {_CPU_TARGET:>6.1f}"
        f" {ours.peak_mb:>6.0f} MB   {ours.written_mb:.0f} MB of WAL"
    )


def _load_line(case: str, runs: Sequence[Load]) -> str:
    ours = statistics.median(load.our_cpu_s / load.written_gb for load in runs)
    theirs = statistics.median(load.their_cpu_s / load.written_gb for load in runs)
    return (
        f"{case:<18} {'':>9} {'':>9} {'':>6} {'':>6}   {ours:>4.2f} s/GB {theirs:>4.2f} s/GB {ours / theirs:>6.2f}"
        f" {_CPU_TARGET:>6.1f} {'':>9}   {statistics.median(load.written_gb for load in runs):.2f} GB of WAL a run"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--wal-gb", type=float, default=4.0, help="how much WAL is fetched in a catch-up")
    parser.add_argument("--load-s", type=int, default=60, help="how long pgbench runs in a load case")
    parser.add_argument("--only", type=lambda text: text.split(","), default=CASES, help=f"cases: {', '.join(CASES)}")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
