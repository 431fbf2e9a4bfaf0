"""Takes slices and histories into the repositories, in the order in which they came, in a thread of its own.

A repository that is away is tried again and again; what waits is bounded by whoever hands over (`waiting_bytes`).
What is wrong with the content ends it: then `failed` says what.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from polarvault.errors import PolarvaultError, RepositoryNotFound, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.merging import SMALL_BYTES, SMALL_RANGES
from polarvault.walarchive.streaming.maps import PassingMaps
from polarvault.walarchive.streaming.places import Places
from polarvault.walarchive.streaming.slices import HistoryItem, Slice
from polarvault.walarchive.streaming.spool import Spool

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0


class Uploader:
    """Owns everything that has been received and is not in the repositories. Safe to use by several threads.

    on_change: called, by any thread, when something has become durable or an upload has failed.
    """

    def __init__(self, places: Places, spool: Spool | None, *, on_change: Callable[[], None]) -> None:
        self._places, self._spool, self._on_change = places, spool, on_change
        self._condition = threading.Condition()
        self._items: deque[Slice | HistoryItem] = deque()
        # The slice that is still written to; it is the newest.
        self._open: Slice | None = None
        self._stopping = False
        self._small = 0
        self._maps: PassingMaps | None = None
        self.failed: PolarvaultError | None = None
        """What no repetition can mend."""
        self.away: PolarvaultError | None = None
        """Why the last attempt failed; None when it went well."""
        self.away_since: float | None = None
        self.begun: float | None = None
        """Since when the upload under way is tried, in seconds since 1970; None while there is nothing to do."""
        self._thread = threading.Thread(target=self._run, name="wal upload", daemon=True)
        self._thread.start()

    def take(self, item: Slice | HistoryItem) -> None:
        """Take what is complete; of a slice nothing may be appended any more."""
        if not isinstance(item, HistoryItem):
            # Thousands may wait.
            item.close()
        with self._condition:
            if item is self._open:
                self._open = None
            self._items.append(item)
            self._condition.notify_all()

    def watch(self, slice_: Slice) -> None:
        """Note a slice that is being written, so that it counts as received."""
        with self._condition:
            self._open = slice_

    # What it tells

    def slices(self) -> list[Slice]:
        """Return the slices that are not in the repositories, oldest first, the open one included."""
        with self._condition:
            found = [one for one in self._items if not isinstance(one, HistoryItem)]
            return found if self._open is None else [*found, self._open]

    def histories(self) -> dict[int, bytes]:
        """Return the histories that are not in the repositories."""
        with self._condition:
            return {one.timeline_id: one.content for one in self._items if isinstance(one, HistoryItem)}

    @property
    def waiting_bytes(self) -> int:
        """How much is not in the repositories."""
        return sum(one.last - one.first for one in self.slices())

    def first_not_durable(self) -> Lsn | None:
        """Return the LSN of the oldest byte that a crash would take; None if there is none."""
        return next((one.durable for one in self.slices() if one.durable < one.last), None)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something is so that changes with what is uploaded."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or self.failed is not None:
                return condition()
            with self._condition:
                self._condition.wait(min(left, 0.05))
        return True

    def is_empty(self) -> bool:
        """Tell whether the repositories have everything that was handed over."""
        with self._condition:
            return not self._items

    def stop(self) -> bool:
        """Begin no other upload; return whether none is under way, which would go on until the process ends."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join(1.0)
        return not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._condition:
                while not self._items and not self._stopping:
                    self._condition.wait()
                if self._stopping:
                    return
                item = self._items[0]
                self.begun = self.begun or time.time()
            try:
                self._upload(item)
            except (StorageFailed, RepositoryNotFound) as problem:
                self._note_away(problem)
                with self._condition:
                    if self._condition.wait_for(lambda: self._stopping, pause_s):
                        return
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except PolarvaultError as problem:
                self.failed = problem
                self._changed()
                return
            except BaseException as problem:
                self.failed = PolarvaultError(f"uploading WAL failed: {type(problem).__name__}: {problem}")
                self._changed()
                raise
            pause_s, self.away, self.away_since, self.begun = _FIRST_PAUSE_S, None, None, None
            with self._condition:
                self._items.popleft()
            self._changed()

    def _upload(self, item: Slice | HistoryItem) -> None:
        if isinstance(item, HistoryItem):
            self._places.put_history(item.timeline_id, item.content)
            if item.name is not None and self._spool is not None:
                self._spool.remove(item.name)
            return
        content = item.content()
        self._places.put(item.timeline_id, item.first, content)
        item.remove()
        self._merge(item)
        places = self._places.opened()
        if self._maps is None:
            self._maps = PassingMaps(places[0].wal.segment_bytes)
        self._maps.feed(item.timeline_id, item.first, content, [place.maps for place in places])

    def _merge(self, item: Slice) -> None:
        """Merge small ranges when a segment is over, and now and then within a large one."""
        self._small += item.last - item.first <= SMALL_BYTES
        for place in self._places.opened():
            segment = WalSegment.holding(item.first, item.timeline_id, place.wal.segment_bytes)
            is_whole = item.last == segment.end
            if self._small > 1 and (is_whole or self._small >= SMALL_RANGES):
                # What fails here, for a damaged range of others perhaps, is done by the next one, or said by expire and
                # repo check: the WAL itself is safe, and must not wait for it.
                with contextlib.suppress(PolarvaultError):
                    place.merge(segment, is_whole=is_whole)
        if is_whole or self._small >= SMALL_RANGES:
            self._small = 0

    def _note_away(self, problem: PolarvaultError) -> None:
        if self.away_since is None:
            self.away_since = time.time()
        self.away = problem
        self._changed()

    def _changed(self) -> None:
        with self._condition:
            self._condition.notify_all()
        self._on_change()
