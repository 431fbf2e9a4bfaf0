"""A server that archives into a repository by `wal push`, as its own account."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from support.cluster import Cluster
from support.program import command_line, run_polarvault
from support.waiting import wait_until


class Archived:
    """A server that archives into a repository, made by its own account."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster, self.workspace = cluster, workspace
        self.repository = workspace / "repository"
        self.options: list[str] = ["--repo", str(self.repository)]
        self.begin()

    def begin(self) -> None:
        """Make the repository, and have the server archive into it."""
        self.run("repo", "init", self.repository)
        self.archive_into()

    def archive_into(self) -> None:
        """Restart the server with the archive_command for our options."""
        words = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", *self.options))
        cluster = self.cluster
        cluster.configure({"archive_mode": "on", "archive_command": words})
        cluster.restart()

    def run(self, *words: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run as the server's account, which owns the repository."""
        return run_polarvault(*map(str, words), as_server=True, check=check, directory=self.workspace)

    def back_up(self) -> dict[str, Any]:
        done = self.run("backup", "shop", *self.options, "-d", self.cluster.conninfo(), "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def push(self, path: Path) -> subprocess.CompletedProcess[str]:
        return self.run("wal", "push", path, "--cluster", "shop", *self.options, check=False)

    def switch(self) -> str:
        """Have the segment that is written archived; return its name."""
        ((segment,),) = self.cluster.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.cluster.query("SELECT pg_switch_wal()")
        wait_until(
            lambda: self.cluster.query(
                f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"
            ) == [(True,)],
            "the segment is archived",
        )  # fmt: skip
        return str(segment)

    def restored(self, name: str, *more: str, word: str = "shop") -> Cluster:
        server = Cluster(self.cluster.installation, self.workspace)
        server.data = self.workspace / name
        self.run(
            "restore", word, *self.options, "-D", server.data, "--port", server.port, "--bindir",
            server.installation.directory, "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off",
            "-N", "--start", *more,
        )  # fmt: skip
        return server
