"""polarvault verifybackup beside pg_verifybackup: same backup, same run, alternating.

usage: python bench/verifybackup.py [--runs 5] [--scale 300] [--only NAME,NAME] [--json FILE] [--bindir DIR]

The backup lies on the disk and, but for the case "cold", in the page cache. "same" does what pg_verifybackup does: the
manifest's checksums and the WAL. "all" adds page checksums, pg_control, backup_label. Wall time, median of the runs.
Below, in one thread and by CPU seconds: page checksums, and WAL with the CRC of every record.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import Runs, add_place_options, begin_evenly, choose_installation, print_machine, run_once
from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.instance.account import server_account
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.pages import PAGE_BYTES, load_kernel
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.files.reading import FileTask, read_in_this_thread
from polarvault.verify.wal.check import check_wal
from polarvault.walfiles.directory import WalDirectory

_SEGMENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison; backup: which of the backups, by its options."""

    name: str
    backup: str
    ours: Sequence[str] = ()
    theirs: Sequence[str] = ()
    target: float | None = None
    is_cold: bool = False
    oldest: int = 13


CASES = (
    Case("same-crc32c", "plain", ("--no-pages",), target=0.6),
    Case("same-sha256", "sha256", ("--no-pages",), target=0.6),
    Case("same-no-wal", "plain", ("--no-pages", "-n"), ("-n",), target=0.6),
    Case("all", "plain"),
    Case("same-tar", "tar", ("--no-pages", "-n"), ("-n",), target=0.6, oldest=18),
    Case("cold", "plain", ("--no-pages",), is_cold=True),
)
BACKUPS = {
    "plain": (),
    "sha256": ("--manifest-checksums=SHA256",),
    "tar": ("-Ft",),
}


def main() -> None:
    """Parse the command line, take backups, verify them, print the table."""
    options = _parse()
    installation = options.installation
    cases = [
        case for case in CASES
        if (not options.only or case.name in options.only) and installation.major >= case.oldest
        and (not case.is_cold or os.geteuid() == 0)
    ]  # fmt: skip
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as place,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
    ):
        Path(sockets).chmod(0o755)
        print_machine({"disk": Path(place), "tmpfs": options.tmpfs})
        installation = reachable(installation, server_account(), Path(sockets))
        with ThrowawayServer(installation, Path(sockets) / "c") as server:
            size_gb = _fill(server, options.scale)
            for name in {case.backup for case in cases} | {"plain"}:
                _take(server, Path(place) / name, BACKUPS[name])
            end = _write_wal(server, options.wal_mb)
            server.stop()
            print(f"\n{installation}, a backup of {size_gb:.1f} GB\n{_HEADING}", flush=True)
            theirs = str(server.installation.program("pg_verifybackup"))
            for case in cases:
                row = _compare(case, Path(place) / case.backup, theirs, options.runs)
                print(_line(row), flush=True)
                rows.append(row)
            rows.append(_one_core(Path(place) / "plain", server, end, options.runs))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _fill(server: ThrowawayServer, scale: int) -> float:
    """Make a server with checksums and pgbench's tables; return their size in GB."""
    checksums = [] if server.installation.major >= 18 else ["--data-checksums"]
    server.create(options=checksums, settings={"max_wal_size": "64GB", "wal_keep_size": "64GB", "fsync": "off"})
    server.start()
    server.run("pgbench", *_where(server), "-i", "-q", "-s", str(scale), "postgres", timeout_s=3600)
    server.query("CHECKPOINT")
    return float(server.query("SELECT sum(pg_database_size(oid)) FROM pg_database")[0][0]) / 1e9


def _where(server: ThrowawayServer) -> list[str]:
    return ["-h", str(server.directory), "-p", str(server.port), "-U", SUPERUSER]


def _take(server: ThrowawayServer, directory: Path, options: Sequence[str]) -> None:
    # By this user, who owns the place; the server's own account does not.
    runs = Runs()
    program = str(server.installation.program("pg_basebackup"))
    command = [program, *_where(server), "-D", str(directory), "-c", "fast", "-N", *options]
    run_once(command, runs, directory.parent / "out")


def _write_wal(server: ThrowawayServer, size_mb: int) -> tuple[Lsn, Lsn]:
    """Have the server write WAL; return where it begins and ends."""
    ((begin,),) = server.query("SELECT pg_current_wal_lsn()")
    while server.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", [begin])[0][0] < size_mb * 1e6:
        server.run("pgbench", *_where(server), "-n", "-c", "4", "-t", "20000", "postgres", timeout_s=600)
    ((end,),) = server.query("SELECT pg_current_wal_flush_lsn()")
    return Lsn.parse(begin), Lsn.parse(end)


def _compare(case: Case, backup: Path, theirs: str, rounds: int) -> dict[str, object]:
    """Run ours and theirs in turn; who begins changes every round."""
    ours = [sys.executable, "-m", "polarvault", "verifybackup", *case.ours, str(backup)]
    ours_runs, theirs_runs = Runs(), Runs()
    # Once for the page cache.
    run_once(ours, Runs(), backup.parent / "out")
    for number in range(rounds):
        pairs = [(ours, ours_runs), ([theirs, *case.theirs, str(backup)], theirs_runs)]
        for command, runs in pairs if number % 2 == 0 else reversed(pairs):
            if case.is_cold:
                begin_evenly()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            run_once(command, runs, backup.parent / "out")
    return {"case": case.name, "target": case.target, "ours": asdict(ours_runs), "theirs": asdict(theirs_runs)}


def _one_core(backup: Path, server: ThrowawayServer, wal: tuple[Lsn, Lsn], rounds: int) -> dict[str, object]:
    """Measure by CPU seconds of one thread; print and return GB/s."""
    # The first segments of relations only, named by a number alone: in others the blocks do not begin at zero.
    segments = (path for path in (backup / "base").rglob("*") if path.name.isdigit() and path.is_file())
    largest = max(segments, key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    span, source = WalRange(1, *wal), WalDirectory(str(server.data / "pg_wal"))
    chunk = largest.read_bytes()[: 512 << 10]
    kernel, pages, reading, wal_speed = load_kernel(), [], [], []
    for _ in range(rounds):
        pages.append(_rate(1000 * len(chunk), lambda: [_check(kernel, chunk) for _ in range(1000)]))
        reading.append(_rate(size, lambda: _read_pages(str(largest), size)))
        wal_speed.append(_rate(wal[1] - wal[0], lambda: _read_wal(span, source)))
    found = {"page_checksums": pages, "read_and_check_pages": reading, "wal_crc": wal_speed}
    print("\none core, GB/s (target): ", end="")
    targets = {"page_checksums": " (1)", "wal_crc": " (0.5)"}
    print(", ".join(f"{name} {statistics.median(rates):.2f}{targets.get(name, '')}" for name, rates in found.items()))
    return {"case": "one-core", "gb_per_cpu_second": found}


def _read_wal(span: WalRange, source: WalDirectory) -> None:
    verdict = check_wal([span], source, segment_size_bytes=_SEGMENT_BYTES)
    if any(not finding.is_ok for finding in verdict.findings):
        sys.exit(f"the WAL is not what it should be: {verdict.findings}")


def _read_pages(path: str, size: int) -> None:
    found = read_in_this_thread(FileTask("file", path, size, None, None, 0))
    if found.bad_count:
        sys.exit(f"{path} has {found.bad_count} bad pages: what was measured is not the normal case")


def _check(kernel: object, chunk: bytes) -> None:
    import ctypes

    bad = (ctypes.c_int64 * 64)()
    count = len(chunk) // PAGE_BYTES
    address = ctypes.cast(ctypes.c_char_p(chunk), ctypes.c_void_p).value
    kernel(address, count, 0, count, len(chunk), ctypes.addressof(bad), 64)  # type: ignore[operator]


def _rate(size: int, work: object) -> float:
    began = time.process_time()
    work()  # type: ignore[operator]
    return size / (time.process_time() - began) / 1e9


_HEADING = (
    f"{'case':<12} {'ours':>8} {'theirs':>8} {'ratio':>6} {'target':>6}   {'our CPU':>8} {'theirs':>8} {'our peak':>9}"
)


def _line(row: dict[str, object]) -> str:
    ours, theirs = Runs(**row["ours"]), Runs(**row["theirs"])  # type: ignore[arg-type]
    target = f"{row['target']:>6}" if row["target"] else f"{'':>6}"
    return (
        f"{row['case']:<12} {ours.median_s:>6.2f} s {theirs.median_s:>6.2f} s {ours.median_s / theirs.median_s:>6.2f} "
        f"{target}   {statistics.median(ours.cpu_seconds):>6.2f} s {statistics.median(theirs.cpu_seconds):>6.2f} s "
        f"{ours.peak_mb:>6.0f} MB"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--scale", type=int, default=300, help="pgbench's scale: 15 MB each")
    parser.add_argument("--wal-mb", type=int, default=300, help="how much WAL is read")
    parser.add_argument("--only", type=lambda text: text.split(","), help="cases to run")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
