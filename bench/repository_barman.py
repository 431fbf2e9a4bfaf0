"""polarvault's repository beside Barman with backup_method = postgres: same server, same run, taking turns.

usage: python bench/repository_barman.py --barman FILE [--runs 3] [--scale 150] [--bindir DIR] ...

Cases: full backups, the next backup, restores of the last one. Barman keeps what pg_basebackup wrote, plain, and has
no incremental backup for servers before 17 this way; a second backup is a full one again, which is shown beside our
incremental one. For each: wall time of both, median of the runs, the ratio ours / Barman's, and what a backup takes.
WAL goes into Barman's incoming directory by cp. Both run as the server's account.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from basebackup import _fill
from measuring import add_place_options, choose_installation, print_machine
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import ServerAccount, server_account
from repository import _HEADING, Measured, Ours, change, line, run, size_of

_CONFIGURATION = """[barman]
barman_user = {user}
barman_home = {home}
configuration_files_directory = {home}/conf.d
log_file = {home}/barman.log
compression =
minimum_redundancy = 0

[bench]
description = bench
conninfo = host={sockets} port={port} user={superuser} dbname=postgres
streaming_conninfo = host={sockets} port={port} user={superuser} dbname=postgres
backup_method = postgres
archiver = on
path_prefix = {bindir}
immediate_checkpoint = true
"""


class Barman:
    """Barman with its home in a directory."""

    def __init__(self, program: Path, account: ServerAccount, server: ThrowawayServer, place: Path) -> None:
        self._program, self._account, self._place = program, account, place
        self.home = place / "barman"
        account.make_directory(self.home)
        self.configuration = place / "barman.conf"
        self.configuration.write_text(
            _CONFIGURATION.format(
                user=account.name, home=self.home, sockets=server.directory, port=server.port,
                superuser=SUPERUSER, bindir=server.installation.directory,
            )
        )  # fmt: skip
        account.own(self.configuration)
        # Makes its directories; it complains until a first segment has come.
        run(account, ["sh", "-c", f"{program} -c {self.configuration} check bench >/dev/null 2>&1 || true"], place)
        server.query(f"ALTER SYSTEM SET archive_command = 'cp %p {self.home}/bench/incoming/%f'")
        server.query("SELECT pg_reload_conf()")
        server.query("SELECT pg_switch_wal()")

    def command(self, *arguments: str) -> list[str]:
        return [str(self._program), "-q", "-c", str(self.configuration), *arguments]

    def back_up(self) -> float:
        return run(self._account, self.command("backup", "bench"), self._place)

    def restore(self, target: Path) -> float:
        return run(self._account, self.command("restore", "bench", "latest", str(target)), self._place)

    @property
    def stored_bytes(self) -> int:
        return size_of(self.home / "bench" / "base")


def main() -> None:
    """Parse the command line, run the cases, print the table."""
    options = _parse()
    account = server_account()
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        place = Path(disk)
        for path in (place, Path(sockets)):
            path.chmod(0o755)
            account.own(path)
        print_machine({"disk": place, "tmpfs": options.tmpfs})
        installation = reachable(options.installation, account, Path(sockets))
        with ThrowawayServer(installation, Path(sockets) / "server") as server:
            checksums = [] if installation.major >= 18 else ["--data-checksums"]
            archiving = {"archive_mode": "on", "archive_command": "true"}
            server.create(options=checksums, settings={"shared_buffers": "256MB", "max_wal_size": "4GB"} | archiving)
            _fill(server, options.scale)
            ((size,),) = server.query("SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database")
            print(f"{installation}, {size}\n{_HEADING}", flush=True)
            _measure(Ours(account, server, place), Barman(options.barman, account, server, place), server, options)


def _measure(ours: Ours, theirs: Barman, server: ThrowawayServer, options: argparse.Namespace) -> None:
    full, again, restored = (_pair() for _ in range(3))
    for number in range(options.runs):
        ours.forget()
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            _back_up(ours, theirs, which, full[which], full=True)
    print(line("full", full, 1.0, 1.0), flush=True)
    for _ in range(options.runs):
        change(server)
        for which in (0, 1):
            _back_up(ours, theirs, which, again[which], full=False)
    print(line("the next backup", again, 1.0, 1.0), flush=True)
    for number in range(options.runs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            target = ours.repository.parent / f"restored{which}"
            restored[which].seconds.append((ours, theirs)[which].restore(target))
            shutil.rmtree(target)
    print(line("restore", restored, 1.0), flush=True)


def _back_up(ours: Ours, theirs: Barman, which: int, measured: Measured, *, full: bool) -> None:
    before = (ours, theirs)[which].stored_bytes
    measured.seconds.append(theirs.back_up() if which else ours.back_up(full=full))
    measured.stored_bytes.append((ours, theirs)[which].stored_bytes - before)


def _pair() -> Sequence[Measured]:
    return [Measured(), Measured()]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--barman", type=Path, required=True, help="the program barman, 3 or later")
    parser.add_argument("--scale", type=int, default=150, help="size of the data; 150 is about 2.2 GB")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
