"""How a cluster stands in a repository, with few requests: what `status` shows.

One listing, and then only what the answer hangs on: the records from the newest back to a good one, by bisection that
of the backup with which the window begins, the last words of verifications and drills, and the end of the WAL. A
window is the same as that of `wal_windows`, of the backup that counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from polarvault.errors import (
    IntegrityError,
    ObjectDamaged,
    ObjectMissing,
    PolarvaultError,
    RepositoryNewer,
    StorageFailed,
)
from polarvault.model.lsn import Lsn
from polarvault.repository.catalogue.latest import latest_label
from polarvault.repository.catalogue.names_there import NamesThere, names_there
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.catalogue.wal_windows import reach, read_history
from polarvault.repository.format.names import label_time
from polarvault.repository.format.record import BackupRecord
from polarvault.repository.states.drills import Drilled
from polarvault.repository.states.gaps import AcknowledgedGap, read_gaps
from polarvault.repository.states.states import (
    CLUSTER,
    DAMAGED,
    DRILLED,
    VERIFIED,
    Standing,
    States,
    standings,
)
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.repository.wal.times import last_commit
from polarvault.wal.history import TimelineHistory
from polarvault.wal.source import HeldRange, joined

# Reads of records, newest first, until one is good; and of histories, the newest timeline first.
_MOST_RECORDS = 10
_MOST_HISTORIES = 10
_UNREADABLE = (IntegrityError, ObjectMissing, RepositoryNewer)


@dataclass(frozen=True, slots=True)
class Reach:
    """The moments that are reached with the last good backup: from which on, up to which LSN on which timeline.

    time: of the last moment that is known to be in it: a commit, or the end of the backup. gap: WAL that is missing
    behind the end while later WAL is there; acknowledged: whether somebody has said that this is known.
    """

    start: datetime
    end: Lsn
    timeline_id: int
    time: datetime
    backups: int
    gap: HeldRange | None = None
    acknowledged: AcknowledgedGap | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """The last verification."""

    label: str
    time: datetime
    good: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """A cluster in a repository; nothing here needs to be listed again.

    backups: how many that are not expired; last: the last good one; newer: labels that are not good and newer, with
    the reason; damaged: labels of which a verification has found damage. Sizes are stored bytes, day_bytes and
    week_bytes those of backups that began so long ago at most. first: when the oldest backup began.
    """

    backups: int
    first: datetime | None
    last: BackupRecord | None
    newer: Sequence[tuple[str, str]]
    damaged: Sequence[str]
    reach: Reach | None
    stored_bytes: int
    wal_bytes: int
    day_bytes: int
    week_bytes: int
    verified: Verified | None
    drilled: Drilled | None
    problems: Sequence[str] = field(default=())
    """What could not be read."""


def look_over(repository: Repository, cluster: str, now: datetime) -> Overview | None:
    """Return how a cluster stands; None if nothing of it is there."""
    there = names_there(repository, cluster)
    return _Look(repository, cluster, there, now).overview() if there.count else None


class _Look:
    def __init__(self, repository: Repository, cluster: str, there: NamesThere, now: datetime) -> None:
        self._repository, self._cluster, self._there, self._now = repository, cluster, there, now
        self._standings = standings(sorted(there.states))
        self._states = States(repository, cluster)
        self._records: dict[str, BackupRecord | str] = {}
        self._living = self._in_order()
        self._wal: dict[int, RepositoryWal] = {}
        self._held: dict[tuple[int, int], list[HeldRange]] = {}
        self._problems: list[str] = []

    def overview(self) -> Overview:
        last, newer = self._last_good()
        return Overview(
            len(self._living),
            min(map(label_time, self._living), default=None),
            last,
            newer,
            [one for one in self._living if self._standing(one).is_damaged],
            None if last is None else self._reach(last),
            self._there.stored_bytes,
            self._there.wal_bytes,
            self._grown(timedelta(days=1)),
            self._grown(timedelta(days=7)),
            self._verified(),
            self._drilled(),
            self._problems,
        )

    def _standing(self, label: str) -> Standing:
        return self._standings.get(label, Standing())

    def _grown(self, span: timedelta) -> int:
        sizes = self._there.backup_bytes.items()
        return sum(size for label, size in sizes if label_time(label) > self._now - span)

    # Backups

    def _in_order(self) -> list[str]:
        """Return the labels that are not expired, oldest first; the last one is that of `shop@latest`."""
        living = {one: at for one, at in self._there.recorded.items() if not self._standing(one).expired}
        labels = sorted(living)
        if labels:
            # What cannot be read is named where it is looked at; then the label tells.
            with suppress(PolarvaultError):
                last = latest_label(living, self._readable)
                labels.remove(last)
                labels.append(last)
        return labels

    def _readable(self, label: str) -> BackupRecord:
        record = self._record(label)
        if isinstance(record, str):
            raise ObjectDamaged(record)
        return record

    def _last_good(self) -> tuple[BackupRecord | None, list[tuple[str, str]]]:
        newer: list[tuple[str, str]] = []
        for label in reversed(self._living):
            if len(newer) == _MOST_RECORDS:
                break
            record = self._record(label)
            why = record if isinstance(record, str) else self._flaw(record)
            if why or isinstance(record, str):
                newer.append((label, why))
                continue
            return record, newer
        return None, newer

    def _record(self, label: str) -> BackupRecord | str:
        """Return a record, or why it is not to be had."""
        if label not in self._records:
            try:
                self._records[label] = self._repository.record(self._cluster, label)
            except _UNREADABLE as problem:
                self._records[label] = problem.message
        return self._records[label]

    def _flaw(self, record: BackupRecord) -> str:
        facts = record.facts
        if self._standing(record.label).is_damaged:
            return "a verification found damage"
        if facts.damage or facts.details.get("bad_pages"):
            return "pages of the server are damaged in it"
        ranges = self._held_of(facts.system_identifier, facts.stop_timeline_id)
        if not any(one.start <= facts.start_lsn and facts.stop_lsn <= one.end for one in ranges):
            return "WAL that it needs is missing"
        return ""

    # WAL

    def _wal_of(self, system_identifier: int) -> RepositoryWal:
        if system_identifier not in self._wal:
            self._wal[system_identifier] = self._repository.wal_of(self._cluster, system_identifier)
        return self._wal[system_identifier]

    def _ranges(self, system_identifier: int, timeline_id: int) -> list[StoredRange]:
        return self._there.ranges(system_identifier, timeline_id, self._wal_of(system_identifier).segment_bytes)

    def _held_of(self, system_identifier: int, timeline_id: int) -> list[HeldRange]:
        key = system_identifier, timeline_id
        if key not in self._held:
            self._held[key] = joined(HeldRange(one.first, one.last) for one in self._ranges(*key))
        return self._held[key]

    def _reach(self, last: BackupRecord) -> Reach | None:
        facts, identifier = last.facts, last.facts.system_identifier
        timelines = [one for one in self._there.timelines(identifier) if one >= facts.stop_timeline_id]
        held = {one: self._held_of(identifier, one) for one in self._there.timelines(identifier)}
        for timeline_id in sorted(timelines, reverse=True)[:_MOST_HISTORIES]:
            history, problem = read_history(self._wal_of(identifier), timeline_id)
            end = reach(history, held, facts.stop_timeline_id, facts.start_lsn, facts.stop_lsn)
            if end is None:
                continue
            if problem:
                self._problems.append(problem)
            start, count = self._window(history, held, end, last)
            gap = next(
                (HeldRange(end, one.start) for one in held[timeline_id] if one.start > end), None
            )  # fmt: skip
            known = self._acknowledged(identifier, timeline_id, gap)
            return Reach(
                start, end, timeline_id, self._end_time(last, timeline_id, end), count, gap, known
            )  # fmt: skip
        return None

    def _window(
        self, history: TimelineHistory, held: Mapping[int, Sequence[HeldRange]], end: Lsn, last: BackupRecord
    ) -> tuple[datetime, int]:
        """Return since when every moment is reached, and from how many backups.

        Behind a backup that leads to the end all newer ones do, so that the oldest is found in a few steps.
        """

        def leads(record: BackupRecord | str) -> bool:
            if isinstance(record, str) or record.facts.system_identifier != last.facts.system_identifier:
                return False
            facts = record.facts
            return reach(history, held, facts.stop_timeline_id, facts.start_lsn, facts.stop_lsn) == end

        low, high = 0, self._living.index(last.label)
        position, oldest = high, last
        while low < high:
            middle = (low + high) // 2
            record = self._record(self._living[middle])
            if isinstance(record, BackupRecord) and leads(record):
                high, oldest = middle, record
            else:
                low = middle + 1
        return oldest.facts.finished, position - high + 1

    def _end_time(self, last: BackupRecord, timeline_id: int, end: Lsn) -> datetime:
        """Return the last moment that is known to be reached: the backup's end, or a commit behind it."""
        identifier = last.facts.system_identifier
        committed = None
        if end > last.facts.stop_lsn:
            try:
                ranges = self._ranges(identifier, timeline_id)
                committed = last_commit(self._wal_of(identifier), ranges, end)
            except (IntegrityError, StorageFailed) as problem:
                # Expired meanwhile, or damaged; the rest of the answer holds.
                self._problems.append(problem.message)
        return max(last.facts.finished, committed or last.facts.finished)

    def _acknowledged(
        self, system_identifier: int, timeline_id: int, gap: HeldRange | None
    ) -> AcknowledgedGap | None:  # fmt: skip
        if gap is None:
            return None
        known = read_gaps(self._states, self._there.states)
        return next((one for one in reversed(known) if one.covers(system_identifier, timeline_id, gap)), None)

    # What came later

    def _verified(self) -> Verified | None:
        """Return the last verification. States of several backups have no order but that of the store's clock."""
        verdicts = [
            (at, name) for name, at in self._there.states.items()
            if name.kind in (VERIFIED, DAMAGED) and name.subject != CLUSTER
        ]  # fmt: skip
        if not verdicts:
            return None
        _, name = max(verdicts)
        try:
            state = self._states.read(name)
        except IntegrityError as problem:
            self._problems.append(problem.message)
            return None
        return None if state is None else Verified(name.subject, state.time, name.kind == VERIFIED)

    def _drilled(self) -> Drilled | None:
        names = sorted(one for one in self._there.states if one.subject == CLUSTER and one.kind == DRILLED)
        if not names:
            return None
        try:
            state = self._states.read(names[-1])
        except IntegrityError as problem:
            self._problems.append(problem.message)
            return None
        return None if state is None else Drilled.of(state)
