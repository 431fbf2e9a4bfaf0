"""Make clones in a directory of a test's own, connect to them, and see that nothing else has changed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from polarvault.instance.account import server_account
from support.cluster import Cluster
from support.file_systems import Unavailable, file_system
from support.program import run_polarvault


@contextmanager
def sharing_disk(workspace: Path, *, size_mb: int = 1500) -> Iterator[Path]:
    """Yield a directory on an XFS that shares extents, in which the servers' user may write; skip where none can be."""
    try:
        with file_system("xfs", workspace, size_mb=size_mb) as disk:
            disk.path.chmod(0o755)
            server_account().own(disk.path)
            yield disk.path
    except Unavailable as reason:
        pytest.skip(str(reason))


class Clones:
    """The clones in one directory, by way of the program."""

    def __init__(self, area: Path, bindir: str | None = None) -> None:
        self.area = area
        self._bindir = bindir

    def run(self, verb: str, *words: object, status: int = 0) -> dict[str, Any]:
        """Run a command that must end with this status; return its JSON."""
        more = ["--bindir", self._bindir] if verb == "create" and self._bindir else []
        finished = run_polarvault(
            "clone", verb, *map(str, words), "--at", self.area, *more, "--json", check=False, timeout_s=300
        )
        assert finished.returncode == status, finished.stdout + finished.stderr
        found: dict[str, Any] = json.loads(finished.stdout)
        return found

    def create(self, source: object, *words: object) -> dict[str, Any]:
        """Make a clone; return what is said of it."""
        found: dict[str, Any] = self.run("create", source, *words)
        return {**found["clone"], "warnings": found["warnings"]}

    def refused(self, source: object, *words: object, status: int = 1) -> dict[str, Any]:
        """Return the error of a clone that must not be made, of which nothing may be left."""
        before = self.left()
        error: dict[str, Any] = self.run("create", source, *words, status=status)["error"]
        assert self.left() == before
        return error

    def states(self) -> dict[str, str]:
        """Return the state of every clone by name."""
        return {one["name"] or one["id"]: one["state"] for one in self.run("list")["clones"]}

    def left(self) -> list[str]:
        """Return what is in the directory of clones, base copies and the lock apart."""
        if not self.area.exists():
            return []
        return sorted(path.name for path in self.area.iterdir() if path.name.startswith("polarvault-clone"))

    def bases(self) -> list[str]:
        """Return the names of base copies."""
        return sorted(path.name for path in self.area.iterdir() if path.name.startswith("polarvault-base"))

    def remove_all(self) -> None:
        """Remove every clone, also after a test that failed."""
        for name in self.left():
            run_polarvault("clone", "remove", name.rpartition("-")[2], "--at", self.area, check=False)


def moment_behind_backup(source: Cluster) -> str:
    """Return a moment that lies behind a backup which has just ended, as the WAL shows it.

    The end of a backup is known to the second, so a transaction has to follow in a later one.
    """
    time.sleep(1.1)
    source.query("CREATE TABLE IF NOT EXISTS moments (at timestamptz); INSERT INTO moments VALUES (clock_timestamp())")
    return str(source.query("SELECT clock_timestamp()::text")[0][0])


def ask(clone: dict[str, Any], query: str, **more: Any) -> list[Any]:
    """Return the rows of a query in a clone."""
    with psycopg.connect(clone["connection"], autocommit=True, connect_timeout=20, **more) as connection:
        cursor = connection.execute(query)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def photograph(*roots: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about the files below some directories: contents, modes, owners, times of writing."""
    found: dict[str, tuple[object, ...]] = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in (*names, *files, "."):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                content = ""
                if stat.S_ISREG(status.st_mode):
                    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                elif stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                found[path] = (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ctime_ns, content)
    return found


def postmaster_of(clone: dict[str, Any]) -> int:
    """Return the process of a clone's server."""
    return int((Path(clone["directory"]) / "run" / "data" / "postmaster.pid").read_text().split()[0])


def can_reach(clone: dict[str, Any], port: int) -> bool:
    """Tell whether a program that the clone's server runs reaches a TCP port of this machine."""
    with psycopg.connect(clone["connection"], autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE said (line text)")
        connection.execute(
            f"COPY said FROM PROGRAM 'bash -c \"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached || true\" 2>&1'"  # type: ignore[call-overload]
        )
        said = connection.execute("SELECT line FROM said").fetchall()
    return ("reached",) in said


def processes_below(directory: Path) -> list[str]:
    """Return the servers that run on something below a directory."""
    found = subprocess.run(["pgrep", "-af", str(directory)], capture_output=True, text=True, check=False).stdout
    return [line for line in found.splitlines() if "postgres" in line.split()[1:2][0]]
