"""Turns a stream of WAL into slices, and knows what of it is durable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from polarvault.errors import PolarvaultError, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.pages import PAGE_BYTES
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.streaming.slices import Slice, SliceMaker
from polarvault.walarchive.streaming.uploader import Uploader
from polarvault.walarchive.views import split

# Status messages and small writes: a spool file must stay within what is read of it.
_MOST_WRITES = 200_000
# On SIGTERM a service has to be gone soon. What is not in the repository by then was not acknowledged either.
_GRACE_S = 3.0
_SWITCH_S = 5.0

ReadBack = Callable[[WalSegment, int, int], bytes]


class StreamWriter:
    """A `wal.store.WalWriter`: hands slices to an uploader.

    slice_bytes: how long a slice gets at most. most_bytes: how much may wait. synchronous: every write is made durable
    at once, which needs slices that can be (a spool). read_back: reads what the repository has of a segment.
    """

    def __init__(
        self,
        uploader: Uploader,
        make_slice: SliceMaker,
        *,
        segment_size_bytes: int,
        slice_bytes: int,
        most_bytes: int,
        synchronous: bool,
        read_back: ReadBack,
        stop: StopRequest,
        on_segment: Callable[[WalSegment], None],
        on_note: Callable[[str], None],
    ) -> None:
        self.segment_size_bytes = segment_size_bytes
        self.timeline_id = 0
        self.received = Lsn(0)
        self._uploader, self._make_slice = uploader, make_slice
        self._slice_bytes, self._most_bytes = slice_bytes, most_bytes
        self._synchronous = synchronous
        self._read_back, self._stop = read_back, stop
        self._on_segment, self._on_note = on_segment, on_note
        self._slice: Slice | None = None
        self._writes = 0
        self._ended = True
        self._closed = False
        self._gives_up_at: float | None = None

    begins_anywhere = True

    @property
    def flushed(self) -> Lsn:
        """Behind the last byte that may be acknowledged; raise what has ended the uploader."""
        self._raise_failure()
        first = self._uploader.first_not_durable()
        return self.received if first is None else min(self.received, first)

    @property
    def has_room(self) -> bool:
        """False while so much waits that no more should be received."""
        self._raise_failure()
        return self._uploader.waiting_bytes < self._most_bytes

    def can_go_on(self, timeline_id: int) -> bool:
        """Tell whether the next byte can be taken: in any place, unless the segment was given up."""
        at_start = self.received % self.segment_size_bytes == 0
        return timeline_id == self.timeline_id != 0 and (not self._ended or at_start)

    def begin(self, lsn: Lsn, timeline_id: int) -> None:
        """Start over; it may be within a segment."""
        self._hand_over()
        # Else what may be acknowledged would seem to go back.
        self._uploader.wait(lambda: self._stop.requested or self._is_durable(), _SWITCH_S)
        self.received, self.timeline_id, self._ended = lsn, timeline_id, False

    def write(self, views: list[memoryview]) -> None:
        """Take WAL that follows what came before."""
        self._raise_failure()
        while views:
            current = self._slice or self._begin_slice()
            segment = WalSegment.holding(current.first, self.timeline_id, self.segment_size_bytes)
            room = min(segment.end, current.first + self._slice_bytes) - self.received
            now, views = split(views, room)
            current.append(now)
            self._writes += 1
            self.received = current.last
            if self.received == segment.end:
                self._hand_over()
                self._on_segment(segment)
            elif sum(map(len, now)) == room or self._writes >= _MOST_WRITES:
                self._hand_over()
        if self._synchronous and self._slice is not None:
            self._slice.sync()

    def sync(self) -> None:
        """Have everything received so far made durable: a slice ends here."""
        self._raise_failure()
        self._hand_over()

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything handed over is durable. When a stop was asked for that ends after a few seconds."""
        self._uploader.wait(self._is_durable, timeout_s)
        self._raise_failure()
        if self._is_durable():
            return True
        if self._stop.requested and self._gives_up_at is None:
            self._gives_up_at = time.monotonic() + _GRACE_S - timeout_s
        return self._gives_up_at is not None and time.monotonic() >= self._gives_up_at

    def end_segment(self) -> None:
        """Hand over what there is of the segment; it is not gone on with in the middle."""
        self._hand_over()
        self._ended = True

    def before(self, length: int, timeline_of: Callable[[int], int]) -> bytes:
        """Return what is kept in front of the next byte, of one segment."""
        if self.received == 0:
            return b""
        last = self.received - 1
        segment = WalSegment.holding(last, timeline_of(last), self.segment_size_bytes)
        first = max(segment.start, (self.received - length) // PAGE_BYTES * PAGE_BYTES)
        try:
            return self._kept(segment, first)
        except StorageFailed:
            return b""  # Nothing that can be read now.

    def close(self) -> None:
        """Make everything received durable, as far as a few seconds allow, and end. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        # A few seconds at the end, not twice.
        self._uploader.wait(self._is_durable, _GRACE_S if self._gives_up_at is None else 0.0)
        self._raise_failure()
        first = self._uploader.first_not_durable()
        if first is not None:
            self._on_note(
                f"{self.received - first} bytes of WAL from {first} on were received, and are not in the repository"
                f"{self._why()}; they were not acknowledged, and the server sends them again"
            )

    def abandon(self) -> None:
        """End after a failure: what was received whole goes on its way."""
        self._closed = True
        # On a disk that is full this may go well all the same; what could not be synced is not acknowledged.
        with contextlib.suppress(StorageFailed):
            self._hand_over()

    # Parts

    def _begin_slice(self) -> Slice:
        self._slice = self._make_slice(self.timeline_id, self.received)
        self._writes = 0
        self._uploader.watch(self._slice)
        return self._slice

    def _hand_over(self) -> None:
        found, self._slice = self._slice, None
        if found is None:
            return
        try:
            found.sync()
        finally:
            self._uploader.take(found)

    def _is_durable(self) -> bool:
        return self._uploader.first_not_durable() is None

    def _kept(self, segment: WalSegment, first: int) -> bytes:
        waiting = [
            one for one in self._uploader.slices()
            if one.timeline_id == segment.timeline_id and segment.start <= one.first and one.last <= self.received
        ]  # fmt: skip
        begins = next((one.first for one in waiting), self.received)
        parts = [self._read_back(segment, first, begins)] if first < begins else []
        if parts and len(parts[0]) < begins - first:
            parts = [b""]
            first = begins
        parts += [one.content(max(0, first - one.first)) for one in waiting if one.last > first]
        content = b"".join(parts)
        # From the start of a page on.
        skip = -(self.received - len(content)) % PAGE_BYTES
        return content[skip:]

    def _raise_failure(self) -> None:
        if self._uploader.failed is not None:
            raise self._uploader.failed

    def _why(self) -> str:
        away: PolarvaultError | None = self._uploader.away
        return "" if away is None else f": {away.message}"
