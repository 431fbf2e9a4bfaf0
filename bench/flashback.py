"""One table back, beside pgBackRest: restore of all of it, replay to the same transaction, pg_dump of the table.

usage: python bench/flashback.py --pgbackrest FILE [--scale 150] [--runs 3] [--bindir DIR] ...

The server, all backups and all restores lie on one XFS that shares extents, in a file below --disk; root alone can
mount it. A table of 50 MB loses its rows in one transaction, behind ten seconds of pgbench. `flashback table` brings it
back before that transaction: from a plain backup; from a repository whose base copy is there, and from one the first
time. Its time is that of the whole command, the clone's removal included; theirs ends with pg_dump, which has the same
options. Wall time, median of the runs, and the ratio ours / theirs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psycopg

from basebackup import _fill
from measuring import add_place_options, begin_evenly, choose_installation, print_machine
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import ServerAccount, server_account
from repository import Measured, Ours, Theirs, change, line, run
from support.file_systems import file_system

_TABLE_ROWS = 460_000
_TIMEOUT_S = 600
_TARGET = 0.3


class Site:
    """A server whose table has lost its rows, and what was backed up before."""

    def __init__(self, server: ThrowawayServer, disk: Path, account: ServerAccount, pgbackrest: Path) -> None:
        self.server, self.disk, self.account = server, disk, account
        self.wal = account.make_directory(disk / "wal")
        self.ours = Ours(account, server, disk)
        self.theirs = Theirs(pgbackrest, account, server, disk)
        self.backup = disk / "backup"
        self.area = disk / "clones"

    def prepare(self) -> None:
        """Back up by each, change something, delete the table's rows, and archive everything."""
        server = self.server
        server.query(
            "CREATE TABLE receipts AS SELECT n AS id, md5(n::text) AS note, now() AS at, n % 100 AS state,"
            f" repeat('x', 20) AS filling FROM generate_series(1, {_TABLE_ROWS}) n;"
            " ALTER TABLE receipts ADD PRIMARY KEY (id)"
        )
        for one in (self.ours, self.theirs):
            one.forget()
        push = " ".join(self.theirs.command("archive-push"))
        server.query(f"ALTER SYSTEM SET archive_command = '{push} %p && cp %p {self.wal}/%f'")
        server.query("SELECT pg_reload_conf()")
        for one in (self.ours, self.theirs):
            one.back_up(full=True)
        where = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]
        command = [sys.executable, "-m", "polarvault", "basebackup", *where, "-D", str(self.backup), "-c", "fast"]
        run(self.account, command, self.disk)
        change(server)
        ((self.size,),) = server.query("SELECT pg_size_pretty(pg_table_size('receipts'))")
        with server.connect() as connection, connection.transaction():
            connection.execute("DELETE FROM receipts")
            row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        self.xid = str(row[0])
        ((last,),) = server.query("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + _TIMEOUT_S
        while not (self.wal / last).exists():
            if time.monotonic() > deadline:
                sys.exit(f"nothing is archived:\n{server.log_tail()}")
            time.sleep(0.2)
        for segment in sorted(self.wal.iterdir()):
            repository = ["--cluster", "bench", "--repo", str(self.ours.repository)]
            run(self.account, [sys.executable, "-m", "polarvault", "wal", "push", str(segment), *repository], self.disk)

    def ours_once(self, source: list[str]) -> float:
        """Bring the table back by ours; return the seconds."""
        dump = self.disk / "ours.dump"
        command = [
            sys.executable, "-m", "polarvault", "flashback", "table", *source, "--before-xid", self.xid, "--table",
            "receipts", "-o", str(dump), "--at", str(self.area), "--bindir", str(self.server.installation.directory),
        ]  # fmt: skip
        seconds = run(self.account, command, self.disk)
        self._check(dump)
        return seconds

    def theirs_once(self) -> float:
        """Restore all of it, replay, dump; return the seconds."""
        target, dump = self.disk / "restored", self.disk / "theirs.dump"
        begin_evenly()
        began = time.perf_counter()
        self._restore(target)
        options = f"-p {self.server.port} -k {self.disk} -c archive_mode=off -c listen_addresses="
        self._run("pg_ctl", "-D", str(target), "-o", options,
                  "-l", str(self.disk / "restored.log"), "-w", "-t", str(_TIMEOUT_S), "start")  # fmt: skip
        try:
            self._wait_until_promoted()
            self._run("pg_dump", "-h", str(self.disk), "-p", str(self.server.port), "-U", SUPERUSER, "-Fc", "-Z1",
                      "-t", "receipts", "-f", str(dump), "postgres")  # fmt: skip
            seconds = time.perf_counter() - began
        finally:
            self._run("pg_ctl", "-D", str(target), "-m", "immediate", "-w", "stop")
        shutil.rmtree(target)
        self._check(dump)
        return seconds

    def _restore(self, target: Path) -> None:
        self.account.make_directory(target)
        command = self.theirs.command(
            "restore", f"--pg1-path={target}", "--type=xid", f"--target={self.xid}", "--target-exclusive",
            "--target-action=promote",
        )  # fmt: skip
        run(self.account, command, self.disk)

    def _wait_until_promoted(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        where = f"host={self.disk} port={self.server.port} user={SUPERUSER} dbname=postgres"
        while True:
            try:
                with psycopg.connect(where, autocommit=True) as connection:
                    if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
                        return
            except psycopg.OperationalError:
                pass
            if time.monotonic() > deadline:
                sys.exit((self.disk / "restored.log").read_text(errors="replace"))
            time.sleep(0.05)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self.server.installation.program(program), *words], cwd=self.disk, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=self.account.environment(self.disk), **self.account.run_as,
        )  # fmt: skip
        if done.returncode != 0:
            log = self.disk / "restored.log"
            said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            sys.exit(f"{program} ended with status {done.returncode}:\n{done.stderr}{said}")

    def _check(self, dump: Path) -> None:
        """See that all rows are in a dump, and remove it."""
        restore = [self.server.installation.program("pg_restore"), "-a", "-f", "-", str(dump)]
        said = subprocess.run(restore, capture_output=True, check=True).stdout
        rows = said.count(b"xxxxxxxxxxxxxxxxxxxx\n")
        if rows != _TABLE_ROWS:
            sys.exit(f"{dump} has {rows} of {_TABLE_ROWS} rows")
        dump.unlink()

    def forget_base(self) -> None:
        """Remove the base copy, so that the next one has to make it."""
        for base in self.area.glob("polarvault-base-*"):
            command = [sys.executable, "-m", "polarvault", "clone", "remove", base.name.rpartition("-")[2]]
            run(self.account, [*command, "--at", str(self.area)], self.disk)


def main() -> None:
    """Parse the command line, run the cases, print the table."""
    options = _parse()
    account = server_account()
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as image,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
        file_system("xfs", Path(image), size_mb=options.size_mb) as made,
    ):
        Path(image).chmod(0o755)
        for path in (made.path, Path(sockets)):
            path.chmod(0o755)
            account.own(path)
        print_machine({"disk": made.path, "tmpfs": options.tmpfs})
        installation = reachable(options.installation, account, Path(sockets))
        with ThrowawayServer(installation, Path(sockets) / "server") as server:
            account.make_directory(server.directory)
            account.make_directory(made.path / "data")
            (server.directory / "data").symlink_to(made.path / "data")
            server.create(settings={
                "shared_buffers": "256MB", "max_wal_size": "4GB", "archive_mode": "on", "archive_command": "true",
            })  # fmt: skip
            site = Site(_fill(server, options.scale), made.path, account, options.pgbackrest)
            site.prepare()
            ((size,),) = server.query("SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database")
            print(f"{installation}, {size}, the table {site.size}")
            print(f"{'case':<22} {'ours':>9} {'theirs':>9} {'ratio':>6} {'target':>6}", flush=True)
            repository = ["bench", "--repo", str(site.ours.repository)]
            plain = [str(site.backup), "--wal", str(site.wal)]
            cases = {"plain backup": plain, "repository, first": repository, "repository, again": repository}
            theirs, runs = Measured(), {name: Measured() for name in cases}
            for _ in range(options.runs):
                theirs.seconds.append(site.theirs_once())
                site.forget_base()
                for name, source in cases.items():
                    runs[name].seconds.append(site.ours_once(source))
            for name, ours in runs.items():
                print(line(name, [ours, theirs], _TARGET), flush=True)
                rows.append({"case": name, "ours": asdict(ours), "theirs": asdict(theirs)})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--pgbackrest", type=Path, required=True, help="the program pgbackrest, 2.45 or later")
    parser.add_argument("--scale", type=int, default=150, help="size of the data; 150 is about 2.2 GB")
    parser.add_argument("--size-mb", type=int, default=24_000, help="size of the file system")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
