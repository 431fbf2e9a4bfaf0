"""Where the WAL of a backup lies: directories here, tar files in `tars`. Reads only.

Every source gives a segment's content in pieces that begin at WAL pages, so that reading can go on at the next page
behind damage. Memory is flat: a tar that cannot be sought in is read once, from its beginning to the last segment that
is wanted, and what comes too early waits in an unnamed temporary file.
"""

from __future__ import annotations

import contextlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from polarvault.model.segment import WalSegment
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.pages import PAGE_BYTES
from polarvault.wal.segment_header import SegmentHeader
from polarvault.walarchive.directory import (
    WalDirectories,
    WalFile,
    find_segment_header,
    forms_of,
    read_wal,
)

_PIECE_BYTES = 1 << 20
_NAME_LENGTH = 24
NO_MORE = 1 << 64
# A line is at most 1 kB; nobody has promoted a cluster that often.
MAX_HISTORY_BYTES = 1 << 20
_HISTORY = re.compile(r"[0-9A-F]{8}\.history\Z")


def is_history_name(name: str) -> bool:
    """Tell whether a file in pg_wal is a timeline history."""
    return _HISTORY.match(name) is not None


class SegmentContent(Protocol):
    """One segment that is there."""

    @property
    def where(self) -> str:
        """How findings name it."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """Its length; None while only reading to its end would tell."""
        ...

    @property
    def may_be_short(self) -> bool:
        """Whether its form (.partial) promises no whole segment."""
        ...

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content in order, each valid until the next is asked for; may be called once.

        The first piece is the segment's beginning. What follows may begin as late as the page of skip_bytes.
        """
        ...


class WalSource(Protocol):
    """WAL that can be asked for segment by segment, in the order of the WAL."""

    @property
    def place(self) -> str:
        """The directory or file, as findings name it."""
        ...

    def prepare(self, is_wanted: Callable[[str], bool]) -> None:
        """Take note of which segments will be asked for; others need not be kept."""
        ...

    def find(self, segment: WalSegment) -> SegmentContent | None:
        """Return a segment; None when it is not there. What was found before must not be read any more."""
        ...

    def next_number(self, segment: WalSegment) -> int:
        """Return the number of the next segment of the timeline that is there; to be asked after one was not found.

        NO_MORE when none is.
        """
        ...

    def first_header(self) -> SegmentHeader | None:
        """Return the facts on the first page of some segment, such as the segment size; None when there is none."""
        ...

    def finish(self) -> None:
        """Read what was not asked for, as a restore would; raise IntegrityError or StorageFailed if it cannot be."""
        ...

    def histories(self) -> list[tuple[str, bytes | OSError]]:
        """Return name and content of the timeline history files that were passed; complete after `finish`."""
        ...

    def close(self) -> None:
        """Give back temporary files; nothing can be asked for afterwards."""
        ...


# Directories


class DirectoryWal:
    """WAL directories, searched in this order: pg_wal of a backup, or WAL archives, also compressed ones."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._names: frozenset[str] | None = None
        self._numbers: dict[int, list[int]] = {}

    @property
    def place(self) -> str:
        """The directories."""
        return " ".join(self._paths)

    def prepare(self, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing: any file can be opened at any time."""

    def find(self, segment: WalSegment) -> SegmentContent | None:
        """Return the best file, as `WalDirectories.find` chooses it."""
        if self._names is None:
            self._names = frozenset(name[:_NAME_LENGTH] for path in self._paths for name in _listed(path))
        # To try every form of tens of thousands of segments that are not there takes seconds.
        if segment.file_name not in self._names:
            return None
        file = WalDirectories(self._paths, segment.size_bytes).find(segment)
        if file is None:
            # The directories pass over a file whose first page is of another segment. Here that is worth a finding.
            file = next((found for path in self._paths for found in forms_of(path, segment.file_name)), None)
        if file is None:
            return None
        return _CompressedFile(file) if file.compression is not None else _plain_file(file)

    def next_number(self, segment: WalSegment) -> int:
        """Return the number of the next segment that is there."""
        if segment.timeline_id not in self._numbers:
            self._numbers[segment.timeline_id] = numbers_of(self._names or (), segment)
        return next_in(self._numbers[segment.timeline_id], segment)

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of any segment."""
        return find_segment_header(self._paths)

    def finish(self) -> None:
        """Do nothing: a file that was not asked for does not get in the way of the others."""

    def histories(self) -> list[tuple[str, bytes | OSError]]:
        """Return none: an archive holds those of other timelines, too, and the backup's own pg_wal is looked at."""
        return []

    def close(self) -> None:
        """Do nothing: no file stays open."""


def numbers_of(names: Iterable[str], example: WalSegment) -> list[int]:
    """Return the numbers of the segments of the example's timeline and size, sorted."""
    numbers = []
    for name in names:
        with contextlib.suppress(ValueError):
            segment = WalSegment.parse(name, example.size_bytes)
            if segment.timeline_id == example.timeline_id:
                numbers.append(segment.number)
    return sorted(numbers)


def next_in(numbers: Sequence[int], segment: WalSegment) -> int:
    """Return the first of sorted numbers behind the segment's; NO_MORE when there is none."""
    position = bisect_right(numbers, segment.number)
    return numbers[position] if position < len(numbers) else NO_MORE


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as problem:
        raise storage_failed(problem, "open directory", path) from problem


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a file: a plain segment, or one in a tar or in the temporary file."""

    path: str
    start: int
    size_bytes: int
    where: str
    may_be_short: bool = False
    stream: BinaryIO | None = None

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content, as `SegmentContent` says."""
        buffer = memoryview(bytearray(_PIECE_BYTES))
        try:
            stream = self.stream or open_regular(self.path)
            try:
                yield from self._read(stream.fileno(), buffer, skip_bytes // PAGE_BYTES * PAGE_BYTES)
            finally:
                if self.stream is None:
                    stream.close()
        except OSError as problem:
            raise storage_failed(problem, "read", self.path) from problem

    def _read(self, descriptor: int, buffer: memoryview, skip_bytes: int) -> Iterator[tuple[int, memoryview]]:
        offset, length = 0, PAGE_BYTES if skip_bytes else _PIECE_BYTES
        while offset < self.size_bytes:
            wanted = buffer[: min(length, self.size_bytes - offset)]
            count = _read_fully(descriptor, wanted, self.start + offset)
            if count:
                yield offset, wanted[:count]
            if count < len(wanted):
                return
            offset = max(offset + count, skip_bytes)
            length = _PIECE_BYTES


def _read_fully(descriptor: int, buffer: memoryview, position: int) -> int:
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], position + done)):
        done += count
    return done


def _plain_file(file: WalFile) -> Extent:
    try:
        size = os.path.getsize(file.path)
    except OSError as problem:
        raise storage_failed(problem, "read", file.path) from problem
    return Extent(file.path, 0, size, file.path, may_be_short=file.partial)


@dataclass(frozen=True, slots=True)
class _CompressedFile:
    file: WalFile

    @property
    def where(self) -> str:
        return self.file.path

    @property
    def size_bytes(self) -> None:
        return None

    @property
    def may_be_short(self) -> bool:
        return self.file.partial

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        return in_pieces(read_wal(self.file))


def in_pieces(views: Iterable[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """Collect views of any length into pieces of a megabyte; only the last one is shorter."""
    buffer, filled, offset = memoryview(bytearray(_PIECE_BYTES)), 0, 0
    for view in views:
        taken = 0
        while taken < len(view):
            count = min(len(view) - taken, _PIECE_BYTES - filled)
            buffer[filled : filled + count] = view[taken : taken + count]
            filled += count
            taken += count
            if filled == _PIECE_BYTES:
                yield offset, buffer
                offset, filled = offset + filled, 0
    if filled:
        yield offset, buffer[:filled]
