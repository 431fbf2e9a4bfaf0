"""How clusters stand, as text and JSON: problems first, then a line for each cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from polarvault.model.finding import Severity
from polarvault.model.units import format_duration
from polarvault.report.findings import findings_json
from polarvault.report.json_document import error_json, iso
from polarvault.report.units import format_bytes, printable
from polarvault.repository.catalogue.overview import Overview
from polarvault.status.model import ClusterStatus, Level, Status

_WORDS = {Severity.OK: "OK", Severity.WARNING: "WARNING", Severity.PROBLEM: "CRITICAL"}
_HEAD = (
    "CLUSTER", "REPOSITORY", "STATE", "LAST BACKUP", "RESTORABLE UNTIL (UTC)", "AGO", "WINDOW", "BACKUPS", "STORED",
    "1 DAY", "7 DAYS", "VERIFIED", "DRILL",
)  # fmt: skip


def status_text(status: Status) -> Iterator[str]:
    """Yield the lines of the screen."""
    problems = list(_problems(status))
    yield from problems
    if problems:
        yield ""
    yield from _table([_HEAD, *(_row(one, status.now) for one in status.clusters)])
    for one in status.clusters:
        yield from _notes(one)


def _problems(status: Status) -> Iterator[str]:
    for one in status.worst_first:
        if one.error is not None:
            yield f"UNKNOWN   {one.name}: {printable(one.error.message)}"
            yield from _advice(one.error.hint)
        for finding in sorted(one.findings, key=lambda each: each.severity is not Severity.PROBLEM):
            yield f"{_WORDS[finding.severity]:<9} {finding.subject}: {printable(finding.message)}"
            yield from _advice(finding.advice)


def _advice(text: str | None) -> Iterator[str]:
    for number, line in enumerate((text or "").splitlines()):
        yield f"{'':<10}{'do:' if number == 0 else '':<4}{printable(line)}"


def _row(one: ClusterStatus, now: datetime) -> tuple[str, ...]:
    head = one.cluster or "?", one.repository or one.address, one.level.name.lower()
    found = one.overview
    if found is None:
        return (*head, *[""] * (len(_HEAD) - len(head)))
    last = "none" if found.last is None else f"{_ago(found.last.facts.finished, now)} ago"
    reach = found.reach
    drill = ""
    if found.drilled is not None:
        drill = f"{_ago(found.drilled.time, now)} ago, {'held' if found.drilled.held else 'FAILED'}"
    verified = ""
    if found.verified is not None:
        verified = f"{_ago(found.verified.time, now)} ago{'' if found.verified.good else ', DAMAGE'}"
    return (
        *head,
        last,
        "" if reach is None else f"{reach.time:%Y-%m-%d %H:%M:%S}",
        "" if reach is None else _ago(reach.time, now),
        "" if reach is None else format_duration((reach.time - reach.start).total_seconds()),
        str(found.backups),
        format_bytes(found.stored_bytes),
        f"+{format_bytes(found.day_bytes)}",
        f"+{format_bytes(found.week_bytes)}",
        verified or "never",
        drill or "never",
    )


def _notes(one: ClusterStatus) -> Iterator[str]:
    """Say what is known and alarms nobody."""
    reach = one.overview.reach if one.overview is not None else None
    if reach is not None and reach.gap is not None and reach.acknowledged is not None:
        note = f": {reach.acknowledged.note}" if reach.acknowledged.note else ""
        yield printable(
            f"{one.name}: WAL from {reach.gap.start} to {reach.gap.end} is missing behind the last good backup, "
            f"acknowledged on {reach.acknowledged.time:%Y-%m-%d}{note}"
        )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _ago(moment: datetime, now: datetime) -> str:
    return format_duration((now - moment).total_seconds())


def level_word(level: Level) -> str:
    """Return a level as programs read it."""
    return level.name.lower()


def status_json(status: Status) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    return {
        "status": level_word(status.level),
        "clusters": [_cluster_json(one, status.now) for one in status.clusters],
        "findings": findings_json(finding for one in status.worst_first for finding in one.findings),
    }


def _cluster_json(one: ClusterStatus, now: datetime) -> dict[str, Any]:
    limits = one.limits
    document: dict[str, Any] = {
        "cluster": one.cluster or None,
        "repository": one.address,
        "status": level_word(one.level),
        "error": None if one.error is None else error_json(one.error),
        "limits": {
            "max_backup_age_s": limits.max_backup_age_s or None,
            "max_wal_lag_s": limits.max_wal_lag_s or None,
            "max_verify_age_s": limits.max_verify_age_s or None,
            "max_drill_age_s": limits.max_drill_age_s or None,
        },
    }
    return document if one.overview is None else document | _overview_json(one.overview, now)


def _overview_json(found: Overview, now: datetime) -> dict[str, Any]:
    reach, last, verified, drilled = found.reach, found.last, found.verified, found.drilled
    known = None if reach is None else reach.acknowledged
    return {
        "backups": found.backups,
        "last_backup": None if last is None else {
            "label": last.label,
            "started": iso(last.facts.started),
            "finished": iso(last.facts.finished),
            "age_s": _seconds(last.facts.finished, now),
            "stored_bytes": last.counts.get("stored_bytes"),
        },
        "not_good": [{"label": label, "why": why} for label, why in found.newer],
        "damaged": list(found.damaged),
        "window": None if reach is None else {
            "start": iso(reach.start),
            "end": iso(reach.time),
            "age_s": _seconds(reach.time, now),
            "end_lsn": str(reach.end),
            "timeline": reach.timeline_id,
            "backups": reach.backups,
        },
        "gap": None if reach is None or reach.gap is None else {
            "start": str(reach.gap.start),
            "end": str(reach.gap.end),
            "acknowledged": None if known is None else iso(known.time),
            "note": None if known is None else known.note or None,
        },
        "stored_bytes": found.stored_bytes,
        "wal_bytes": found.wal_bytes,
        "day_bytes": found.day_bytes,
        "week_bytes": found.week_bytes,
        "verified": None if verified is None else {
            "label": verified.label, "time": iso(verified.time), "age_s": _seconds(verified.time, now),
            "good": verified.good,
        },
        "drilled": None if drilled is None else {
            "label": drilled.label or None, "time": iso(drilled.time), "age_s": _seconds(drilled.time, now),
            "held": drilled.held, "verdict": drilled.verdict, "restore_s": drilled.restore_s,
        },
    }  # fmt: skip


def _seconds(moment: datetime, now: datetime) -> int:
    return round((now - moment).total_seconds())
