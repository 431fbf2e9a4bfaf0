"""Backups that went from a repository into files, or the other way round, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polarvault.exchange.export import Exported, ExportRequest
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
