"""Snapshots and images in one directory by way of the program, and file systems for servers to lie on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polarvault.instance.account import server_account
from support.cluster import Cluster
from support.file_systems import FileSystem, Unavailable, file_system
from support.json_page import checked
from support.program import run_polarvault

# All four are the same at every moment, whatever pgbench does.
SUMS = """
    SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
           (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
"""


class Snapshots:
    """The snapshots in one directory, by way of the program."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def run(self, verb: str, *words: object, status: int = 0) -> dict[str, Any]:
        finished = run_polarvault("snapshot", verb, *map(str, words), "--at", self.at, "--json", check=False)
        assert finished.returncode == status, finished.stdout + finished.stderr
        return checked("snapshot", finished.stdout, status=status)

    def create(self, source: Cluster, *words: object) -> dict[str, Any]:
        found: dict[str, Any] = self.run("create", "-d", source.conninfo(), *words)["snapshot"]
        return found

    def states(self, status: int = 0) -> dict[str, str]:
        return {one["name"]: one["state"] for one in self.run("list", status=status)["snapshots"]}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.at.iterdir()) if self.at.exists() else []


class Images:
    """The images in one directory, by way of the program."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def run(self, verb: str, *words: object, status: int = 0) -> dict[str, Any]:
        finished = run_polarvault(
            "image", verb, *map(str, words), "--at", self.at, "--json", check=False, timeout_s=300
        )
        assert finished.returncode == status, finished.stdout + finished.stderr
        return checked("image", finished.stdout, status=status)

    def make(self, verb: str, *words: object) -> dict[str, Any]:
        """Create or advance; return what is said of the image."""
        found = self.run(verb, *words)
        return {**found["image"], "warnings": found["warnings"]}

    def names(self) -> list[str]:
        """Return the names of those that are whole."""
        return [one["name"] for one in self.run("list")["images"] if one["state"] == "whole"]

    def left(self) -> list[str]:
        return sorted(path.name for path in self.at.iterdir()) if self.at.exists() else []


@contextmanager
def disk_of(kind: str, workspace: Path) -> Iterator[tuple[FileSystem, Path]]:
    """Yield a file system and a directory in it for a server, a dataset or subvolume of its own where that counts."""
    try:
        with file_system(kind, workspace, size_mb=1500) as disk:
            disk.path.chmod(0o755)
            home = disk.path / "home"
            if kind == "zfs":
                subprocess.run(["zfs", "create", f"{disk.dataset}/home"], check=True)
            elif kind == "btrfs":
                subprocess.run(["btrfs", "subvolume", "create", str(home)], check=True, capture_output=True)
            else:
                home.mkdir()
            for path in (disk.path, home):
                server_account().own(path)
            yield disk, home
    except Unavailable as reason:
        pytest.skip(str(reason))


def datasets_of(disk: FileSystem) -> list[str]:
    """Return every dataset and snapshot of ZFS."""
    if disk.dataset is None:
        return []
    words = ["zfs", "list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", disk.dataset]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
