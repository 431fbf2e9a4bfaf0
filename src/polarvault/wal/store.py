"""The seam to write WAL that is received: where it goes on, what becomes of it, and how far it is durable.

A *store* is the place (a WAL directory: `walarchive.store`; the contract is tests/contract/test_wal_store.py), a
*writer* takes one stream into it. An LSN may be acknowledged to a server once it is `flushed`, never before. Protocols
and values only; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment


@dataclass(frozen=True, slots=True)
class StartPoint:
    """The first byte to ask for, and its timeline; remark says what is unusual about it."""

    timeline_id: int
    lsn: Lsn
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What WAL must belong to in order to be kept with what is there."""

    system_identifier: str
    segment_size_bytes: int


class WalWriter(Protocol):
    """Takes one stream of WAL. Methods raise StorageFailed, DiskFull among them."""

    segment_size_bytes: int
    timeline_id: int
    """0 before the first `begin`."""
    received: Lsn
    """Where the next byte belongs."""
    begins_anywhere: bool
    """Whether `begin` may be within a segment of which the bytes before are kept."""

    @property
    def flushed(self) -> Lsn:
        """Up to where everything is durable, under a name that is durable, too; raise what prevented more."""
        ...

    @property
    def has_room(self) -> bool:
        """False while what is durable is so far behind that no more should be received."""
        ...

    def can_go_on(self, timeline_id: int) -> bool:
        """Tell whether the next byte of this timeline can be taken without a `begin`."""
        ...

    def begin(self, lsn: Lsn, timeline_id: int) -> None:
        """Start over at the first byte of a segment; `begins_anywhere`: or behind what is kept of it."""
        ...

    def write(self, views: list[memoryview]) -> None:
        """Take WAL that follows what came before; the views may change afterwards."""
        ...

    def sync(self) -> None:
        """Have everything received so far made durable; `wait` tells when it is."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything handed over is durable; False when the time is over first."""
        ...

    def end_segment(self) -> None:
        """Leave an unfinished segment as it is; what it holds becomes durable."""
        ...

    def before(self, length: int, timeline_of: Callable[[int], int]) -> bytes:
        """Return so much of the kept WAL in front of the next byte, from the start of a page on.

        Of one segment at most; nothing where there is none, or none that can be read now. timeline_of: the timeline at
        an LSN.
        """
        ...

    def close(self) -> None:
        """Make everything received durable and end; raise what could not be. Safe to call twice."""
        ...

    def abandon(self) -> None:
        """End after a failure: what cannot be written any more is left as it is."""
        ...


class StoreLock(Protocol):
    """Held while a receiver writes into a store. What the receiver tells of itself is kept there."""

    def tell(self, status: dict[str, Any]) -> None:
        """Replace what is known of the receiver. It is news, not data: nothing is raised when that fails."""
        ...

    def forget_failure(self) -> None:
        """Remove what tells of a receiver, before the release, unless there was one before or WAL was received."""
        ...

    def release(self) -> None:
        """Let another one in."""
        ...


class WalStore(Protocol):
    """A place that WAL is received into. Methods raise StorageFailed."""

    gap_hint: str
    """What to do when the server no longer has the WAL that comes next."""
    lost_slot_hint: str
    """What to do, once the slot is dropped, when it has lost that WAL."""
    diverged_hint: str
    """What to do when the server's WAL does not continue what is kept."""

    def lock(self) -> StoreLock:
        """Keep other receivers out; raise UsageError when one is at work."""
        ...

    def note_failed_start(self, status: dict[str, Any]) -> None:
        """Say in the status of an earlier receiver why the next one could not begin; nothing is raised."""
        ...

    def resume_point(
        self,
        cluster: Cluster,
        warn: Callable[[str], None],
        *,
        counts: Callable[[WalSegment], bool] = lambda segment: True,
        held_from: Lsn | None = None,
    ) -> StartPoint | None:
        """Return where the kept WAL ends, None if there is none; raise UsageError for that of another cluster.

        counts chooses the segments that are looked at. held_from: the server has everything from there on; a store in
        which others write as well returns the first gap behind it.
        """
        ...

    def history(self, timeline_id: int) -> bytes | None:
        """Return the history file of a timeline that is kept; None if there is none, or one with nothing in it."""
        ...

    def add_history(self, timeline_id: int, content: bytes) -> None:
        """Keep a timeline's history file; durable on return. One that is kept must be the same: TimelineDiverged."""
        ...

    def open(
        self,
        *,
        segment_size_bytes: int,
        group_access: bool,
        wake: Callable[[], None],
        on_segment: Callable[[WalSegment], None],
    ) -> WalWriter:
        """Return a writer. group_access: the server's group may read its files.

        wake is called, by any thread, when `flushed` has changed; on_segment when a segment has been received whole.
        """
        ...

    def has_space(self, size_bytes: int) -> bool:
        """Tell whether so much can be written."""
        ...

    def space_warning(self, segment_size_bytes: int) -> str | None:
        """Say that there is little space left."""
        ...
