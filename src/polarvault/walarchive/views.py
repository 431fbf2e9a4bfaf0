"""Lists of views, as a stream of WAL comes in."""

from __future__ import annotations

from collections.abc import Sequence


def split(views: Sequence[memoryview], room: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a list of views after so many bytes."""
    for number, view in enumerate(views):
        if room <= len(view):
            rest = [view[room:]] if room < len(view) else []
            return [*views[:number], view[:room]], [*rest, *views[number + 1 :]]
        room -= len(view)
    return list(views), []
