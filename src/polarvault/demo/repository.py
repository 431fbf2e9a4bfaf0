"""The part of the story that plays in a repository: what the second backup costs, and that it all comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polarvault.demo.bank import digest
from polarvault.demo.narrator import Narrator
from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.errors import IntegrityError

_CLUSTER = "bank"
_TABLES = ("accounts", "events", "documents")


@dataclass(frozen=True, slots=True)
class Site:
    """Where this part plays, and what runs a command of ours."""

    narrator: Narrator
    directory: Path
    run: Callable[..., None]
    bindir: str

    @property
    def repository(self) -> str:
        """The directory of the repository."""
        return str(self.directory / "repository")


def tell_of_repository(
    site: Site, source: ThrowawayServer, restored: ThrowawayServer, *, on_shared_storage: bool
) -> None:
    """Make a repository, back up, change, back up again, list, restore, say what would expire."""
    connection = ["-h", str(source.directory), "-p", str(source.port), "-U", SUPERUSER]
    site.narrator.step("make a repository, and take a backup into it")
    site.run("repo", "init", site.repository)
    site.run("backup", _CLUSTER, "--repo", site.repository, *connection)
    site.narrator.step("change something, and take the next one")
    source.query("UPDATE documents SET body = body || '!' WHERE id % 1000 = 0")
    site.run("backup", _CLUSTER, "--repo", site.repository, *connection, "--note", "after the change")
    site.narrator.step("list them")
    site.run("list", _CLUSTER, "--repo", site.repository)
    site.narrator.step("restore the last one, and compare")
    wanted = {table: digest(source, table) for table in _TABLES}
    shared = ["--polardata", str(site.directory / "of-repository-shared")] if on_shared_storage else []
    site.run(
        *("restore", _CLUSTER, "--repo", site.repository, "-D", str(restored.data), *shared),
        *("--port", str(restored.port), "--bindir", site.bindir, "--start"),
    )
    if {table: digest(restored, table) for table in _TABLES} != wanted:
        raise IntegrityError("what came out of the repository differs from the source")
    site.narrator.good("it cost what had changed, and everything came back")
    site.narrator.step("ask what a policy would remove")
    site.run("expire", _CLUSTER, "--repo", site.repository, "--keep", "1", "--dry-run")
