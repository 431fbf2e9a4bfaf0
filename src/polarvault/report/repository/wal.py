"""What WAL is in a repository, and what it reaches, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from polarvault.report.json_document import iso
from polarvault.report.repository.timelines import timeline_tree
from polarvault.report.units import format_bytes, printable
from polarvault.repository.catalogue.wal_windows import GenerationWal, ServerWal, TimelineWal, lag_bytes
from polarvault.repository.states.gaps import AcknowledgedGap
from polarvault.wal.source import HeldRange

_SHOWN = 20


def wal_text(
    cluster: str, address: str, generations: Sequence[GenerationWal], server: ServerWal | None = None
) -> Iterator[str]:
    """Yield the lines of `wal status` for one cluster; server: None where it was not asked."""
    yield printable(f"{cluster} in {address}")
    if server is not None:
        yield printable(f"server: {_server_words(server, generations)}")
    for generation in generations:
        yield f"system identifier {generation.system_identifier}"
        if not generation.timelines:
            yield "  no WAL"
        yield from timeline_tree(generation, server)
        last = max((one.timeline_id for one in generation.timelines), default=0)
        for one in generation.timelines:
            yield from _timeline(cluster, generation, one, is_last=one.timeline_id == last)


def _server_words(server: ServerWal, generations: Sequence[GenerationWal]) -> str:
    if server.lsn is None:
        return f"could not be asked: {server.problem}"
    at = f"timeline {server.timeline_id} at {server.lsn}"
    behind = lag_bytes(server, generations)
    if behind is None:
        return f"{at}, system identifier {server.system_identifier}; no WAL of that is here"
    return f"{at}; the WAL here is {format_bytes(behind)} behind"


def _timeline(cluster: str, generation: GenerationWal, one: TimelineWal, *, is_last: bool) -> Iterator[str]:
    branched = "" if one.parent is None else f", branched from {one.parent} at {one.switch_lsn}"
    current = ", the last one" if is_last and one.parent is not None else ""
    yield (
        f"  timeline {one.timeline_id}{branched}{current}: {one.objects} object{'s' * (one.objects != 1)}, "
        f"{format_bytes(one.stored_bytes)}{_merges(one)}"
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
            known = generation.acknowledged(one.timeline_id, gaps[held.end])
            note = (
                "" if known is None else f", acknowledged on {known.time:%Y-%m-%d}{': ' * bool(known.note)}{known.note}"
            )
            yield printable(f"    GAP from {held.end} to {gaps[held.end].end}{note}")
    for window in one.windows:
        names = ", ".join(f"{cluster}@{label}" for label in window.backups[-3:])
        more = f" and {len(window.backups) - 3} older" if len(window.backups) > 3 else ""
        yield f"    any moment from {window.start} to {window.end}: {names}{more}"
        if window.end_time is not None:
            since = "" if window.start_time is None else f"from {_moment(window.start_time)} "
            yield f"      {since}to {_moment(window.end_time)}"
    if one.held and not one.windows:
        yield "    nothing of it is reached from a backup"


def _merges(one: TimelineWal) -> str:
    waiting = f"; {one.to_merge} small ones are to be merged" if one.to_merge else ""
    return waiting + (f"; {one.superseded} lie in others, and go with expire" if one.superseded else "")


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def wal_json(
    cluster: str, address: str, generations: Sequence[GenerationWal], server: ServerWal | None = None
) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    return {
        "cluster": cluster,
        "repository": address,
        "server": None if server is None else {
            "system_identifier": None if server.system_identifier is None else str(server.system_identifier),
            "timeline": server.timeline_id,
            "lsn": None if server.lsn is None else str(server.lsn),
            "lag_bytes": lag_bytes(server, generations),
            "problem": server.problem,
        },
        "generations": [
            {
                "system_identifier": str(generation.system_identifier),
                "timelines": [_timeline_json(generation, one) for one in generation.timelines],
            }
            for generation in generations
        ],
    }  # fmt: skip


def _timeline_json(generation: GenerationWal, one: TimelineWal) -> dict[str, Any]:
    return {
        "timeline": one.timeline_id,
        "parent": one.parent,
        "switch_lsn": None if one.switch_lsn is None else str(one.switch_lsn),
        "objects": one.objects,
        "stored_bytes": one.stored_bytes,
        "to_merge": one.to_merge,
        "superseded": one.superseded,
        "held": [{"start": str(held.start), "end": str(held.end)} for held in one.held],
        "gaps": [_gap_json(gap, generation.acknowledged(one.timeline_id, gap)) for gap in one.gaps],
        "windows": [
            {
                "start": str(window.start),
                "end": str(window.end),
                "start_time": iso(window.start_time),
                "end_time": iso(window.end_time),
                "backups": list(window.backups),
            }
            for window in one.windows
        ],
        "problem": one.problem or None,
    }


def _gap_json(gap: HeldRange, known: AcknowledgedGap | None) -> dict[str, Any]:
    return {
        "start": str(gap.start),
        "end": str(gap.end),
        "acknowledged": None if known is None else iso(known.time),
        "note": None if known is None else known.note or None,
    }
