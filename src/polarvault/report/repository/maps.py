"""The block maps that were made of the WAL in a repository, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.report.units import format_bytes, printable
from polarvault.repository.maps.making import MadeMaps

_SHOWN = 10


def maps_text(cluster: str, address: str, found: Sequence[MadeMaps]) -> Iterator[str]:
    """Yield what `wal map` has done, by timeline."""
    yield printable(f"{cluster} in {address}")
    if not found:
        yield "no WAL"
    for one in found:
        where = f"timeline {one.timeline_id} of system identifier {one.system_identifier}"
        yield f"{where}: {one.made} made, {one.present} were there{_speed(one)}"
        for segment, gap in one.gaps[:_SHOWN]:
            yield printable(f"  gap in {segment.file_name} at {gap.lsn}: {gap.reason}")
        if len(one.gaps) > _SHOWN:
            yield f"  and {len(one.gaps) - _SHOWN} more with gaps; --json has all"
        for segment, why in one.problems:
            yield printable(f"  no map of {segment.file_name}: {why}")
        if one.waiting:
            yield f"  {one.waiting[0].file_name} waits for WAL that comes after it"


def _speed(one: MadeMaps) -> str:
    if not one.made:
        return ""
    rate = f", {format_bytes(round(one.read_bytes / one.seconds))}/s" if one.seconds > 0 else ""
    return f"; {format_bytes(one.read_bytes)} of WAL read in {one.seconds:.1f} s{rate}"


def maps_json(cluster: str, address: str, found: Sequence[MadeMaps]) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    return {
        "cluster": cluster,
        "repository": address,
        "timelines": [
            {
                "system_identifier": str(one.system_identifier),
                "timeline": one.timeline_id,
                "made": one.made,
                "present": one.present,
                "gaps": [
                    {"segment": segment.file_name, "lsn": str(gap.lsn), "reason": gap.reason}
                    for segment, gap in one.gaps
                ],
                "waiting": [segment.file_name for segment in one.waiting],
                "problems": [{"segment": segment.file_name, "message": why} for segment, why in one.problems],
                "wal_read_bytes": one.read_bytes,
                "seconds": round(one.seconds, 3),
            }
            for one in found
        ],
    }
