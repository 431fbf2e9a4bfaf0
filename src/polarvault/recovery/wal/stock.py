"""What is there for a recovery: the segments and histories of the WAL archive and of the backup itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Inventory
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.segment import WalSegment
from polarvault.recovery.wal.chain import ChainSegment, UnusableFile
from polarvault.wal.history import TimelineHistory, history_file_name
from polarvault.wal.names import is_written
from polarvault.wal.segment_header import LONG_HEADER_BYTES, StartLook, parse_segment_header
from polarvault.wal.source import READ_BYTES, WalCopy, WalSource, segment_numbers
from polarvault.walfiles.choice import choose, find, history_of

# How often to look for a segment that was listed a moment ago.
_MOST_LOOKS = 20


def stock_of(backup: Backup, inventory: Inventory, places: WalSource, segment_size_bytes: int) -> WalStock:
    """Return what a recovery of a backup can use: places with WAL, and what came with it."""
    return WalStock(places, backup.wal(inventory), segment_size_bytes)


class WalStock:
    """The segments and histories of a WAL archive and of a backup. What is in the archive comes first."""

    def __init__(self, archive: WalSource, own: WalSource, segment_size_bytes: int) -> None:
        self._size = segment_size_bytes
        self._archive = archive
        self._own = own
        self._opened: dict[ChainSegment, WalCopy] = {}

    def files(self, first_number: int) -> dict[tuple[int, int], ChainSegment]:
        """Return every segment from a number on, by timeline and number."""
        found: dict[tuple[int, int], ChainSegment] = {}
        for source, in_backup in ((self._archive, False), (self._own, True)):
            for timeline_id in source.timelines():
                for number in segment_numbers(source.ranges(timeline_id, self._size), self._size):
                    if number < first_number or (timeline_id, number) in found:
                        continue
                    segment = WalSegment(timeline_id, number, self._size)
                    if (file := self._noted(source, segment, in_backup=in_backup)) is not None:
                        found[timeline_id, number] = file
        return found

    def _noted(self, source: WalSource, segment: WalSegment, *, in_backup: bool) -> ChainSegment | None:
        """Find a segment that was listed; None if it is not there any more, or another one has its name in a pg_wal.

        A receiver at work gives files their final names: between two looks one seems not to be there at all.
        """
        for _ in range(_MOST_LOOKS):
            try:
                copies = source.copies(segment.file_name)
                copy = choose(copies, segment)
                size = None if copy is None else copy.size_bytes
            except StorageFailed as problem:
                if not _is_gone(problem):
                    raise
                continue
            if copy is not None:
                noted = ChainSegment(segment, copy.where, in_backup, not copy.is_final, size)
                self._opened[noted] = copy
                return noted
            if copies:
                return None
        return None

    def histories(self) -> tuple[dict[int, TimelineHistory], dict[int, str]]:
        """Return the history of every timeline that has a good file, and of timeline 1; and why others have none."""
        contents: dict[int, bytes] = {}
        for source in (self._own, self._archive):
            for timeline_id in source.timelines():
                history = history_of(source, timeline_id)
                if history is not None:
                    contents[timeline_id] = history
        found, problems = {1: TimelineHistory(1)}, {}
        for timeline_id, content in contents.items():
            try:
                found[timeline_id] = TimelineHistory.parse(content, timeline_id)
            except IntegrityError as damaged:
                # The server writes such files itself (see `settled_timeline`); only who wants that timeline is stopped.
                problems[timeline_id] = damaged.message
        for timeline_id in self._archive.timelines():
            if timeline_id not in contents and timeline_id > 1:
                problems[timeline_id] = f"there is WAL of it, but no {history_file_name(timeline_id)}"
        return found, problems

    def unwritten_histories(self) -> dict[int, str]:
        """Return, by timeline, the names of history files that no fetch serves: the server would stop at each."""
        contents = {timeline_id: history_of(self._archive, timeline_id) for timeline_id in self._archive.timelines()}
        return {
            timeline_id: history_file_name(timeline_id)
            for timeline_id, content in contents.items()
            if content is not None and not is_written(content)
        }

    def paths(self, files: Sequence[ChainSegment]) -> list[str]:
        """Return the files of the archive, among those of segments, that a server's account has to read itself."""
        return [path for file in files if not file.in_backup and (path := self._opened[file].path) is not None]

    def read(self, file: ChainSegment) -> Iterator[memoryview]:
        """Yield a segment's content in order; a view is valid until the next is asked for."""
        views = self._copy_of(file).views(piece_bytes=READ_BYTES)
        try:
            first = next(views, None)
        except StorageFailed as problem:
            again = find(self._archive, file.segment) if _is_gone(problem) else None
            if again is None:
                raise
            # Finished by its receiver since it was found, and renamed.
            self._opened[file] = again
            views = again.views(piece_bytes=READ_BYTES)
            first = next(views, None)
        if first is not None:
            yield first
        yield from views

    def look_at_start(self, file: ChainSegment) -> StartLook:
        """Say what a segment's file is by its first page."""
        try:
            return self._copy_of(file).look_at_start()
        except IntegrityError as damaged:
            return StartLook(None, f"cannot be read: {damaged.message}", hint=damaged.hint or "")
        except StorageFailed as problem:
            if not _is_gone(problem):
                raise
        first = next(self.read(file), memoryview(b""))
        return StartLook(parse_segment_header(bytes(first[:LONG_HEADER_BYTES])))

    def _copy_of(self, file: ChainSegment) -> WalCopy:
        # A compressed tar has to come to its segment anew.
        again = find(self._own, file.segment) if file.in_backup else None
        return again or self._opened[file]

    def foreign_form(self, segment: WalSegment) -> UnusableFile | None:
        """Return the file that holds a segment in a form that is not read here; None if there is none."""
        path = self._archive.foreign_form(segment.file_name)
        if path is None:
            return None
        problem = "is compressed or encrypted in a way that is not understood here"
        return UnusableFile(path, problem, "unpack it in the directory; .gz, .lz4 and .zst are read as they are")


def _is_gone(problem: BaseException) -> bool:
    return isinstance(problem, FileNotFoundError) or isinstance(problem.__cause__, FileNotFoundError)
