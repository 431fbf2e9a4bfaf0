"""From where to where a backup needs WAL: start from backup_label, end from wherever it is written down.

The end stands in several places, none of them always there: pg_control for a backup of a standby (the server's own
rule), backup_manifest's WAL ranges, the .backup file beside the WAL segments, and the WAL itself (`search`).
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Inventory
from polarvault.errors import BackupUnusable
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment, is_segment_size
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.wal.source import WalSource
from polarvault.walfiles.choice import content_of
from polarvault.walfiles.directory import wal_sources
from polarvault.walfiles.search_list import SearchList

_STOP_LINE = re.compile(r"STOP WAL LOCATION: ([0-9A-F]+/[0-9A-F]+)")
_STOP_TIMELINE = re.compile(r"STOP TIMELINE: (\d+)")
_STOP_TIME = re.compile(r"STOP TIME: (.*)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (\S+)")


def load_backup_span(source: Backup, inventory: Inventory, label: BackupLabel | None, places: WalSource) -> BackupSpan:
    """Return the backup's span; end_lsn stays None when only the WAL itself can tell."""
    span = _start_of(source, inventory, label)
    if label is None:
        return span
    control = inventory.control
    manifest = next(iter(inventory.spans), None)
    if manifest is not None:
        span = replace(span, end_lsn=manifest.end_lsn, end_timeline_id=manifest.end_timeline_id)
    noted = _backup_history(span, source, places)
    if noted is not None:
        end, timeline_id, time = noted
        span = replace(span, end_time=_rounded_up(time))
        if manifest is None:
            span = replace(span, end_lsn=end, end_timeline_id=timeline_id)
    if label.is_from_standby and control is not None and control.minimum_recovery_lsn:
        # What the server itself waits for; the manifest was written a little later.
        span = replace(span, end_lsn=control.minimum_recovery_lsn)
    return span


def _start_of(source: Backup, inventory: Inventory, label: BackupLabel | None) -> BackupSpan:
    control = inventory.control
    if label is None:
        # A copy of a server that was shut down is consistent at its last checkpoint, or where its recovery had got to.
        assert control is not None
        end = Lsn(max(control.checkpoint_lsn + 1, control.minimum_recovery_lsn))
        return BackupSpan(
            source.path, control.redo_lsn, control.timeline_id, end, control.timeline_id,
            control.wal_segment_size, control.checkpoint_time, _rounded_up(control.checkpoint_time),
        )  # fmt: skip
    size = control.wal_segment_size if control is not None else _segment_size(inventory, label.start_segment)
    if WalSegment.holding(label.start_lsn, int(label.start_segment[:8], 16), size).file_name != label.start_segment:
        raise BackupUnusable(
            f"backup_label names segment {label.start_segment} for LSN {label.start_lsn}, which does not fit segments "
            f"of {size} bytes",
            hint="the halves may be of two backups; use another backup",
        )
    timeline_id = int(label.start_segment[:8], 16)
    # The checkpoint began the backup. A later one in pg_control was made while it ran.
    is_first = control is not None and control.checkpoint_lsn == label.checkpoint_lsn
    start_time = control.checkpoint_time if control is not None and is_first else parse_time(label.start_time)
    return BackupSpan(source.path, label.start_lsn, timeline_id, None, timeline_id, size, start_time)


def _rounded_up(time: datetime | None) -> datetime | None:
    """Return the end of the second that a time was cut to: by then the backup had ended."""
    return None if time is None else time + timedelta(seconds=1)


def _segment_size(inventory: Inventory, start_segment: str) -> int:
    """Return the size of the backup's own first segment: pg_control of a compressed tar was not read yet."""
    size = inventory.wal.get(start_segment, 0)
    if not is_segment_size(size):
        raise BackupUnusable(
            "the size of WAL segments is not known before the backup is unpacked, so recovery cannot be planned",
            hint="unpack the tar files first and restore the directory",
        )
    return size


def _backup_history(span: BackupSpan, source: Backup, places: WalSource) -> tuple[Lsn, int, datetime | None] | None:
    """Read the .backup file that the server leaves in pg_wal, and so in the WAL archive, when a backup ends."""
    offset = span.start_lsn % span.segment_size_bytes
    name = f"{span.start_segment.file_name}.{offset:08X}.backup"
    own = [os.path.join(part.path, "pg_wal") for part in source.parts if not part.is_tar]
    copy = next(iter(SearchList([places, *wal_sources(own)]).copies(name)), None)
    if copy is None:
        return None
    return parse_backup_history(content_of(copy, limits.SMALL_FILE_BYTES).decode("utf-8", "replace"))


def parse_backup_history(text: str) -> tuple[Lsn, int, datetime | None] | None:
    """Return stop LSN, its timeline and the stop time, as far as that is known.

    Format: server file access/transam/xlogbackup.c; the time is in log_timezone, with an abbreviation for people.
    """
    lsn, timeline = _STOP_LINE.search(text), _STOP_TIMELINE.search(text)
    if lsn is None or timeline is None:
        return None
    time = _STOP_TIME.search(text)
    return Lsn.parse(lsn[1]), int(timeline[1]), parse_time(time[1]) if time else None


def parse_time(text: str) -> datetime | None:
    """Parse the time of backup_label and .backup files; None for one in a zone that is not UTC or numeric."""
    match = _TIME.match(text)
    if match is None:
        return None
    zone = match[2]
    if zone in ("UTC", "GMT", "Etc/UTC"):
        return datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    try:
        # Abbreviations such as IST mean several zones; only an offset is certain.
        return datetime.fromisoformat(match[1] + zone) if zone[0] in "+-" else None
    except ValueError:
        return None
