"""What WAL of a cluster is in a repository, by timeline: stretches, gaps, and the windows of moments that are reached.

A window begins where a backup is consistent and ends where the WAL behind it has a gap. It goes on from a timeline to
those that branch from it, as long as the WAL reaches the switch. The times at its ends are those of backups and of
commits, read from a bit of the WAL there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby, pairwise

from polarvault.errors import IntegrityError, ObjectMissing, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.repository.catalogue.listing import Catalogue, ListedBackup
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.states.gaps import AcknowledgedGap, read_gaps
from polarvault.repository.states.states import CLUSTER
from polarvault.repository.wal.merging import superseded, to_merge
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.repository.wal.times import last_commit
from polarvault.storage.objects.model import StoredObject
from polarvault.wal.history import TimelineHistory, history_file_name
from polarvault.wal.source import HeldRange, joined

# Windows of a timeline, the newest, of which times are read: each takes some requests.
_MOST_TIMES = 5


@dataclass(frozen=True, slots=True)
class Window:
    """Every moment from start to end is reached, from these backups; the oldest first.

    start_time, end_time: of the end of a backup, or of the last commit before; None where neither is known.
    """

    start: Lsn
    end: Lsn
    backups: tuple[str, ...]
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class TimelineWal:
    """WAL of one timeline. parent, switch_lsn: where it branched off; None for the first, or if that is not known.

    problem: why its history is not known, "" if it is. to_merge: objects that become fewer when their segment is
    merged; superseded: those that lie in others, and wait for `expire`.
    """

    timeline_id: int
    parent: int | None
    switch_lsn: Lsn | None
    held: Sequence[HeldRange]
    objects: int
    stored_bytes: int
    windows: Sequence[Window]
    problem: str = ""
    to_merge: int = 0
    superseded: int = 0

    @property
    def gaps(self) -> list[HeldRange]:
        """What is missing between two stretches."""
        return [HeldRange(one.end, other.start) for one, other in pairwise(self.held)]


@dataclass(frozen=True, slots=True)
class GenerationWal:
    """WAL of a cluster under one system identifier; timelines from the first on."""

    system_identifier: int
    timelines: Sequence[TimelineWal]
    known: Sequence[AcknowledgedGap] = ()
    """Gaps that somebody has acknowledged."""

    @property
    def lost_gaps(self) -> list[tuple[int, HeldRange]]:
        """The gaps behind a backup, with their timelines, of which nobody knows: moments in them are not reached."""
        return [
            (one.timeline_id, gap)
            for one in self.timelines
            for gap in one.gaps
            if any(window.end <= gap.start for window in one.windows)
            and self.acknowledged(one.timeline_id, gap) is None
        ]

    def acknowledged(self, timeline_id: int, gap: HeldRange) -> AcknowledgedGap | None:
        """Return what was said of a gap last; None if nobody knows of it."""
        found = (one for one in reversed(self.known) if one.covers(self.system_identifier, timeline_id, gap))
        return next(found, None)


@dataclass(frozen=True, slots=True)
class ServerWal:
    """Where a server stands. lsn None: it could not be asked, and problem says why."""

    system_identifier: int | None = None
    timeline_id: int | None = None
    lsn: Lsn | None = None
    problem: str | None = None


def lag_bytes(server: ServerWal, generations: Sequence[GenerationWal]) -> int | None:
    """Return how much WAL of the server is not here; None where nothing is known of its timeline."""
    ends = [
        one.held[-1].end
        for generation in generations if generation.system_identifier == server.system_identifier
        for one in generation.timelines if one.timeline_id == server.timeline_id and one.held
    ]  # fmt: skip
    if server.lsn is None or not ends:
        return None
    # A segment that was pushed is whole, and the server may not have come to its end.
    return max(0, server.lsn - ends[0])


def look_at_wal(repository: Repository, cluster: str) -> list[GenerationWal]:
    """Return what there is of every system identifier, in the order of their numbers."""
    catalogue = Catalogue(repository, cluster)
    backups = [one for one in catalogue.backups() if one.state in ("good", "damaged")]
    known = read_gaps(catalogue.states, catalogue.states.listed(CLUSTER))
    found = []
    for identifier in repository.generations(cluster):
        wal = repository.wal_of(cluster, identifier)
        own = [one for one in backups if one.record and one.record.facts.system_identifier == identifier]
        found.append(GenerationWal(identifier, _timelines(wal, own), known))
    return found


def _timelines(wal: RepositoryWal, backups: Sequence[ListedBackup]) -> list[TimelineWal]:
    numbers = wal.timelines()
    stored = {number: list(wal.stored(number)) for number in numbers}
    held = {
        number: joined(HeldRange(one.first, one.last) for one, _ in ranges) for number, ranges in stored.items()
    }  # fmt: skip
    found = []
    for number in numbers:
        history, problem = read_history(wal, number)
        entry = history.entries[-1] if history.entries else None
        found.append(
            TimelineWal(
                number,
                entry.timeline_id if entry is not None else None,
                entry.switch_lsn if entry is not None else None,
                held[number],
                len(stored[number]),
                sum(one.size_bytes for _, one in stored[number]),
                [
                    _with_times(window, wal, history, stored, backups) if recent < _MOST_TIMES else window
                    for recent, window in enumerate(reversed(_windows(history, held, backups)))
                ][::-1],
                problem,
                *_merges([one for one, _ in stored[number]]),
            )
        )
    return found


def _merges(ranges: Sequence[StoredRange]) -> tuple[int, int]:
    """Return how many ranges are to be merged, and how many have been; ranges: of one timeline, by place."""
    waiting = 0
    for segment, own in groupby(ranges, key=lambda one: one.segment):
        groups = to_merge(list(own), is_whole=segment != ranges[-1].segment)
        waiting += sum(map(len, groups))
    return waiting, len(superseded(ranges))


def _with_times(
    window: Window,
    wal: RepositoryWal,
    history: TimelineHistory,
    stored: Mapping[int, Sequence[tuple[StoredRange, StoredObject]]],
    backups: Sequence[ListedBackup],
) -> Window:
    """Return a window with the times at its ends."""
    ended = {one.record.facts.stop_lsn: one.record.facts.finished for one in backups if one.record is not None}
    last_ended = max(
        (one.record.facts.finished for one in backups if one.record is not None and one.label in window.backups),
        default=None,
    )

    def committed(timeline_id: int, end: Lsn) -> datetime | None:
        # What is damaged is for verify to tell; a window is one all the same.
        with suppress(IntegrityError, StorageFailed):
            return last_commit(wal, (one for one, _ in stored.get(timeline_id, ())), end)
        return None

    start_time = ended.get(window.start)
    if start_time is None and history.entries and window.start == history.start:
        start_time = committed(history.entries[-1].timeline_id, window.start)
    known = [one for one in (committed(history.timeline_id, window.end), last_ended) if one is not None]
    return replace(window, start_time=start_time, end_time=max(known, default=None))


def read_history(wal: RepositoryWal, timeline_id: int) -> tuple[TimelineHistory, str]:
    """Return a timeline's history, and why it is not known; then it stands alone."""
    if timeline_id == 1:
        return TimelineHistory(1), ""
    try:
        content = wal.read_file(timeline_id, history_file_name(timeline_id))
        if content is None:
            return TimelineHistory(timeline_id), f"{history_file_name(timeline_id)} is missing"
        return TimelineHistory.parse(content, timeline_id), ""
    except (IntegrityError, ObjectMissing) as problem:
        return TimelineHistory(timeline_id), problem.message


def _windows(
    history: TimelineHistory, held: Mapping[int, Sequence[HeldRange]], backups: Sequence[ListedBackup]
) -> list[Window]:
    """Return the windows on the last timeline of a history."""
    reached: dict[Lsn, list[tuple[Lsn, str]]] = {}
    for one in backups:
        assert one.record is not None
        facts = one.record.facts
        end = reach(history, held, facts.stop_timeline_id, facts.start_lsn, facts.stop_lsn)
        if end is not None:
            start = facts.stop_lsn if facts.stop_timeline_id == history.timeline_id else history.start
            reached.setdefault(end, []).append((start, one.label))
    return [
        Window(min(start for start, _ in leading), end, tuple(label for _, label in sorted(leading)))
        for end, leading in sorted(reached.items())
    ]


def reach(
    history: TimelineHistory, held: Mapping[int, Sequence[HeldRange]], timeline_id: int, start: Lsn, stop: Lsn
) -> Lsn | None:
    """Return how far WAL leads on the last timeline from a backup on; None if it does not get there.

    Of the segment in which a server is promoted it copies the beginning into its new timeline's first one, and a
    recovery on the new timeline reads that. The old timeline's own need not be there to its end: it is archived as a
    .partial, without the zeros behind it, or by nobody when the old primary is dead.
    """
    own = history.range_of(timeline_id)
    if own is None or (own.end is not None and stop > own.end):
        return None
    at, needed = start, stop
    stretches = [one for one in history.ranges if one.timeline_id >= timeline_id]
    for number, stretch in enumerate(stretches):
        span = next((one for one in held.get(stretch.timeline_id, ()) if one.start <= at < one.end), None)
        goal = needed if stretch.end is None else max(needed, stretch.end)
        end = at if span is None else span.end
        later = (one for other in stretches[number + 1 :] for one in held.get(other.timeline_id, ()))
        if end < goal and not any(one.start <= end and one.end >= goal for one in later):
            return None
        if stretch.end is None:
            return None if span is None else span.end
        at = stretch.end
    return None
