"""What backups of a cluster there are, how good they are, and up to where the WAL behind each leads. No numpy here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from polarvault.errors import IntegrityError, ObjectMissing, RepositoryNewer, RepositoryNotFound
from polarvault.model.lsn import Lsn
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.record import BackupRecord
from polarvault.repository.states.states import Standing, States, standings
from polarvault.wal.source import HeldRange, joined


@dataclass(frozen=True, slots=True)
class ListedBackup:
    """A backup with what came later. record: None if it cannot be read, then problem says why.

    wal_end: up to where WAL is there without a gap from the backup's start on, on its own timeline; None: not even up
    to its end, so that it cannot be made consistent.
    """

    label: str
    record: BackupRecord | None
    standing: Standing
    note: str = ""
    verified: datetime | None = None
    wal_end: Lsn | None = None
    problem: str = ""

    @property
    def state(self) -> str:
        """One word: expired, damaged, incomplete (its WAL), or good."""
        if self.standing.expired:
            return "expired"
        if self.record is None or self.standing.is_damaged or self.record.facts.damage or self._has_bad_pages:
            return "damaged"
        return "good" if self.wal_end is not None else "incomplete"

    @property
    def _has_bad_pages(self) -> bool:
        return self.record is not None and bool(self.record.facts.details.get("bad_pages"))


class Catalogue:
    """Lists the backups of one cluster; looks at states and WAL once."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        self._repository, self._cluster = repository, cluster
        self.states = States(repository, cluster)
        self._held: dict[tuple[int, int], list[HeldRange]] = {}

    def backups(self) -> list[ListedBackup]:
        """Return all backups, oldest first."""
        standing = standings(self.states.listed())
        found = []
        for label in self._repository.labels(self._cluster):
            # One that an expire removes at this moment is there no more.
            with suppress(RepositoryNotFound):
                found.append(self.one(label, standing.get(label, Standing())))
        return sorted(found, key=_order)

    def find(self, word: str | None) -> ListedBackup:
        """Return the backup that a user means; None: the last one."""
        label = self._repository.find_label(self._cluster, word or "latest")
        return self.one(label, standings(self.states.listed(label)).get(label, Standing()))

    def one(self, label: str, standing: Standing) -> ListedBackup:
        """Return one backup."""
        note = self.states.read(standing.note) if standing.note is not None else None
        verdict = self.states.read(standing.verdict) if standing.verdict is not None else None
        verified = None if verdict is None else verdict.time
        try:
            record = self._repository.record(self._cluster, label)
        except (IntegrityError, ObjectMissing, RepositoryNewer) as problem:
            return ListedBackup(label, None, standing, note.text if note else "", verified, problem=problem.message)
        text = note.text if note is not None else str(record.facts.details.get("note") or "")
        return ListedBackup(label, record, standing, text, verified, self._wal_end(record))

    def _wal_end(self, record: BackupRecord) -> Lsn | None:
        facts = record.facts
        for held in self._ranges(facts.system_identifier, facts.stop_timeline_id):
            if held.start <= facts.start_lsn and held.end >= facts.stop_lsn:
                return held.end
        return None

    def _ranges(self, system_identifier: int, timeline_id: int) -> list[HeldRange]:
        key = system_identifier, timeline_id
        if key not in self._held:
            wal = self._repository.wal_of(self._cluster, system_identifier)
            self._held[key] = joined(HeldRange(one.first, one.last) for one in wal.ranges(timeline_id))
        return self._held[key]


def _order(one: ListedBackup) -> tuple[str, int]:
    # The label begins with the start; within a second the WAL tells.
    stop = one.record.facts.stop_lsn if one.record is not None else 0
    return one.label[:16], stop
