"""polarvault basebackup beside pg_basebackup and polar_basebackup: same server, same run, alternating.

usage: python bench/basebackup.py [--runs 5] [--scale 150] [--only NAME,NAME] [--json FILE] [--bindir DIR] ...

For each case: wall time of both, median of the runs, and the ratio ours / theirs. Both write their output durably
(no -N), both ask for a fast checkpoint. Outputs are deleted and the disks synchronised before every run, outside the
measured time; the server's files are in the page cache for both. Peak memory is that of our process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import Runs, add_place_options, choose_installation, print_machine, run_once
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.demo.shared_storage import create_on_shared_storage
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from server_floor import measure_floor
from support.servers import features_of, found_polardb


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison; {out} in the options is a directory that does not exist yet. ours_only: options of ours."""

    name: str
    place: str
    options: Sequence[str]
    target: float
    on_polardb: bool = False
    ours_only: Sequence[str] = ()
    on_reflink: bool = False


_LOCAL = ("--source", "local")
_UNSEEN = ("--manifest-checksums", "NONE", "--no-verify-checksums")
CASES = (
    Case("plain-tmpfs", "tmpfs", ("-Fp", "-D", "{out}", "-X", "stream"), 0.8),
    Case("plain-disk", "disk", ("-Fp", "-D", "{out}", "-X", "stream"), 0.8),
    Case("tar-tmpfs", "tmpfs", ("-Ft", "-D", "{out}", "-X", "stream"), 0.8),
    Case("tar-disk", "disk", ("-Ft", "-D", "{out}", "-X", "stream"), 0.8),
    Case("tar-zstd-tmpfs", "tmpfs", ("-Ft", "-Z", "client-zstd:1", "-D", "{out}", "-X", "stream"), 0.6),
    Case("tar-zstd-disk", "disk", ("-Ft", "-Z", "client-zstd:1", "-D", "{out}", "-X", "stream"), 0.6),
    Case(
        "polardb-disk", "disk", ("-Fp", "-D", "{out}/local", "--polardata", "{out}/shared", "-X", "stream"), 0.4, True
    ),
    Case("plain-tmpfs-local", "tmpfs", ("-Fp", "-D", "{out}", "-X", "stream"), 0.6, ours_only=_LOCAL),
    Case("plain-disk-local", "disk", ("-Fp", "-D", "{out}", "-X", "stream"), 0.6, ours_only=_LOCAL),
    Case(
        "zstd-tmpfs-local", "tmpfs", ("-Ft", "-Z", "client-zstd:1", "-D", "{out}", "-X", "stream"), 0.6,
        ours_only=_LOCAL,
    ),
    Case(
        "polardb-local", "disk", ("-Fp", "-D", "{out}/local", "--polardata", "{out}/shared", "-X", "stream"), 0.25,
        True, ours_only=_LOCAL,
    ),
    Case("clone", "reflink", ("-Fp", "-D", "{out}", "-X", "stream", *_UNSEEN), 0.15, ours_only=_LOCAL, on_reflink=True),
)  # fmt: skip


def compare(case: Case, server: ThrowawayServer, theirs: Path, place: Path, rounds: int) -> tuple[Runs, Runs]:
    """Run ours and theirs in turn; who begins changes every round."""
    out = place / "out"
    options = [option.format(out=out / "backup") for option in case.options]
    connection = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER, "-c", "fast"]
    ours_command = [sys.executable, "-m", "polarvault", "basebackup", *options, *connection, *case.ours_only]
    theirs_command = [str(theirs), *options, *connection]
    ours_runs, theirs_runs = Runs(), Runs()
    for number in range(rounds):
        pairs = [(ours_command, ours_runs), (theirs_command, theirs_runs)]
        for command, runs in pairs if number % 2 == 0 else reversed(pairs):
            run_once(command, runs, out)
    return ours_runs, theirs_runs


def make_server(installation: Binaries, directory: Path, scale: int) -> ThrowawayServer:
    """Make and fill a plain PostgreSQL."""
    server = ThrowawayServer(installation, directory)
    checksums = [] if installation.major >= 18 else ["--data-checksums"]
    server.create(options=checksums, settings={"shared_buffers": "256MB", "max_wal_size": "4GB"})
    return _fill(server, scale)


def make_polardb(installation: Binaries, directory: Path, scale: int) -> ThrowawayServer:
    """Make and fill a PolarDB on shared storage with its usual WAL segments of 1 GB."""
    server = ThrowawayServer(installation, directory)
    create_on_shared_storage(
        server, directory / "shared", options=["--wal-segsize=1024"], settings={"max_wal_size": "4GB"}
    )
    return _fill(server, scale)


# As many as take the place of half a pgbench scale.
_ORDERS_PER_SCALE = 40_000
_ORDERS = """
CREATE TABLE orders AS
SELECT i AS id, now() - i * interval '1 s' AS placed, 'customer ' || (i % 5000) AS customer,
       (random() * 10000)::numeric(10, 2) AS amount, md5(i::text) AS token, repeat(md5((i % 100000)::text), 2) AS note,
       (ARRAY['shipped', 'open', 'cancelled by customer', 'returned, refund pending'])[i % 4 + 1] AS status
FROM generate_series(1, {rows}) AS i
"""


def _fill(server: ThrowawayServer, scale: int) -> ThrowawayServer:
    server.start()
    where = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]
    # Half of it pgbench's tables, half of it rows that look like an application's: pgbench pads every row with blanks,
    # so that its tables alone would compress to a fortieth and measure no compressor.
    server.run("pgbench", *where, "-i", "-q", "-s", str(max(1, scale // 2)), "postgres", timeout_s=1200)
    server.query(_ORDERS.format(rows=scale * _ORDERS_PER_SCALE))
    server.query("VACUUM orders")
    server.query("CHECKPOINT")
    for path in server.data.rglob("*"):
        if path.is_file():
            # Into the page cache, so that the first run is like the others.
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
    return server


def main() -> None:
    """Parse the command line, run the cases, print the table."""
    options = _parse()
    rows: list[dict[str, object]] = []
    account = server_account()
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.tmpfs) as tmpfs,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        places = {"disk": Path(disk), "tmpfs": Path(tmpfs)}
        Path(sockets).chmod(0o755)
        print_machine(places)
        wanted = [case for case in CASES if not options.only or case.name in options.only]
        plain = [case for case in wanted if not case.on_polardb and not case.on_reflink]
        polardb, reflink = [case for case in wanted if case.on_polardb], [case for case in wanted if case.on_reflink]
        groups: list[tuple[Binaries | None, Callable[..., ThrowawayServer], str, list[Case], int, Path]] = [
            (options.installation, make_server, "pg_basebackup", plain, options.scale, Path(sockets)),
            (found_polardb(), make_polardb, "polar_basebackup", polardb, options.polardb_scale, Path(sockets)),
        ]
        if options.reflink is not None:
            # Server and copy lie on one file system: only there can a copy share what the server has.
            own = Path(tempfile.mkdtemp(prefix="pv-", dir=options.reflink))
            own.chmod(0o755)
            places["reflink"] = own
            groups.append((options.installation, make_server, "pg_basebackup", reflink, options.scale, own))
        for found, make, their_name, cases, scale, home in groups:
            if found is None or not cases:
                continue
            installation = reachable(found, account, Path(sockets))
            with make(installation, home / their_name, scale) as server:
                ((size,),) = server.query("SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database")
                floors = [measure_floor(server.conninfo().replace("dbname=postgres", "")) for _ in range(3)]
                floor = min(floors, key=lambda f: f.seconds)
                print(
                    f"\n{installation}, {size}; the server alone, received and discarded: "
                    f"{floor.seconds:.2f} s, {floor.mb_per_s:.0f} MB/s\n{_HEADING}",
                    flush=True,
                )
                for case in cases:
                    if "client-zstd:1" in case.options and "zstd" not in features_of(installation):
                        print(f"{case.name:<16} skipped: {installation} was built without zstd")
                        continue
                    ours, theirs = compare(
                        case, server, installation.program(their_name), places[case.place], options.runs
                    )
                    print(_line(case, ours, theirs), flush=True)
                    rows.append(
                        {"case": case.name, "server": str(installation), "floor_s": floor.seconds}
                        | {"ratio": ours.median_s / theirs.median_s, "target": case.target}
                        | {"ours": asdict(ours), "theirs": asdict(theirs)}
                    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


_HEADING = (
    f"{'case':<16} {'ours':>8} {'theirs':>8} {'ratio':>6} {'target':>6}   {'our CPU':>8} {'their CPU':>9}"
    f" {'our peak':>9} {'written, ours/theirs':>22}"
)


def _line(case: Case, ours: Runs, theirs: Runs) -> str:
    ratio = ours.median_s / theirs.median_s
    return (
        f"{case.name:<16} {ours.median_s:>6.2f} s {theirs.median_s:>6.2f} s {ratio:>6.2f} {case.target:>6.1f}"
        f" {'*' if ratio <= case.target else ' '} {statistics.median(ours.cpu_seconds):>6.2f} s"
        f" {statistics.median(theirs.cpu_seconds):>7.2f} s {ours.peak_mb:>6.0f} MB"
        f" {ours.written_mb:>9.0f} / {theirs.written_mb:.0f} MB"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--scale", type=int, default=150, help="size of the data; 150 is about 2.2 GB")
    parser.add_argument("--polardb-scale", type=int, default=20, help="the same for PolarDB; 20 is 0.3 GB")
    parser.add_argument("--reflink", help="a directory on XFS or btrfs, for the case of cloned files")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"cases: {', '.join(c.name for c in CASES)}")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
