"""Values: what is asked for, a table in a clone, what came out. Frozen, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from polarvault.clones.model import CloneRequest
from polarvault.flashback.names import TableName


class Kind(Enum):
    """What pg_class.relkind says of what can be asked for by a table's name."""

    TABLE = "r"
    PARTITIONED = "p"
    MATERIALISED_VIEW = "m"
    VIEW = "v"
    FOREIGN_TABLE = "f"


@dataclass(frozen=True, slots=True)
class Member:
    """A table, one of its partitions, or a table that inherits from it. is_root: it was asked for."""

    oid: int
    name: TableName
    kind: str
    is_root: bool


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table that was asked for, as a clone has it. members: itself first, then what belongs to it.

    owner: its role; tablespaces: those of its members that are not the database's. is_part: it is a partition, or
    inherits. is_unlogged: no backup and no WAL holds its rows.
    """

    database: str
    members: tuple[Member, ...]
    kind: Kind
    owner: str
    tablespaces: tuple[str, ...]
    is_part: bool
    is_unlogged: bool

    @property
    def name(self) -> TableName:
        """Its own name."""
        return self.members[0].name


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRequest:
    """What the user asked for. database: None, the one that has the tables; output: an absolute path.

    into_words: how the target is shown. as_name: another name there.
    """

    clone: CloneRequest
    tables: tuple[TableName, ...]
    database: str | None = None
    output: str | None = None
    as_name: TableName | None = None
    data_only: bool = False

    def name_in_target(self, name: TableName) -> TableName:
        """Return what a table is to be called where it is restored; --as may leave its schema as it is."""
        wanted = self.as_name
        return name if wanted is None else TableName(wanted.schema or name.schema, wanted.name)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the work, and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class BroughtTable:
    """One table that was brought back. rows: with its partitions, None if they could not be counted."""

    name: TableName
    as_name: TableName | None
    partitions: int
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableResult:
    """What came out. notes: what is not in it, and what there is to do about it, in words."""

    source: str
    moment: str
    lsn: str | None
    database: str
    tables: tuple[BroughtTable, ...]
    output: str | None
    size_bytes: int
    into: str | None
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
