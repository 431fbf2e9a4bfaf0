"""What is there for a recovery: the segments and histories of the WAL directories and of the backup itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from polarvault.backupset.model import Area, BackupSource, Inventory, Part, wal_name_of
from polarvault.backupset.tarstream import read_tar
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import MemberBegins, MemberData, MemberEnds
from polarvault.recovery.chain import ChainSegment, UnusableFile
from polarvault.wal.history import TimelineHistory, history_file_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, parse_segment_header
from polarvault.walarchive.choice import StartLook, foreign_form, look_at_start
from polarvault.walarchive.directory import (
    READ_BYTES,
    WalDirectories,
    WalFile,
    is_history_name,
    is_segment_name,
    is_written,
    read_wal,
)

_HEADER_PIECE_BYTES = 4096
# How often to look for a segment that was listed a moment ago.
_MOST_LOOKS = 20


class WalStock:
    """The segments and histories of the WAL directories and of the backup itself."""

    def __init__(
        self, source: BackupSource, inventory: Inventory, directories: Sequence[str], segment_size_bytes: int
    ) -> None:
        self._size = segment_size_bytes
        self._given = WalDirectories(directories, segment_size_bytes)
        own = [os.path.join(part.path, "pg_wal") for part in source.parts if not part.is_tar]
        self._own = WalDirectories([path for path in own if os.path.isdir(path)], segment_size_bytes)
        self._tars = _wal_tars(source)
        self._opened: dict[ChainSegment, WalFile] = {}
        self._own_tar_wal = inventory.wal if self._tars else {}
        self._tar_histories = {
            name.rpartition("/")[2]: content
            for (_, name), content in inventory.files.items()
            if is_history_name(name.rpartition("/")[2])
        }

    def files(self, first_number: int) -> dict[tuple[int, int], ChainSegment]:
        """Return every segment from a number on, by timeline and number; the WAL directories come before the backup."""
        found: dict[tuple[int, int], ChainSegment] = {}
        for directories, in_backup in ((self._own, True), (self._given, False)):
            for timeline_id in directories.timelines():
                for number in directories.segments(timeline_id):
                    segment = WalSegment(timeline_id, number, self._size)
                    if number >= first_number and (file := self._noted(directories, segment, in_backup=in_backup)):
                        found[timeline_id, number] = file
        for name in self._own_tar_wal:
            if is_segment_name(name) and self._tars:
                segment = WalSegment.parse(name, self._size)
                key = (segment.timeline_id, segment.number)
                if segment.number >= first_number and key not in found:
                    found[key] = ChainSegment(segment, self._tars[0].path, in_backup=True, partial=True)
        return found

    def _noted(self, directories: WalDirectories, segment: WalSegment, *, in_backup: bool) -> ChainSegment | None:
        """Find a segment that was listed; None if it is not there any more.

        A receiver at work gives files their final names: between two looks one seems not to be there at all.
        """
        for _ in range(_MOST_LOOKS):
            try:
                file = directories.find(segment)
                size = os.path.getsize(file.path) if file is not None and file.compression is None else None
            except (StorageFailed, FileNotFoundError) as problem:
                if not _is_gone(problem):
                    raise
                continue
            if file is not None:
                noted = ChainSegment(segment, file.path, in_backup, not file.is_final, size)
                self._opened[noted] = file
                return noted
        return None

    def histories(self) -> tuple[dict[int, TimelineHistory], dict[int, str]]:
        """Return the history of every timeline that has a good file, and of timeline 1; and why others have none."""
        contents = {int(name[:8], 16): content for name, content in self._tar_histories.items()}
        for directories in (self._own, self._given):
            for timeline_id in directories.timelines():
                history = directories.history(timeline_id)
                if history is not None:
                    contents[timeline_id] = history
        found, problems = {1: TimelineHistory(1)}, {}
        for timeline_id, content in contents.items():
            try:
                found[timeline_id] = TimelineHistory.parse(content, timeline_id)
            except IntegrityError as damaged:
                # The server writes such files itself (see `settled_timeline`); only who wants that timeline is stopped.
                problems[timeline_id] = damaged.message
        for timeline_id in self._given.timelines():
            if timeline_id not in contents and timeline_id > 1:
                problems[timeline_id] = f"there is WAL of it, but no {history_file_name(timeline_id)}"
        return found, problems

    def unwritten_histories(self) -> dict[int, str]:
        """Return, by timeline, the names of history files that no fetch serves: the server would stop at each."""
        contents = {timeline_id: self._given.history(timeline_id) for timeline_id in self._given.timelines()}
        return {
            timeline_id: history_file_name(timeline_id)
            for timeline_id, content in contents.items()
            if content is not None and not is_written(content)
        }

    def read(self, file: ChainSegment, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield a segment's content in order; a view is valid until the next is asked for."""
        if file not in self._opened:
            for part in self._tars:
                yield from _member_of(part, file.segment.file_name)
            return
        views = read_wal(self._opened[file], piece_bytes=piece_bytes)
        try:
            first = next(views, None)
        except StorageFailed as problem:
            again = self._given.find(file.segment) if _is_gone(problem) else None
            if again is None:
                raise
            # Finished by its receiver since it was found, and renamed.
            self._opened[file] = again
            views = read_wal(again, piece_bytes=piece_bytes)
            first = next(views, None)
        if first is not None:
            yield first
        yield from views

    def look_at_start(self, file: ChainSegment) -> StartLook:
        """Say what a segment's file is by its first page."""
        if file in self._opened:
            try:
                return look_at_start(self._opened[file])
            except IntegrityError as damaged:
                return StartLook(None, f"cannot be read: {damaged.message}", hint=damaged.hint or "")
            except StorageFailed as problem:
                if not _is_gone(problem):
                    raise
        first = next(self.read(file, piece_bytes=_HEADER_PIECE_BYTES), memoryview(b""))
        return StartLook(parse_segment_header(bytes(first[:LONG_HEADER_BYTES])))

    def foreign_form(self, segment: WalSegment) -> UnusableFile | None:
        """Return the file that holds a segment in a form that is not read here; None if there is none."""
        path = foreign_form(self._given.paths, segment.file_name)
        if path is None:
            return None
        problem = "is compressed or encrypted in a way that is not understood here"
        return UnusableFile(path, problem, "unpack it in the directory; .gz, .lz4 and .zst are read as they are")


def _is_gone(problem: BaseException) -> bool:
    return isinstance(problem, FileNotFoundError) or isinstance(problem.__cause__, FileNotFoundError)


def _wal_tars(source: BackupSource) -> list[Part]:
    """Return the tar files that can hold the backup's own WAL; a pg_wal.tar of its own holds all of it."""
    tars = [part for part in source.parts if part.is_tar and part.area is not Area.TABLESPACE]
    return [part for part in tars if part.area is Area.WAL] or tars


def _member_of(part: Part, segment_name: str) -> Iterator[memoryview]:
    wanted = False
    for event in read_tar(part):
        if isinstance(event, MemberBegins):
            wanted = wal_name_of(part.area, event.member.name) == segment_name
        elif isinstance(event, MemberData) and wanted:
            yield from event.views
        elif isinstance(event, MemberEnds) and wanted:
            return
