"""Block maps of the WAL that passes: `wal map` makes those that this cannot, and the WAL never waits for one."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.model.lsn import Lsn
from polarvault.repository.maps.stored import RepositoryMaps
from polarvault.wal.block_maps.builder import BlockMapBuilder
from polarvault.wal.pages import PAGE_BYTES


class PassingMaps:
    """Is fed slices in their order, and writes the map of each segment that passes whole."""

    def __init__(self, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._builder: BlockMapBuilder | None = None
        self._timeline_id = 0
        self._at = 0

    def feed(self, timeline_id: int, first: Lsn, content: bytes, into: Sequence[RepositoryMaps]) -> int:
        """Take a slice; return how many maps were written. What does not work is left to `wal map`."""
        view = memoryview(content)
        if (timeline_id, int(first)) != (self._timeline_id, self._at):
            # Within a page nobody can tell where a record begins; of that segment there is no map then.
            skip = -int(first) % PAGE_BYTES
            self._timeline_id, self._at = timeline_id, int(first) + len(view)
            view = view[skip:]
            self._builder = None
            if not len(view):
                self._at = 0
                return 0
            self._builder = BlockMapBuilder(Lsn(first + skip), timeline_id, self._segment_bytes)
        else:
            self._at += len(view)
        return self._feed(view, into)

    def _feed(self, view: memoryview, into: Sequence[RepositoryMaps]) -> int:
        builder = self._builder
        if builder is None:
            return 0
        done = 0
        try:
            for segment, block_map in builder.feed(view):
                for maps in into:
                    maps.put(segment, block_map)
                done += 1
        except Exception:
            # Whatever it is, a fault of ours included: WAL must not wait for what can be made again.
            self._builder = None
        if builder.end is not None:
            # Invalid WAL, or of a version that is not known: `wal map` says which.
            self._builder = None
        if self._builder is None:
            self._at = 0
        return done
