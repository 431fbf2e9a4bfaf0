"""What clones, snapshots and images have in common as text and JSON: age, room, a record that may not be there."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from polarvault.model.units import format_bytes


class Made(Protocol):
    """A record of something that was made."""

    @property
    def made(self) -> datetime:
        """When."""


def fields_of(record: object | None, names: Iterable[str]) -> dict[str, Any]:
    """Return fields of a record for JSON; all are null where there is no record."""
    return {name: None if record is None else _plain(getattr(record, name)) for name in names}


def age_s(record: Made | None, now: datetime) -> int | None:
    """Return the age in seconds."""
    return None if record is None else int((now - record.made).total_seconds())


def age_words(seconds: float) -> str:
    """Say an age, or the time that is left, in its largest unit."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def size_words(size: int | None) -> str:
    """Say a size that may not be known."""
    return "unknown size" if size is None else format_bytes(size)


def unfinished_line(noun: str, id_: str) -> str:
    """Say that something is only good for being removed."""
    return f"{id_}: unfinished, what made it was killed; remove it: polarvault {noun} remove {id_}"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value
