"""Where the WAL of a backup lies: a directory, tar files with or without compression. Reads only.

Every source gives a segment's content in pieces that begin at WAL pages, so that reading can go on at the next page
behind damage. Memory is flat: a tar that cannot be sought in is read once, from its beginning to the last segment that
is wanted, and what comes too early waits in an unnamed temporary file.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from polarvault.backupset.model import Area, Part, wal_name_of
from polarvault.backupset.tarstream import find_members, read_tar
from polarvault.errors import IntegrityError
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind, TarEvent
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.pages import PAGE_BYTES
from polarvault.wal.segment_header import LONG_HEADER_BYTES, SegmentHeader, parse_segment_header
from polarvault.walarchive.directory import (
    WalDirectories,
    WalFile,
    find_segment_header,
    forms_of,
    is_segment_name,
    read_wal,
)

_PIECE_BYTES = 1 << 20


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

    def prepare(self, names: frozenset[str]) -> None:
        """Take note of all segments that will be asked for; what is not among them need not be kept."""
        ...

    def find(self, segment: WalSegment) -> SegmentContent | None:
        """Return a segment; None when it is not there. What was found before must not be read any more."""
        ...

    def first_header(self) -> SegmentHeader | None:
        """Return the facts on the first page of some segment, such as the segment size; None when there is none."""
        ...

    def finish(self) -> None:
        """Read what was not asked for, as a restore would; raise IntegrityError or StorageFailed if it cannot be."""
        ...

    def close(self) -> None:
        """Give back temporary files; nothing can be asked for afterwards."""
        ...


# Directories


class DirectoryWal:
    """WAL directories, searched in this order: pg_wal of a backup, or WAL archives, also compressed ones."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)

    @property
    def place(self) -> str:
        """The directories."""
        return " ".join(self._paths)

    def prepare(self, names: frozenset[str]) -> None:
        """Do nothing: any file can be opened at any time."""

    def find(self, segment: WalSegment) -> SegmentContent | None:
        """Return the best file, as `WalDirectories.find` chooses it."""
        file = WalDirectories(self._paths, segment.size_bytes).find(segment)
        if file is None:
            # The directories pass over a file whose first page is of another segment. Here that is worth a finding.
            file = next((found for path in self._paths for found in forms_of(path, segment.file_name)), None)
        if file is None:
            return None
        return _CompressedFile(file) if file.compression is not None else _plain_file(file)

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of any segment."""
        return find_segment_header(self._paths)

    def finish(self) -> None:
        """Do nothing: a file that was not asked for does not get in the way of the others."""

    def close(self) -> None:
        """Do nothing: no file stays open."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """A stretch of a file: a plain segment, or one in a tar or in the temporary file."""

    path: str
    start: int
    size_bytes: int
    where: str
    may_be_short: bool = False
    stream: BinaryIO | None = None

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
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


def _plain_file(file: WalFile) -> _Extent:
    try:
        size = os.path.getsize(file.path)
    except OSError as problem:
        raise storage_failed(problem, "read", file.path) from problem
    return _Extent(file.path, 0, size, file.path, may_be_short=file.partial)


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
        return _in_pieces(read_wal(self.file))


def _in_pieces(views: Iterable[memoryview]) -> Iterator[tuple[int, memoryview]]:
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


# Tar files


def tar_wal(part: Part) -> WalSource:
    """Return the WAL in a tar file: pg_wal.tar, or a half's own tar with pg_wal/ in it."""
    return _StreamedTar(part) if part.compression is not None else _SeekableTar(part)


def _segment_in(part: Part, member: Member) -> str | None:
    name = wal_name_of(part.area, member.name) if member.kind is MemberKind.FILE else None
    return name if name is not None and is_segment_name(name) else None


class _SeekableTar:
    """A tar that is not compressed: its headers are read once, segments where they lie."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._found: dict[str, _Extent] | None = None
        self._problem: IntegrityError | None = None

    @property
    def place(self) -> str:
        return self._part.path

    def prepare(self, names: frozenset[str]) -> None:
        pass

    def find(self, segment: WalSegment) -> SegmentContent | None:
        found = self._segments().get(segment.file_name)
        if found is None and self._problem is not None:
            raise self._problem
        return found

    def first_header(self) -> SegmentHeader | None:
        headers = (_header_of(extent) for extent in self._segments().values())
        return next((header for header in headers if header is not None), None)

    def finish(self) -> None:
        self._segments()
        if self._problem is not None and self._part.area is Area.WAL:
            raise self._problem

    def close(self) -> None:
        pass

    def _segments(self) -> dict[str, _Extent]:
        if self._found is None:
            self._found = {}
            try:
                for member, position in find_members(self._part):
                    if (name := _segment_in(self._part, member)) is not None:
                        where = f"{self._part.path}: {member.name}"
                        self._found[name] = _Extent(self._part.path, position, member.size, where)
            except IntegrityError as problem:
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
        self._wanted: frozenset[str] | None = None
        self._kept: dict[str, _Extent] = {}
        self._asked: set[str] = set()
        self._spool: BinaryIO | None = None
        self._spooled_bytes = 0

    @property
    def place(self) -> str:
        return self._part.path

    def prepare(self, names: frozenset[str]) -> None:
        self._wanted = names

    def find(self, segment: WalSegment) -> SegmentContent | None:
        name = segment.file_name
        self._asked.add(name)
        if name in self._kept:
            return self._kept[name]
        for member, found in self._members():
            if found == name:
                return _StreamedMember(f"{self._part.path}: {member.name}", member.size, self._events)
            if found not in self._asked and (self._wanted is None or found in self._wanted):
                self._keep(found, member)
        if self._problem is not None:
            raise self._problem
        return None

    def first_header(self) -> SegmentHeader | None:
        for member, found in self._members():
            self._keep(found, member)
            if (header := _header_of(self._kept[found])) is not None:
                return header
        return None

    def finish(self) -> None:
        # A tar with data was read to its end for that.
        if self._part.area is Area.WAL:
            for _ in self._events:
                pass
            if self._problem is not None:
                raise self._problem

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
        """Go on to the next segment; the payload of one that is not read is passed over."""
        for event in self._events:
            if isinstance(event, MemberBegins) and (name := _segment_in(self._part, event.member)) is not None:
                yield event.member, name

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
        self._kept[name] = _Extent("a temporary file", start, self._spooled_bytes - start, where, stream=self._spool)


@dataclass(frozen=True, slots=True)
class _StreamedMember:
    where: str
    size_bytes: int
    events: Iterator[TarEvent]
    may_be_short: bool = False

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        return _in_pieces(self._views())

    def _views(self) -> Iterator[memoryview]:
        for event in self.events if self.size_bytes else ():
            if isinstance(event, MemberData):
                yield from event.views
            elif isinstance(event, MemberEnds):
                return
