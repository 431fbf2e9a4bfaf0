"""A server with an archive and a backup, of which tables are brought back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.clones import Clones, moment_behind_backup
from support.cluster import Cluster
from support.json_page import checked
from support.program import run_polarvault
from support.waiting import wait_until


class FlashbackSite:
    """A source with an archive, a backup of it, and a place for clones; all of it in one directory."""

    def __init__(self, source: Cluster, disk: Path) -> None:
        self.source, self.disk = source, disk
        self.archive = source.directory / "archive"
        self.backup = disk / "backup"
        self.clones = Clones(disk / "clones", source.installation.directory)

    def back_up(self, *words: object) -> Path:
        """Take a backup; return it when a later moment can be told from its end."""
        run_polarvault(
            "basebackup", "-d", self.source.conninfo(), "-c", "fast", "-N", "-D", self.backup, *words, as_server=True
        )
        moment_behind_backup(self.source)
        return self.backup

    def archive_all(self) -> None:
        """Return when everything that was written is in the archive."""
        [[name]] = self.source.query("SELECT pg_walfile_name(pg_switch_wal())")
        wait_until(lambda: (self.archive / name).exists(), "the segment is archived")

    def now(self) -> str:
        """Return a moment behind everything that was done, and before everything that will be."""
        time.sleep(0.05)
        found = str(self.source.query("SELECT clock_timestamp()::text")[0][0])
        time.sleep(0.05)
        return found

    def transaction(self, *statements: str, dbname: str = "postgres") -> str:
        """Run statements in one transaction; return its number."""
        with self.source.connect(dbname) as connection, connection.transaction():
            for statement in statements:
                connection.execute(statement.encode())
            row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        return str(row[0])

    def run(self, verb: str, *words: object, status: int = 0) -> dict[str, Any]:
        """Run a command that must end with this status and leave no clone; return its JSON."""
        finished = run_polarvault(
            "flashback", verb, self.backup, "--wal", self.archive, *map(str, words), "--at", self.clones.area,
            "--bindir", self.source.installation.directory, "--json", check=False, timeout_s=300,
        )  # fmt: skip
        assert finished.returncode == status, finished.stdout + finished.stderr
        assert self.clones.left() == []
        return checked("flashback", finished.stdout, status=status)

    def refused(self, verb: str, *words: object, status: int = 1) -> dict[str, Any]:
        """Return the error of a command that must fail."""
        error: dict[str, Any] = self.run(verb, *words, status=status)["error"]
        return error
