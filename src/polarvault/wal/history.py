"""Timeline history files: which timeline owns which stretch of the WAL.

A file NNNNNNNN.history belongs to timeline NNNNNNNN and holds one line for each ancestor: its timeline, the LSN where
the next one branched off, and a reason for people, with blanks between them; blank lines and lines that start with #
mean nothing (manual, "Timelines"; server: access/transam/timeline.c). Timeline 1 has no file. The byte at a switch
LSN belongs to the new timeline.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from polarvault.errors import IntegrityError
from polarvault.model import limits
from polarvault.model.lsn import Lsn

_ENTRY = re.compile(r"([0-9]{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s+(.*))?\Z")


def history_file_name(timeline_id: int) -> str:
    """Return the name of a timeline's history file."""
    return f"{timeline_id:08X}.history"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line: WAL of `timeline_id` is followed up to `switch_lsn`, where the next timeline begins."""

    timeline_id: int
    switch_lsn: Lsn
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimelineRange:
    """A stretch of WAL on one timeline: from `start` up to, not including, `end`; None means it is still open."""

    timeline_id: int
    start: Lsn
    end: Lsn | None

    def holds(self, lsn: int) -> bool:
        """Tell whether the byte at the LSN lies in this stretch."""
        return self.start <= lsn and (self.end is None or lsn < self.end)


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """One timeline and its ancestors, oldest first; `TimelineHistory(1)` is the history of a cluster never switched."""

    timeline_id: int
    entries: tuple[HistoryEntry, ...] = ()

    @classmethod
    def parse(cls, content: bytes, timeline_id: int) -> Self:
        """Read the content of the timeline's history file; raise IntegrityError that names the file and the line."""
        if len(content) > limits.HISTORY_BYTES:
            raise _damaged(timeline_id, f"it has {len(content)} bytes")
        entries: list[HistoryEntry] = []
        for number, raw in enumerate(content.split(b"\n"), 1):
            line = raw.strip()
            if not line or line.startswith(b"#"):
                continue
            entry = _parse_line(line.decode("utf-8", "replace"))
            problem = entry if isinstance(entry, str) else _problem_after(entry, entries, timeline_id)
            if problem:
                raise _damaged(timeline_id, f"line {number}: {problem}")
            assert isinstance(entry, HistoryEntry)
            entries.append(entry)
            if len(entries) > limits.TIMELINES:
                raise _damaged(timeline_id, f"it names more than {limits.TIMELINES} ancestors")
        if not entries:
            # Only timeline 1 has no ancestor, and it has no file: this one was cut by a crash or a full disk.
            raise _damaged(timeline_id, "it names no ancestor")
        return cls(timeline_id, tuple(entries))

    @property
    def ranges(self) -> tuple[TimelineRange, ...]:
        """Every timeline with its stretch of WAL, oldest first; the last one is the timeline itself and open."""
        found: list[TimelineRange] = []
        start = Lsn(0)
        for entry in self.entries:
            found.append(TimelineRange(entry.timeline_id, start, entry.switch_lsn))
            start = entry.switch_lsn
        return (*found, TimelineRange(self.timeline_id, start, None))

    @property
    def ancestors(self) -> tuple[TimelineRange, ...]:
        """The ranges of the ancestors, oldest first."""
        return self.ranges[:-1]

    @property
    def start(self) -> Lsn:
        """Where the timeline itself begins; 0/0 for timeline 1."""
        return self.entries[-1].switch_lsn if self.entries else Lsn(0)

    def range_of(self, timeline_id: int) -> TimelineRange | None:
        """Return the stretch that a timeline owns in this history; None when it is no part of it."""
        return next((found for found in self.ranges if found.timeline_id == timeline_id), None)

    def contains(self, timeline_id: int, lsn: int) -> bool:
        """Tell whether the byte at the LSN, as written on that timeline, is part of this history."""
        found = self.range_of(timeline_id)
        return found is not None and found.holds(lsn)

    def contains_up_to(self, timeline_id: int, end_lsn: int) -> bool:
        """Tell whether WAL of that timeline that ends at end_lsn (the first byte not needed) is part of this history.

        A backup that ends exactly at a switch is inside; the server asks the same way for its consistency point.
        """
        return self.contains(timeline_id, max(end_lsn - 1, 0))

    def timeline_of(self, lsn: int) -> int:
        """Return the timeline that owns the byte at the LSN."""
        return next(found.timeline_id for found in self.ranges if found.holds(lsn))


def _parse_line(line: str) -> HistoryEntry | str:
    match = _ENTRY.match(line)
    if match is None:
        shown = line if len(line) <= 60 else line[:60] + "..."
        return f"{shown!r} is not a timeline, a switch LSN and a reason"
    return HistoryEntry(int(match[1]), Lsn.parse(match[2]), match[3] or "")


def _problem_after(entry: HistoryEntry, before: list[HistoryEntry], timeline_id: int) -> str | None:
    if not 1 <= entry.timeline_id <= limits.TIMELINE_ID:
        return f"{entry.timeline_id} is not a timeline"
    if entry.timeline_id >= timeline_id:
        return f"timeline {entry.timeline_id} cannot be an ancestor of timeline {timeline_id}"
    if before and entry.timeline_id <= before[-1].timeline_id:
        return f"timeline {entry.timeline_id} follows timeline {before[-1].timeline_id}"
    if before and entry.switch_lsn < before[-1].switch_lsn:
        return f"the switch at {entry.switch_lsn} lies before the one at {before[-1].switch_lsn}"
    return None


def _damaged(timeline_id: int, problem: str) -> IntegrityError:
    return IntegrityError(
        f"timeline history {history_file_name(timeline_id)} is damaged: {problem}",
        hint="take another copy of the file, from the server's pg_wal or from another WAL directory",
    )
