"""Images as text and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from polarvault.images.model import ImageRecord, ImageState, ImageStatus
from polarvault.report.kept import age_s, age_words, fields_of, size_words, unfinished_line

_FIELDS = (
    "name", "series", "number", "made", "source", "start_lsn", "lsn", "time", "timeline_id", "shares", "backup",
    "shared", "system_identifier", "version", "is_polardb", "keep",
)  # fmt: skip


def image_json(status: ImageStatus, now: datetime) -> dict[str, Any]:
    """Return one image; everything that is not known is null."""
    record = status.record
    return {
        "id": status.id,
        "directory": status.directory,
        "state": status.state.value,
        "own_bytes": status.own_bytes,
        "age_s": age_s(record, now),
        **fields_of(record, _FIELDS),
    }


def image_text(status: ImageStatus) -> Iterator[str]:
    """Yield what there is to say about an image that was just made."""
    record = status.record
    assert record is not None
    yield f"image {record.name}: at {_moment(record)}, of {record.source}"
    if status.own_bytes is not None:
        yield f"  takes {size_words(status.own_bytes)}" + (" of its own" if record.shares else ", a whole copy")
    path = shlex.quote(record.backup)
    yield f"  it is a backup: polarvault clone create image:{record.series}; polarvault restore {path} -D ..."
    yield f"  replay what has come since: polarvault image advance {record.series}"


def list_text(statuses: Sequence[ImageStatus], now: datetime, directory: str) -> Iterator[str]:
    """Yield lines for each image, problems with what to type."""
    if not statuses:
        yield f'no images in "{directory}"'
    for status in statuses:
        record = status.record
        if record is None or status.state is ImageState.UNFINISHED:
            yield unfinished_line("image", status.id)
            continue
        age = age_words((now - record.made).total_seconds())
        yield (
            f"{record.name}: {status.state.value}, at {_moment(record)}, {age} old, {size_words(status.own_bytes)}"
            + (" of its own" if record.shares else "")
        )
        yield f"  {record.backup}"
        if status.state is ImageState.GONE:
            yield f"  somebody else has removed its files; the rest goes by: polarvault image remove {record.name}"


def _moment(record: ImageRecord) -> str:
    when = "" if record.time is None else f", {datetime.fromisoformat(record.time):%Y-%m-%d %H:%M:%S} UTC"
    return f"LSN {record.lsn}{when}, timeline {record.timeline_id}"
