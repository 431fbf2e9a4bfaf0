"""WAL in tar files, with or without compression: pg_wal.tar, or a half's own tar with pg_wal/ in it. Reads only.

Memory is flat. A compressed tar cannot be sought in: it is read from its beginning on, and what is passed on the way to
the segment that is wanted waits in an unnamed temporary file if it was said that it will be wanted, too (`expect`).
What else lies in front of the present place is found by reading the tar once more.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from polarvault.backupset.model import Area, BackupSource, Inventory, Part, wal_name_of
from polarvault.backupset.tarstream import find_members, read_tar
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind, TarEvent
from polarvault.storage.files import storage_failed
from polarvault.wal.names import is_history_name, is_segment_name
from polarvault.wal.segment_header import SegmentHeader, StartLook, parse_segment_header
from polarvault.wal.source import READ_BYTES, HeldRange, WalCopy, WalSource, ranges_of_names
from polarvault.walfiles.directory import WalDirectory
from polarvault.walfiles.files import first_bytes
from polarvault.walfiles.pieces import Extent, in_pieces
from polarvault.walfiles.search_list import SearchList

# A line is at most 1 kB; nobody has promoted a cluster that often.
MAX_HISTORY_BYTES = 1 << 20
_TEMPORARY = "a temporary file"


def wal_of(backup: BackupSource, inventory: Inventory) -> SearchList:
    """Return the WAL that comes with a backup that was looked through: pg_wal directories, or tars that hold it."""
    directories = [os.path.join(part.path, "pg_wal") for part in backup.parts if not part.is_tar]
    sources: list[WalSource] = [WalDirectory(path) for path in directories if os.path.isdir(path)]
    # The inventory has the histories already, and the names: a compressed tar is not read again for them.
    small = {name.rpartition("/")[2]: content for (_, name), content in inventory.files.items()}
    histories = {name: content for name, content in small.items() if is_history_name(name)}
    sources += [tar_wal(part, known=(inventory.wal, histories)) for part in _tars_with_wal(backup)]
    return SearchList(sources)


def _tars_with_wal(backup: BackupSource) -> list[Part]:
    """Return the tar files that can hold the backup's own WAL; a pg_wal.tar of its own holds all of it."""
    tars = [part for part in backup.parts if part.is_tar and part.area is not Area.TABLESPACE]
    return [part for part in tars if part.area is Area.WAL] or tars


def tar_wal(part: Part, *, known: tuple[Collection[str], Mapping[str, bytes]] | None = None) -> TarWal:
    """Return the WAL in a tar file; known: the names of its files in pg_wal, and its histories."""
    if part.compression is None:
        return _SeekableTar(part)
    return _StreamedTar(part, *known) if known is not None else _StreamedTar(part)


def _segment_in(part: Part, member: Member) -> str | None:
    name = wal_name_of(part.area, member.name) if member.kind is MemberKind.FILE else None
    return name if name is not None and is_segment_name(name) else None


def _history_in(part: Part, member: Member) -> str | None:
    name = wal_name_of(part.area, member.name) if member.kind is MemberKind.FILE else None
    return name if name is not None and is_history_name(name) and member.size <= MAX_HISTORY_BYTES else None


class TarWal(ABC):
    """A `wal.source.WalSource` whose copies lie in one tar."""

    def __init__(self, place: str) -> None:
        self._place = place

    @abstractmethod
    def _segment(self, name: str) -> WalCopy | None:
        """Return a segment; raise what keeps it from being found."""

    @abstractmethod
    def _names(self) -> Collection[str]:
        """Return the names of the segments that are there, as far as the tar can be read."""

    @abstractmethod
    def _histories(self) -> Mapping[str, tuple[str, bytes]]:
        """Return how findings name the histories that have been passed, and their contents, by their names."""

    @property
    def place(self) -> str:
        """The tar."""
        return self._place

    @property
    def paths(self) -> Sequence[str]:
        """None: a restored server has its own pg_wal."""
        return ()

    def timelines(self) -> Sequence[int]:
        """Return every timeline that a name speaks of."""
        return sorted({int(name[:8], 16) for name in (*self._names(), *self._histories())})

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what the names tell."""
        return ranges_of_names(self._names(), timeline_id, segment_size_bytes)

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Return the member of the name; raise IntegrityError if it may lie behind damage."""
        if is_segment_name(name):
            found = self._segment(name)
            return () if found is None else (found,)
        history = self._histories().get(name)
        return () if history is None else (_TarCopy(name, history[0], len(history[1]), _Bytes(history[1])),)

    def histories(self) -> list[tuple[str, bytes | OSError]]:
        """Return name, as findings show it, and content of the histories that were passed; complete after `finish`."""
        return list(self._histories().values())

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of any segment."""
        for name in self._names():
            copy = self._segment(name)
            if copy is not None and (header := copy.look_at_start().header) is not None:
                return header
        return None

    def foreign_form(self, name: str) -> str | None:
        """Return none: nobody looks into a backup for forms that a server does not write."""
        return None

    def lack(self) -> tuple[str, str] | None:
        """Return none: a backup may come without WAL."""
        return None

    def fetch_options(self) -> Sequence[str]:
        """Return none: a restored server has its own pg_wal."""
        return ()

    def expect(self, is_wanted: Callable[[str], bool]) -> None:  # noqa: B027  most have nothing to do
        """Do nothing: what was found can be read at any time."""

    def finish(self) -> None:  # noqa: B027
        """Do nothing: the tar has been read."""

    def close(self) -> None:  # noqa: B027
        """Do nothing: no file stays open."""


@dataclass(frozen=True, slots=True)
class _TarCopy:
    """A `wal.source.WalCopy` in a tar. It has no form of its own, and its segment may end early."""

    name: str
    where: str
    size_bytes: int
    content: Extent | _StreamedMember | _Bytes
    path: str | None = None
    is_final: bool = False
    partial: bool = False

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        if isinstance(self.content, Extent):
            return (view for _, view in self.content.pieces(piece_bytes=piece_bytes))
        return self.content.views()

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        if isinstance(self.content, Extent):
            return self.content.pieces(skip_bytes)
        return in_pieces(self.content.views())

    def look_at_start(self) -> StartLook:
        begins = self.content.beginning() if isinstance(self.content, _StreamedMember) else first_bytes(self)
        return StartLook(parse_segment_header(begins))

    def open_plain(self) -> BinaryIO | None:
        return None

    def stored_bytes(self) -> int | None:
        return self.size_bytes

    def may_end_early(self) -> WalCopy:
        return self


@dataclass(frozen=True, slots=True)
class _Bytes:
    content: bytes

    def views(self) -> Iterator[memoryview]:
        yield memoryview(self.content)


class _StreamedMember:
    """The payload of the member that a tar's events have come to; may be read once."""

    def __init__(self, size_bytes: int, events: Iterator[TarEvent]) -> None:
        self._size_bytes = size_bytes
        self._rest = self._payload(events)
        self._begun: bytes | None = None

    def beginning(self) -> bytes:
        """Return the first piece, which `views` will yield all the same."""
        if self._begun is None:
            self._begun = bytes(next(self._rest, b""))
        return self._begun

    def views(self) -> Iterator[memoryview]:
        """Yield the payload."""
        if self._begun:
            yield memoryview(self._begun)
        yield from self._rest

    def _payload(self, events: Iterator[TarEvent]) -> Iterator[memoryview]:
        for event in events if self._size_bytes else ():
            if isinstance(event, MemberData):
                yield from event.views
            elif isinstance(event, MemberEnds):
                return


class _SeekableTar(TarWal):
    """A tar that is not compressed: its headers are read once, segments where they lie."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.path)
        self._part = part
        self._found: dict[str, _TarCopy] | None = None
        self._found_histories: dict[str, _TarCopy] = {}
        self._problem: IntegrityError | StorageFailed | None = None

    def finish(self) -> None:
        self._names()
        if self._problem is not None and self._part.area is Area.WAL:
            raise self._problem

    def _segment(self, name: str) -> WalCopy | None:
        found = self._look_through().get(name)
        if found is None and self._problem is not None:
            raise self._problem
        return found

    def _names(self) -> Collection[str]:
        return self._look_through()

    def _histories(self) -> Mapping[str, tuple[str, bytes]]:
        self._look_through()
        return {name: (copy.where, b"".join(copy.views())) for name, copy in self._found_histories.items()}

    def _look_through(self) -> dict[str, _TarCopy]:
        if self._found is None:
            self._found = {}
            try:
                for member, position in find_members(self._part):
                    name = _segment_in(self._part, member)
                    history = _history_in(self._part, member)
                    where = f"{self._part.path}: {member.name}"
                    copy = _TarCopy(name or "", where, member.size, Extent(self._part.path, position, member.size))
                    if name is not None:
                        self._found[name] = copy
                    elif history is not None:
                        self._found_histories[history] = copy
            except (IntegrityError, StorageFailed) as problem:
                # What stands before the damage can be used; who asks for more is told.
                self._problem = problem
        return self._found


class _Spool:
    """An unnamed temporary file that is made when it is needed."""

    def __init__(self) -> None:
        self.written_bytes = 0
        self._file: BinaryIO | None = None

    def extent(self, size_bytes: int) -> Extent:
        """Return the place of so many bytes that are written next."""
        return Extent(_TEMPORARY, self.written_bytes, size_bytes, self._opened())

    def write(self, content: bytes | memoryview) -> None:
        """Append."""
        view, file = memoryview(content), self._opened()
        try:
            while view:
                count = file.write(view)
                self.written_bytes += count
                view = view[count:]
        except OSError as problem:
            raise storage_failed(problem, "write to", _TEMPORARY) from problem

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            # Here: it is hardly ever needed, and slow to load.
            import tempfile

            try:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as its source
            except OSError as problem:
                raise storage_failed(problem, "write to a temporary file in", tempfile.gettempdir()) from problem
        return self._file


class _StreamedTar(TarWal):
    """A compressed tar, read from its beginning to its end, and again for what nobody had said would be wanted."""

    def __init__(
        self, part: Part, names: Collection[str] | None = None, histories: Mapping[str, bytes] | None = None
    ) -> None:
        super().__init__(part.path)
        self._part = part
        self._listed = None if names is None else [name for name in names if is_segment_name(name)]
        self._seen_histories = {name: (name, content) for name, content in (histories or {}).items()}
        self._events = self._read()
        self._problem: IntegrityError | None = None
        self._is_wanted: Callable[[str], bool] = lambda name: False
        self._kept: dict[str, _TarCopy] = {}
        # The segments before the present place.
        self._passed: set[str] = set()
        self._spool = _Spool()

    def first_header(self) -> SegmentHeader | None:
        for member, _ in self._members():
            header = parse_segment_header(_StreamedMember(member.size, self._events).beginning())
            if header is not None:
                return header
        return None

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        self._is_wanted = is_wanted

    def finish(self) -> None:
        with contextlib.suppress(IntegrityError):
            for _ in self._members():
                pass
        # A tar with data was read to its end for that.
        if self._problem is not None and self._part.area is Area.WAL:
            raise self._problem

    def close(self) -> None:
        self._events.close()
        self._spool.close()

    def _segment(self, name: str) -> WalCopy | None:
        if name in self._kept:
            return self._kept[name]
        if name in self._passed:
            self._events.close()
            self._events = self._read()
            self._passed.clear()
        for member, found in self._members():
            if found == name:
                where = f"{self._part.path}: {member.name}"
                return _TarCopy(name, where, member.size, _StreamedMember(member.size, self._events))
            self._keep_if_wanted(found, member)
        if self._problem is not None:
            raise self._problem
        return None

    def _names(self) -> Collection[str]:
        if self._listed is None:
            with contextlib.suppress(IntegrityError):
                for member, found in self._members():
                    self._keep_if_wanted(found, member)
            self._listed = sorted(self._passed)
        return self._listed

    def _histories(self) -> Mapping[str, tuple[str, bytes]]:
        return self._seen_histories

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
                self._passed.add(name)
                yield member, name
            elif (history := _history_in(self._part, member)) is not None:
                content = b"".join(_StreamedMember(member.size, self._events).views())
                self._seen_histories[history] = (f"{self._part.path}: {member.name}", content)

    def _keep_if_wanted(self, name: str, member: Member) -> None:
        if name in self._kept or not self._is_wanted(name):
            return
        extent = self._spool.extent(member.size)
        for view in _StreamedMember(member.size, self._events).views():
            self._spool.write(view)
        self._kept[name] = _TarCopy(name, f"{self._part.path}: {member.name}", member.size, extent)


class SpooledWal(TarWal):
    """The WAL of a tar that goes by only once, kept in an unnamed temporary file; may be asked more than once.

    Closing it does nothing, because it is asked again for pages that may be torn; `discard` gives the file back.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._found: dict[str, _TarCopy] = {}
        self._passed_histories: dict[str, tuple[str, bytearray]] = {}
        self._spool = _Spool()

    def begin(self, name: str, size: int) -> Callable[[bytes], object] | None:
        """Take note of a file of pg_wal that goes by; return what takes its content, None if it is of no use."""
        where = f"{self._place}: pg_wal/{name}"
        if is_history_name(name) and size <= MAX_HISTORY_BYTES:
            content = bytearray()
            self._passed_histories[name] = (where, content)
            return content.extend
        if not is_segment_name(name):
            return None
        self._found[name] = _TarCopy(name, where, size, self._spool.extent(size))
        return self._spool.write

    def discard(self) -> None:
        """Give the temporary file back."""
        self._spool.close()

    def _segment(self, name: str) -> WalCopy | None:
        return self._found.get(name)

    def _names(self) -> Collection[str]:
        return self._found

    def _histories(self) -> Mapping[str, tuple[str, bytes]]:
        return {name: (where, bytes(content)) for name, (where, content) in self._passed_histories.items()}
