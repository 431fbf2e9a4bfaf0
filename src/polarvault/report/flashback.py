"""One table back, and who changed it: as text and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.flashback.model import Stage, TableResult
from polarvault.model.units import format_bytes


def table_json(result: TableResult) -> dict[str, Any]:
    """Return what came out."""
    return {
        "source": result.source,
        "moment": result.moment,
        "lsn": result.lsn,
        "database": result.database,
        "tables": [
            {"name": str(one.name), "as_name": one.as_name and str(one.as_name), "rows": one.rows,
             "partitions": one.partitions}
            for one in result.tables
        ],
        "output": result.output,
        "size_bytes": result.size_bytes,
        "into": result.into,
        "stages": stages_json(result.stages),
    }  # fmt: skip


def stages_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages with their seconds."""
    return [{"stage": one.name, "seconds": round(one.seconds, 3)} for one in stages]


def table_text(result: TableResult) -> Iterator[str]:
    """Yield what came out, and what to type next."""
    for one in result.tables:
        rows = "rows not counted" if one.rows is None else f"{one.rows} rows"
        parts = f" in {one.partitions} partitions" if one.partitions else ""
        name = f"{one.name}, as {one.as_name}" if one.as_name else str(one.name)
        yield f"{name}: {rows}{parts}, of database {result.database} at {result.moment}"
    for note in result.notes:
        yield f"  {note}"
    if result.output is not None:
        yield f"  {result.output}, {format_bytes(result.size_bytes)}"
        yield f"  see what is in it: pg_restore -l {shlex.quote(result.output)}"
    else:
        yield f"  restored into {result.into}"
    yield f"  {stages_text(result.stages)}"


def stages_text(stages: Sequence[Stage]) -> str:
    """Return how long it took, in one line."""
    parts = ", ".join(f"{one.name} {one.seconds:.1f} s" for one in stages)
    return f"took {sum(one.seconds for one in stages):.1f} s: {parts}"
