"""polarvault clone create beside pgbackrest restore: same cluster, same run, alternating, on XFS (a loop device).

usage: python bench/clones.py --pgbackrest FILE [--runs 3] [--scale 150] [--bindir DIR] [--disk DIR] [--json FILE]

Ours: the wall time from the command line to a clone that takes connections, of a plain backup on the same XFS, with
nothing to replay but the backup's own WAL; and what the clone takes of its own, in parts of the cluster's size.
Theirs: the wall time of the restore alone, to the same XFS; its server would still have to be started. The directories
are removed and the disks synchronised before every run, outside the measured time. Only root can mount.
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
from pathlib import Path
from typing import Any

from measuring import add_place_options, begin_evenly, choose_installation, print_machine
from polarvault.demo.reachable import reachable
from polarvault.instance.account import server_account
from repository import Theirs, make_server, size_of
from support.file_systems import file_system

_TARGET_RATIO, _TARGET_S, _TARGET_SHARE = 0.15, 3.0, 0.05
_XFS_MB = 12_000


def run_ours(*words: object) -> tuple[float, dict[str, Any]]:
    """Run a command of ours as root; return its wall time in seconds and what it prints."""
    begin_evenly()
    started = time.perf_counter()
    command = [sys.executable, "-m", "polarvault", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return seconds, found


def main() -> None:
    """Parse the command line, measure, print."""
    options = _parse()
    account = server_account()
    ours: list[float] = []
    theirs: list[float] = []
    own_bytes: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix="pv-bench-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="pv-", dir="/tmp") as sockets,
        file_system("xfs", Path(disk), size_mb=_XFS_MB) as xfs,
    ):
        for path in (Path(disk), Path(sockets), xfs.path):
            path.chmod(0o755)
            account.own(path)
        print_machine({"disk": Path(disk), "tmpfs": options.tmpfs})
        installation = reachable(options.installation, account, Path(sockets))
        with make_server(installation, Path(sockets) / "server", Path(disk), options) as server:
            ((size,),) = server.query("SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
            print(f"{installation}, {size / 1e9:.2f} GB", flush=True)
            backup, clones = xfs.path / "backup", xfs.path / "clones"
            run_ours("basebackup", "-d", server.conninfo(), "-D", backup, "-c", "fast")
            pgbackrest = Theirs(options.pgbackrest, account, server, Path(disk))
            pgbackrest.forget()
            pgbackrest.back_up(full=True)
            for number in range(options.runs):
                for is_ours in (True, False) if number % 2 == 0 else (False, True):
                    if is_ours:
                        seconds, found = run_ours("clone", "create", backup, "--at", clones)
                        ours.append(seconds)
                        own_bytes.append(found["clone"]["own_bytes"])
                        run_ours("clone", "remove", found["clone"]["id"], "--at", clones)
                    else:
                        target = xfs.path / "restored"
                        theirs.append(pgbackrest.restore(target))
                        shutil.rmtree(target)
            backup_bytes = size_of(backup)
    ratio = statistics.median(ours) / statistics.median(theirs)
    share = statistics.median(own_bytes) / backup_bytes
    print(f"clone create           {statistics.median(ours):.2f} s, open (target {_TARGET_S:.0f} s)")
    print(f"pgbackrest restore     {statistics.median(theirs):.2f} s, not started")
    print(f"ratio                  {ratio:.3f} (target {_TARGET_RATIO})")
    print(
        f"the clone's own bytes  {statistics.median(own_bytes) / 1e6:.1f} MB, {share:.1%} (target {_TARGET_SHARE:.0%})"
    )
    if options.json:
        rows = {"ours_s": ours, "theirs_s": theirs, "own_bytes": own_bytes, "backup_bytes": backup_bytes}
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--pgbackrest", type=Path, required=True, help="the program pgbackrest, 2.45 or later")
    parser.add_argument("--scale", type=int, default=150, help="size of the data; 150 is about 2.2 GB")
    options = parser.parse_args()
    options.installation = choose_installation(options.bindir)
    if options.installation is None:
        parser.error("no PostgreSQL programs were found; name them with --bindir")
    return options


if __name__ == "__main__":
    main()
