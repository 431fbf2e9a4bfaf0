"""WAL in a compressed tar, which is read from its beginning to its end.

Memory is flat: what is passed on the way to the segment that is wanted waits in an unnamed temporary file if it was
said that it will be wanted, too (`expect`). What else lies in front of the present place is found by reading the tar
once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass

from polarvault.backupset.model import Area, Part
from polarvault.backupset.reading.tarstream import read_tar
from polarvault.backupset.wal.tars import Spool, TarCopy, TarWal, history_in, segment_in
from polarvault.errors import IntegrityError
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, TarEvent
from polarvault.wal.names import is_segment_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, SegmentHeader, parse_segment_header
from polarvault.wal.source import WalCopy


class StreamedTar(TarWal):
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
        self._kept: dict[str, TarCopy] = {}
        # The segments before the present place, and what those begin with that were not kept.
        self._passed: set[str] = set()
        self._beginnings: dict[str, bytes] = {}
        self._here: tuple[Member, StreamedMember] | None = None
        self._spool = Spool()

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of the next segment that has any."""
        for member, _ in self._members():
            header = parse_segment_header(StreamedMember(member.size, self._events).beginning())
            if header is not None:
                return header
        return None

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Keep these when they are passed."""
        self._is_wanted = is_wanted

    def finish(self) -> None:
        """Read to the end; only of a tar that holds WAL alone damage is raised: others are read for their data."""
        with contextlib.suppress(IntegrityError):
            for _ in self._members():
                pass
        if self._problem is not None and self._part.area is Area.WAL:
            raise self._problem

    def close(self) -> None:
        """Close the tar and the temporary file."""
        self._events.close()
        self._spool.close()

    def beginning_of(self, name: str) -> bytes:
        """Return what a segment begins with, nothing of one that is not there."""
        if name not in self._beginnings:
            found = self.come_to(name)
            self._beginnings[name] = b"" if found is None else found[1].beginning()[:LONG_HEADER_BYTES]
        return self._beginnings[name]

    def come_to(self, name: str) -> tuple[Member, StreamedMember] | None:
        """Go on to a segment, or back and there once more; raise what keeps it from being found."""
        if self._here is not None and segment_in(self._part, self._here[0]) == name and not self._here[1].is_passed:
            return self._here
        if name in self._passed:
            self._events.close()
            self._events = self._read()
            self._passed.clear()
        for member, found in self._members():
            if found == name:
                self._here = member, StreamedMember(member.size, self._events)
                return self._here
            self._pass(found, member)
        if self._problem is not None:
            raise self._problem
        return None

    def _segment(self, name: str) -> WalCopy | None:
        if name in self._kept:
            return self._kept[name]
        if self._listed is not None:
            return (
                TarCopy(name, f"{self._part.path}: {name}", None, _Later(self, name)) if name in self._listed else None
            )
        found = self.come_to(name)
        return None if found is None else TarCopy(name, self._where(found[0]), found[0].size, found[1])

    def _names(self) -> Collection[str]:
        if self._listed is None:
            with contextlib.suppress(IntegrityError):
                for member, found in self._members():
                    self._pass(found, member)
            return sorted(self._passed)
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
            if (name := segment_in(self._part, member)) is not None:
                self._passed.add(name)
                yield member, name
            elif (history := history_in(self._part, member)) is not None:
                content = b"".join(StreamedMember(member.size, self._events).views())
                self._seen_histories[history] = (self._where(member), content)

    def _pass(self, name: str, member: Member) -> None:
        """Go over a segment: keep it if it is wanted later, else remember what it begins with."""
        payload = StreamedMember(member.size, self._events)
        if name in self._kept or not self._is_wanted(name):
            self._beginnings.setdefault(name, payload.beginning()[:LONG_HEADER_BYTES])
            return
        extent = self._spool.extent(member.size)
        for view in payload.views():
            self._spool.write(view)
        self._kept[name] = TarCopy(name, self._where(member), member.size, extent)

    def _where(self, member: Member) -> str:
        return f"{self._part.path}: {member.name}"


class StreamedMember:
    """The payload of the member that a tar's events have come to."""

    def __init__(self, size_bytes: int, events: Iterator[TarEvent]) -> None:
        self._size_bytes = size_bytes
        self._rest = self._payload(events)
        self._begun: bytes | None = None
        self.is_passed = False

    def beginning(self) -> bytes:
        """Return the first piece, which `views` will yield all the same."""
        if self._begun is None:
            self._begun = bytes(next(self._rest, b""))
        return self._begun

    def views(self) -> Iterator[memoryview]:
        """Yield the payload."""
        self.is_passed = True
        if self._begun:
            yield memoryview(self._begun)
        yield from self._rest

    def _payload(self, events: Iterator[TarEvent]) -> Iterator[memoryview]:
        for event in events if self._size_bytes else ():
            if isinstance(event, MemberData):
                yield from event.views
            elif isinstance(event, MemberEnds):
                return


@dataclass(frozen=True, slots=True)
class _Later:
    """The payload of a segment that is in a list; the tar is read when it is asked for."""

    tar: StreamedTar
    name: str

    def beginning(self) -> bytes:
        return self.tar.beginning_of(self.name)

    def views(self) -> Iterator[memoryview]:
        found = self.tar.come_to(self.name)
        return iter(()) if found is None else found[1].views()
