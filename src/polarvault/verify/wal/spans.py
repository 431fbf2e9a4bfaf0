"""Ranges of WAL in bytes and segments."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.model.segment import WalSegment
from polarvault.verify.facts.backup import WalRange
from polarvault.wal.records import check_start

# A week of WAL at a gigabyte a second is less; a wrong digit in an LSN makes more.
_MAX_RANGE_BYTES = 1 << 50


def range_problem(span: WalRange, size: int) -> str | None:
    """Say why no backup can need this range; None when one can."""
    try:
        check_start(span.start, size)
    except ValueError as problem:
        return str(problem)
    if span.end is not None and span.end < span.start:
        return f"the range ends at {span.end}, before it begins"
    if last_byte(span) - span.start > _MAX_RANGE_BYTES:
        return f"the range reaches to {span.end}, which is more WAL than any backup needs"
    return None


def last_byte(span: WalRange) -> int:
    """Return the LSN of the last byte that is known to be in the range."""
    return int(span.start) if span.end is None else max(int(span.start), int(span.end) - 1)


def is_segment_of(spans: Sequence[WalRange], name: str, size: int) -> bool:
    """Tell whether a segment's file is needed for one of the ranges."""
    try:
        segment = WalSegment.parse(name, size)
    except ValueError:
        return False
    return any(
        span.timeline_id == segment.timeline_id and span.start // size <= segment.number <= last_byte(span) // size
        for span in spans
    )
