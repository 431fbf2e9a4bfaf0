"""polarvault's repository beside pgBackRest: same server, same run, alternating; both on a local disk, both durable.

usage: python bench/repository.py --pgbackrest FILE [--runs 3] [--incrementals 10] [--scale 150] [--bindir DIR] ...

Cases: full backups; incremental ones, each after ten seconds of pgbench; restores after the first full one and after
the last incremental; and restore --delta over a restored directory, after ten more seconds of pgbench. For each: wall
time of both, median of the runs, the ratio ours / theirs, and what a backup takes in the repository, its index
included, WAL apart (ours: packs and the backup's own objects; theirs: its directory below backup/). pgBackRest reads
the data directory itself, ours gets the data from the server. It runs with process-max 2, zst level 1, bundling and
block incrementals. Both run as the server's account.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from basebackup import _fill
from measuring import add_place_options, begin_evenly, choose_installation, print_machine
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import ServerAccount, server_account
from polarvault.instance.model import Binaries

_STANZA = "bench"
_CONFIGURATION = """[global]
repo1-path={repository}
repo1-bundle=y
repo1-block=y
compress-type=zst
compress-level=1
process-max=2
start-fast=y
archive-async=n
log-level-console=warn
log-level-file=off
lock-path={scratch}/lock
spool-path={scratch}/spool

[{stanza}]
pg1-path={data}
pg1-port={port}
pg1-socket-path={sockets}
pg1-user={user}
"""


@dataclass(slots=True)
class Measured:
    """Seconds of wall time, and bytes that each backup took."""

    seconds: list[float] = field(default_factory=list)
    stored_bytes: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


class Ours:
    """polarvault with a repository in a directory."""

    def __init__(self, account: ServerAccount, server: ThrowawayServer, place: Path) -> None:
        self._account, self._server, self._place = account, server, place
        self.repository = place / "polarvault"

    def _run(self, *arguments: str) -> float:
        return run(self._account, [sys.executable, "-m", "polarvault", *arguments], self._place)

    def forget(self) -> None:
        shutil.rmtree(self.repository, ignore_errors=True)
        self._run("repo", "init", str(self.repository))

    def back_up(self, *, full: bool) -> float:
        where = ["-h", str(self._server.directory), "-p", str(self._server.port), "-U", SUPERUSER]
        return self._run("backup", "bench", "--repo", str(self.repository), *where, *(["--full"] if full else []))

    def restore(self, target: Path, *options: str) -> float:
        return self._run("restore", "bench", "--repo", str(self.repository), "-D", str(target), *options)

    @property
    def stored_bytes(self) -> int:
        return size_of(self.repository / "clusters/bench/packs") + size_of(self.repository / "clusters/bench/backups")


class Theirs:
    """pgBackRest with a repository in a directory."""

    def __init__(self, program: Path, account: ServerAccount, server: ThrowawayServer, place: Path) -> None:
        self._program, self._account, self._place = program, account, place
        self.repository = place / "pgbackrest"
        self.configuration = place / "pgbackrest.conf"
        text = _CONFIGURATION.format(
            repository=self.repository, scratch=place, stanza=_STANZA, data=server.data, port=server.port,
            sockets=server.directory, user=SUPERUSER,
        )  # fmt: skip
        self.configuration.write_text(text)
        account.own(self.configuration)
        self._server = server

    def command(self, *arguments: str) -> list[str]:
        return [str(self._program), f"--config={self.configuration}", f"--stanza={_STANZA}", *arguments]

    def forget(self) -> None:
        shutil.rmtree(self.repository, ignore_errors=True)
        self._account.make_directory(self.repository)
        run(self._account, self.command("stanza-create"), self._place)

    def back_up(self, *, full: bool) -> float:
        kind = "full" if full else "incr"
        return run(self._account, self.command("backup", f"--type={kind}"), self._place)

    def restore(self, target: Path, *options: str) -> float:
        if not target.exists():
            self._account.make_directory(target)
        command = self.command("restore", f"--pg1-path={target}", "--type=immediate", *options)
        return run(self._account, command, self._place)

    @property
    def stored_bytes(self) -> int:
        return size_of(self.repository / "backup")


def run(account: ServerAccount, command: Sequence[str], directory: Path) -> float:
    """Run a command as the servers' account; return its wall time in seconds."""
    begin_evenly()
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=directory, env=account.environment(directory), capture_output=True, text=True, check=False,
        **account.run_as,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds


def size_of(directory: Path) -> int:
    """Return what the files below a directory take on the disk, in bytes."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def measure(pair: Sequence[Ours | Theirs], runs: Sequence[Measured], number: int, *, full: bool) -> None:
    """Take a backup with each; who begins changes every time."""
    order = [0, 1] if number % 2 == 0 else [1, 0]
    for which in order:
        before = pair[which].stored_bytes
        runs[which].seconds.append(pair[which].back_up(full=full))
        runs[which].stored_bytes.append(pair[which].stored_bytes - before)


def measure_restores(pair: Sequence[Ours | Theirs], place: Path, rounds: int) -> list[Measured]:
    """Restore the last backup with each, in turn."""
    runs = [Measured(), Measured()]
    for number in range(rounds):
        for which in [0, 1] if number % 2 == 0 else [1, 0]:
            target = place / f"restored{which}"
            runs[which].seconds.append(pair[which].restore(target))
            shutil.rmtree(target)
    return runs


def measure_delta(pair: Sequence[Ours | Theirs], server: ThrowawayServer, place: Path) -> list[Measured]:
    """Restore with each, change a little, back up, and bring the restored directories to the new backup."""
    runs = [Measured(), Measured()]
    targets = [place / f"delta{which}" for which in (0, 1)]
    for one, target in zip(pair, targets, strict=True):
        one.restore(target)
    change(server)
    for one in pair:
        one.back_up(full=False)
    for one, target, measured in zip(pair, targets, runs, strict=True):
        measured.seconds.append(one.restore(target, "--delta"))
        shutil.rmtree(target)
    return runs


def change(server: ThrowawayServer) -> None:
    """Run pgbench for ten seconds, at a rate that leaves most of the data alone."""
    where = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]
    server.run("pgbench", *where, "-T", "10", "-R", "300", "-c", "2", "-n", "postgres", timeout_s=60)


def line(name: str, runs: Sequence[Measured], target: float | None, stored_target: float | None = None) -> str:
    """Return a line of the table."""
    ours, theirs = runs
    ratio = ours.median_s / theirs.median_s
    text = f"{name:<22} {ours.median_s:>7.2f} s {theirs.median_s:>7.2f} s {ratio:>6.2f} {target or 0:>6.2f}"
    if ours.stored_bytes:
        mine, other = statistics.median(ours.stored_bytes), statistics.median(theirs.stored_bytes)
        text += f"   {mine / 1e6:>8.1f} MB {other / 1e6:>8.1f} MB {mine / other:>6.2f} {stored_target or 0:>6.2f}"
    return text


def main() -> None:
    """Parse the command line, run the cases, print the table."""
    options = _parse()
    account = server_account()
    rows: list[dict[str, object]] = []

    def note(name: str, runs: Sequence[Measured], target: float, stored: float | None = None) -> None:
        print(line(name, runs, target, stored), flush=True)
        rows.append({"case": name, "ours": asdict(runs[0]), "theirs": asdict(runs[1])})

    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        for path in (disk, sockets):
            Path(path).chmod(0o755)
            account.own(Path(path))
        print_machine({"disk": Path(disk), "tmpfs": options.tmpfs})
        installation = reachable(options.installation, account, Path(sockets))
        with make_server(installation, Path(sockets) / "server", Path(disk), options) as server:
            ((size,),) = server.query("SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database")
            print(f"{installation}, {size}\n{_HEADING}", flush=True)
            pair = [Ours(account, server, Path(disk)), Theirs(options.pgbackrest, account, server, Path(disk))]
            runs = [Measured(), Measured()]
            for number in range(options.runs):
                for one in pair:
                    one.forget()
                measure(pair, runs, number, full=True)
            note("full", runs, 0.8, 1.05)
            note("restore of the full", measure_restores(pair, Path(disk), options.runs), 0.7)
            every = [Measured(), Measured()]
            for number in range(options.incrementals):
                change(server)
                before = [len(one.seconds) for one in every]
                measure(pair, every, number, full=False)
                if number in (1, options.incrementals - 1):
                    last = [
                        Measured(one.seconds[at:], one.stored_bytes[at:]) for one, at in zip(every, before, strict=True)
                    ]
                    note(f"incremental {number + 1}", last, 1.2, 0.3)
            note(f"all {options.incrementals} incrementals", every, 1.2, 0.3)
            note(f"restore after {options.incrementals}", measure_restores(pair, Path(disk), options.runs), 0.8)
            note("restore --delta", measure_delta(pair, server, Path(disk)), 0.3)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


_HEADING = (
    f"{'case':<22} {'ours':>9} {'theirs':>9} {'ratio':>6} {'target':>6}   {'ours stored':>11} {'theirs':>11}"
    f" {'ratio':>6} {'target':>6}"
)


def make_server(installation: Binaries, directory: Path, disk: Path, options: argparse.Namespace) -> ThrowawayServer:
    server = ThrowawayServer(installation, directory)
    checksums = [] if installation.major >= 18 else ["--data-checksums"]
    archive = f"{options.pgbackrest} --config={disk}/pgbackrest.conf --stanza={_STANZA} archive-push %p"
    server.create(
        options=checksums,
        settings={"shared_buffers": "256MB", "max_wal_size": "4GB", "archive_mode": "on", "archive_command": "true"},
    )
    made = _fill(server, options.scale)
    # From now on: what was written while the tables were filled belongs to no backup.
    made.query(f"ALTER SYSTEM SET archive_command = '{archive}'")
    made.query("SELECT pg_reload_conf()")
    return made


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--pgbackrest", type=Path, required=True, help="the program pgbackrest, 2.45 or later")
    parser.add_argument("--scale", type=int, default=150, help="size of the data; 150 is about 2.2 GB")
    parser.add_argument("--incrementals", type=int, default=10, help="incremental backups, ten seconds of pgbench each")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
