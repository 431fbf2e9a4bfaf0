"""What several backups and their WAL reach together: from the oldest whole backup to the end of the WAL, less holes.

A hole in the WAL behind an older backup is named here and nowhere else: the plan of the newest one never reads WAL from
before it. Only listings and the last segments before each end are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.recovery.reachability import Reachable, Window, show_time
from polarvault.recovery.survey import check_chain, find_end
from polarvault.recovery.wal.chain import BackupSpan, WalChain, choose_timeline, divergence, follow
from polarvault.recovery.wal.places import places_of
from polarvault.recovery.wal.span import load_backup_span
from polarvault.recovery.wal.stock import WalStock, stock_of
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.integrity import find_disagreements
from polarvault.wal.history import TimelineHistory


@dataclass(frozen=True, slots=True)
class _Reach:
    """One backup, with the WAL that follows it."""

    span: BackupSpan
    stock: WalStock
    chain: WalChain

    @property
    def earliest(self) -> Lsn:
        return self.span.end_lsn or self.span.start_lsn


def windows_of(request: RestoreRequest, backups: Iterable[tuple[str, BackupLabel]]) -> tuple[Window, ...]:
    """Return what backups that can be used reach, oldest window first; one that is not whole counts for nothing."""
    found: list[_Reach] = []
    # The newest one's timeline is what all the others are to lead to.
    for path, label in sorted(with_their_base(backups), key=lambda backup: backup[1].start_lsn, reverse=True):
        reach = _reach_of(request, path, label, found[0].chain.history if found else None)
        if reach is not None:
            found.append(reach)
    found.sort(key=lambda reach: reach.earliest)
    groups: list[list[_Reach]] = []
    for reach in found:
        # A backup lies in the window of an older one when that one's WAL leads up to its own end.
        if groups and groups[-1][-1].chain.end >= reach.earliest:
            groups[-1].append(reach)
        else:
            groups.append([reach])
    return tuple(_window(group) for group in groups)


def with_their_base(backups: Iterable[tuple[str, BackupLabel]]) -> list[tuple[str, BackupLabel]]:
    """Return the backups without the incremental ones whose chain back to a full one has a link missing."""
    based: set[int] = set()
    found: list[tuple[str, BackupLabel]] = []
    for path, label in sorted(backups, key=lambda backup: backup[1].start_lsn):
        if label.incremental_from_lsn is None or label.incremental_from_lsn in based:
            based.add(label.start_lsn)
            found.append((path, label))
    return found


def _reach_of(request: RestoreRequest, path: str, label: BackupLabel, leading: TimelineHistory | None) -> _Reach | None:
    recovery = request.recovery
    try:
        source = request.shelf.find(path, force=request.force)
        inventory = source.look_through()
        if not inventory.has_control or any(not one.is_setting for one in find_disagreements(source, inventory)):
            return None
        places = places_of(recovery, source)
        span = load_backup_span(source, inventory, label, places)
        stock = stock_of(source, inventory, places, span.segment_size_bytes)
        histories, _ = stock.histories()
        history = leading or choose_timeline(recovery.timeline, span, histories)[0]
        if divergence(history, span) is not None:
            return None  # It leads elsewhere, however whole it and the WAL are.
        identifier = inventory.control.system_identifier if inventory.control is not None else None
        chain = check_chain(stock, follow(history, span, stock.files(span.start_segment.number)), identifier)
    except PolarvaultError:
        return None  # Whoever asks for this backup alone is told why.
    # Without WAL up to its own end no recovery makes it consistent.
    is_whole = bool(chain.files) and (span.end_lsn is None or chain.end >= span.end_lsn)
    return _Reach(span, stock, chain) if is_whole else None


def _window(group: Sequence[_Reach]) -> Window:
    oldest, newest = group[0], group[-1]
    try:
        end = find_end(newest.stock, newest.chain, newest.span)
        lsn, last = end.lsn, end.last_transaction
    except PolarvaultError:
        lsn, last = newest.chain.end, None
    return Window(
        backups=tuple(reach.span.path for reach in group),
        earliest_lsn=oldest.earliest,
        earliest_time=oldest.span.end_time,
        backup_began=oldest.span.start_time,
        latest_lsn=lsn,
        latest_time=last.time if last else None,
        latest_xid=last.xid if last else 0,
        missing=newest.chain.missing.file_name,
    )


def settled_windows(windows: tuple[Window, ...], seen: Reachable | None, path: str | None) -> tuple[Window, ...]:
    """Return the windows with what is known better of the backup that was planned: all its WAL has been read."""
    if seen is None or seen.earliest_lsn is None:
        return windows
    settled = []
    for window in windows:
        if path in window.backups:
            window = replace(
                window, latest_lsn=seen.latest_lsn, latest_time=seen.latest_time, latest_xid=seen.latest_xid
            )
            if path == window.backups[0]:
                window = replace(window, earliest_lsn=seen.earliest_lsn, earliest_time=seen.earliest_time)
        settled.append(window)
    return tuple(settled)


def describe_windows(windows: Sequence[Window], zone: tzinfo | None) -> list[str]:
    """Say in a few lines what all the backups reach together."""
    lines = []
    for window in windows:
        lines.append(f"earliest: {window.start_words(zone)}, with {window.backups[0]}")
        latest = f"latest: LSN {window.latest_lsn}"
        if window.latest_time:
            latest += f", last transaction {window.latest_xid} at {show_time(window.latest_time, zone)}"
        lines.append(latest)
        if window is not windows[-1]:
            lines.append(f"nothing behind that up to the next backup: segment {window.missing} is missing")
    return lines


def cut_off_warnings(windows: Sequence[Window]) -> list[tuple[str, str]]:
    """Return each backup from which a hole in the WAL keeps all that came later, and how to say that."""
    return [
        (
            path,
            f"a hole in the WAL cuts it off: segment {window.missing} is missing, and it leads only to LSN "
            f"{window.latest_lsn}, not to what the newer backups reach",
        )
        for window in windows[:-1]
        for path in window.backups
    ]
