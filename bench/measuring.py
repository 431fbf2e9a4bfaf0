"""What the benchmarks share: run a program and note what it needed, name the machine, find the programs."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polarvault.instance.model import Binaries
from polarvault.instance.programs import examine

# Installations are found as the tests find them.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.servers import features_of, found_installations, has_program


@dataclass(slots=True)
class Runs:
    """What was measured of one program in one case."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0
    written_mb: float = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def begin_evenly() -> None:
    """Let nothing of the run before weigh on the next: all is on the disk, and free memory is there at once.

    A virtual machine may give its free memory back to the host (free page reporting); who writes to it next pays for
    the faults, up to three times the kernel time of a whole restore, whichever program that happens to be.
    """
    os.sync()
    memory = os.memfd_create("warm")
    try:
        os.posix_fallocate(memory, 0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5)
    finally:
        os.close(memory)


def run_once(command: Sequence[str], runs: Runs, out: Path) -> None:
    """Run a command with its output in `out`, which is removed afterwards, and note what it needed."""
    out.mkdir(parents=True)
    begin_evenly()
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, cwd=out)
        # wait4 alone tells the peak memory of this very child.
        _, status, usage = os.wait4(child.pid, 0)
        runs.seconds.append(time.perf_counter() - started)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\nended with status {child.returncode}:\n{said.read()}")
    runs.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
    runs.peak_mb = max(runs.peak_mb, usage.ru_maxrss / 1024)
    runs.written_mb = sum(s.st_blocks * 512 for s in (os.lstat(p) for p in out.rglob("*"))) / 1e6
    shutil.rmtree(out)


def print_machine(places: dict[str, Path]) -> None:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        f"{os.cpu_count()} cores, {memory_gb:.0f} GB memory, Linux {platform.release()},"
        f" Python {platform.python_version()}; disk {places['disk'].parent}, tmpfs {places['tmpfs'].parent};"
        f" load of others at the start {os.getloadavg()[0]:.1f}"
    )


def choose_installation(bindir: Path | None) -> Binaries | None:
    """Return the programs in bindir, else the newest with zstd, else the newest."""
    if bindir is not None:
        found = examine(str(bindir), None)
        return found if isinstance(found, Binaries) else None
    wanted = ("pgbench", "pg_basebackup")
    candidates = [i for i in found_installations().values() if all(has_program(i, name) for name in wanted)]
    return max(candidates, key=lambda i: ("zstd" in features_of(i), i.major), default=None)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark asks: programs, runs, where to write."""
    parser.add_argument(
        "--bindir", type=Path, help="PostgreSQL programs (default: the newest with zstd, else the newest)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each program in each case")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on a disk")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
