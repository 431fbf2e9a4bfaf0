"""Snapshots as text and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from polarvault.report.kept import age_s, age_words, fields_of, size_words, unfinished_line
from polarvault.snapshotting.model import SnapshotState, SnapshotStatus

_FIELDS = (
    "made", "directories", "name", "series", "source", "provider", "backup", "shared", "system_identifier", "version",
    "is_polardb", "from_standby", "is_atomic", "connected", "start_lsn", "stop_lsn", "timeline_id", "held_s",
)  # fmt: skip


def snapshot_json(status: SnapshotStatus, now: datetime) -> dict[str, Any]:
    """Return one snapshot; everything that is not known is null."""
    record = status.record
    return {
        "id": status.id,
        "directory": status.directory,
        "state": status.state.value,
        "used_bytes": status.used_bytes,
        "age_s": age_s(record, now),
        **fields_of(record, _FIELDS),
    }


def snapshot_text(status: SnapshotStatus) -> Iterator[str]:
    """Yield what there is to say about a snapshot that was just made."""
    record = status.record
    assert record is not None
    role = "standby" if record.from_standby else "primary"
    yield (
        f"snapshot {record.name} of the {role} in {record.source} by {record.provider}, LSN {record.start_lsn} to "
        f"{record.stop_lsn} on timeline {record.timeline_id}, "
        + (f"in {record.held_s:.1f} s" if record.connected else "without a connection, of one moment")
    )
    path = shlex.quote(record.backup)
    yield f"  it is a backup: polarvault clone create {path}; polarvault drill {path}; polarvault restore {path} -D ..."
    yield f"  remove it: polarvault snapshot remove {record.name}"


def list_text(statuses: Sequence[SnapshotStatus], now: datetime, directory: str) -> Iterator[str]:
    """Yield lines for each snapshot, problems with what to type."""
    if not statuses:
        yield f'no snapshots in "{directory}"'
    for status in statuses:
        record = status.record
        if record is None:
            yield unfinished_line("snapshot", status.id)
            continue
        size = size_words(status.used_bytes) + ("" if status.used_bytes is None else " of its own")
        age = age_words((now - record.made).total_seconds())
        yield (
            f"{record.name}: {status.state.value}, {record.provider}, of {record.source}, LSN {record.start_lsn} to "
            f"{record.stop_lsn} on timeline {record.timeline_id}, {age} old, {size}"
        )
        yield f"  {record.backup}"
        if status.state is SnapshotState.GONE:
            yield (
                "  what it was made of has been removed by somebody else; remove the rest: polarvault snapshot remove "
                f"{record.name}"
            )
