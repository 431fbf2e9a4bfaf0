"""WAL in tar files, with or without compression: pg_wal.tar, or a half's own tar with pg_wal/ in it. Reads only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from polarvault.backupset.model import Area, Part, wal_name_of
from polarvault.backupset.tarstream import find_members, read_tar
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind, TarEvent
from polarvault.storage.files import storage_failed
from polarvault.verify.wal.sources import (
    MAX_HISTORY_BYTES,
    Extent,
    SegmentContent,
    WalSource,
    in_pieces,
    is_history_name,
    next_in,
    numbers_of,
)
from polarvault.wal.segment_header import LONG_HEADER_BYTES, SegmentHeader, parse_segment_header
from polarvault.walarchive.directory import is_segment_name


def tar_wal(part: Part) -> WalSource:
    """Return the WAL in a tar file: pg_wal.tar, or a half's own tar with pg_wal/ in it."""
    return _StreamedTar(part) if part.compression is not None else _SeekableTar(part)


def _segment_in(part: Part, member: Member) -> str | None:
    name = wal_name_of(part.area, member.name) if member.kind is MemberKind.FILE else None
    return name if name is not None and is_segment_name(name) else None


def _is_history(part: Part, member: Member) -> bool:
    name = wal_name_of(part.area, member.name) if member.kind is MemberKind.FILE else None
    return name is not None and is_history_name(name) and member.size <= MAX_HISTORY_BYTES


class _SeekableTar:
    """A tar that is not compressed: its headers are read once, segments where they lie."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._found: dict[str, Extent] | None = None
        self._histories: list[Extent] = []
        self._problem: IntegrityError | StorageFailed | None = None

    @property
    def place(self) -> str:
        return self._part.path

    def prepare(self, is_wanted: Callable[[str], bool]) -> None:
        pass

    def find(self, segment: WalSegment) -> SegmentContent | None:
        found = self._segments().get(segment.file_name)
        if found is None and self._problem is not None:
            raise self._problem
        return found

    def next_number(self, segment: WalSegment) -> int:
        return next_in(numbers_of(self._segments(), segment), segment)

    def first_header(self) -> SegmentHeader | None:
        headers = (_header_of(extent) for extent in self._segments().values())
        return next((header for header in headers if header is not None), None)

    def finish(self) -> None:
        self._segments()
        if self._problem is not None and self._part.area is Area.WAL:
            raise self._problem

    def histories(self) -> list[tuple[str, bytes | OSError]]:
        return [
            (extent.where, b"".join(map(bytes, (view for _, view in extent.pieces())))) for extent in self._histories
        ]

    def close(self) -> None:
        pass

    def _segments(self) -> dict[str, Extent]:
        if self._found is None:
            self._found = {}
            try:
                for member, position in find_members(self._part):
                    extent = Extent(self._part.path, position, member.size, f"{self._part.path}: {member.name}")
                    if (name := _segment_in(self._part, member)) is not None:
                        self._found[name] = extent
                    elif _is_history(self._part, member):
                        self._histories.append(extent)
            except (IntegrityError, StorageFailed) as problem:
                # What stands before the damage can be used; who asks for more is told.
                self._problem = problem
        return self._found


def _header_of(content: SegmentContent) -> SegmentHeader | None:
    for _, view in content.pieces():
        return parse_segment_header(bytes(view[:LONG_HEADER_BYTES]))
    return None


class _StreamedTar:
    """A compressed tar, read once; segments that come before their turn are kept in an unnamed temporary file."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._events = self._read()
        self._problem: IntegrityError | None = None
        self._is_wanted: Callable[[str], bool] = lambda name: True
        self._kept: dict[str, Extent] = {}
        self._asked: set[str] = set()
        self._histories: list[tuple[str, bytes | OSError]] = []
        self._spool: BinaryIO | None = None
        self._spooled_bytes = 0

    @property
    def place(self) -> str:
        return self._part.path

    def prepare(self, is_wanted: Callable[[str], bool]) -> None:
        self._is_wanted = is_wanted

    def find(self, segment: WalSegment) -> SegmentContent | None:
        name = segment.file_name
        self._asked.add(name)
        if name in self._kept:
            return self._kept[name]
        for member, found in self._members():
            if found == name:
                return _StreamedMember(f"{self._part.path}: {member.name}", member.size, self._events)
            if found not in self._asked and self._is_wanted(found):
                self._keep(found, member)
        if self._problem is not None:
            raise self._problem
        return None

    def next_number(self, segment: WalSegment) -> int:
        # The tar was read to its end for the one that is not there.
        return next_in(numbers_of(self._kept, segment), segment)

    def first_header(self) -> SegmentHeader | None:
        for member, found in self._members():
            self._keep(found, member)
            if (header := _header_of(self._kept[found])) is not None:
                return header
        return None

    def finish(self) -> None:
        with contextlib.suppress(IntegrityError):
            for _ in self._members():
                pass
        # A tar with data was read to its end for that.
        if self._problem is not None and self._part.area is Area.WAL:
            raise self._problem

    def histories(self) -> list[tuple[str, bytes | OSError]]:
        return self._histories

    def close(self) -> None:
        self._events.close()
        if self._spool is not None:
            self._spool.close()

    def _read(self) -> Generator[TarEvent]:
        try:
            yield from read_tar(self._part)
        except IntegrityError as problem:
            # Nothing behind it can be read; who asks for more is told again.
            self._problem = problem
            raise

    def _members(self) -> Iterator[tuple[Member, str]]:
        """Go on to the next segment; the payload of one that is not read is passed over. Histories are kept."""
        for event in self._events:
            if not isinstance(event, MemberBegins):
                continue
            member = event.member
            if (name := _segment_in(self._part, member)) is not None:
                yield member, name
            elif _is_history(self._part, member):
                content = b"".join(map(bytes, _StreamedMember("", member.size, self._events).views()))
                self._histories.append((f"{self._part.path}: {member.name}", content))

    def _keep(self, name: str, member: Member) -> None:
        # Here: it is hardly ever needed, and slow to load.
        import tempfile

        start = self._spooled_bytes
        try:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as this source
            for _, view in _StreamedMember("", member.size, self._events).pieces():
                done = 0
                while done < len(view):
                    done += self._spool.write(view[done:])
                self._spooled_bytes += len(view)
        except OSError as problem:
            raise storage_failed(problem, "write to a temporary file in", tempfile.gettempdir()) from problem
        where = f"{self._part.path}: {member.name}"
        self._kept[name] = Extent("a temporary file", start, self._spooled_bytes - start, where, stream=self._spool)


class SpooledWal:
    """The WAL of a tar that goes by only once, kept in an unnamed temporary file; may be asked more than once.

    Closing it does nothing, because it is asked again for pages that may be torn; `discard` gives the file back.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._found: dict[str, Extent] = {}
        self._histories: list[tuple[str, bytearray]] = []
        self._spool: BinaryIO | None = None
        self._spooled_bytes = 0

    @property
    def place(self) -> str:
        """The tar."""
        return self._place

    def begin(self, name: str, size: int) -> Callable[[bytes], object] | None:
        """Take note of a file of pg_wal that goes by; return what takes its content, None if it is of no use."""
        where = f"{self._place}: pg_wal/{name}"
        if is_history_name(name) and size <= MAX_HISTORY_BYTES:
            content = bytearray()
            self._histories.append((where, content))
            return content.extend
        if not is_segment_name(name):
            return None
        # Here: it is hardly ever needed, and slow to load.
        import tempfile

        if self._spool is None:
            try:
                self._spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as this source
            except OSError as problem:
                raise storage_failed(problem, "write to a temporary file in", tempfile.gettempdir()) from problem
        self._found[name] = Extent("a temporary file", self._spooled_bytes, size, where, stream=self._spool)
        return self._write

    def _write(self, content: bytes) -> None:
        assert self._spool is not None
        view = memoryview(content)
        try:
            while view:
                count = self._spool.write(view)
                self._spooled_bytes += count
                view = view[count:]
        except OSError as problem:
            raise storage_failed(problem, "write to", "a temporary file") from problem

    def prepare(self, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing: all of it is kept."""

    def find(self, segment: WalSegment) -> SegmentContent | None:
        """Return a segment that went by."""
        return self._found.get(segment.file_name)

    def next_number(self, segment: WalSegment) -> int:
        """Return the number of the next segment that went by."""
        return next_in(numbers_of(self._found, segment), segment)

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of any segment."""
        headers = (_header_of(extent) for extent in self._found.values())
        return next((header for header in headers if header is not None), None)

    def finish(self) -> None:
        """Do nothing: the tar was read to its end."""

    def histories(self) -> list[tuple[str, bytes | OSError]]:
        """Return the timeline history files that went by."""
        return [(name, bytes(content)) for name, content in self._histories]

    def close(self) -> None:
        """Do nothing, see `discard`."""

    def discard(self) -> None:
        """Give the temporary file back."""
        if self._spool is not None:
            self._spool.close()


@dataclass(frozen=True, slots=True)
class _StreamedMember:
    where: str
    size_bytes: int
    events: Iterator[TarEvent]
    may_be_short: bool = False

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        return in_pieces(self.views())

    def views(self) -> Iterator[memoryview]:
        for event in self.events if self.size_bytes else ():
            if isinstance(event, MemberData):
                yield from event.views
            elif isinstance(event, MemberEnds):
                return
