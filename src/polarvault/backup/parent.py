"""Which earlier backup a new one is compared with, and why none. Pure.

The evidence is that a page has the same sum at the same place: it holds whatever a server did in between, with or
without WAL. What the rules defend against is comparing with a cluster that only shares the name, or the identifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polarvault.model.lsn import Lsn
from polarvault.repository.format.record import BackupRecord


@dataclass(frozen=True, slots=True)
class ServerState:
    """What a parent must fit. history: what tells two timelines of one number apart, "" for the first one."""

    system_identifier: int
    timeline_id: int
    start_lsn: Lsn
    history: str
    data_checksums: bool
    relation_segment_bytes: int


@dataclass(frozen=True, slots=True)
class ParentChoice:
    """label: of the parent, None for a full backup; reason: why that one, or why none."""

    label: str | None
    reason: str


def choose_parent(records: Sequence[BackupRecord], server: ServerState, *, full: bool) -> ParentChoice:
    """Return the backup that ended last on this server's own timeline; the reason is one line."""
    if full:
        return ParentChoice(None, "a full backup was asked for")
    if not records:
        return ParentChoice(None, "the first backup of the cluster")
    good = [record for record in records if _problem(record, server) is None]
    if good:
        best = max(good, key=lambda record: (record.facts.stop_lsn, record.label))
        return ParentChoice(best.label, "the last backup on this timeline")
    last = max(records, key=lambda record: (record.facts.finished, record.label))
    return ParentChoice(None, f"{last.label} cannot be the parent: {_problem(last, server)}")


def _problem(record: BackupRecord, server: ServerState) -> str | None:
    facts, details = record.facts, record.facts.details
    if facts.system_identifier != server.system_identifier:
        return f"its system identifier is {facts.system_identifier}, this server's {server.system_identifier}"
    if facts.stop_timeline_id != server.timeline_id:
        return f"it ended on timeline {facts.stop_timeline_id}, and this server writes timeline {server.timeline_id}"
    if details.get("history", "") != server.history:
        return f"its timeline {server.timeline_id} began elsewhere than this server's"
    if facts.stop_lsn > server.start_lsn:
        return f"it ended at {facts.stop_lsn}, and this server is only at {server.start_lsn}: is it an older copy?"
    changed = _changed(
        details,
        (
            ("data_checksums", server.data_checksums, "data checksums"),
            ("relation_segment_bytes", server.relation_segment_bytes, "the size of relation segments"),
        ),
    )
    return None if changed is None else f"{changed} changed"


def _changed(details: Any, wanted: Iterable[tuple[str, object, str]]) -> str | None:
    return next((words for name, value, words in wanted if details.get(name) != value), None)
