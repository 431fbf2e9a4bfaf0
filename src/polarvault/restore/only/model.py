"""What is left out of a restore. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polarvault.backupset.backup import Entry
from polarvault.backupset.model import Area
from polarvault.pgfiles.relation_paths import relation_of


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The databases that are left out, names by oid; files and bytes of theirs that become holes."""

    databases: Mapping[int, str]
    files: int = 0
    bytes: int = 0

    def covers(self, entry: Entry) -> bool:
        """Tell whether a file is one of a relation that is left out; what a database needs besides is laid out."""
        prefix = f"pg_tblspc/{entry.tablespace_oid}/" if entry.area is Area.TABLESPACE else ""
        relation = relation_of(prefix + entry.name)
        return relation is not None and relation[0].database_oid in self.databases
