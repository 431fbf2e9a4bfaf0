"""Which WAL segments recovery will read, in which order, and where they end. Pure.

The server's rule (access/transam/xlogrecovery.c, XLogFileReadAnyTLI): for each segment number the newest timeline of
the target timeline's history that had begun by then is tried first, then its ancestors, never one older than the
timeline of the segment before. The WAL archive is asked before pg_wal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from polarvault.errors import TimelineDiverged, WalGap
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.recovery.target import CURRENT_TIMELINE, LATEST_TIMELINE
from polarvault.wal.history import TimelineHistory, history_file_name


@dataclass(frozen=True, slots=True)
class ChainSegment:
    """One segment that is there; in_backup: in the backup's own pg_wal. size_bytes: None unless stored plainly."""

    segment: WalSegment
    path: str
    in_backup: bool = False
    partial: bool = False
    size_bytes: int | None = None

    @property
    def is_short(self) -> bool:
        """Tell whether the file may hold less than its segment."""
        return self.partial or (self.size_bytes is not None and self.size_bytes < self.segment.size_bytes)


@dataclass(frozen=True, slots=True)
class UnusableFile:
    """A file with a segment's name that a fetch would refuse, why, and what to do."""

    path: str
    problem: str
    hint: str


@dataclass(frozen=True, slots=True)
class BackupSpan:
    """The WAL that a backup needs to be consistent: from start_lsn up to end_lsn, None while that is not known.

    end_timeline_id is the timeline that end_lsn lies on: a standby can follow a switch while it is backed up. end_time:
    by then the backup had ended; start_time is cut to whole seconds.
    """

    path: str
    start_lsn: Lsn
    timeline_id: int
    end_lsn: Lsn | None
    end_timeline_id: int
    segment_size_bytes: int
    start_time: datetime | None = None
    end_time: datetime | None = None

    @property
    def start_segment(self) -> WalSegment:
        """The segment that recovery reads first."""
        return WalSegment.holding(self.start_lsn, self.timeline_id, self.segment_size_bytes)


@dataclass(frozen=True, slots=True)
class WalChain:
    """The segments that recovery can read one after the other, and what is missing behind them.

    later: a segment that is there behind the missing one; then the WAL has a gap. unusable: the missing one is there
    in a form that no recovery can use, which is no end either. limit: recovery must not read beyond it, because only a
    file of an older timeline is there for the segment in which a newer one began.
    """

    history: TimelineHistory
    files: tuple[ChainSegment, ...]
    missing: WalSegment
    later: ChainSegment | None = None
    limit: Lsn | None = None
    unusable: UnusableFile | None = None

    @property
    def has_gap(self) -> bool:
        """Tell whether WAL is known, or has to be feared, to go on where the chain ends."""
        return self.later is not None or self.limit is not None or self.unusable is not None

    @property
    def size_bytes(self) -> int:
        """The WAL that the segments can hold at most."""
        return sum(file.segment.size_bytes for file in self.files)

    @property
    def end(self) -> Lsn:
        """The LSN behind the last segment; recovery cannot go further."""
        return self.limit or (self.files[-1].segment.end if self.files else self.missing.start)

    def since(self, lsn: int) -> Sequence[ChainSegment]:
        """Return the files from the one that holds the LSN on."""
        return [file for file in self.files if file.segment.end > lsn]


def choose_timeline(
    wanted: str | int, span: BackupSpan, histories: Mapping[int, TimelineHistory]
) -> tuple[TimelineHistory, list[str]]:
    """Return the history of the timeline to follow, and warnings about those that are not followed.

    histories: every timeline known, the backup's own included. Raises TimelineDiverged when the wanted one left the
    backup's WAL before the backup ended, and WalGap when its history is not there.
    """
    own = histories.get(span.end_timeline_id) or TimelineHistory(span.end_timeline_id)
    if wanted == CURRENT_TIMELINE or wanted == span.end_timeline_id:
        return own, []
    if wanted == LATEST_TIMELINE:
        fitting = [own]
        warnings = []
        for timeline_id, history in sorted(histories.items()):
            if timeline_id <= span.end_timeline_id:
                continue
            if problem := divergence(history, span):
                warnings.append(f"timeline {timeline_id} is not followed: {problem}")
            else:
                fitting.append(history)
        return fitting[-1], warnings
    assert isinstance(wanted, int)
    history_wanted = histories.get(wanted)
    known = ", ".join(str(timeline_id) for timeline_id in sorted({*histories, span.end_timeline_id}))
    if history_wanted is None:
        raise WalGap(
            f"timeline {wanted} is not known: there is no {history_file_name(wanted)} in the WAL directories",
            hint=f"timelines that are known: {known}",
        )
    if problem := divergence(history_wanted, span):
        raise TimelineDiverged(
            f'timeline {wanted} cannot be reached from the backup "{span.path}": {problem}',
            hint=f"use a backup from before that point, or another timeline; known are {known}",
        )
    return history_wanted, []


def divergence(history: TimelineHistory, span: BackupSpan) -> str | None:
    """Say why a timeline does not contain the backup; None when it does."""
    # The end decides: a backup that ended after the switch holds changes that the new timeline never had.
    end = span.end_lsn or Lsn(span.start_lsn + 1)
    if history.contains_up_to(span.end_timeline_id, end):
        return None
    place = history.range_of(span.end_timeline_id)
    if place is None:
        return f"its history does not contain timeline {span.end_timeline_id}, on which the backup was taken"
    assert place.end is not None
    return (
        f"it left timeline {span.end_timeline_id} at {place.end}, before the end of the backup "
        f"at {span.end_lsn or f'{span.start_lsn} or later'}"
    )


def follow(history: TimelineHistory, span: BackupSpan, files: Mapping[tuple[int, int], ChainSegment]) -> WalChain:
    """Return the chain of segments from the backup's start on; files: by timeline and segment number."""
    size = span.segment_size_bytes
    number, timeline_id = span.start_segment.number, 0
    found: list[ChainSegment] = []
    while True:
        tried = [r.timeline_id for r in reversed(history.ranges) if r.start // size <= number]
        file = next((files[t, number] for t in tried if t >= timeline_id and (t, number) in files), None)
        # Written when the segment was full: that timeline's file is the one that leads on.
        wanted = WalSegment(history.timeline_of((number + 1) * size - 1), number, size)
        if file is None:
            return WalChain(history, tuple(found), wanted, _later(history, files, wanted))
        found.append(file)
        timeline_id = file.segment.timeline_id
        if timeline_id != wanted.timeline_id:
            place = history.range_of(timeline_id)
            assert place is not None
            return WalChain(history, tuple(found), wanted, _later(history, files, wanted), place.end)
        number += 1


def settled_timeline(
    chain: WalChain,
    span: BackupSpan,
    histories: Mapping[int, TimelineHistory],
    files: Mapping[tuple[int, int], ChainSegment],
    stop_lsn: Lsn,
) -> WalChain:
    """Return the chain of the timeline that recovery stops on, which may be an ancestor of the wanted one.

    A server that follows timeline 3 and stops before 3 began writes a history file that says so, "3 until before 3
    began": no tool and no server can follow that new timeline correctly. It must be told to follow the ancestor. Where
    the ancestor's own last segment is not there the chain stays as it is.
    """
    timeline_id = chain.history.timeline_of(max(stop_lsn - 1, 0))
    if timeline_id == chain.history.timeline_id:
        return chain
    history = histories.get(timeline_id) or TimelineHistory(timeline_id)
    ancestor = follow(history, span, files)
    return ancestor if ancestor.end >= stop_lsn and not ancestor.has_gap else chain


def _later(
    history: TimelineHistory, files: Mapping[tuple[int, int], ChainSegment], missing: WalSegment
) -> ChainSegment | None:
    """Return the first segment of the history behind the missing one."""
    behind = [
        file
        for (timeline_id, number), file in files.items()
        if number > missing.number and timeline_id == history.timeline_of(file.segment.start)
    ]
    return min(behind, key=lambda file: file.segment.number, default=None)
