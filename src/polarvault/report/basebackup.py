"""The outcome of a base backup, as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polarvault.basebackup.take import BackupOutcome

if TYPE_CHECKING:
    from polarvault.basebackup.request import BackupRequest


def request_fields(request: BackupRequest) -> dict[str, Any]:
    """Return for --json what was asked for, which is known whatever comes of it."""
    return {
        "directory": request.directory,
        "shared_directory": request.polardata,
        "target": request.target,
        "format": request.format,
        "compression": None if request.compression.algorithm == "none" else request.compression.algorithm,
        "wal_method": request.wal_method,
        "slot": request.slot,
        "label": request.label,
    }


def outcome_fields(outcome: BackupOutcome) -> dict[str, Any]:
    """Return the outcome for --json; sizes are bytes."""
    pages = outcome.pages
    return {
        "server": outcome.identity.product,
        "system_identifier": outcome.identity.system_identifier,
        "start_lsn": str(outcome.start_lsn),
        "stop_lsn": str(outcome.stop_lsn),
        "timeline": outcome.timeline_id,
        "received_bytes": outcome.received_bytes,
        "left_out_bytes": outcome.left_out_bytes,
        "left_out_files": outcome.left_out_files,
        "checked_pages": pages.checked_pages if pages else None,
        "bad_pages": sum(bad.count for bad in pages.bad_files) if pages else None,
    }


def outcome_lines(outcome: BackupOutcome) -> list[str]:
    """Return what is said at the end of a successful backup; nothing for PostgreSQL, as pg_basebackup does."""
    lines = []
    if outcome.left_out_files:
        lines.append(
            f"left out:    {outcome.left_out_files} files, {outcome.left_out_bytes / (1 << 20):.0f} MB that a restore "
            "has no use for (caches, logs, polar_fullpage; --keep-all writes them)"
        )
    return lines + outcome.closing_notes
