"""The WAL reader beside pg_waldump: same files, same run, alternating.

usage: python bench/wal_reading.py [--runs 5] [--wal-mb 300] [--json FILE] [--bindir DIR]

pgbench makes the WAL; both programs then read all of it from the page cache. MB/s are of one core: WAL bytes over CPU
seconds, the whole program's and, for ours, also of the reading alone, because importing and compiling take as long as
reading half a gigabyte. pg_waldump always checks checksums; -q prints nothing, --stats counts records.
every-mark has Python decode each commit, which planning a recovery does only for a few. Medians.
"""

from __future__ import annotations

import argparse
import json
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
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.records import RecordReader
from polarvault.wal.scan import WalScanner

# What ours does, and how pg_waldump is called beside it.
CASES = (("checksums", "-q"), ("checksums", "--stats"), ("no-checksums", "-q"), ("every-mark", "-q"))
_TARGET_MB_PER_S = 300
_SEGMENT_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wal:
    """What is read: from the first record that begins in a directory to the end of the last."""

    directory: Path
    start: Lsn
    end: Lsn

    @property
    def size_mb(self) -> float:
        return (self.end - self.start) / 1e6


def read(wal: Wal, case: str) -> float:
    """Read the WAL with our reader; return the CPU seconds that reading took."""
    scanner = WalScanner(wal.start, _SEGMENT_BYTES, check_crc=case != "no-checksums")
    buffer = bytearray(_BUFFER_BYTES)
    segment = WalSegment.holding(wal.start, 1, _SEGMENT_BYTES)
    skip = wal.start - segment.start
    began = time.process_time()
    while scanner.next_lsn < wal.end:
        with open(wal.directory / segment.file_name, "rb", buffering=0) as file:
            file.seek(skip)
            while size := file.readinto(buffer):
                marks = scanner.feed(memoryview(buffer)[:size])
                if case == "every-mark":
                    for mark in marks:
                        assert mark.lsn
        skip, segment = 0, segment.next()
    return time.process_time() - began


def main() -> None:
    """Parse the command line, make WAL, read it, print the table."""
    options = _parse()
    if options.read:
        directory, start, end, case = options.read
        print(read(Wal(Path(directory), Lsn.parse(start), Lsn.parse(end)), case))
        return
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.tmpfs) as place,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        Path(sockets).chmod(0o755)
        print_machine({"disk": options.disk, "tmpfs": Path(place)})
        installation = reachable(options.installation, server_account(), Path(sockets))
        with ThrowawayServer(installation, Path(sockets) / "c") as server:
            wal = _make_wal(server, options.wal_mb)
            print(f"\n{installation}, {wal.size_mb:.0f} MB of WAL from pgbench\n{_HEADING}", flush=True)
            for case, option in CASES:
                row = _compare(wal, case, option, server, Path(place), options.runs)
                print(_line(wal, row), flush=True)
                rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _make_wal(server: ThrowawayServer, size_mb: int) -> Wal:
    """Have the server write WAL, and stop it."""
    server.create(settings={"max_wal_size": "64GB", "wal_keep_size": "64GB", "synchronous_commit": "off"})
    server.start()
    where = ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]
    server.run("pgbench", *where, "-i", "-q", "-s", "10", "postgres")
    # Transactions alone from here on; the first changes after the checkpoint write whole pages.
    server.query("CHECKPOINT")
    ((begin,),) = server.query("SELECT pg_walfile_name(pg_switch_wal())")
    first = WalSegment.parse(begin, _SEGMENT_BYTES).next()
    while server.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", [str(first.start)])[0][0] < size_mb * 1e6:
        server.run("pgbench", *where, "-n", "-c", "4", "-t", "20000", "postgres", timeout_s=600)
    server.stop()
    directory = server.data / "pg_wal"
    content = (directory / first.file_name).read_bytes()
    start = RecordReader(first.start, _SEGMENT_BYTES).feed(content)[0].lsn
    scanner, segment = WalScanner(first.start, _SEGMENT_BYTES), first
    while scanner.end_reason is None and (path := directory / segment.file_name).exists():
        scanner.feed(memoryview(path.read_bytes()))
        segment = segment.next()
    return Wal(directory, start, scanner.next_lsn)


def _compare(wal: Wal, case: str, option: str, server: ThrowawayServer, place: Path, rounds: int) -> dict[str, object]:
    """Run ours and pg_waldump in turn; who begins changes every round."""
    span = [str(wal.directory), str(wal.start), str(wal.end)]
    ours = [sys.executable, __file__, "--read", *span, case]
    theirs = [str(server.installation.program("pg_waldump")), option, "-p", span[0], "-s", span[1], "-e", span[2]]
    ours_runs, theirs_runs = Runs(), Runs()
    reading_s = []
    for number in range(rounds):
        pairs: list[tuple[Sequence[str], Runs]] = [(ours, ours_runs), (theirs, theirs_runs)]
        for command, runs in pairs if number % 2 == 0 else reversed(pairs):
            run_once(command, runs, place / "out")
        said = subprocess.run(ours, capture_output=True, text=True, check=True)
        reading_s.append(float(said.stdout))
    return {"case": case, "option": option, "reading_s": reading_s} | {
        "ours": asdict(ours_runs),
        "theirs": asdict(theirs_runs),
    }


_HEADING = (
    f"{'case':<14} {'pg_waldump':<10} {'reading alone':>14} {'target':>10}   {'our program':>12} {'theirs':>10}"
    f" {'CPU ratio':>9} {'our peak':>9}"
)


def _line(wal: Wal, row: dict[str, object]) -> str:
    ours, theirs = Runs(**row["ours"]), Runs(**row["theirs"])  # type: ignore[arg-type]
    our_s, their_s = statistics.median(ours.cpu_seconds), statistics.median(theirs.cpu_seconds)
    alone_s = statistics.median(row["reading_s"])  # type: ignore[call-overload]
    return (
        f"{row['case']:<14} {row['option']:<10} {wal.size_mb / alone_s:>9.0f} MB/s {_TARGET_MB_PER_S:>5} MB/s"
        f"   {wal.size_mb / our_s:>7.0f} MB/s {wal.size_mb / their_s:>5.0f} MB/s {our_s / their_s:>9.2f}"
        f" {ours.peak_mb:>6.0f} MB"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--wal-mb", type=int, default=300, help="how much WAL is read")
    # How the benchmark starts itself: a process of its own for each measurement.
    parser.add_argument("--read", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is None:
        options.installation = choose_installation(options.bindir)
        if options.installation is None:
            parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
