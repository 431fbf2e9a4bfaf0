"""Timelines as a tree in text: where each branched off, and which one the server is on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from polarvault.repository.catalogue.wal_windows import GenerationWal, ServerWal, TimelineWal

# A server that fails over every day has more of them; the newest are what one looks for.
_SHOWN = 40


def timeline_tree(generation: GenerationWal, server: ServerWal | None) -> Iterator[str]:
    """Yield the lines; nothing where there is but one timeline."""
    if len(generation.timelines) < 2:
        return
    here = {one.timeline_id: one for one in generation.timelines}
    current, why = max(here), "the last one"
    if server is not None and server.system_identifier == generation.system_identifier and server.timeline_id in here:
        current, why = server.timeline_id, "the server is on it"
    children: defaultdict[int | None, list[TimelineWal]] = defaultdict(list)
    for one in generation.timelines:
        # A parent of which there is no WAL has no line of its own.
        children[one.parent if one.parent in here else None].append(one)
    # By hand: a chain of timelines may be longer than Python follows.
    waiting = [(one, "", True, True) for one in reversed(children[None])]
    shown = 0
    while waiting:
        one, indent, is_root, is_last = waiting.pop()
        if shown == _SHOWN:
            yield f"  and {len(here) - _SHOWN} more; --json has all"
            return
        shown += 1
        branch = "" if is_root else "└─ " if is_last else "├─ "
        switched = "" if one.switch_lsn is None else f" from {one.switch_lsn}"
        missing = "" if one.parent is None or one.parent in here else f" on {one.parent}, of which there is no WAL"
        mark = f"  <- {why}" if one.timeline_id == current else ""
        yield f"  {indent}{branch}{one.timeline_id}{switched}{missing}{mark}"
        below = indent if is_root else indent + ("   " if is_last else "│  ")
        own = sorted(children[one.timeline_id], key=lambda child: (child.switch_lsn or 0, child.timeline_id))
        waiting += [
            (child, below, False, place == len(own) - 1) for place, child in reversed(list(enumerate(own)))
        ]  # fmt: skip
