"""Pages that a recovery makes right, whatever stands there, or that the WAL in front of a backup proves.

A restored backup is recovered from its redo point to its end, always. What it needs of a page is what stood there at
the redo point: replay passes records over that are older than the page. So these do, and nothing else does:

- Zeros, if the first record of the backup's own WAL that touches the page holds the whole, or makes it anew; if its
  relation goes or comes meanwhile; and for free space and visibility maps, which the server fills again (freespace.c,
  visibilitymap.c: a page of zeros says that there is no room, and that nothing is visible to all).
- The page of an older backup of the same history, if no record between the start of that and the end of this one
  touches it. Only hint bits can differ, of which the server says nothing in the WAL.
- The image of the page in the last record that touches it before the redo point. It is what replay puts in place.

A record that changes a page without holding it has to be replayed by a server: then the older backup has to be restored
and recovered to the end of this one. Nothing is made up for files that are no relation's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.model.relation import FREE_SPACE_FORK, VISIBILITY_FORK, BlockId
from polarvault.pgfiles.pages import page_checksum, read_page_header, relation_segment
from polarvault.pgfiles.relation_paths import relation_of
from polarvault.repository.format.chunks import PAGE_BYTES
from polarvault.repository.index.files import FileRow
from polarvault.repository.index.root import Part, PartArea
from polarvault.repository.reading.wal_stretch import WalStretch, read_history
from polarvault.wal.blocks import records_about, source_of_copy
from polarvault.wal.images import page_image
from polarvault.wal.last_touches import LastTouches
from polarvault.wal.page_fates import Fate, PageFates

if TYPE_CHECKING:
    from polarvault.repository.catalogue.repository import Generation
    from polarvault.repository.format.record import RecordFacts
    from polarvault.repository.wal.source import RepositoryWalSource
    from polarvault.wal.marks import Marks

_MAPS = (FREE_SPACE_FORK, VISIBILITY_FORK)
_CHECKSUM_OFFSET = 8
# What is known of pages is kept for four files of a gigabyte: some 40 MB each.
_MOST_PAGES = 4 * 131_072


class Origin(Enum):
    """Why a page is right after recovery."""

    WRITTEN_WHOLE = "zeros, which recovery overwrites with the whole page from the WAL"
    MAP = "zeros, which the server fills again: nothing but a map of free space or of visibility is lost"
    UNCHANGED = "an older version, which no record of the WAL since has changed (hint bits may differ)"
    IMAGE = "its image in the WAL, which no later record has changed (hint bits may differ)"


@dataclass(frozen=True, slots=True)
class Recovered:
    """Bytes for a page; where: the backup or the LSN that they are from, if they are from anywhere."""

    content: bytes
    origin: Origin
    where: str = ""


@dataclass(frozen=True, slots=True)
class OlderBackup:
    """One that began earlier. page: reads a page of a file, which this one has under the same path, or None."""

    label: str
    facts: RecordFacts
    page: Callable[[FileRow, int], bytes | None]


class _OwnWal:
    """Watches the WAL of the backup: what becomes of pages, and the files of which databases are copied meanwhile."""

    def __init__(self, pages: Sequence[BlockId]) -> None:
        self._fates = PageFates(pages)
        self._copied: set[int | None] = set()

    def accept(self, marks: Marks, magic: int) -> None:
        """Take the next records."""
        self._fates.accept(marks, magic)
        self._copied |= {source_of_copy(record) for record in records_about(marks, {}, magic=magic)}

    def fate(self, page: BlockId) -> Fate:
        """Tell what becomes of a page; a file that is copied is read before it may be written whole."""
        fate = self._fates.fate(page)
        is_copied = page.relation.database_oid in self._copied
        return Fate.CHANGED if fate is Fate.REPAIRED and is_copied else fate


@dataclass(slots=True)
class _Looked:
    """What the WAL says of all pages of some files; of the stretches in front of the backup, the newest first."""

    pages: list[BlockId]
    own: _OwnWal | str
    stretches: list[LastTouches | str] = field(default_factory=list)
    pages_here: int = 0
    """How many pages each of the files has, on the average."""


class ReplayedPages:
    """Answers for one backup; used by one thread at a time."""

    def __init__(
        self, facts: RecordFacts, generation: Generation, archive: RepositoryWalSource, parts: Sequence[Part],
        older: Callable[[], Sequence[OlderBackup]],
    ) -> None:  # fmt: skip
        self._facts, self._generation, self._archive, self._parts = facts, generation, archive, parts
        self._all_older = older
        self._older: list[OlderBackup] | None = None
        # pg_checksums writes checksums into all pages, without a record: what counts is how it was at this backup.
        self._has_checksums = bool(facts.details.get("data_checksums", generation.data_checksums))
        self._looked: OrderedDict[bytes, _Looked] = OrderedDict()
        self._own: WalStretch | None = None
        self._before: list[WalStretch] = []

    def find(self, rows: Sequence[FileRow], wanted: Sequence[tuple[FileRow, int]]) -> list[Recovered | str]:
        """Return what does for each page, by its file and its offset there; or why nothing does.

        rows: files of which more pages may be asked for soon, so that the WAL is read once for all of them.
        """
        missing = {row.key: row for row in rows if row.key not in self._looked}
        if missing:
            self._look(list(missing.values()))
        found: dict[int, Recovered | str] = {}
        images: dict[int, dict[int, tuple[int, BlockId]]] = {}
        for number, (row, at) in enumerate(wanted):
            answer = self._page(row, at)
            if isinstance(answer, tuple):
                stretch, lsn, page = answer
                images.setdefault(stretch, {})[number] = lsn, page
            else:
                found[number] = answer
        for stretch, asked in images.items():
            found |= self._images(self._before[stretch], asked)
        # A restore goes from file to file: of those before nobody asks again.
        while len(self._looked) > 1 and sum(one.pages_here for one in self._looked.values()) > _MOST_PAGES:
            self._looked.popitem(last=False)
        return [found[number] for number in range(len(wanted))]

    def _page(self, row: FileRow, at: int) -> Recovered | str | tuple[int, int, BlockId]:
        """Return what does for a page; stretch, LSN and page where an image does."""
        page = self._block(row, at)
        if isinstance(page, str):
            return page
        if page.fork in _MAPS:
            return Recovered(bytes(PAGE_BYTES), Origin.MAP)
        looked = self._looked[row.key]
        if isinstance(looked.own, str):
            return f"what the WAL of the backup does to it cannot be told: {looked.own}"
        fate = looked.own.fate(page)
        if fate is Fate.REPAIRED:
            return Recovered(bytes(PAGE_BYTES), Origin.WRITTEN_WHOLE)
        if fate is Fate.CHANGED:
            return "the WAL of the backup reads the page before it holds the whole, if it does"
        for number, older in enumerate(self._older_backups()):
            touches = self._stretch(looked, number)
            if isinstance(touches, str):
                return f"the WAL since {older.label} cannot be read: {touches}"
            if touches.unlogged is not None:
                return f"wal_level was minimal at {touches.unlogged}, so that pages may have changed without a record"
            last = touches.last(page)
            if last is not None:
                if last.has_image:
                    return number, last.lsn, page
                return f"the record at {last.lsn} changes the page, and does not hold the whole"
            content = older.page(row, at)
            if content is not None and self._is_older(content, page, older):
                return Recovered(content, Origin.UNCHANGED, older.label)
        return "no older backup of the same history has a version of the page"

    def _is_older(self, content: bytes, page: BlockId, older: OlderBackup) -> bool:
        """Tell whether a page is what its backup should have of it: whole, and not newer than that backup's start."""
        if not any(content):
            return True
        lsn, checksum, _ = read_page_header(content)
        if self._has_checksums and checksum != page_checksum(content, page.block):
            return False
        return lsn <= older.facts.start_lsn

    def _first_block(self, row: FileRow) -> BlockId | None:
        """Return the first page of a file; None if it is no relation's."""
        path = _path_in_data_directory(row, self._parts[row.part])
        found, segment = relation_of(path), relation_segment(path)
        if found is None or segment is None:
            return None
        return BlockId(*found, segment * self._generation.relation_segment_bytes // PAGE_BYTES)

    def _block(self, row: FileRow, at: int) -> BlockId | str:
        """Return which page it is; or why it is none that WAL tells of."""
        first = self._first_block(row)
        if first is None:
            return "the file is no relation's, and WAL does not tell of it"
        if row.size - at < PAGE_BYTES:
            return "the file ends within the page"
        return first._replace(block=first.block + at // PAGE_BYTES)

    def _look(self, rows: Sequence[FileRow]) -> None:
        """Read the backup's own WAL for all pages of some files."""
        pages = [
            BlockId(first.relation, first.fork, first.block + number)
            for row in rows
            if (first := self._first_block(row)) is not None and first.fork not in _MAPS
            for number in range(row.size // PAGE_BYTES)
        ]
        own = _OwnWal(pages)
        looked = _Looked(pages, own, pages_here=-(-len(pages) // len(rows)))
        if pages:
            try:
                if self._own is None:
                    self._own = self._stretch_between(self._facts.start_lsn, self._facts.stop_lsn)
                self._own.show(own)
            except PolarvaultError as problem:
                looked.own = problem.message
        for row in rows:
            self._looked[row.key] = looked

    def _stretch(self, looked: _Looked, number: int) -> LastTouches | str:
        """Return what the WAL from the start of an older backup to that of the next one says of the pages."""
        while len(looked.stretches) <= number:
            touches = LastTouches(looked.pages)
            try:
                self._before_older(len(looked.stretches)).show(touches)
            except PolarvaultError as problem:
                looked.stretches.append(problem.message)
                continue
            looked.stretches.append(touches)
        return looked.stretches[number]

    def _before_older(self, number: int) -> WalStretch:
        older = self._older_backups()
        while len(self._before) <= number:
            stop = older[len(self._before) - 1].facts.start_lsn if self._before else self._facts.start_lsn
            self._before.append(self._stretch_between(older[len(self._before)].facts.start_lsn, stop))
        return self._before[number]

    def _stretch_between(self, start: Lsn, stop: Lsn) -> WalStretch:
        return WalStretch(self._archive, read_history(self._archive, self._facts.stop_timeline_id), start, stop)

    def _older_backups(self) -> Sequence[OlderBackup]:
        """Return those of the same history, the newest first: by LSN, because labels are a clock's."""
        if self._older is None:
            history = read_history(self._archive, self._facts.stop_timeline_id)
            self._older = sorted(
                (
                    one for one in self._all_older()
                    if one.facts.start_lsn < self._facts.start_lsn
                    and history.contains(one.facts.timeline_id, one.facts.start_lsn)
                    and history.contains_up_to(one.facts.stop_timeline_id, one.facts.stop_lsn)
                ),
                key=lambda one: one.facts.start_lsn, reverse=True,
            )  # fmt: skip
        return self._older

    def _images(self, stretch: WalStretch, asked: dict[int, tuple[int, BlockId]]) -> dict[int, Recovered | str]:
        found: dict[int, Recovered | str] = {}
        try:
            records = {int(record.lsn): record for record in stretch.records(Lsn(lsn) for lsn, _ in asked.values())}
        except PolarvaultError as problem:
            return dict.fromkeys(asked, problem.message)
        for number, (lsn, page) in asked.items():
            try:
                content = page_image(records[lsn], page)
            except ValueError as problem:
                found[number] = f"the record at {Lsn(lsn)}: {problem}"
                continue
            if content is None:
                found[number] = f"the record at {Lsn(lsn)} changes the page, and does not hold the whole"
                continue
            if any(content):
                # A server without checksums does not look at it.
                checksum = page_checksum(bytes(content), page.block)
                content[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 2] = checksum.to_bytes(2, "little")
            found[number] = Recovered(bytes(content), Origin.IMAGE, str(Lsn(lsn)))
        return found


def _path_in_data_directory(row: FileRow, part: Part) -> str:
    return f"pg_tblspc/{part.oid}/{row.name}" if part.area is PartArea.TABLESPACE else row.name
