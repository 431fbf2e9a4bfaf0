"""What is known of a backup when it begins, and when all of it has arrived. Nothing here changes afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from polarvault.errors import ServerError
from polarvault.model.lsn import Lsn
from polarvault.pipeline.page_check import PageFindings
from polarvault.server.base_backup import ArchiveBegins, BackupStart
from polarvault.server.identity import ServerIdentity
from polarvault.taking.manifest_spool import ManifestSpool


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What holds for the whole backup, known when the server has begun it.

    started: when the command began, with its zone. streams_wal: WAL comes over a second connection.
    """

    identity: ServerIdentity
    start: BackupStart
    label: str
    started: datetime
    wal_method: str
    streams_wal: bool

    def links_of(self, begins: ArchiveBegins) -> dict[str, str]:
        """Return the symbolic links that an archive may hold, by name, and where each leads: the tablespaces'."""
        if begins.tablespace.oid is not None:
            return {}
        return {
            f"pg_tblspc/{tablespace.oid}": tablespace.location.rstrip("/")
            for tablespace in self.start.tablespaces
            if tablespace.oid is not None and tablespace.location is not None and tablespace.location.startswith("/")
        }


@dataclass(slots=True)
class ArchiveNames:
    """Names of the regular files in one archive, in the order sent: all of them, and those that were not stored."""

    sent: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class ReceivedBackup:
    """What is known when the server has sent everything and all WAL is there.

    local_names, shared_names: PolarDB's base.tar and data.tar, empty elsewhere. pages: what the page check found, None
    if it did not run; corruption: what the server said of damaged pages. configuration: the backup's configuration
    files by name, as far as they may include others; lacks_configuration: one of those without which no server starts
    is missing; linked_configuration: the paths that the server left out because they are links.
    """

    facts: BackupFacts
    stop_lsn: Lsn
    stop_timeline_id: int
    received_bytes: int
    manifest: ManifestSpool | None = None
    local_names: ArchiveNames = field(default_factory=ArchiveNames)
    shared_names: ArchiveNames = field(default_factory=ArchiveNames)
    pages: PageFindings | None = None
    corruption: ServerError | None = None
    configuration: Mapping[str, bytes] = field(default_factory=dict)
    lacks_configuration: bool = False
    linked_configuration: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredBackup:
    """What a target did not store of what was sent, because a restore has no use for it; size in bytes."""

    left_out_files: int = 0
    left_out_bytes: int = 0
