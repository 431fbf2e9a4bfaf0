"""Values: what was read of a backup's small files, for `polarvault.verify.facts.judge` to judge."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.model.finding import Finding, problem
from polarvault.model.lsn import Lsn


@dataclass(frozen=True, slots=True)
class WalRange:
    """WAL that a backup needs on one timeline: from `start` up to, not including, `end`; None: its end is not known."""

    timeline_id: int
    start: Lsn
    end: Lsn | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """What was read of a backup; None or empty: not there. Of a backup in two halves: from the half that counts.

    control: content of global/pg_control (PolarDB: the shared half's). The paths are how findings name the files.
    manifest_system_identifier: of manifest version 2 (PostgreSQL 17 and later). wal_ranges: the manifest's.
    tablespace_map: parsed. tablespace_links (plain): by oid where the link in pg_tblspc leads, and whether that is a
    directory. tablespace_tars: oids of OID.tar. expects_label: False for what is no base backup, such as a copy of a
    server that was shut down.
    """

    control: bytes | None
    control_path: str
    label: bytes | None
    label_path: str
    version: bytes | None
    manifest_system_identifier: int | None
    wal_ranges: tuple[WalRange, ...]
    tablespace_map: dict[int, str] | None
    tablespace_links: dict[int, tuple[str, bool]]
    tablespace_tars: frozenset[int]
    is_tar: bool
    is_polardb: bool
    expects_label: bool = True

    @property
    def first_range(self) -> WalRange | None:
        """The range with which recovery begins; the manifest names the newest timeline first."""
        return min(self.wal_ranges, key=lambda wanted: wanted.timeline_id, default=None)

    @property
    def end_lsn(self) -> Lsn | None:
        """Where the backup ended, by the manifest."""
        last = max(self.wal_ranges, key=lambda wanted: wanted.timeline_id, default=None)
        return None if last is None else last.end


def unusable(check: str, subject: str, message: str, meaning: str) -> Finding:
    """Return the finding of a backup that nothing can mend."""
    return problem(check, subject, message, meaning, "use another backup")
