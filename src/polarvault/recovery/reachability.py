"""Can the target be reached? Decides from facts that `survey` has read; every refusal says what can be reached.

Pure: a backup's span, a chain of segments, what a search found, and where valid WAL ends go in; a plan or an error
comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo

from polarvault.errors import TargetUnreachable, UsageError, WalDamaged, WalGap
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.recovery.search import StopPoint, TargetSearch
from polarvault.recovery.target import RecoveryTarget, TargetAction, TargetKind, format_time
from polarvault.recovery.wal.chain import BackupSpan, WalChain
from polarvault.wal.scan import MarkKind, WalMark

_SHOWN_NAMES = 20
_OLDER_BACKUP = (
    "restore an older backup, one that had ended by then, or go to this one's earliest state: --target immediate"
)


@dataclass(frozen=True, slots=True)
class ValidWalEnd:
    """Where valid WAL ends: just past the last whole record, why, and the last transaction that ends before it.

    path: the last file that was read. is_broken: WAL is damaged or incomplete there, because more of it follows, or
    (is_before_backup_end) because the backup ends behind it and all its segments are there; is_damaged: bytes are
    wrong, instead of missing. follows: what of the WAL is behind it, which is_broken makes certain. is_refused: the
    server stops with an error there, at a record that it refuses. last_lsn: where the last whole record begins, where
    that is known.
    """

    lsn: Lsn
    reason: str
    path: str
    last_transaction: WalMark | None = None
    is_broken: bool = False
    is_before_backup_end: bool = False
    is_damaged: bool = False
    follows: str | None = None
    is_refused: bool = False
    last_lsn: Lsn | None = None


@dataclass(frozen=True, slots=True)
class Reachable:
    """What a backup and its WAL can be recovered to; times where they are known."""

    backup_began: datetime | None
    earliest_lsn: Lsn | None
    earliest_time: datetime | None
    latest_lsn: Lsn
    latest_time: datetime | None
    latest_xid: int
    timeline_id: int
    other_timelines: tuple[int, ...]
    restore_points: tuple[WalMark, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """What several backups, oldest first, reach without a hole in the WAL; missing: the segment at which that ends."""

    backups: tuple[str, ...]
    earliest_lsn: Lsn
    earliest_time: datetime | None
    backup_began: datetime | None
    latest_lsn: Lsn
    latest_time: datetime | None
    latest_xid: int
    missing: str

    def start_words(self, zone: tzinfo | None) -> str:
        """Say from where on."""
        if self.earliest_time:
            return f"LSN {self.earliest_lsn}, {show_time(self.earliest_time, zone)}"
        began = f"; the backup began at {show_time(self.backup_began, zone)}" if self.backup_began else ""
        return f"LSN {self.earliest_lsn}{began}"


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """How recovery will go. stop is None for the end of the WAL.

    last_transaction: the last one that is applied, where it was looked for. rejected: newer backups that were not
    chosen, and why. windows: what all backups of a directory reach, oldest first. is_checked is false when an archive
    that cannot be looked into supplies the WAL. hot_standby_needs: what some settings have to be at least, as the WAL
    says. needed: the segments that are replayed, in order, but for those that only the backup has. last_segment: the
    one in which recovery has to end although something follows or is wrong, because the user has accepted it.
    """

    target: RecoveryTarget
    action: TargetAction
    span: BackupSpan | None
    timeline_id: int
    timeline_setting: str
    stop: StopPoint | None
    last_transaction: WalMark | None
    reachable: Reachable | None
    segments: int = 0
    segments_in_backup: int = 0
    needed: tuple[WalSegment, ...] = ()
    wal_directories: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_checked: bool = True
    rejected: tuple[tuple[str, str], ...] = ()
    windows: tuple[Window, ...] = ()
    zone: tzinfo | None = None
    hot_standby_needs: Mapping[str, int] = field(default_factory=dict)
    last_segment: str | None = None

    @property
    def written_target(self) -> RecoveryTarget:
        """The target as the server is told it: one that only the end of the WAL reaches is its last record."""
        if self.stop is None or not self.stop.is_end:
            return self.target
        return RecoveryTarget(TargetKind.LSN, lsn=self.stop.lsn, inclusive=not self.stop.is_before)

    @property
    def end_lsn(self) -> Lsn | None:
        """Where replay will end, as far as it is known."""
        if self.stop is not None:
            return self.stop.applied_up_to
        return self.reachable.latest_lsn if self.reachable else None


def show_time(time: datetime | None, zone: tzinfo | None) -> str:
    """Return a time in the zone that the user thinks in; None is the machine's."""
    return "unknown" if time is None else format_time(time.astimezone(zone))


def what_is_reachable(
    span: BackupSpan, chain: WalChain, search: TargetSearch, end: ValidWalEnd, others: Sequence[int]
) -> Reachable:
    """Put together what can be reached, for the plan and for every refusal."""
    last = end.last_transaction
    # A transaction inside of the backup may have ended by another clock than the one that timed the backup.
    times = [span.end_time, search.before_consistency.time if search.before_consistency else None]
    earliest_time = max((time for time in times if time is not None), default=None)
    return Reachable(
        backup_began=span.start_time,
        earliest_lsn=search.consistent_lsn or span.end_lsn,
        earliest_time=earliest_time,
        latest_lsn=end.lsn,
        latest_time=last.time if last else None,
        latest_xid=last.xid if last else 0,
        timeline_id=chain.history.timeline_id,
        other_timelines=tuple(others),
        restore_points=tuple(search.restore_points),
    )


def describe_reachable(reachable: Reachable, zone: tzinfo | None) -> str:
    """Say in a few lines what can be reached."""
    earliest = f"LSN {reachable.earliest_lsn}" if reachable.earliest_lsn else "the end of the backup"
    if reachable.earliest_time:
        earliest += f", {show_time(reachable.earliest_time, zone)}"
    elif reachable.backup_began:
        earliest += f"; the backup began at {show_time(reachable.backup_began, zone)}"
    latest = f"LSN {reachable.latest_lsn}"
    if reachable.latest_time:
        latest += f", last transaction {reachable.latest_xid} at {show_time(reachable.latest_time, zone)}"
    lines = [f"earliest: {earliest}", f"latest: {latest}", f"timeline {reachable.timeline_id}"]
    if reachable.other_timelines:
        lines[-1] += f"; others in the WAL directories: {', '.join(map(str, reachable.other_timelines))}"
    points = reachable.restore_points
    if points:
        named = ", ".join(f'"{p.name}" ({p.lsn}, {show_time(p.time, zone)})' for p in points[-_SHOWN_NAMES:])
        more = f"{len(points) - _SHOWN_NAMES} older ones and " if len(points) > _SHOWN_NAMES else ""
        lines.append(f"restore points: {more}{named}")
    return "what can be reached:\n  " + "\n  ".join(lines)


def check_consistency(
    span: BackupSpan, chain: WalChain, search: TargetSearch, end: ValidWalEnd, seen: Reachable
) -> Lsn:
    """Return where the backup is consistent; raise WalGap when the WAL ends before that."""
    zone = search.target.time.tzinfo if search.target.time else None
    consistent = search.consistent_lsn or span.end_lsn
    if consistent is not None and end.lsn >= consistent:
        return consistent
    where = f"end of the backup at {consistent}" if consistent else "record that ends the backup"
    if consistent is not None and chain.files and consistent <= chain.end:
        # Every segment up to there is at hand.
        end = replace(end, is_broken=True, is_before_backup_end=True)
    raise gap_problem(
        chain, end, f'the WAL does not reach the {where}, without which "{span.path}" cannot be used', seen, zone
    )


def check_stop(
    span: BackupSpan,
    chain: WalChain,
    search: TargetSearch,
    end: ValidWalEnd,
    seen: Reachable,
    *,
    accepted: Lsn | None = None,
    elsewhere: tuple[int, StopPoint] | None = None,
) -> None:
    """Raise when the server would not stop at the target: not found, or too early.

    accepted: the end of the WAL that the user has said is meant, whatever is behind it. elsewhere: another timeline
    that has the target, and where.
    """
    target = search.target
    zone = target.time.tzinfo if target.time else None
    consistent = check_consistency(span, chain, search, end, seen)
    if target.kind is TargetKind.LATEST:
        _check_end(chain, end, seen, zone, accepted)
        return
    if target.kind is TargetKind.IMMEDIATE:
        return
    if _is_before_backup(span, search):
        # The server would go on to the backup's end without a word if nothing was committed since, and show a later
        # state than the one that was asked for.
        raise TargetUnreachable(
            f'{target} lies before the backup "{span.path}", which began at {show_time(span.start_time, zone)}, and no '
            "transaction shows what the data were then",
            detail=describe_reachable(seen, zone),
            hint=_OLDER_BACKUP,
        )
    stop = search.stop
    if stop is None:
        problem = _not_found(chain, end, target, seen, zone)
        if elsewhere is not None:
            timeline_id, place = elsewhere
            problem.message += f"; {describe_record(place, zone)}, is on timeline {timeline_id}"
            problem.hint = f"follow that timeline: --target-timeline {timeline_id}"
        raise problem
    if stop.applied_up_to < consistent:
        raise TargetUnreachable(
            f"{target} lies before the end of the backup: it would stop {'before' if stop.is_before else 'after'} "
            f"{describe_record(stop, zone)}, and the backup is consistent only from LSN {consistent} on"
            + (f" ({show_time(seen.earliest_time, zone)})" if seen.earliest_time else ""),
            detail=describe_reachable(seen, zone),
            hint=_OLDER_BACKUP,
        )


def _check_end(chain: WalChain, end: ValidWalEnd, seen: Reachable, zone: tzinfo | None, accepted: Lsn | None) -> None:
    """Raise when the WAL does not just end, unless the user has accepted that: who wants everything must get all."""
    if end.is_refused:
        raise TargetUnreachable(
            f"recovery could not go to the end of the WAL: the server stops with an error at {end.lsn}: {end.reason}",
            detail=describe_reachable(seen, zone),
            hint=f"go as far as it can go: --target-lsn {end.lsn} --target-exclusive; a backup that was taken later "
            "leads further",
        )
    if accepted is not None and accepted != end.lsn:
        raise UsageError(
            f"--accept-end {accepted}: the WAL ends at {end.lsn} ({end.reason})",
            hint=f"if that is where recovery is to end: --accept-end {end.lsn}; up to another place: --target-lsn LSN",
        )
    if accepted is None and (chain.has_gap or end.is_broken):
        problem = gap_problem(chain, end, "recovery could not go to the end of the WAL", seen, zone)
        problem.hint = f"{problem.hint}; or, if recovery is to end there all the same: --accept-end {end.lsn}"
        raise problem


def stop_at_end(span: BackupSpan, search: TargetSearch, end: ValidWalEnd) -> StopPoint | None:
    """Return the last record as the stop for a target that everything in the WAL leads to; None for any other.

    The server accepts a target only when a record is there that comes after it. The end of the WAL and the time of the
    last transaction are what a plan prints, and what people type; to stop after the last record is the same.
    """
    target, latest, last = search.target, search.latest_seen_time, end.last_lsn
    if search.stop is not None or not (last is not None or end.is_refused):
        return None
    is_end = target.lsn is not None and (target.lsn == end.lsn or (last is not None and last < target.lsn <= end.lsn))
    if target.time is not None and target.inclusive:
        # All that was committed while the backup was taken is in the WAL up to its end, and nothing that came later.
        is_end = target.time == latest
        if span.start_time is not None and span.end_time is not None:
            # The end is rounded up; where WAL goes on that no recovery reads, it may hold what came in that second.
            until = span.end_time - timedelta(seconds=1) if end.is_refused else span.end_time
            is_end = is_end or span.start_time <= target.time <= until
    if not is_end:
        return None
    # Before a record that the server refuses nothing tells which one is the last, and nothing has to.
    return StopPoint(last or end.lsn, last is None, end.lsn, is_end=True)


def _is_before_backup(span: BackupSpan, search: TargetSearch) -> bool:
    """Tell whether a time lies before the backup although recovery would stop only after its end."""
    time = search.target.time
    # A transaction that is applied ended at the target at the latest, and after the backup began.
    if time is None or span.start_time is None or search.last_transaction is not None:
        return False
    # Start times are whole seconds, cut off.
    return time < span.start_time + timedelta(seconds=1)


def describe_record(stop: StopPoint, zone: tzinfo | None) -> str:
    """Name a record by what it is, its LSN and its time."""
    if stop.kind is MarkKind.RESTORE_POINT:
        what = f'restore point "{stop.name}" at {stop.lsn}'
    elif stop.kind in (MarkKind.COMMIT, MarkKind.ABORT):
        what = f"the {stop.kind.value} of transaction {stop.xid} at {stop.lsn}"
    else:
        what = f"the {'last ' if stop.is_end and not stop.is_before else ''}record at {stop.lsn}"
    return what + (f", {show_time(stop.time, zone)}" if stop.time else "")


def _not_found(
    chain: WalChain, end: ValidWalEnd, target: RecoveryTarget, seen: Reachable, zone: tzinfo | None
) -> TargetUnreachable | WalGap | WalDamaged:
    if end.is_refused:
        return TargetUnreachable(
            f"{target} is not reached: the server stops with an error at {end.lsn}: {end.reason}",
            detail=describe_reachable(seen, zone),
            hint=f"go as far as it can go: --target-lsn {end.lsn} --target-exclusive; a backup that was taken later "
            "leads further",
        )
    if chain.has_gap or end.is_broken:
        return gap_problem(chain, end, f"{target} is not in the WAL that can be reached", seen, zone)
    detail = describe_reachable(seen, zone)
    hint = "go as far as the WAL goes: --target latest"
    if seen.other_timelines:
        hint += f"; or follow another timeline: --target-timeline {seen.other_timelines[-1]}"
    if target.kind is TargetKind.NAME:
        return TargetUnreachable(
            f'there is no restore point "{target.name}" on timeline {seen.timeline_id} from the backup\'s start on',
            detail=detail,
            hint="give one of the restore points above, or a time; one from before the backup needs an older backup",
        )
    if target.kind is TargetKind.XID:
        return TargetUnreachable(
            f"transaction {target.xid} neither commits nor aborts on timeline {seen.timeline_id} between the backup's "
            "start and the end of the WAL",
            detail=detail,
            hint=f"a transaction from before the backup needs an older backup; or {hint}",
        )
    if target.kind is TargetKind.TIME:
        last = end.last_transaction
        ends = (
            f"the last transaction in the WAL ends at {show_time(last.time, zone)} (LSN {last.lsn})"
            if last
            else "no transaction ends after the backup began"
        )
        return TargetUnreachable(
            f"{target} is not reached: {ends}, and the server stops only at one that ends after the target",
            detail=detail,
            hint=hint,
        )
    return TargetUnreachable(
        f"{target} is not reached: no record begins there or later, the WAL ends at {end.lsn} ({end.reason})",
        detail=detail,
        hint=hint,
    )


def gap_problem(
    chain: WalChain, end: ValidWalEnd, problem: str, seen: Reachable, zone: tzinfo | None
) -> WalGap | WalDamaged:
    """Return the error for WAL that does not simply end: what is missing or wrong, and where to look for it."""
    error: type[WalGap | WalDamaged] = WalGap
    # WAL that stops being valid inside a segment is that segment's fault, not that of the first one missing.
    if end.is_broken:
        more = f", and {end.follows}" if end.follows and not end.is_before_backup_end else ""
        why = f'"{end.path}" is valid only up to {end.lsn} ({end.reason}){more}'
        hint = "look for another copy of that segment and name its directory first: --wal DIR"
        error = WalDamaged if end.is_damaged else WalGap
    elif chain.unusable is not None:
        why = f'"{chain.unusable.path}" {chain.unusable.problem}; the WAL before it ends at {end.lsn}'
        hint = chain.unusable.hint
        error = WalDamaged
    elif chain.limit is not None:
        why = (
            f"segment {chain.missing.file_name} of timeline {chain.missing.timeline_id} is missing, which began at "
            f"{chain.limit}"
        )
        hint = f"look for {chain.missing.file_name} and name its directory: --wal DIR"
    else:
        why = f"segment {chain.missing.file_name} (timeline {chain.missing.timeline_id}, LSN {chain.missing.start})"
        why += " is missing" if chain.later is None else f" is missing, while {chain.later.segment.file_name} is there"
        if end.lsn < chain.missing.start and chain.files:
            why += f"; the WAL before it ends at {end.lsn}"
        hint = f"look for {chain.missing.file_name} and name its directory: --wal DIR"
    return error(f"{problem}: {why}", detail=describe_reachable(seen, zone), hint=hint)
