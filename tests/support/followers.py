"""Standbys and replicas made by `restore --start` in tests: run, adopted, stopped afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.cluster import Cluster
from support.program import run_polarvault


class Followers:
    """Restores backups of a source with --start; every server is stopped when the test ends."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._running: list[Cluster] = []

    def make(
        self, source: Cluster, backup: Path, *options: str, role: str = "standby", **how: Any
    ) -> tuple[Cluster, dict[str, Any], str]:
        """Restore and start; return the server, the JSON result and what was said on standard error."""
        server, finished = self.attempt(source, backup, *options, role=role, **how)
        assert finished.returncode == 0, finished.stderr
        return server, json.loads(finished.stdout), finished.stderr

    def attempt(
        self, source: Cluster, backup: Path, *options: str, role: str = "standby", **how: Any
    ) -> tuple[Cluster, subprocess.CompletedProcess[str]]:
        """Restore and start; return the server, which may not run, and how the command ended."""
        name = f"{role}{len(self._running)}"
        server = Cluster(source.installation, self._workspace)
        server.data = self._workspace / name
        server.log = server.data / "polarvault-start.log"
        self._running.append(server)
        finished = run_polarvault(
            "restore", backup, "-D", server.data, "--as", role, "--port", str(server.port),
            "--bindir", source.installation.directory, "--set", f"unix_socket_directories={self._workspace}",
            "--set", "fsync=off", "-N", "--start", "--timeout", "60", "--json", *options, check=False, **how,
        )  # fmt: skip
        return server, finished

    def stop(self) -> None:
        """Stop every server."""
        for server in reversed(self._running):
            server.stop("immediate")


@contextmanager
def followers_in(workspace: Path) -> Iterator[Followers]:
    """Yield a maker of followers and stop what it started."""
    followers = Followers(workspace)
    try:
        yield followers
    finally:
        followers.stop()
