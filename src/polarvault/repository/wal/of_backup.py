"""The WAL that makes one backup of a repository consistent: from its start to its end, out of all the cluster's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from polarvault.backupset.backup import Entry
from polarvault.backupset.model import Area
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import MemberKind
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.wal.history import history_file_name
from polarvault.wal.segment_header import SegmentHeader
from polarvault.wal.source import HeldRange, WalCopy, joined
from polarvault.walfiles.choice import content_of, find


class BackupWal:
    """A `wal.source.WalSource` that has a few segments of another one, on one timeline, and its history."""

    def __init__(self, archive: RepositoryWalSource, *, start: Lsn, stop: Lsn, timeline_id: int) -> None:
        self._archive = archive
        self._timeline_id = timeline_id
        size = archive.segment_bytes
        last = WalSegment.holding(Lsn(max(stop - 1, start)), timeline_id, size)
        segment = WalSegment.holding(start, timeline_id, size)
        self._segments = [segment]
        while segment.number < last.number:
            segment = segment.next()
            self._segments.append(segment)
        self._names = {one.file_name for one in self._segments}

    @property
    def place(self) -> str:
        """That of all WAL."""
        return self._archive.place

    @property
    def paths(self) -> Sequence[str]:
        """None."""
        return ()

    def sizes(self) -> dict[str, int]:
        """Return what is held of each segment that is there, and of the history, by file name."""
        found = {copy.name: copy.size_bytes or 0 for copy in self._copies()}
        return found | {name: len(content) for (_, name), content in self.histories().items()}

    def histories(self) -> Mapping[tuple[Area, str], bytes]:
        """Return the timeline's history, if it has one."""
        if self._timeline_id == 1:
            return {}
        name = history_file_name(self._timeline_id)
        copy = next(iter(self._archive.copies(name)), None)
        return {} if copy is None else {(Area.WAL, name): content_of(copy, limits.HISTORY_BYTES)}

    def files(self) -> Iterator[tuple[Entry, Callable[[], Iterator[memoryview]]]]:
        """Yield what belongs into pg_wal: segments, the marks of whole ones, the history."""
        for copy in self._copies():
            yield Entry(Area.WAL, copy.name, MemberKind.FILE, copy.size_bytes or 0), copy.views
            if copy.is_final:
                # It is archived: the restored server need not do it again.
                yield Entry(Area.WAL, f"archive_status/{copy.name}.done", MemberKind.FILE), partial(_views, b"")
        for (area, name), content in self.histories().items():
            yield Entry(area, name, MemberKind.FILE, len(content)), partial(_views, content)
            yield Entry(area, f"archive_status/{name}.done", MemberKind.FILE), partial(_views, b"")

    def _copies(self) -> Iterator[WalCopy]:
        for segment in self._segments:
            copy = find(self._archive, segment)
            if copy is not None:
                yield copy

    def timelines(self) -> Sequence[int]:
        """Return the one timeline, if there is anything of it."""
        return [self._timeline_id] if next(self._copies(), None) is not None else []

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what is held of the segments."""
        if (timeline_id, segment_size_bytes) != (self._timeline_id, self._archive.segment_bytes):
            return ()
        starts = {segment.file_name: segment.start for segment in self._segments}
        return joined(
            HeldRange(starts[copy.name], Lsn(starts[copy.name] + (copy.size_bytes or 0))) for copy in self._copies()
        )

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Return the copies of what belongs to the backup."""
        is_own = name in self._names or (self._timeline_id > 1 and name == history_file_name(self._timeline_id))
        return self._archive.copies(name) if is_own else ()

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of the first segment that is there."""
        return next((header for copy in self._copies() if (header := copy.look_at_start().header) is not None), None)

    def foreign_form(self, name: str) -> str | None:
        """Return None: nobody else writes here."""
        return None

    def lack(self) -> tuple[str, str] | None:
        """Say that the WAL of the backup is gone, if so."""
        if self.timelines():
            return None
        return "lacks the WAL of the backup", "restore another backup"

    def fetch_options(self) -> Sequence[str]:
        """Return those of all WAL."""
        return self._archive.fetch_options()

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _views(content: bytes) -> Iterator[memoryview]:
    if content:
        yield memoryview(content)
