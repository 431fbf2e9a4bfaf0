"""Backups that went from a repository into files, or the other way round, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polarvault.exchange.export import Exported, ExportRequest
from polarvault.exchange.taking_in import Imported
from polarvault.report.units import format_bytes, printable


def exported_text(word: str, request: ExportRequest, found: Exported) -> Iterator[str]:
    """Yield what was written, and how its manifest came to be."""
    form = "tar files" if request.as_tar else "directory"
    yield printable(
        f"exported {word} to {request.directory} ({form}): {found.files} files, {format_bytes(found.size_bytes)}, "
        "each compared with the manifest"
        if found.has_manifest
        else f"exported {word} to {request.directory} ({form}): {found.files} files, {format_bytes(found.size_bytes)}; "
        "the backup had no manifest, one was made"
    )
    for setting in found.settings:
        yield printable(f"not as the manifest says, as if somebody had edited it: {setting}")
    for note in found.closing_notes:
        yield printable(note)


def exported_json(word: str, request: ExportRequest, found: Exported) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    return {
        "backup": word,
        "directory": request.directory,
        "shared_directory": request.polardata,
        "format": "tar" if request.as_tar else "plain",
        "files": found.files,
        "bytes": found.size_bytes,
        "has_manifest": found.has_manifest,
        "differing_settings": [setting.path for setting in found.settings],
    }


def imported_text(found: Imported) -> Iterator[str]:
    """Yield what a backup in files has become, and what was compared."""
    counts, source = found.outcome.counts, found.found
    compared = "each compared with the manifest" if found.has_manifest else "with no manifest to compare them with"
    yield printable(
        f"imported {source.path} as {found.cluster}@{found.outcome.label} into {found.address}: "
        f"{found.outcome.files} files, {format_bytes(found.size_bytes)}, {compared}"
    )
    kind = "full" if found.parent.label is None else f"incremental to {found.parent.label}"
    yield printable(f"{kind}: {found.parent.reason}; {format_bytes(counts.stored_bytes)} stored")
    yield f"WAL from {source.label.start_lsn} to {source.stop_lsn} on timeline {source.stop_timeline_id}"
    for setting in found.settings:
        yield printable(f"not as the manifest says, as if somebody had edited it: {setting}")


def imported_json(found: Imported) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    counts, source = found.outcome.counts, found.found
    return {
        "path": source.path,
        "cluster": found.cluster,
        "label": found.outcome.label,
        "repository": found.address,
        "parent": found.parent.label,
        "reason": found.parent.reason,
        "start_lsn": str(source.label.start_lsn),
        "stop_lsn": str(source.stop_lsn),
        "timeline": source.stop_timeline_id,
        "files": found.outcome.files,
        "bytes": found.size_bytes,
        "stored_bytes": counts.stored_bytes,
        "has_manifest": found.has_manifest,
        "differing_settings": [setting.path for setting in found.settings],
    }
