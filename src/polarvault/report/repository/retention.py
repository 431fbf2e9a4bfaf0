"""What a policy keeps and what goes, with the reason for each, as text or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polarvault.report.units import format_bytes, printable
from polarvault.retention.expire import ExpireReport


def expired_text(report: ExpireReport) -> Iterator[str]:
    """Yield a line for each backup, and what came of it."""
    rows = [("LABEL", "", "BECAUSE")]
    for one, verdict in report.backups:
        rows.append((one.label, "kept" if verdict.is_kept else "goes", "; ".join(verdict.reasons)))
    width = max(len(row[0]) for row in rows)
    for label, word, why in rows:
        yield printable(f"{label:{width}}  {word:4}  {why}").rstrip()
    removed = report.removed
    would = "would remove" if report.request.dry_run else "removed"
    yield (
        f"{would} {removed.backups} backups; {removed.packs} packs, {format_bytes(removed.pack_bytes)}; "
        f"{removed.wal_ranges} ranges of WAL, {format_bytes(removed.wal_bytes)}"
    )
    if removed.young:
        yield (
            f"{removed.young} packs and ranges that nobody uses are younger than the safety time of "
            f"{report.request.safety_s} s; a later expire removes them"
        )
    yield from _compacted_text(report)
    for intent in report.in_use:
        yield printable(
            f"in use: {', '.join(sorted(intent.labels))} by `{intent.command}` on {intent.host}, process {intent.pid}, "
            f"since {intent.started}"
        )
    for problem in removed.refused[:5]:
        yield printable(f"not removed: {problem}")
    if len(removed.refused) > 5:
        yield f"and {len(removed.refused) - 5} more could not be removed"


def _compacted_text(report: ExpireReport) -> Iterator[str]:
    compacted = report.compacted
    if compacted.packs:
        yield (
            f"{'would compact' if report.request.dry_run else 'compacted'} {compacted.packs} packs: "
            f"{format_bytes(compacted.moved_bytes)} of {format_bytes(compacted.pack_bytes)} live and are written anew; "
            f"an expire after the safety time frees {format_bytes(compacted.freed_bytes)}"
        )
    if compacted.left:
        yield f"{compacted.left} more packs are left for the next expire"
    if compacted.problem:
        yield printable(f"not compacted: {compacted.problem}")


def expired_json(report: ExpireReport) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    removed, compacted = report.removed, report.compacted
    return {
        "cluster": report.request.cluster,
        "dry_run": report.request.dry_run,
        "backups": [
            {"label": one.label, "kept": verdict.is_kept, "reasons": list(verdict.reasons)}
            for one, verdict in report.backups
        ],
        "removed": {
            "backups": removed.backups, "packs": removed.packs, "pack_bytes": removed.pack_bytes,
            "wal_ranges": removed.wal_ranges, "wal_bytes": removed.wal_bytes, "wal_merged": removed.wal_merged,
            "wal_files": removed.wal_files,
            "maps": removed.maps,
            "young": removed.young,
            "refused": list(removed.refused),
        },
        "compacted": {
            "packs": compacted.packs, "pack_bytes": compacted.pack_bytes, "moved_bytes": compacted.moved_bytes,
            "left": compacted.left, "problem": compacted.problem,
        },
        "in_use": [
            {"id": one.id, "command": one.command, "labels": sorted(one.labels), "host": one.host, "pid": one.pid}
            for one in report.in_use
        ],
    }  # fmt: skip
