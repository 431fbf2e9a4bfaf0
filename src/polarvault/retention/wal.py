"""The WAL of a cluster that no kept backup needs, with its block maps, and the small ranges of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from polarvault.errors import IntegrityError
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.maps.stored import maps_beside
from polarvault.repository.wal.merging import merge_small_ranges, superseded, to_merge
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.retention.plan import WalNeed, is_wal_needed

# A stream merges its own segments; what is left of those that were killed is done bit by bit.
_MOST_SEGMENTS = 256


@dataclass(slots=True)
class Removed:
    """How much went, or would go, and what could not be removed."""

    backups: int = 0
    packs: int = 0
    pack_bytes: int = 0
    wal_ranges: int = 0
    wal_bytes: int = 0
    wal_files: int = 0
    """Partial segments, and the marks that the server made of backups."""
    wal_merged: int = 0
    """Ranges that were written in the place of many small ones."""
    maps: int = 0
    """Block maps of segments of which no WAL is left."""
    refused: list[str] = field(default_factory=list)
    young: int = 0
    """Packs and ranges that nobody uses and that are younger than the safety time."""


class WalKeeper:
    """Removes WAL of one cluster, and merges what stays. delete: removes an object, False if the store refuses."""

    def __init__(self, repository: Repository, cluster: str, delete: Callable[[str], bool], removed: Removed) -> None:
        self._repository, self._cluster = repository, cluster
        self._delete, self._removed = delete, removed

    def remove(self, needs: Sequence[WalNeed], ranks: dict[int, int], not_after: datetime) -> None:
        """Remove what nothing needs, and what lies in longer ranges that have been there for the safety time.

        The map of a segment goes with the last of its ranges: it can be made again as long as there is one. So do the
        marks of backups that the server archived, and partial segments.
        """
        for system_identifier, rank in ranks.items():
            wal = self._repository.wal_of(self._cluster, system_identifier)
            left: set[WalSegment] = set()
            for timeline_id in wal.timelines():
                stored = wal.stored(timeline_id)
                double = superseded(one for one, there in stored if there.modified <= not_after)
                for one, there in stored:
                    if is_wal_needed(one, system_identifier, rank, needs) and one not in double:
                        left.add(one.segment)
                    elif there.modified > not_after:
                        self._removed.young += 1
                        left.add(one.segment)
                    elif self._delete(there.name):
                        self._removed.wal_ranges += 1
                        self._removed.wal_bytes += there.size_bytes
                    else:
                        left.add(one.segment)
                for segment, there in wal.stored_files(timeline_id):
                    whole = StoredRange(segment, segment.start, segment.end)
                    if segment in left or is_wal_needed(whole, system_identifier, rank, needs):
                        continue
                    if there.modified > not_after:
                        self._removed.young += 1
                    elif self._delete(there.name):
                        self._removed.wal_files += 1
                        self._removed.wal_bytes += there.size_bytes
            self._remove_maps(wal, left, not_after)

    def _remove_maps(self, wal: RepositoryWal, left: Set[WalSegment], not_after: datetime) -> None:
        maps = maps_beside(wal, self._repository, self._cluster)
        for timeline_id in maps.timelines():
            for segment, there in maps.stored(timeline_id):
                # A young one may be of WAL that came after that was listed.
                if segment not in left and there.modified <= not_after and self._delete(there.name):
                    self._removed.maps += 1

    def merge(self, identifiers: Iterable[int]) -> None:
        """Merge small ranges of segments behind which there is more; a few hundred segments at a time."""
        left = _MOST_SEGMENTS
        for system_identifier in identifiers:
            wal = self._repository.wal_of(self._cluster, system_identifier)
            for timeline_id in wal.timelines():
                ranges = wal.ranges(timeline_id)
                newest = ranges[-1].segment if ranges else None
                for segment, of_segment in groupby(ranges, key=lambda one: one.segment):
                    if not left or segment == newest or not to_merge(list(of_segment), is_whole=True):
                        continue
                    left -= 1
                    try:
                        self._removed.wal_merged += merge_small_ranges(wal, segment, is_whole=True)
                    except IntegrityError as problem:
                        # The WAL stays as it is; whoever needs it is told the same.
                        self._removed.refused.append(problem.message)
