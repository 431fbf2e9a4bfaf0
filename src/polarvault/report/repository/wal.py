"""What WAL is in a repository, and what it reaches, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.report.units import format_bytes, printable
from polarvault.repository.catalogue.wal_windows import GenerationWal, TimelineWal

_SHOWN = 20


def wal_text(cluster: str, address: str, generations: Sequence[GenerationWal]) -> Iterator[str]:
    """Yield the lines of `wal status` for one cluster."""
    yield printable(f"{cluster} in {address}")
    for generation in generations:
        yield f"system identifier {generation.system_identifier}"
        if not generation.timelines:
            yield "  no WAL"
        last = max((one.timeline_id for one in generation.timelines), default=0)
        for one in generation.timelines:
            yield from _timeline(cluster, one, is_last=one.timeline_id == last)


def _timeline(cluster: str, one: TimelineWal, *, is_last: bool) -> Iterator[str]:
    branched = "" if one.parent is None else f", branched from {one.parent} at {one.switch_lsn}"
    current = ", the last one" if is_last and one.parent is not None else ""
    yield (
        f"  timeline {one.timeline_id}{branched}{current}: {one.objects} object{'s' * (one.objects != 1)}, "
        f"{format_bytes(one.stored_bytes)}"
    )
    if one.problem:
        yield printable(f"    where it branched off is not known: {one.problem}")
    gaps = {gap.start: gap for gap in one.gaps}
    for number, held in enumerate(one.held):
        if number == _SHOWN:
            yield f"    and {len(one.held) - _SHOWN} more stretches; --json has all"
            break
        yield f"    WAL from {held.start} to {held.end}"
        if held.end in gaps:
            yield f"    GAP from {held.end} to {gaps[held.end].end}"
    for window in one.windows:
        names = ", ".join(f"{cluster}@{label}" for label in window.backups[-3:])
        more = f" and {len(window.backups) - 3} older" if len(window.backups) > 3 else ""
        yield f"    any moment from {window.start} to {window.end}: {names}{more}"
    if one.held and not one.windows:
        yield "    nothing of it is reached from a backup"


def wal_json(cluster: str, address: str, generations: Sequence[GenerationWal]) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    return {
        "cluster": cluster,
        "repository": address,
        "generations": [
            {
                "system_identifier": str(generation.system_identifier),
                "timelines": [_timeline_json(one) for one in generation.timelines],
            }
            for generation in generations
        ],
    }


def _timeline_json(one: TimelineWal) -> dict[str, Any]:
    return {
        "timeline": one.timeline_id,
        "parent": one.parent,
        "switch_lsn": None if one.switch_lsn is None else str(one.switch_lsn),
        "objects": one.objects,
        "stored_bytes": one.stored_bytes,
        "held": [{"start": str(held.start), "end": str(held.end)} for held in one.held],
        "gaps": [{"start": str(gap.start), "end": str(gap.end)} for gap in one.gaps],
        "windows": [
            {"start": str(window.start), "end": str(window.end), "backups": list(window.backups)}
            for window in one.windows
        ],
        "problem": one.problem or None,
    }
