"""What was received and is in no repository yet: slices of one timeline's WAL, in memory or (`spool`) in files.

A slice in memory is durable when the repository has it, one in the spool when its file is synced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from polarvault.model.lsn import Lsn


class Slice(Protocol):
    """A stretch of one timeline's WAL, within one segment. Methods raise StorageFailed."""

    timeline_id: int
    first: Lsn
    last: Lsn
    """Behind the last byte that was appended."""
    durable: Lsn
    """Behind the last byte that is safe whatever happens to this process, and to this machine's power."""

    def append(self, views: list[memoryview]) -> None:
        """Take the bytes that follow; the views may change afterwards."""

    def sync(self) -> None:
        """Make durable what can be made so here."""

    def content(self, first: int = 0) -> bytes:
        """Return the bytes, from an offset on."""

    def close(self) -> None:
        """Append no more; safe to call twice."""

    def remove(self) -> None:
        """It is in the repository."""


class MemorySlice:
    """A slice that waits in memory: nothing of it is durable."""

    def __init__(self, timeline_id: int, first: Lsn) -> None:
        self.timeline_id = timeline_id
        self.first = self.last = self.durable = first
        self._content = bytearray()

    def append(self, views: list[memoryview]) -> None:
        """Copy the bytes."""
        for view in views:
            self._content += view
        self.last = Lsn(self.first + len(self._content))

    def sync(self) -> None:
        """Do nothing: only the repository makes it durable."""

    def content(self, first: int = 0) -> bytes:
        """Return a copy."""
        return bytes(memoryview(self._content)[first:])

    def close(self) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class HistoryItem:
    """A timeline's history that is to be in the repository before the timeline's WAL. name: of its file, if any."""

    timeline_id: int
    content: bytes
    name: str | None = None


SliceMaker = Callable[[int, Lsn], Slice]
