"""The seam to read WAL: what a place that holds WAL can be asked, whoever wrote it and however it is stored there.

A *source* is a WAL directory, a list of them, the WAL that comes with a backup, or anything else that answers these
questions (`walfiles`, `backupset.wal`; the contract is tests/contract/test_wal_source.py). It has *copies* of what
a server calls by one name. Which of several copies counts is one rule for all of them: `walfiles.choice`. What they
hold is judged by whoever asks: `wal fetch`, the survey before a recovery, verifybackup.

A place that cannot be asked raises StorageFailed, everywhere: "it is not there" is how a recovery learns that the WAL
has ended. Protocols and values only; nothing here does I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from polarvault.model.dataclass import dataclass
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.segment_header import SegmentHeader, StartLook

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class HeldRange:
    """A stretch of a timeline's WAL that a source has, up to, not including, `end`.

    A partial segment counts as a whole one where only reading tells how far it is filled.
    """

    start: Lsn
    end: Lsn


class WalCopy(Protocol):
    """One copy of a segment, a history file or a backup history file. Making one opens nothing.

    Methods raise StorageFailed, with FileNotFoundError as its cause when the copy is not there any more, and
    IntegrityError for content that is damaged.
    """

    @property
    def name(self) -> str:
        """As the server asks for it; with .partial only when exactly that was asked for."""
        ...

    @property
    def where(self) -> str:
        """How messages name it: a path, or what says the same."""
        ...

    @property
    def path(self) -> str | None:
        """The file that is this copy and nothing else, which the server's account has to read; None: there is none."""
        ...

    @property
    def is_final(self) -> bool:
        """Whether it was finished when it got its name, so that a missing end is damage; others may end early."""
        ...

    @property
    def partial(self) -> bool:
        """Whether its form (.partial) promises no whole segment."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """The length of its content; None where only reading it tells."""
        ...

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield the content in order; a view is valid until the next one is asked for.

        One that may end early does so at the last byte that can be read.
        """
        ...

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content in order, each valid until the next is asked for; every piece begins at a page.

        The first piece is the beginning. What follows may begin as late as the page of skip_bytes.
        """
        ...

    def look_at_start(self) -> StartLook:
        """Say what the copy of a segment is by its first page."""
        ...

    def open_plain(self) -> BinaryIO | None:
        """Open the file that holds the content and nothing else, if there is one: its blocks can be cloned."""
        ...

    def stored_bytes(self) -> int | None:
        """Return how much of it is stored now, which grows while it is being written; None when it is gone."""
        ...

    def may_end_early(self) -> WalCopy:
        """Return the same copy, taken for one that was not finished."""
        ...


class WalSource(Protocol):
    """A place that holds WAL. Every call looks anew: others write there, and remove.

    Some sources (a compressed tar) can only be read once, from their beginning to their end: they are asked for
    segments in the order of the WAL, and a copy must not be read any more when the next one was asked for.
    """

    @property
    def place(self) -> str:
        """The directory or file, as findings name it."""
        ...

    @property
    def paths(self) -> Sequence[str]:
        """The directories in which a server that recovers looks for itself, so that its account has to read them."""
        ...

    def timelines(self) -> Sequence[int]:
        """Return every timeline of which there is a segment or a history file, sorted."""
        ...

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what there is of a timeline, sorted, as the names tell: in a server's pg_wal they promise nothing."""
        ...

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Return all copies of what the server calls `name`, best first; none is opened."""
        ...

    def first_header(self) -> SegmentHeader | None:
        """Return the facts on the first page of some segment, such as the segment size; None when there is none."""
        ...

    def foreign_form(self, name: str) -> str | None:
        """Return where `name` lies in a form that cannot be read here, which is no end of the WAL either."""
        ...

    def lack(self) -> tuple[str, str] | None:
        """Say why there can be no WAL here, and what to do; None for a place that holds WAL."""
        ...

    def fetch_options(self) -> Sequence[str]:
        """Return the options by which `wal fetch` finds this place."""
        ...

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Learn which segments will be asked for, by their names; others need not be kept."""
        ...

    def finish(self) -> None:
        """Read what was not asked for, as a restore would; raise IntegrityError or StorageFailed if it cannot be."""
        ...

    def close(self) -> None:
        """Give back temporary files; nothing can be asked for afterwards."""
        ...


def joined(ranges: Iterable[HeldRange]) -> list[HeldRange]:
    """Return ranges in order, those that touch or overlap as one."""
    found: list[HeldRange] = []
    for held in sorted(ranges):
        if found and held.start <= found[-1].end:
            found[-1] = HeldRange(found[-1].start, max(found[-1].end, held.end))
        else:
            found.append(held)
    return found


def segment_numbers(ranges: Iterable[HeldRange], segment_size_bytes: int) -> Iterator[int]:
    """Yield the numbers of the segments of which there is something, each once, for ranges that are sorted."""
    following = 0
    for held in ranges:
        first = max(following, held.start // segment_size_bytes)
        following = -(-held.end // segment_size_bytes)
        yield from range(first, following)


def ranges_of_names(names: Iterable[str], timeline_id: int, segment_size_bytes: int) -> list[HeldRange]:
    """Return the ranges of a timeline that segments of these names hold; other names do not matter."""
    found = set()
    for name in names:
        # The name of another segment size does not count; the first fetch or scan says so.
        with contextlib.suppress(ValueError):
            segment = WalSegment.parse(name, segment_size_bytes)
            if segment.timeline_id == timeline_id:
                found.add(HeldRange(segment.start, segment.end))
    return joined(found)
