"""Values of a drill: what is asked for, what was read, and the report. Frozen, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

from polarvault.backupset.backup import Shelf
from polarvault.backupset.source import OnDisk
from polarvault.model.finding import Finding, Severity
from polarvault.recovery.target import RecoveryRequest

if TYPE_CHECKING:
    from polarvault.recovery.watch import RecoveryOutcome


class Reading(Enum):
    """How much of every relation is read."""

    ALL = "all"
    SAMPLE = "sample"
    NONE = "none"


class Part(Enum):
    """The parts of a drill, in their order; a failure names the one it happened in."""

    PLAN = "plan"
    COPY = "copy"
    RECOVERY = "start and recovery"
    AMCHECK = "amcheck"
    READING = "reading"
    ASSERTIONS = "assertions"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Assertion:
    """A file of SQL that must return true; its text was read before the drill began."""

    path: str
    text: bytes


@dataclass(frozen=True, slots=True)
class DrillRequest:
    """What the user asked for; paths are absolute.

    backup: a backup, or a directory of backups, of which the newest that reaches the target is taken. scratch: the
    directory in which the drill makes its own. jobs: connections at a time; copy_jobs: copies at a time, 0 lets the
    restore choose. log_copy: where the server's log goes if the drill fails.
    """

    backup: str
    older: tuple[str, ...] = field(default=(), kw_only=True)
    """The other backups of an incremental one's chain, if they do not lie beside it."""
    scratch: str
    log_copy: str
    shared_from: str | None = None
    merge: bool = False
    shelf: Shelf = field(default_factory=OnDisk)
    """Where the backup is found."""
    recovery: RecoveryRequest = field(default_factory=RecoveryRequest)
    settings: tuple[tuple[str, str], ...] = ()
    assertions: tuple[Assertion, ...] = ()
    dbname: str = "postgres"
    amcheck: bool = False
    reading: Reading = Reading.ALL
    sample_percent: float = 1.0
    keep: bool = False
    jobs: int = 2
    copy_jobs: int = 0
    timeout_s: float = 3600.0
    bindir: str | None = None
    owner: str | None = None
    superuser: str | None = None
    sync: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What is known about the backup; None where it does not say."""

    path: str
    form: str
    label: str | None
    start_lsn: str | None
    stop_lsn: str | None
    start_time: datetime | None
    stop_time: datetime | None
    timeline_id: int | None
    size_bytes: int
    file_count: int
    system_identifier: str | None
    major_version: int
    is_polardb: bool
    has_data_checksums: bool | None
    block_size_bytes: int


@dataclass(frozen=True, slots=True)
class RelationRead:
    """One relation that was read. pages: its size; rows: visible ones, None for an index or after an error.

    kind: pg_class.relkind. problems: (block or None, what the server said). belongs_to: the table of an index
    or a TOAST table. map_problems: (fork "fsm" or "vm", block or None, what the server said).
    """

    database: str
    schema: str
    name: str
    kind: str
    pages: int
    rows: int | None
    problems: tuple[tuple[int | None, str], ...] = ()
    skipped: str | None = None
    belongs_to: str | None = None
    map_problems: tuple[tuple[str, int | None, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PartTime:
    """How long a part took; size_bytes is what it went through, where that is known."""

    part: Part
    seconds: float
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a drill before its end: the part, the error in its own words, the exit status that belongs to it."""

    part: Part
    error_id: str
    message: str
    hint: str | None
    detail: str | None
    exit_status: int


@dataclass(frozen=True, slots=True)
class KeptCopy:
    """The copy that --keep left behind, stopped: where it is and the lines that start, reach, stop and remove it."""

    directory: str
    start: str
    connect: str
    stop: str
    remove: str


@dataclass(frozen=True, slots=True)
class DrillReport:
    """Everything a drill found. log_copy: where the server's log was copied to, after a failure only."""

    backup: str
    began: datetime
    ended: datetime
    findings: tuple[Finding, ...]
    not_proved: tuple[str, ...]
    times: tuple[PartTime, ...]
    relations: tuple[RelationRead, ...]
    facts: BackupFacts | None = None
    server_version: str | None = None
    programs: str | None = None
    recovery: RecoveryOutcome | None = None
    failure: Failure | None = None
    log_copy: str | None = None
    log_end: str | None = None
    kept: KeptCopy | None = None

    @property
    def held(self) -> bool:
        """Tell whether the backup restores and everything that was asked for was found right."""
        return self.exit_status == 0

    @property
    def exit_status(self) -> int:
        """0 if the drill held, the failure's own status if one ended it, 1 for anything else that was found."""
        if self.failure is not None:
            return self.failure.exit_status
        return int(any(finding.severity is Severity.PROBLEM for finding in self.findings))

    def seconds(self, part: Part) -> float | None:
        """Return how long a part took; None if it was not reached or not asked for."""
        return next((time.seconds for time in self.times if time.part is part), None)

    @property
    def recovery_time_s(self) -> float | None:
        """The time from an empty directory to a server that takes connections, as measured here."""
        copy, recovery = self.seconds(Part.COPY), self.seconds(Part.RECOVERY)
        return None if copy is None or recovery is None or self.server_version is None else copy + recovery
