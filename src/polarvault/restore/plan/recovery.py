"""Plan recovery beyond a backup: survey the WAL, decide, and choose among several backups. Nothing is written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from polarvault.errors import (
    BackupUnusable,
    UsageError,
    WalGap,
)
from polarvault.instance.model import Account
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.recovery.access import check_readable
from polarvault.recovery.reachability import (
    RecoveryPlan,
    ValidWalEnd,
    check_consistency,
    check_stop,
    stop_at_end,
    what_is_reachable,
)
from polarvault.recovery.search import StopPoint, TargetSearch
from polarvault.recovery.side_effects import check_new_tablespaces, full_page_warnings, hot_standby_needs
from polarvault.recovery.survey import (
    ScanProgress,
    broken_segment,
    check_chain,
    find_end,
    scan,
)
from polarvault.recovery.target import LATEST_TIMELINE, RecoveryRequest, TargetKind
from polarvault.recovery.wal.chain import BackupSpan, WalChain, choose_timeline, divergence, follow, settled_timeline
from polarvault.recovery.wal.places import places_of
from polarvault.recovery.wal.span import load_backup_span
from polarvault.recovery.wal.stock import WalStock, stock_of
from polarvault.recovery.wal.timelines import Timelines, timeline_warnings
from polarvault.recovery.warnings import end_warnings, plan_warnings
from polarvault.restore.facts import BackupFacts
from polarvault.restore.model import RestoreRequest
from polarvault.wal.history import TimelineHistory
from polarvault.wal.scan import MarkKind
from polarvault.walfiles.directory import wal_sources


def check_wal_directories(request: RestoreRequest) -> None:
    """Raise UsageError for a directory without WAL, with which a recovery would end in the backup."""
    for place in wal_sources(request.recovery.wal_directories):
        if (found := place.lack()) is not None:
            raise UsageError(
                f'WAL directory "{place.place}" {found[0]}: a recovery would end with the WAL in the backup',
                hint=found[1],
            )


def check_known(backup: BackupFacts) -> None:
    """Raise BackupUnusable for a backup of a server whose WAL nobody here can read."""
    if backup.inventory.is_newer:
        known = versions.is_not_known(f"the backup's server, PostgreSQL {backup.major_version},")
        raise BackupUnusable(
            f"{known}, so that where recovery would stop cannot be found out",
            hint="use a newer polarvault; or restore without target and --wal, and let the server find its way: "
            """--set restore_command='polarvault wal fetch --wal DIR %f "%p"', and recovery_target_... written into """
            "postgresql.auto.conf before it is started",
        )


def plan_recovery(
    request: RestoreRequest, backup: BackupFacts, account: Account, progress: ScanProgress
) -> RecoveryPlan:
    """Decide how recovery goes; raise WalGap, TimelineDiverged or TargetUnreachable when it cannot reach the target.

    account: the user that will run the server, who has to be able to read the WAL.
    """
    recovery = request.recovery
    if recovery.archive_is_unknown:
        return _unchecked(recovery)
    places = places_of(recovery, backup.source)
    span = load_backup_span(backup.source, backup.inventory, backup.label, places)
    stock = stock_of(backup.source, backup.inventory, places, span.segment_size_bytes)
    histories, problems = stock.histories()
    history, warnings = choose_timeline(recovery.timeline, span, histories)
    warnings += [
        f"timeline {timeline_id} is not followed: {problem}"
        for timeline_id, problem in sorted(problems.items())
        if timeline_id > span.end_timeline_id and recovery.timeline == LATEST_TIMELINE
    ]
    _check_histories(stock, history.timeline_id, recovery)
    files = stock.files(span.start_segment.number)
    chain = check_chain(stock, follow(history, span, files), _system_identifier(backup))
    search, end = _survey(stock, chain, span, recovery, progress)
    others = [t for t, h in sorted(histories.items()) if h != history and divergence(h, span) is None]
    seen = what_is_reachable(span, chain, search, end, others)
    search.stop = search.stop or stop_at_end(span, search, end)
    target = recovery.effective_target
    timelines = Timelines(histories, files, span, stock)
    elsewhere = timelines.find(chain, target) if search.stop is None else None
    check_stop(span, chain, search, end, seen, accepted=recovery.accepted_end, elsewhere=elsewhere)
    stop = search.stop
    if target.kind is TargetKind.IMMEDIATE:
        consistent = check_consistency(span, chain, search, end, seen)
        stop = StopPoint(consistent, False, consistent, MarkKind.BACKUP_END)
    last = search.last_transaction if stop is not None and not stop.is_end else end.last_transaction
    if stop is not None:
        chain = settled_timeline(chain, span, histories, files, stop.applied_up_to)
        history = chain.history
    applied_up_to = end.lsn if stop is None else stop.applied_up_to
    side_effects = [mark for mark in search.side_effects if mark.lsn < applied_up_to]
    check_new_tablespaces(side_effects, backup.major_version, confined=request.confined_to is not None)
    zone = target.time.tzinfo if target.time else None
    more_warnings = [
        *timeline_warnings(timelines.left_behind(chain) if recovery.timeline == LATEST_TIMELINE else (), history, zone),
        *end_warnings(chain, end, stop, recovery, zone),
        *full_page_warnings(side_effects, span, backup.label),
    ]
    made = RecoveryPlan(
        target=target,
        action=recovery.effective_action,
        span=span,
        timeline_id=history.timeline_id,
        timeline_setting=_timeline_setting(history, histories, span),
        stop=stop,
        last_transaction=last,
        reachable=seen,
        wal_directories=tuple(one.place for one in places.sources),
        warnings=(*warnings, *plan_warnings(span, search, zone), *more_warnings),
        zone=zone,
        hot_standby_needs=hot_standby_needs(side_effects),
        last_segment=_last_segment(chain, end, recovery),
    )
    needed = [file for file in chain.files if made.end_lsn is None or file.segment.start < made.end_lsn]
    if not request.brings_wal:
        check_readable(places, account, stock.paths(needed))
    return replace(
        made,
        segments=len(needed),
        segments_in_backup=sum(file.in_backup for file in needed),
        needed=tuple(file.segment for file in needed if not file.in_backup),
    )


def _last_segment(chain: WalChain, end: ValidWalEnd, request: RecoveryRequest) -> str | None:
    """Return the name of the segment that a fetch is told to be the last one; None where the WAL just ends."""
    if request.accepted_end is None or not (chain.has_gap or end.is_broken):
        return None
    timeline_id = chain.history.timeline_of(end.lsn - 1)
    return WalSegment.holding(Lsn(end.lsn - 1), timeline_id, chain.missing.size_bytes).file_name


def _check_histories(stock: WalStock, timeline_id: int, request: RecoveryRequest) -> None:
    """Raise WalGap for a history file at which the server would stop when it looks for a free timeline.

    It does that after everything has been replayed (server: findNewestTimeLine counts up from its own timeline).
    """
    for newer, name in sorted(stock.unwritten_histories().items()):
        if newer > timeline_id:
            raise WalGap(
                f'"{name}" in the WAL directories is empty or full of zeros: the server asks for it when recovery '
                "ends, and would fail then",
                hint="replace it with a good copy; or, if there is none, move it away: "
                f"find {shlex.join(request.wal_directories)} -name '{name}*'",
            )


def _survey(
    stock: WalStock, chain: WalChain, span: BackupSpan, request: RecoveryRequest, progress: ScanProgress
) -> tuple[TargetSearch, ValidWalEnd]:
    target = request.effective_target
    search = TargetSearch(target, span.start_lsn, span.start_lsn, span.end_lsn)
    end = scan(stock, chain, search, progress)
    if end is not None:
        return search, end
    end = find_end(stock, chain, span)
    broken = broken_segment(stock, chain, span)
    if broken is None:
        return search, end
    if search.stop is not None and search.stop.applied_up_to > broken.lsn:
        search.stop = None
    return search, broken


def _unchecked(request: RecoveryRequest) -> RecoveryPlan:
    warning = (
        "the WAL archive behind --set restore_command cannot be looked into, so that nobody knows yet whether the "
        "target can be reached: name its directory with --wal instead, if there is one"
    )
    return RecoveryPlan(
        target=request.effective_target,
        action=request.effective_action,
        span=None,
        timeline_id=0,
        timeline_setting=str(request.timeline),
        stop=None,
        last_transaction=None,
        reachable=None,
        warnings=(warning,),
        is_checked=False,
        zone=request.target.time.tzinfo if request.target and request.target.time else None,
    )


def _timeline_setting(history: TimelineHistory, histories: Mapping[int, TimelineHistory], span: BackupSpan) -> str:
    # The server wants the history file of a timeline that is named by number, and timeline 1 never has one.
    if history.timeline_id == span.end_timeline_id and history.timeline_id not in histories:
        return "current"
    return str(history.timeline_id)


def _system_identifier(backup: BackupFacts) -> int | None:
    identifier = backup.system_identifier
    return int(identifier) if identifier is not None and identifier.isdecimal() else None
