"""Clones as text and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from polarvault.clones.model import CloneState, CloneStatus
from polarvault.model.units import format_bytes


def clone_json(status: CloneStatus, now: datetime) -> dict[str, Any]:
    """Return one clone; everything that is not known is null."""
    record = status.record
    return {
        "id": status.id,
        "directory": status.directory,
        "state": status.state.value,
        "own_bytes": status.own_bytes,
        "connection": status.connection,
        "name": record and record.name,
        "source": record and record.source,
        "moment": record and record.moment,
        "lsn": record and record.lsn,
        "timeline_id": record and record.timeline_id,
        "read_only": record and record.read_only,
        "major": record and record.major,
        "is_polardb": record and record.is_polardb,
        "shares": record and record.shares,
        "max_bytes": record and record.max_bytes,
        "least_free_bytes": record and record.least_free_bytes,
        "stopped": record and record.stopped,
        "port": record.port if record is not None and record.listens else None,
        "socket_directory": record and record.socket_directory,
        "made": record and record.made.isoformat(),
        "expires": None if record is None or record.expires is None else record.expires.isoformat(),
        "age_s": None if record is None else int((now - record.made).total_seconds()),
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
            yield f"{status.id}: unfinished, what made it was killed; remove it: polarvault clone remove {status.id}"
            continue
        size = "unknown size" if status.own_bytes is None else format_bytes(status.own_bytes)
        port = f"port {record.port}" if record.listens else "socket"
        kind = "read-only, " if record.read_only else ""
        yield (
            f"{record.name}: {status.state.value}, {kind}{port}, of {record.source} at {record.moment}, "
            f"{_age(now - record.made)} old, {size}"
        )
        if status.connection is not None:
            yield f"  psql {shlex.quote(status.connection)}"
        if status.state is CloneState.STOPPED:
            yield f"  stopped: {record.stopped}"
        if status.state in (CloneState.DIED, CloneState.HOST_RESTARTED, CloneState.STOPPED):
            yield f"  start it: polarvault clone start {record.name}"
        if record.expires is not None:
            yield f"  is removed in {_age(record.expires - now)}"


def _age(span: Any) -> str:
    seconds = max(0, int(span.total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
