"""The repositories that a stream of WAL goes into: what comes must continue, or be, what each of them has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from polarvault.errors import IntegrityError, TimelineDiverged
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.maps.stored import maps_beside
from polarvault.repository.wal.merging import merge_small_ranges
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.wal.history import history_file_name
from polarvault.walarchive.histories import TWO_SERVERS, put_history

OpenRepositories = Callable[[], Sequence[Repository]]


class Place:
    """One repository's WAL of the cluster. Used by one thread at a time; methods raise StorageFailed."""

    def __init__(self, wal: RepositoryWal, repository: Repository, cluster: str) -> None:
        self.wal, self.address, self._cluster = wal, repository.store.address, cluster
        self.maps = maps_beside(wal, repository, cluster)
        # What was there of the segments that are being written when they were begun.
        self._known: dict[WalSegment, list[StoredRange]] = {}

    def put(self, timeline_id: int, first: Lsn, content: bytes) -> None:
        """Write what is not there of some bytes of one segment, durable on return; IntegrityError for other bytes."""
        segment = WalSegment.holding(first, timeline_id, self.wal.segment_bytes)
        if segment not in self._known:
            self._known = {segment: self.wal.segment_ranges(segment)}
        try:
            self._put(segment, first, content)
        except BaseException:
            # Others merge and expire ranges: the next try looks again.
            self._known = {}
            raise

    def merge(self, segment: WalSegment, *, is_whole: bool) -> int:
        """Merge small ranges of a segment, where it is time; return how many were written."""
        return merge_small_ranges(self.wal, segment, is_whole=is_whole)

    def put_history(self, timeline_id: int, content: bytes) -> None:
        """Write a timeline's history, durable on return; TimelineDiverged for another one."""
        put_history(
            self.wal, timeline_id, content, origin="the server's history", place=f"{self.address} of {self._cluster}"
        )

    def _put(self, segment: WalSegment, first: Lsn, content: bytes) -> None:
        at, last = int(first), int(first) + len(content)
        for one in self._known[segment]:
            if one.last <= at or one.first >= last:
                continue
            self._compare(one, max(at, one.first), min(one.last, last), content, first)
            if one.first > at:
                self._write(segment.timeline_id, at, content[at - first : one.first - first])
            at = max(at, int(one.last))
        if at < last:
            self._write(segment.timeline_id, at, content[at - first :])

    def _write(self, timeline_id: int, first: int, content: bytes) -> None:
        self.wal.put_range(timeline_id, first, content)

    def _compare(self, one: StoredRange, start: int, end: int, content: bytes, first: Lsn) -> None:
        there = self.wal.read_range(one)[start - one.first : end - one.first]
        here = memoryview(content)[start - first : end - first]
        if there == here:
            return
        differs = next(at for at, (mine, other) in enumerate(zip(here, there, strict=True)) if mine != other)
        raise IntegrityError(
            f"the server's WAL and what {self.address} has of {one.segment.file_name} of {self._cluster} differ from "
            f"LSN {Lsn(start + differs)} on, on timeline {one.segment.timeline_id}: two servers write the same "
            "timeline, or this one has lost WAL that it had sent",
            hint=TWO_SERVERS,
        )


class Places:
    """All repositories of one cluster; durable is what each of them has. Opened when they are first needed.

    generation: what the server is, None while it was not asked: then the cluster must be there already.
    """

    def __init__(self, cluster: str, open_repositories: OpenRepositories) -> None:
        self.cluster = cluster
        self._open = open_repositories
        self._repositories: Sequence[Repository] | None = None
        self._places: list[Place] | None = None
        self._claimed: Generation | None = None
        self._histories: dict[int, bytes] = {}

    def claim(self, generation: Generation) -> None:
        """Say which server this is; its generation is made in each repository before the first byte goes there."""
        self._claimed = generation

    def opened(self, system_identifier: int | None = None) -> list[Place]:
        """Open what is not open; return the places of the server's system identifier, or of the one that is given."""
        if self._places is None:
            repositories = self.repositories()
            claimed = self._claimed
            places = []
            for one in repositories:
                if claimed is not None and system_identifier in (None, claimed.system_identifier):
                    one.ensure_generation(self.cluster, claimed)
                    wal = one.wal_of(self.cluster, claimed.system_identifier)
                else:
                    wal = one.wal_of(self.cluster, system_identifier)
                places.append(Place(wal, one, self.cluster))
            if claimed is None:
                return places
            self._places = places
        return self._places

    @property
    def is_open(self) -> bool:
        """Tell whether the repositories of the server that was claimed have been opened."""
        return self._places is not None

    def repositories(self) -> Sequence[Repository]:
        """Return the repositories, opened now if they are not."""
        if self._repositories is None:
            self._repositories = self._open()
        return self._repositories

    def put(self, timeline_id: int, first: Lsn, content: bytes) -> None:
        """Write into every repository; durable on return."""
        for place in self.opened():
            place.put(timeline_id, first, content)

    def put_history(self, timeline_id: int, content: bytes) -> None:
        """Write a history into every repository; durable on return."""
        for place in self.opened():
            place.put_history(timeline_id, content)
        self._histories[timeline_id] = content

    def history(self, timeline_id: int) -> bytes | None:
        """Return a history that every repository has; None where one lacks it."""
        if timeline_id not in self._histories:
            found = [place.wal.read_file(timeline_id, history_file_name(timeline_id)) for place in self.opened()]
            if any(one is None for one in found):
                return None
            if len(set(found)) > 1:
                raise TimelineDiverged(
                    f"the repositories of {self.cluster} have different histories of timeline {timeline_id}",
                    hint=TWO_SERVERS,
                )
            self._histories[timeline_id] = found[0] or b""
        return self._histories[timeline_id]


def open_by(stack: ExitStack, openers: Mapping[str, Callable[[], Repository]]) -> OpenRepositories:
    """Return what opens repositories, each once, however often it is called after one of them was away."""
    opened: dict[str, Repository] = {}

    def open_all() -> Sequence[Repository]:
        for address, opener in openers.items():
            if address not in opened:
                opened[address] = opener()
                stack.callback(opened[address].store.close)
        return list(opened.values())

    return open_all
