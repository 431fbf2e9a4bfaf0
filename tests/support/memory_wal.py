"""WAL in memory: a source and a store of WAL as an archive has them that keeps ranges instead of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.names import is_history_name, is_segment_name
from polarvault.wal.segment_header import SegmentHeader, StartLook, judge_place, parse_segment_header
from polarvault.wal.source import READ_BYTES, HeldRange, WalCopy, joined, ranges_of_names

MB = 1 << 20


@dataclass
class MemoryWal:
    """Slices of WAL, each at its LSN on its timeline, and files by name. Implements `wal.source.WalSource`.

    A segment is there as far as slices cover it from its start on; where they cover all of it the copy is final.
    piece_bytes: the length of the views. broken: names that cannot be decoded. is_away: nothing can be asked.
    """

    segment_size_bytes: int = MB
    piece_bytes: int = 64 * 1024
    place: str = "memory"
    slices: dict[tuple[int, int], bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    is_away: bool = False
    paths: Sequence[str] = ()

    @classmethod
    def of_segments(cls, contents: Mapping[str, bytes], **how: object) -> MemoryWal:
        """Return a source of segments by name, whatever is in them; those that are too short are unfinished."""
        return cls(files=dict(contents), **how)  # type: ignore[arg-type]

    def add(self, timeline_id: int, lsn: int, content: bytes) -> None:
        """Keep a slice; of two that begin at one place the longer one."""
        before = self.slices.get((timeline_id, int(lsn)), b"")
        self.slices[timeline_id, int(lsn)] = max(before, content, key=len)

    def timelines(self) -> Sequence[int]:
        self._check()
        named = {int(name[:8], 16) for name in self.files if is_history_name(name) or is_segment_name(name)}
        return sorted({timeline_id for timeline_id, _ in self.slices} | named)

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        self._check()
        slices = [(lsn, content) for (found, lsn), content in self.slices.items() if found == timeline_id]
        named = ranges_of_names([*self.files, *self.broken], timeline_id, segment_size_bytes)
        return joined([*named, *(HeldRange(Lsn(lsn), Lsn(lsn + len(content))) for lsn, content in slices)])

    def copies(self, name: str) -> Sequence[WalCopy]:
        self._check()
        if name in self.broken:
            raise IntegrityError(f"{name} cannot be decompressed")
        if name in self.files:
            content = self.files[name]
            is_short = is_segment_name(name) and len(content) < self.segment_size_bytes
            return [MemoryCopy(self, name, content, is_final=not is_short)]
        if not is_segment_name(name):
            return ()
        segment = WalSegment.parse(name, self.segment_size_bytes)
        content = self._covered(segment)
        return [MemoryCopy(self, name, content, is_final=len(content) == segment.size_bytes)] if content else ()

    def _covered(self, segment: WalSegment) -> bytes:
        """Return the segment's content from its start up to the first byte that no slice has."""
        content = b""
        for (timeline_id, lsn), part in sorted(self.slices.items()):
            at = segment.start + len(content)
            if timeline_id == segment.timeline_id and lsn <= at < lsn + len(part):
                content += part[at - lsn : segment.end - lsn]
        return content

    def first_header(self) -> SegmentHeader | None:
        self._check()
        contents = [*self.slices.values(), *self.files.values()]
        headers = map(parse_segment_header, contents)
        return next(filter(None, headers), None)

    def foreign_form(self, name: str) -> str | None:
        self._check()
        return None

    def lack(self) -> tuple[str, str] | None:
        self._check()
        return None if self.slices or self.files else ("is empty", "wait until something has been archived")

    def fetch_options(self) -> Sequence[str]:
        return ("--memory", self.place)

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.is_away:
            raise StorageFailed(f'could not read "{self.place}": it is away')


@dataclass(frozen=True)
class MemoryCopy:
    """Implements `wal.source.WalCopy`."""

    source: MemoryWal
    name: str
    content: bytes
    is_final: bool
    partial: bool = False
    path: str | None = None

    @property
    def where(self) -> str:
        return f"{self.source.place}: {self.name}"

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        return (view for _, view in self.pieces())

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        for offset in range(0, len(self.content), self.source.piece_bytes):
            yield offset, memoryview(self.content[offset : offset + self.source.piece_bytes])

    def look_at_start(self) -> StartLook:
        header = parse_segment_header(self.content)
        if header is not None:
            return judge_place(self.name, header)
        return StartLook(None, None if not self.is_final else "does not begin with a WAL page")

    def open_plain(self) -> BinaryIO | None:
        return None

    def stored_bytes(self) -> int | None:
        return len(self.content)

    def may_end_early(self) -> MemoryCopy:
        return MemoryCopy(self.source, self.name, self.content, is_final=False)
