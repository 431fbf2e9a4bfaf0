"""WAL into a repository and out of it, beside pgBackRest: same WAL, same run, both on a local disk, both durable.

usage: python bench/wal_repository.py --pgbackrest FILE [--segments 200] [--runs 1] [--bindir DIR] ...

Cases: push, every segment that a server wants archived, by its archive_command, one call after the other as the
server's archiver does it (in the server's directory, by the shell, .ready renamed to .done); and replay of all of it:
a server is started on a copy of the cluster from before, and gets its WAL by the restore_command until it has reached
the end. For each: wall time of both, and the ratio ours / theirs. pgBackRest runs with
archive-async, process-max 2, zst level 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psycopg

from measuring import add_place_options, begin_evenly, choose_installation, print_machine
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import ServerAccount, server_account
from polarvault.walarchive import restore_command as of_restores
from repository import Measured, Ours, Theirs, line

_ROWS = 200_000
# Rows that look like an application's: half of each is random, so that compressors have work.
_WRITE = (
    "INSERT INTO events SELECT n, md5(n::text || random()::text), 'state ' || n % 7, now(), repeat('word ', 8) "
    f"FROM generate_series(1, {_ROWS}) n"
)
_TIMEOUT_S = 1800


class Site:
    """A server with WAL that waits to be archived, and a copy of it from before that."""

    def __init__(self, server: ThrowawayServer, disk: Path, account: ServerAccount) -> None:
        self.server, self.disk, self.account = server, disk, account
        self.status = server.data / "pg_wal" / "archive_status"
        self.base = disk / "base"

    def fill(self, segments: int) -> None:
        """Copy the cluster, and write so many segments."""
        where = ["-h", str(self.server.directory), "-p", str(self.server.port), "-U", SUPERUSER]
        self.server.run("pg_basebackup", *where, "-D", str(self.base), "-c", "fast", "-X", "stream", timeout_s=600)
        while len(self.ready()) < segments:
            self.server.query(_WRITE)
            self.server.query("TRUNCATE events")
        self.server.query("SELECT pg_switch_wal()")
        self.server.stop()

    def ready(self) -> list[str]:
        return sorted(path.name.removesuffix(".ready") for path in self.status.glob("*.ready"))

    def archive(self, command: list[str]) -> float:
        """Archive everything as the archiver does; return the seconds. What is done is wanted again afterwards."""
        names = self.ready()
        text = f"{shlex.join(command)} pg_wal/"
        begin_evenly()
        started = time.perf_counter()
        for name in names:
            done = subprocess.run(
                ["sh", "-c", text + name], cwd=self.server.data, env=self.account.environment(self.disk),
                capture_output=True, text=True, check=False, **self.account.run_as,
            )  # fmt: skip
            if done.returncode != 0:
                sys.exit(f"{text}{name}\nended with status {done.returncode}:\n{done.stdout}{done.stderr}")
            (self.status / f"{name}.ready").rename(self.status / f"{name}.done")
        seconds = time.perf_counter() - started
        for name in names:
            (self.status / f"{name}.done").rename(self.status / f"{name}.ready")
        return seconds

    def replay(self, restore_command: str) -> float:
        """Recover a copy to the end of the WAL; return the seconds from its start until it was promoted."""
        copy = ThrowawayServer(self.server.installation, self.disk / "replay")
        self.account.make_directory(copy.directory)
        shutil.copytree(self.base, copy.data, symlinks=True)
        for path in [copy.data, *copy.data.rglob("*")]:
            self.account.own(path)
        copy.data.chmod(0o700)
        for path in (copy.data / "recovery.signal", copy.log):
            path.touch()
            self.account.own(path)
        copy.configure(
            {
                "port": str(copy.port), "unix_socket_directories": str(copy.directory), "archive_mode": "off",
                "restore_command": restore_command.replace("{data}", str(copy.data)), "fsync": "off",
                # It answers when it is promoted.
                "hot_standby": "off",
            }
        )  # fmt: skip
        begin_evenly()
        started = time.perf_counter()
        try:
            copy.start()
            while not _is_promoted(copy):
                if time.perf_counter() - started > _TIMEOUT_S or not copy.is_running():
                    sys.exit(f"the recovery does not end:\n{copy.log_tail()}")
                time.sleep(0.05)
            seconds = time.perf_counter() - started
            log = copy.log.read_text(errors="replace")
            if "archive recovery complete" not in log or log.count("restored log file") < len(self.ready()) // 2:
                sys.exit(f"the recovery was none:\n{copy.log_tail()}")
        finally:
            copy.remove()
        return seconds


def _is_promoted(server: ThrowawayServer) -> bool:
    try:
        return server.query("SELECT pg_is_in_recovery()") == [(False,)]
    except psycopg.OperationalError:
        return False


def main() -> None:
    """Parse the command line, run the cases, print the table."""
    options = _parse()
    account = server_account()
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        for path in (disk, sockets):
            Path(path).chmod(0o755)
            account.own(Path(path))
        print_machine({"disk": Path(disk), "tmpfs": options.tmpfs})
        installation = reachable(options.installation, account, Path(sockets))
        with ThrowawayServer(installation, Path(sockets) / "server") as server:
            account.make_directory(server.directory)
            account.make_directory(Path(disk) / "data")
            (server.directory / "data").symlink_to(Path(disk) / "data")
            server.create(settings={
                "archive_mode": "on", "archive_command": "false", "max_wal_size": "8GB", "checkpoint_timeout": "1h",
                "fsync": "off",
            })  # fmt: skip
            server.start()
            server.query("CREATE TABLE events (n int, text text, state text, at timestamptz, filling text)")
            site = Site(server, Path(disk), account)
            site_line = _measure(site, options, rows)
            print(f"{installation}, {site_line}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _measure(site: Site, options: argparse.Namespace, rows: list[dict[str, object]]) -> str:
    ours = Ours(site.account, site.server, site.disk)
    theirs = Theirs(options.pgbackrest, site.account, site.server, site.disk)
    text = theirs.configuration.read_text().replace("archive-async=n", "archive-async=y")
    theirs.configuration.write_text(text)
    for one in (ours, theirs):
        one.forget()
    site.fill(options.segments)
    names = site.ready()
    print(
        f"{len(names)} files to archive\n{'case':<22} {'ours':>9} {'theirs':>9} {'ratio':>6} {'target':>6}", flush=True
    )
    push = [sys.executable, "-m", "polarvault", "wal", "push", "--cluster", "bench", "--repo", str(ours.repository)]
    if options.file:
        push[1:3] = ["-I", "-S", str(Path(of_restores.__file__).parents[1] / "__main__.py")]
    source = of_restores.restore_command(_Words(["--repo", str(ours.repository), "--cluster", "bench"]))  # type: ignore[arg-type]
    get = shlex.join(theirs.command("--pg1-path={data}", "archive-get")) + ' %f "%p"'
    runs = {name: [Measured(), Measured()] for name in ("push", "replay")}
    for number in range(options.runs):
        if number:
            for folder in [ours.repository / "clusters/bench/wal", *theirs.repository.glob("archive/bench/*-1")]:
                shutil.rmtree(folder)
            for folder in (site.disk / "spool", site.disk / ".local"):
                shutil.rmtree(folder, ignore_errors=True)
        for which, command in enumerate([push, theirs.command("archive-push")]):
            runs["push"][which].seconds.append(site.archive(command))
        for which, command_text in enumerate([source, get] if options.only != "push" else []):
            runs["replay"][which].seconds.append(site.replay(command_text))
    for name, target in (("push", 0.7), ("replay", 0.9)):
        if options.only not in (None, name):
            continue
        print(line(name, runs[name], target), flush=True)
        rows.append({"case": name, "ours": asdict(runs[name][0]), "theirs": asdict(runs[name][1])})
    return f"{len(names)} files"


class _Words:
    """The options of a fetch, as a source has them."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def fetch_options(self) -> list[str]:
        return self._words


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--pgbackrest", type=Path, required=True, help="the program pgbackrest, 2.45 or later")
    parser.add_argument("--segments", type=int, default=200, help="segments of 16 MB to write and archive")
    parser.add_argument("--only", choices=["push"], help="do not replay what was pushed")
    parser.add_argument("--file", action="store_true", help="start ours by its file, as a restore_command does")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
