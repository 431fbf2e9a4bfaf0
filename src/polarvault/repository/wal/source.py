"""WAL in a repository as a `wal.source.WalSource`: what a recovery is served from, and what a survey reads.

`polarvault wal fetch` imports this for every segment of a recovery: nothing heavy may be imported at the top.
"""

from __future__ import annotations

from polarvault.errors import IntegrityError, ObjectMissing, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.names import is_segment_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, StartLook, judge_place, parse_segment_header
from polarvault.wal.source import READ_BYTES, HeldRange, joined

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
    from polarvault.wal.segment_header import SegmentHeader
    from polarvault.wal.source import WalCopy

# Ranges are merged and removed while they are read; more often than so is no coincidence.
_MOST_LOOKS = 5


class RepositoryWalSource:
    """The WAL of one cluster under one system identifier.

    place: as messages name it. fetch_options: what makes `polarvault wal fetch` open the same repository.
    """

    def __init__(self, wal: RepositoryWal, *, place: str, fetch_options: Sequence[str] = ()) -> None:
        self._wal = wal
        self.place = place
        self._fetch_options = tuple(fetch_options)

    @property
    def segment_bytes(self) -> int:
        """The size of the cluster's segments."""
        return self._wal.segment_bytes

    @property
    def paths(self) -> Sequence[str]:
        """None: no file of it can be read by a server."""
        return ()

    def timelines(self) -> Sequence[int]:
        """Return every timeline of which there is anything, sorted."""
        return sorted(self._wal.timelines())

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what is held of a timeline."""
        if segment_size_bytes != self._wal.segment_bytes:
            return ()
        return joined(HeldRange(one.first, one.last) for one in self._wal.ranges(timeline_id))

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Return the ranges of a segment as one copy, then a partial segment; or a history file."""
        stem = name.removesuffix(".partial")
        found: list[WalCopy] = []
        if is_segment_name(name):
            try:
                segment = WalSegment.parse(name, self._wal.segment_bytes)
            except ValueError:
                return ()  # Of another segment size: none of this cluster's.
            end = covered_end(segment, self._wal.segment_ranges(segment))
            if end > segment.start:
                found.append(SegmentCopy(self._wal, segment, end, place=self.place))
        if is_segment_name(stem):
            partial = f"{stem}.partial"
            size = self._wal.file_size(int(name[:8], 16), partial)
            if size is not None:
                found.append(FileCopy(self._wal, name, partial, size, place=self.place, partial=True))
            return found
        size = self._wal.file_size(int(name[:8], 16), name)
        return () if size is None else (FileCopy(self._wal, name, name, size, place=self.place),)

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of some segment, the newest whose beginning is there."""
        for timeline_id in reversed(self.timelines()):
            for one in reversed(self._wal.ranges(timeline_id)):
                if one.first == one.segment.start:
                    header = parse_segment_header(self._wal.read_range(one)[:LONG_HEADER_BYTES])
                    if header is not None:
                        return header
        return None

    def foreign_form(self, name: str) -> str | None:
        """Return None: nobody else writes here."""
        return None

    def lack(self) -> tuple[str, str] | None:
        """Say that there is no WAL, if so."""
        if self._wal.timelines():
            return None
        return "holds no WAL yet", "archive WAL into it, or restore without a target"

    def fetch_options(self) -> Sequence[str]:
        """Return --repo, --cluster and where the key is."""
        return self._fetch_options

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing: any range can be read at any time."""

    def finish(self) -> None:
        """Do nothing: nobody has to read what is not asked for."""

    def close(self) -> None:
        """Do nothing: the repository belongs to whoever opened it."""


def covered_end(segment: WalSegment, ranges: Sequence[StoredRange]) -> Lsn:
    """Return up to where ranges, sorted, hold the segment from its start on without a gap."""
    end = segment.start
    for one in ranges:
        if one.first > end:
            break
        end = max(end, one.last)
    return end


class SegmentCopy:
    """A segment as far as ranges cover it from its start on. Implements `wal.source.WalCopy`."""

    partial = False
    path = None

    def __init__(
        self, wal: RepositoryWal, segment: WalSegment, end: Lsn, *, place: str, is_final: bool | None = None
    ) -> None:
        self._wal, self._segment, self._end, self._place = wal, segment, end, place
        self.is_final = end == segment.end if is_final is None else is_final
        self._first: tuple[StoredRange, memoryview] | None = None

    @property
    def name(self) -> str:
        """The segment's name."""
        return self._segment.file_name

    @property
    def where(self) -> str:
        """Place and name."""
        return f"{self._place}: {self.name}"

    @property
    def size_bytes(self) -> int:
        """How much is covered."""
        return self._end - self._segment.start

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield the content; one range is in memory."""
        at, looks = self._segment.start, 0
        before: tuple[StoredRange, memoryview] | None = None
        listed = self._wal.segment_ranges(self._segment)
        while at < self._end:
            candidates = [one for one in listed if one.first <= at < one.last]
            try:
                if not candidates:
                    raise ObjectMissing(f"what was held of {self.where} from {at} on is gone")
                chosen = max(candidates, key=lambda one: one.last)
                content = self._read(chosen)
            except ObjectMissing as problem:
                looks += 1
                if looks == _MOST_LOOKS:
                    # Never "it is not there", which would end a recovery as if the WAL ended here.
                    raise StorageFailed(
                        f"{problem.message}, although the repository has listed it",
                        hint="see what removes WAL from the repository; then start the recovery again",
                    ) from problem
                listed = self._wal.segment_ranges(self._segment)
                continue
            if before is not None:
                self._compare(before, (chosen, content))
            before = chosen, content
            rest = content[at - chosen.first : self._end - chosen.first]
            for offset in range(0, len(rest), piece_bytes):
                yield rest[offset : offset + piece_bytes]
            at = Lsn(at + len(rest))

    def _read(self, one: StoredRange) -> memoryview:
        if self._first is not None and self._first[0] == one:
            return self._first[1]
        content = self._wal.read_range(one)
        if one.first == self._segment.start:
            self._first = one, content
        return content

    def _compare(self, before: tuple[StoredRange, memoryview], after: tuple[StoredRange, memoryview]) -> None:
        """Raise IntegrityError where two ranges that overlap differ: two servers have written here."""
        (first, content), (second, other) = before, after
        start, end = max(first.first, second.first), min(first.last, second.last)
        if (
            start < end
            and content[start - first.first : end - first.first] != (other[start - second.first : end - second.first])
        ):
            raise IntegrityError(
                f"{self.where}: the ranges {first.first}-{first.last} and {second.first}-{second.last} differ",
                hint="two servers have written here; see which of them is the cluster",
            )

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content."""
        from polarvault.walfiles.pieces import in_pieces

        return in_pieces(self.views())

    def look_at_start(self) -> StartLook:
        """Say what the copy is by its first page."""
        start = bytes(next(self.views(piece_bytes=READ_BYTES), memoryview(b""))[:LONG_HEADER_BYTES])
        header = parse_segment_header(start)
        if header is not None:
            return judge_place(self.name, header)
        if start.strip(b"\0") == b"" and not self.is_final:
            return StartLook(None)
        return StartLook(None, "does not begin with a WAL page")

    def open_plain(self) -> BinaryIO | None:
        """Return None: it is no file."""
        return None

    def stored_bytes(self) -> int | None:
        """Return how much is covered now."""
        end = covered_end(self._segment, self._wal.segment_ranges(self._segment))
        return None if end == self._segment.start else end - self._segment.start

    def may_end_early(self) -> SegmentCopy:
        """Return the same, taken for one that was not finished."""
        return SegmentCopy(self._wal, self._segment, self._end, place=self._place, is_final=False)


class FileCopy:
    """A history file, a backup history file or a partial segment. Implements `wal.source.WalCopy`."""

    path = None

    def __init__(
        self, wal: RepositoryWal, name: str, file_name: str, size_bytes: int, *, place: str, partial: bool = False
    ) -> None:
        self._wal, self.name, self._file_name, self._place = wal, name, file_name, place
        self.partial = partial
        self.is_final = not partial
        self._stored_bytes = size_bytes

    @property
    def where(self) -> str:
        """Place and name."""
        return f"{self._place}: {self._file_name}"

    @property
    def size_bytes(self) -> int | None:
        """Return None: it is stored compressed."""
        return None

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield the content."""
        content = self._wal.read_file(int(self._file_name[:8], 16), self._file_name)
        if content is None:
            raise StorageFailed(
                f"{self.where} is gone, although the repository has listed it",
                hint="see what removes WAL from the repository; then start the recovery again",
            )
        for offset in range(0, len(content), piece_bytes):
            yield memoryview(content)[offset : offset + piece_bytes]

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content."""
        from polarvault.walfiles.pieces import in_pieces

        return in_pieces(self.views())

    def look_at_start(self) -> StartLook:
        """Say what a partial segment is by its first page."""
        header = parse_segment_header(bytes(next(self.views(), memoryview(b""))[:LONG_HEADER_BYTES]))
        return StartLook(None) if header is None else judge_place(self.name, header)

    def open_plain(self) -> BinaryIO | None:
        """Return None: it is no file."""
        return None

    def stored_bytes(self) -> int | None:
        """Return what it takes."""
        return self._stored_bytes

    def may_end_early(self) -> FileCopy:
        """Return the same."""
        return self
