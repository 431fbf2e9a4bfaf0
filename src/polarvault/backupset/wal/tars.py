"""WAL in a tar file as a source: one that can be sought in, or one that goes by once. Reads only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from polarvault.backupset.model import Area, Part, wal_name_of
from polarvault.backupset.reading.tarstream import find_members
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.pgfiles.tar import Member, MemberKind
from polarvault.storage.files import storage_failed
from polarvault.wal.names import is_history_name, is_segment_name
from polarvault.wal.segment_header import SegmentHeader, StartLook, parse_segment_header
from polarvault.wal.source import READ_BYTES, HeldRange, WalCopy, ranges_of_names
from polarvault.walfiles.files import first_bytes
from polarvault.walfiles.pieces import Extent, in_pieces

# A line is at most 1 kB; nobody has promoted a cluster that often.
MAX_HISTORY_BYTES = 1 << 20
_TEMPORARY = "a temporary file"


def segment_in(part: Part, member: Member) -> str | None:
    """Return the name of the segment that a member is; None for any other member."""
    name = wal_name_of(part.area, member.name) if member.kind is MemberKind.FILE else None
    return name if name is not None and is_segment_name(name) else None


def history_in(part: Part, member: Member) -> str | None:
    """Return the name of the history file that a member is; None for any other member."""
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
        return () if history is None else (TarCopy(name, history[0], len(history[1]), _Bytes(history[1])),)

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
class TarCopy:
    """A `wal.source.WalCopy` in a tar. It has no form of its own, and its segment may end early."""

    name: str
    where: str
    size_bytes: int | None
    content: Extent | Payload
    path: str | None = None
    is_final: bool = False
    partial: bool = False

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield the content."""
        if isinstance(self.content, Extent):
            return (view for _, view in self.content.pieces(piece_bytes=piece_bytes))
        return self.content.views()

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content."""
        if isinstance(self.content, Extent):
            return self.content.pieces(skip_bytes)
        return in_pieces(self.content.views())

    def look_at_start(self) -> StartLook:
        """Return the first page's facts; what is wrong with it is found when it is read."""
        begins = first_bytes(self) if isinstance(self.content, Extent) else self.content.beginning()
        return StartLook(parse_segment_header(begins))

    def open_plain(self) -> BinaryIO | None:
        """Return none: there is no file of its own."""
        return None

    def stored_bytes(self) -> int | None:
        """Return the size, 0 while it is not known; a backup does not grow."""
        return self.size_bytes or 0

    def may_end_early(self) -> WalCopy:
        """Return itself: it may."""
        return self


class Payload(Protocol):
    """Content that is not a stretch of a file."""

    def beginning(self) -> bytes:
        """Return what a page's header takes, or more; before `views`."""
        ...

    def views(self) -> Iterator[memoryview]:
        """Yield all of it; may be called once."""
        ...


@dataclass(frozen=True, slots=True)
class _Bytes:
    content: bytes

    def beginning(self) -> bytes:
        return self.content

    def views(self) -> Iterator[memoryview]:
        yield memoryview(self.content)


class SeekableTar(TarWal):
    """A tar that is not compressed: its headers are read once, segments where they lie."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.path)
        self._part = part
        self._found: dict[str, TarCopy] | None = None
        self._found_histories: dict[str, TarCopy] = {}
        self._problem: IntegrityError | StorageFailed | None = None

    def finish(self) -> None:
        """Look at all headers; only of a tar that holds WAL alone damage is raised: others are read for their data."""
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

    def _look_through(self) -> dict[str, TarCopy]:
        if self._found is None:
            self._found = {}
            try:
                for member, position in find_members(self._part):
                    name = segment_in(self._part, member)
                    history = history_in(self._part, member)
                    where = f"{self._part.path}: {member.name}"
                    copy = TarCopy(name or "", where, member.size, Extent(self._part.path, position, member.size))
                    if name is not None:
                        self._found[name] = copy
                    elif history is not None:
                        self._found_histories[history] = copy
            except (IntegrityError, StorageFailed) as problem:
                # What stands before the damage can be used; who asks for more is told.
                self._problem = problem
        return self._found


class Spool:
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


class SpooledWal(TarWal):
    """The WAL of a tar that goes by only once, kept in an unnamed temporary file; may be asked more than once.

    Closing it does nothing, because it is asked again for pages that may be torn; `discard` gives the file back.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._found: dict[str, TarCopy] = {}
        self._passed_histories: dict[str, tuple[str, bytearray]] = {}
        self._spool = Spool()

    def begin(self, name: str, size: int) -> Callable[[bytes], object] | None:
        """Take note of a file of pg_wal that goes by; return what takes its content, None if it is of no use."""
        where = f"{self._place}: pg_wal/{name}"
        if is_history_name(name) and size <= MAX_HISTORY_BYTES:
            content = bytearray()
            self._passed_histories[name] = (where, content)
            return content.extend
        if not is_segment_name(name):
            return None
        self._found[name] = TarCopy(name, where, size, self._spool.extent(size))
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
