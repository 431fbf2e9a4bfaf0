"""A server, a repository of its account, and the configuration that names both: what timers work with."""

from __future__ import annotations

from pathlib import Path

from support.cluster import Cluster
from support.program import command_line, run_polarvault
from support.waiting import wait_until


class ConfiguredSite:
    """Cluster `shop`, repository `main`; `options` name the configuration. Commands run as the servers' account."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster, self.workspace = cluster, workspace
        self.repository, self.configuration = workspace / "repository", workspace / "polarvault.toml"
        self.options = ["--config", str(self.configuration)]
        self.run("repo", "init", self.repository)
        self.configure()

    def configure(self, *lines: str) -> None:
        """Write the configuration, with further lines of the cluster and of what follows it."""
        text = f'[repository.main]\naddress = "{self.repository}"\n'
        text += f'[cluster.shop]\nconnection = "{self.cluster.conninfo()}"\nrepositories = ["main"]\n'
        self.configuration.write_text(text + "".join(f"{line}\n" for line in lines))
        self.configuration.chmod(0o644)

    def run(self, *words: object, status: int = 0) -> str:
        """Run a command that must end with this status; return what it printed."""
        done = run_polarvault(*map(str, words), as_server=True, check=False, directory=self.workspace)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def archive(self, command: str | None = None) -> None:
        """Have the server archive by a command; None: into the repository."""
        words = command_line("wal", "push", "%p", "--cluster", "shop", "--repo", self.repository)
        self.cluster.configure({"archive_mode": "on", "archive_command": command or " ".join(words)})
        self.cluster.restart()

    def switch(self) -> None:
        """Have the segment that is written archived."""
        ((segment,),) = self.cluster.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.cluster.query("SELECT pg_switch_wal()")
        wait_until(
            lambda: self.cluster.query(f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver") == [(True,)],
            "the segment is archived",
        )
