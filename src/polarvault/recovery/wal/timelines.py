"""The timelines that a recovery does not follow: what they hold that the one it follows does not.

Whoever says nothing about timelines gets the newest one, which may be that of a test restore, while the production
server went on on an older one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import tzinfo

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.recovery.reachability import ValidWalEnd, show_time
from polarvault.recovery.search import StopPoint, TargetSearch
from polarvault.recovery.survey import find_end, scan
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.recovery.wal.chain import BackupSpan, ChainSegment, WalChain, divergence, follow
from polarvault.recovery.wal.stock import WalStock
from polarvault.wal.history import TimelineHistory
from polarvault.wal.marks import WalMark

# A failover by test restores makes many; more than these nobody reads.
_MOST_TIMELINES = 5


@dataclass(frozen=True, slots=True)
class LeftTimeline:
    """A timeline whose WAL goes on where the followed one parted from it; last: its last transaction behind that."""

    timeline_id: int
    parted_at: Lsn
    last: WalMark


@dataclass(frozen=True, slots=True)
class Timelines:
    """All that is known of the timelines of one WAL archive."""

    histories: Mapping[int, TimelineHistory]
    files: Mapping[tuple[int, int], ChainSegment]
    span: BackupSpan
    stock: WalStock

    def left_behind(self, chain: WalChain) -> Iterator[LeftTimeline]:
        """Yield the timelines with transactions behind the place where the followed one parted from them."""
        for history, parted_at in self._others(chain.history):
            other = follow(history, self.span, self.files)
            end = self._end_of(other)
            last = end.last_transaction if end is not None else None
            if last is not None and last.lsn >= parted_at:
                yield LeftTimeline(history.timeline_id, parted_at, last)

    def find(self, chain: WalChain, target: RecoveryTarget) -> tuple[int, StopPoint] | None:
        """Return the timeline, newest first, that has a target which the followed one has not, and where."""
        if target.kind not in (TargetKind.NAME, TargetKind.XID):
            return None
        for history, parted_at in self._others(chain.history):
            other = follow(history, self.span, self.files)
            begin = Lsn(parted_at - parted_at % self.span.segment_size_bytes)
            part = WalChain(other.history, tuple(other.since(begin)), other.missing, other.later, other.limit)
            search = TargetSearch(target, begin, max(parted_at, self.span.start_lsn), self.span.end_lsn)
            try:
                scan(self.stock, part, search, lambda done, total: None)
            except PolarvaultError:
                continue  # It is only asked for a hint.
            if search.stop is not None:
                return history.timeline_id, search.stop
        return None

    def _others(self, followed: TimelineHistory) -> Iterator[tuple[TimelineHistory, Lsn]]:
        """Yield the newest other timelines that hold the backup, with where the followed one parted from each."""
        known = sorted(self.histories.items(), reverse=True)
        others = [history for _, history in known if history != followed and divergence(history, self.span) is None]
        for history in others[:_MOST_TIMELINES]:
            yield history, _parted_at(followed, history)

    def _end_of(self, chain: WalChain) -> ValidWalEnd | None:
        try:
            return find_end(self.stock, chain, self.span)
        except PolarvaultError:
            return None  # What is wrong with a timeline that nobody follows is of no interest.


def _parted_at(one: TimelineHistory, other: TimelineHistory) -> Lsn:
    """Return the LSN up to which two histories are the same; one without a bound goes on for ever."""
    same = Lsn(0)
    for first, second in zip(one.ranges, other.ranges, strict=False):
        if first.timeline_id != second.timeline_id:
            break
        ends = [end for end in (first.end, second.end) if end is not None]
        same = min(ends) if ends else same
        if first.end != second.end:
            break
    return same


def timeline_warnings(left: Iterable[LeftTimeline], followed: TimelineHistory, zone: tzinfo | None) -> list[str]:
    """Return what is left behind by following the newest timeline without having been told to."""
    return [
        f"timeline {other.timeline_id} is not followed beyond {other.parted_at}, where timeline {followed.timeline_id} "
        f"parted from it, and goes on there: its last transaction is {other.last.xid} at "
        f"{show_time(other.last.time, zone)} (LSN {other.last.lsn}); to follow it: "
        f"--target-timeline {other.timeline_id}"
        for other in left
    ]
