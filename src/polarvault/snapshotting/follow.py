"""The use case `snapshot follow`: a snapshot again and again, a look at its source before each, and what goes again.

A snapshot that fails ends nothing: it is said, and taken again at the next time. What is removed are the oldest of
those that were made under the same name of a series.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.server.connection import Connection
from polarvault.snapshotting.create import remove_snapshot
from polarvault.snapshotting.model import SnapshotRecord
from polarvault.snapshotting.shelf import Shelf
from polarvault.taking.reporter import BackupReporter

_STANDBY = """
SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn(), pg_catalog.pg_last_wal_receive_lsn(),
(SELECT count(*) FROM pg_catalog.pg_stat_wal_receiver),
CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() END,
pg_catalog.current_setting('archive_mode')
"""
_ARCHIVER = """
SELECT last_failed_wal, last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_catalog.pg_stat_archiver
"""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a server says of itself. replayed, received: None for a primary, and for what has received nothing."""

    in_recovery: bool
    replayed: Lsn | None
    received: Lsn | None
    receives: bool
    is_paused: bool
    archive_mode: str
    failed_wal: str | None
    """The segment that could not be archived last; None: the last one could."""


def read_source(sql: Connection) -> SourceFacts:
    """Ask a server; raise ServerError, ConnectionLost."""
    row = sql.query(_STANDBY).rows[0]
    failed = sql.query(_ARCHIVER).rows[0]
    return SourceFacts(
        row[0] == "t", _lsn(row[1]), _lsn(row[2]), row[3] not in (None, "0"), row[4] == "t", row[5] or "off",
        failed[0] if failed[1] == "t" else None,
    )  # fmt: skip


def judge_source(before: SourceFacts | None, now: SourceFacts) -> Iterator[str]:
    """Yield what is wrong with a source, and what to type; before: at the look before."""
    if now.in_recovery and now.is_paused:
        yield (
            f"the standby does not replay: it is paused at {now.replayed}, and snapshots are of that moment; go on: "
            "SELECT pg_wal_replay_resume()"
        )
    elif now.in_recovery and before is not None and before.in_recovery and now.replayed == before.replayed:
        if now.received is not None and now.replayed is not None and now.received > now.replayed:
            yield (
                f"the standby does not replay: it has WAL up to {now.received} and has been at {now.replayed} since "
                "the last snapshot; see its log and pg_stat_activity of the startup process"
            )
        elif not now.receives:
            yield (
                f"the standby has been at {now.replayed} since the last snapshot and is connected to no primary; see "
                "primary_conninfo and its log"
            )
    if now.failed_wal is not None:
        yield f"WAL is not archived: the last attempt, with {now.failed_wal}, failed; see the server's log"
    if before is None and now.archive_mode != "always" and now.in_recovery:
        yield (
            f"archive_mode is {now.archive_mode} on this standby: it archives nothing itself, and when its primary is "
            "lost snapshots lead only to their own ends; on it: ALTER SYSTEM SET archive_mode = 'always', and restart"
        )
    if before is None and now.archive_mode == "off" and not now.in_recovery:
        yield "archive_mode is off on this primary: snapshots lead only to their own ends, unless somebody receives WAL"


@dataclass(frozen=True, slots=True)
class Following:
    """How to follow: take makes one snapshot, look opens a session with its source (None: it cannot be asked).

    stopped: waits so many seconds and tells whether to stop.
    """

    shelf: Shelf
    series: str
    every_s: float
    keep: int
    daily: int
    take: Callable[[], SnapshotRecord]
    look: Callable[[], Connection] | None
    stopped: Callable[[float], bool]
    clock: Callable[[], datetime]
    once: bool = False


@dataclass(slots=True)
class Followed:
    """What was done: names of snapshots, and how many could not be made."""

    taken: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: int = 0


def follow(following: Following, reporter: BackupReporter) -> Followed:
    """Take snapshots until it is told to stop; what is being made then is finished."""
    done, before = Followed(), None
    while True:
        began = time.monotonic()
        before = _look(following, before, reporter)
        try:
            record = following.take()
        except PolarvaultError as problem:
            done.failed += 1
            hint = f"; {problem.hint}" if problem.hint else ""
            reporter.warning(f"no snapshot was taken: {problem.message}{hint}")
        else:
            done.taken.append(record.name)
            reporter.note(f"snapshot {record.name}: LSN {record.start_lsn} to {record.stop_lsn}")
            done.removed += _prune(following, reporter)
        if following.once or following.stopped(max(0.0, began + following.every_s - time.monotonic())):
            return done


def _look(following: Following, before: SourceFacts | None, reporter: BackupReporter) -> SourceFacts | None:
    if following.look is None:
        return None
    try:
        connection = following.look()
        try:
            facts = read_source(connection)
        finally:
            connection.close()
    except PolarvaultError as problem:
        reporter.warning(f"the source was not looked at: {problem.message}")
        return before
    for line in judge_source(before, facts):
        reporter.warning(line)
    return facts


def _prune(following: Following, reporter: BackupReporter) -> list[str]:
    records = [record for slot in following.shelf.slots() if slot.is_whole and (record := slot.record()) is not None]
    ours = [record for record in records if record.series == following.series]
    kept = kept_of([(record.id, record.made) for record in ours], following.keep, following.daily)
    removed = []
    for record in ours:
        if record.id in kept:
            continue
        try:
            removed.append(remove_snapshot(following.shelf, record.id))
        except PolarvaultError as problem:
            reporter.warning(f"the snapshot {record.name} is over and stays: {problem.message}")
    return removed


def kept_of(made: Iterable[tuple[str, datetime]], keep: int, daily: int) -> set[str]:
    """Return which ones stay: the last `keep`, and the last one of each of the last `daily` days that have any."""
    newest_first = sorted(made, key=lambda one: one[1], reverse=True)
    kept = {name for name, _ in newest_first[:keep]}
    days: dict[object, str] = {}
    for name, when in newest_first:
        days.setdefault(when.date(), name)
    return kept | set(_first(list(days.values()), daily))


def _first(names: Sequence[str], count: int) -> Sequence[str]:
    return names[:count]


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)
