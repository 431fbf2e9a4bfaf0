"""The repositories of a cluster as a store of received WAL: a `wal.store.WalStore`.

Theory of operation. The writer cuts the stream into slices, the uploader takes them into the repositories in their
order. What may be acknowledged is what is durable: in every repository, or with a spool in the spool. Ranges may begin
anywhere, so receiving goes on at the very byte where the kept WAL ends; others (`wal push`, `backup`) write there as
well, so it goes on at the first gap behind what the slot holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polarvault.errors import StorageFailed, TimelineDiverged, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.wal.source import HeldRange, joined
from polarvault.wal.store import Cluster, StartPoint
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.store.space import has_space, space_warning
from polarvault.walarchive.store.status_file import DirectoryLock, note_failed_start
from polarvault.walarchive.streaming.leftovers import check_segments
from polarvault.walarchive.streaming.places import Place, Places
from polarvault.walarchive.streaming.slices import HistoryItem, MemorySlice, Slice
from polarvault.walarchive.streaming.spool import Spool
from polarvault.walarchive.streaming.uploader import Uploader
from polarvault.walarchive.streaming.writer import StreamWriter

# Without a spool so much waits in memory at most: enough to go on receiving while a slice is uploaded.
_MEMORY_BYTES = 64 << 20
_FLUSH_S = 2.0
# A slice that is uploaded for so long is told of. So long takes one of 32 MB at half a megabyte a second.
_SLOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How the stream is cut. slice_bytes: how long a range gets at most. synchronous: with a spool only."""

    slice_bytes: int = 16 << 20
    synchronous: bool = False


class StreamLock:
    """A `wal.store.StoreLock` that tells of what waits for the repositories, too."""

    def __init__(self, lock: DirectoryLock, upload_state: Callable[[], dict[str, Any]]) -> None:
        self._lock, self._upload_state = lock, upload_state

    def tell(self, status: dict[str, Any]) -> None:
        """Write the status file."""
        self._lock.tell(status | {"upload": self._upload_state()})

    def forget_failure(self) -> None:
        """Remove what tells of a receiver that has received nothing."""
        self._lock.forget_failure()

    def release(self) -> None:
        """Let another one in."""
        self._lock.release()


class RepositoryStore:
    """Keeps WAL of one server in the repositories of its cluster; `wal.store` says what its methods promise.

    state_path: the directory with the lock and the status of the receiver. A spool must have been emptied of the WAL of
    other clusters (UsageError).
    """

    gap_hint = (
        "take a new backup, which begins behind the gap, and start streaming again: it goes on behind that backup's "
        "WAL; polarvault wal status shows the gap and what the backups before it still reach; with --slot the server "
        "keeps WAL while nobody receives it"
    )
    lost_slot_hint = (
        "take a new backup, and start streaming again: the slot is made anew, and streaming goes on behind that "
        "backup's WAL; the older backups still reach what is before the gap"
    )
    diverged_hint = (
        "the server was put back to an older state, or two servers were promoted at one place: connect to the one "
        "whose WAL is in the repository; or give this one another cluster name, and take a backup"
    )

    def __init__(
        self,
        places: Places,
        generation: Generation,
        *,
        spool: Spool | None,
        state_path: str,
        settings: StreamSettings,
        stop: StopRequest,
        on_note: Callable[[str], None],
    ) -> None:
        self._places, self._generation, self._spool = places, generation, spool
        self._state_path, self._settings, self._stop, self._on_note = state_path, settings, stop, on_note
        self._wake: Callable[[], None] = stop.wake
        places.claim(generation)
        waiting = [] if spool is None else spool.waiting()
        for head, _ in waiting:
            if head is not None and head.system_identifier != generation.system_identifier:
                raise UsageError(
                    f'the spool "{spool.path if spool else ""}" holds WAL of cluster {head.system_identifier}, and the '
                    f"server is cluster {generation.system_identifier}",
                    hint=f"upload it first: polarvault wal stream {places.cluster} --flush-spool",
                )
            if head is not None:
                check_segments(head, generation.wal_segment_bytes, spool)
        self.uploader = Uploader(places, spool, on_change=lambda: self._wake())
        for _, item in waiting:
            self.uploader.take(item)

    def lock(self) -> StreamLock:
        """Take the lock file."""
        return StreamLock(DirectoryLock(self._state_path), self._upload_state)

    def _upload_state(self) -> dict[str, Any]:
        away, since = self.uploader.away, self.uploader.away_since
        message = None if away is None else away.message
        begun = self.uploader.begun
        if since is None and begun is not None and time.time() - begun >= _SLOW_S:
            # It is not away before a request has failed, which may take minutes of one that hangs.
            since, message = begun, "a request has not been answered yet"
        return {
            "waiting_bytes": self.uploader.waiting_bytes,
            "most_bytes": self._most_bytes,
            "away_since": since,
            "message": message,
        }

    def note_failed_start(self, status: dict[str, Any]) -> None:
        """Change the status file, if there is one."""
        note_failed_start(self._state_path, status)

    def resume_point(
        self,
        cluster: Cluster,
        warn: Callable[[str], None],
        *,
        counts: Callable[[WalSegment], bool] = lambda segment: True,
        held_from: Lsn | None = None,
    ) -> StartPoint | None:
        """Return where what waits here ends, or else what the repository has that lags most."""
        found = self._generation
        if (cluster.system_identifier, cluster.segment_size_bytes) != (
            str(found.system_identifier),
            found.wal_segment_bytes,
        ):
            raise UsageError(
                f"the server is cluster {cluster.system_identifier} with segments of {cluster.segment_size_bytes} "
                f"bytes, and streaming began with cluster {found.system_identifier} and {found.wal_segment_bytes}",
                hint="name only servers of one cluster in the connection string",
            )
        for one in reversed(self.uploader.slices()):
            if counts(WalSegment.holding(one.first, one.timeline_id, found.wal_segment_bytes)):
                return StartPoint(one.timeline_id, one.last)
        ends = [_end_of(place, counts, held_from) for place in self._places.opened()]
        return min(
            (one for one in ends if one is not None), key=lambda one: (one.timeline_id, one.lsn), default=None
        )  # fmt: skip

    def history(self, timeline_id: int) -> bytes | None:
        """Return a history that waits here, or that every repository has."""
        waiting = self.uploader.histories().get(timeline_id)
        if waiting is not None:
            return waiting
        if not self._may_ask():
            return None
        try:
            return self._places.history(timeline_id)
        except StorageFailed:
            if self._spool is None:
                raise
            return None  # It is fetched from the server again, and compared when it is uploaded.

    def add_history(self, timeline_id: int, content: bytes) -> None:
        """Keep a timeline's history: it is in the repository, or in the spool, before anything of that timeline."""
        kept = self.history(timeline_id)
        if kept == content:
            return
        if kept is not None:
            raise TimelineDiverged(
                f"the server's history of timeline {timeline_id} is another one than the repository has of "
                f"{self._places.cluster}",
                hint=self.diverged_hint,
            )
        item = (
            HistoryItem(timeline_id, content) if self._spool is None else self._spool.keep_history(timeline_id, content)
        )
        # In its turn: before anything of the timeline, which is acknowledged only when that is durable.
        self.uploader.take(item)
        self.uploader.wait(self.uploader.is_empty, _FLUSH_S)
        if self.uploader.failed is not None:
            raise self.uploader.failed

    def open(
        self,
        *,
        segment_size_bytes: int,
        group_access: bool,
        wake: Callable[[], None],
        on_segment: Callable[[WalSegment], None],
    ) -> StreamWriter:
        """Return a writer of slices."""
        self._wake = wake
        spool, settings = self._spool, self._settings
        return StreamWriter(
            self.uploader,
            self._make_slice,
            segment_size_bytes=segment_size_bytes,
            slice_bytes=settings.slice_bytes,
            most_bytes=_MEMORY_BYTES if spool is None else spool.most_bytes,
            synchronous=settings.synchronous,
            read_back=self._read_back,
            stop=self._stop,
            on_segment=on_segment,
            on_note=self._on_note,
        )

    def has_space(self, size_bytes: int) -> bool:
        """Ask the file system of the spool."""
        return has_space(self._state_path if self._spool is None else self._spool.path, size_bytes)

    def space_warning(self, segment_size_bytes: int) -> str | None:
        """Say that a repository is away, or that the spool's disk is nearly full."""
        away, waiting = self.uploader.away, self.uploader.waiting_bytes
        if away is not None:
            full = "" if waiting < self._most_bytes else "; no more is received until there is room"
            return f"{waiting >> 20} MB of WAL wait for the repository{full}: {away.message}"
        path = self._state_path if self._spool is None else self._spool.path
        return space_warning(path, segment_size_bytes, "add space, or give --spool a directory on a larger disk")

    def close(self) -> None:
        """Give what waits in the spool a moment, and end."""
        if self._spool is not None:
            self.uploader.wait(lambda: self.uploader.is_empty() or self.uploader.away is not None, _FLUSH_S)
        has_ended = self.uploader.stop()
        if self._spool is not None:
            self._spool.settle()
            if has_ended:
                self._spool.close()

    @property
    def _most_bytes(self) -> int:
        return _MEMORY_BYTES if self._spool is None else self._spool.most_bytes

    def _make_slice(self, timeline_id: int, first: Lsn) -> Slice:
        if self._spool is None:
            return MemorySlice(timeline_id, first)
        found = self._generation
        return self._spool.begin(found.system_identifier, found.wal_segment_bytes, timeline_id, first)

    def _read_back(self, segment: WalSegment, first: int, last: int) -> bytes:
        if not self._may_ask():
            return b""
        return self._places.opened()[0].wal.read(segment.timeline_id, first, last - first)

    def _may_ask(self) -> bool:
        """Tell whether a repository would answer soon: with a spool, receiving must not wait for one that is away."""
        return self._spool is None or (self._places.is_open and self.uploader.away is None and self.uploader.is_empty())


def _end_of(place: Place, counts: Callable[[WalSegment], bool], held_from: Lsn | None) -> StartPoint | None:
    """Return where a place's WAL ends on its newest timeline; behind held_from its first gap."""
    for timeline_id in sorted(place.wal.timelines(), reverse=True):
        ranges = [one for one in place.wal.ranges(timeline_id) if counts(one.segment)]
        stretches = joined(HeldRange(one.first, one.last) for one in ranges)
        if not stretches:
            continue
        end = stretches[-1].end
        if held_from is not None and held_from < end:
            # The first stretch that it is in or before.
            after = next(one for one in stretches if held_from <= one.end)
            if after.start <= held_from or after is stretches[0]:
                end = after.end
            else:
                # In a gap, of which nobody has the beginning any more; a server keeps whole segments.
                end = WalSegment.holding(held_from, timeline_id, place.wal.segment_bytes).start
        return StartPoint(timeline_id, Lsn(end))
    return None
