"""Clones as text and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from polarvault.clones.model import CloneState, CloneStatus
from polarvault.model.units import format_bytes
from polarvault.report.kept import age_s, age_words, fields_of, size_words, unfinished_line

_FIELDS = (
    "name", "source", "moment", "lsn", "timeline_id", "read_only", "major", "is_polardb", "shares", "max_bytes",
    "least_free_bytes", "stopped", "socket_directory", "made", "expires",
)  # fmt: skip


def clone_json(status: CloneStatus, now: datetime) -> dict[str, Any]:
    """Return one clone; everything that is not known is null."""
    record = status.record
    return {
        "id": status.id,
        "directory": status.directory,
        "state": status.state.value,
        "own_bytes": status.own_bytes,
        "connection": status.connection,
        **fields_of(record, _FIELDS),
        "port": record.port if record is not None and record.listens else None,
        "age_s": age_s(record, now),
    }


def clone_text(status: CloneStatus) -> Iterator[str]:
    """Yield what there is to say about a clone that was just made, started or reset."""
    record = status.record
    assert record is not None
    kind = "read-only" if record.read_only else "writable"
    yield f"clone {record.name}: {kind}, of {record.source} at {record.moment}"
    yield f"  connect: psql {shlex.quote(status.connection or '')}"
    if status.own_bytes is not None:
        yield f"  takes {format_bytes(status.own_bytes)}" + (" of its own" if record.shares else ", a whole copy")
    if record.expires is not None:
        yield f"  is removed at {record.expires:%Y-%m-%d %H:%M:%S} UTC"
    yield f"  remove it: polarvault clone remove {record.name}"


def list_text(statuses: Sequence[CloneStatus], now: datetime, area: str) -> Iterator[str]:
    """Yield a line for each clone and its connection, problems with what to type."""
    if not statuses:
        yield f'no clones in "{area}"'
    for status in statuses:
        record = status.record
        if record is None:
            yield unfinished_line("clone", status.id)
            continue
        port = f"port {record.port}" if record.listens else "socket"
        kind = "read-only, " if record.read_only else ""
        yield (
            f"{record.name}: {status.state.value}, {kind}{port}, of {record.source} at {record.moment}, "
            f"{age_words((now - record.made).total_seconds())} old, {size_words(status.own_bytes)}"
        )
        if status.connection is not None:
            yield f"  psql {shlex.quote(status.connection)}"
        if status.state is CloneState.STOPPED:
            yield f"  stopped: {record.stopped}"
        if status.state in (CloneState.DIED, CloneState.HOST_RESTARTED, CloneState.STOPPED):
            yield f"  start it: polarvault clone start {record.name}"
        if record.expires is not None:
            yield f"  is removed in {age_words((record.expires - now).total_seconds())}"
