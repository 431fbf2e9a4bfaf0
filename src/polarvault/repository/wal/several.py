"""The WAL of a cluster in several repositories: what one lacks, or has damaged, is taken from the next.

A plan reads through this what `polarvault wal fetch` with the same `--repo` options will serve, so that both reach the
same place. Of the further repositories nothing is asked as long as the first one has what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.wal.segment_header import SegmentHeader, StartLook
from polarvault.wal.source import READ_BYTES, HeldRange, WalCopy, WalSource, joined


class RepositoriesWal:
    """A `wal.source.WalSource`: that of the repository a backup is in, and those behind it.

    The fetch_options of the first one name all of them.
    """

    def __init__(self, first: WalSource, others: Sequence[WalSource]) -> None:
        self._first, self._others = first, tuple(others)
        self._all = (first, *others)

    @property
    def place(self) -> str:
        """All places."""
        return " ".join(source.place for source in self._all)

    @property
    def paths(self) -> Sequence[str]:
        """None: no file of it can be read by a server."""
        return ()

    def timelines(self) -> Sequence[int]:
        """Return the timelines of all."""
        return sorted({timeline_id for source in self._all for timeline_id in source.timelines()})

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what one or another has."""
        return joined(held for source in self._all for held in source.ranges(timeline_id, segment_size_bytes))

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Return the finished copy of the first that has one, which has those behind it to fall back on; else all."""
        found: list[WalCopy] = []
        for number, source in enumerate(self._all):
            copies = source.copies(name)
            found += copies
            if copies and copies[0].is_final:
                return [_CopyWithSpares(copies[0], self._finished_of(self._all[number + 1 :], name))]
        return found

    def _finished_of(self, sources: Sequence[WalSource], name: str) -> Callable[[], Iterator[WalCopy]]:
        def spares() -> Iterator[WalCopy]:
            for source in sources:
                yield from (copy for copy in source.copies(name) if copy.is_final)

        return spares

    def first_header(self) -> SegmentHeader | None:
        """Return the facts that the first one knows that knows any."""
        return next(filter(None, (source.first_header() for source in self._all)), None)

    def foreign_form(self, name: str) -> str | None:
        """Return None: nobody else writes there."""
        return None

    def lack(self) -> tuple[str, str] | None:
        """Say that there is no WAL, if none has any."""
        lacks = [source.lack() for source in self._all]
        return lacks[0] if all(lacks) else None

    def fetch_options(self) -> Sequence[str]:
        """Return those of the first, which name all."""
        return self._first.fetch_options()

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing: any range can be read at any time."""

    def finish(self) -> None:
        """Do nothing: nobody has to read what is not asked for."""

    def close(self) -> None:
        """Do nothing: the repositories belong to whoever opened them."""


class _CopyWithSpares:
    """A finished copy; where it cannot be read on, the same bytes of another one follow. A `wal.source.WalCopy`."""

    path = None

    def __init__(self, copy: WalCopy, spares: Callable[[], Iterator[WalCopy]]) -> None:
        self._copy, self._spares = copy, spares
        self.name, self.where, self.partial, self.is_final = copy.name, copy.where, copy.partial, copy.is_final

    @property
    def size_bytes(self) -> int | None:
        """That of the copy."""
        return self._copy.size_bytes

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield the content, each range of it from the first copy that is sound there."""
        at = 0
        try:
            for view in self._copy.views(piece_bytes=piece_bytes):
                # Before it is given away: what was yielded is not yielded again, whatever is wrong behind it.
                at += len(view)
                yield view
            return
        except (IntegrityError, StorageFailed) as problem:
            first = problem
        for spare in self._spares():
            try:
                for view in _behind(spare.views(piece_bytes=piece_bytes), at):
                    at += len(view)
                    yield view
                return
            except (IntegrityError, StorageFailed):
                continue
        raise first

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content."""
        from polarvault.walfiles.pieces import in_pieces

        return in_pieces(self.views())

    def look_at_start(self) -> StartLook:
        """Say what the copy is by its first page, or that of another one where it cannot be read."""
        try:
            return self._copy.look_at_start()
        except (IntegrityError, StorageFailed) as problem:
            for spare in self._spares():
                try:
                    return spare.look_at_start()
                except (IntegrityError, StorageFailed):
                    continue
            raise problem

    def open_plain(self) -> BinaryIO | None:
        """Return None: it is no file."""
        return None

    def stored_bytes(self) -> int | None:
        """Return what the copy has."""
        return self._copy.stored_bytes()

    def may_end_early(self) -> WalCopy:
        """Return the copy alone, taken for one that was not finished."""
        return self._copy.may_end_early()


def _behind(views: Iterator[memoryview], skipped: int) -> Iterator[memoryview]:
    """Yield what follows so many bytes."""
    for view in views:
        if skipped < len(view):
            yield view[skipped:]
        skipped = max(0, skipped - len(view))
