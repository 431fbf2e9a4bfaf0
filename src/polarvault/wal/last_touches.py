"""Which record of a stretch of WAL is the last one that touches a page. Pure.

A page that no record touches is at the end of the stretch what it was at its beginning, but for hint bits. One of which
the last record holds the whole is what that record says. Of any other page the end of the stretch cannot be told
without a server that replays it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from polarvault.model.lsn import Lsn
from polarvault.model.relation import MAIN_FORK, BlockId, RelationFile
from polarvault.wal.blocks import (
    block_references,
    changed_database,
    made_relation,
    records_about,
    removed_relations,
    shortened_relation,
)
from polarvault.wal.marks import MarkKind, Marks
from polarvault.wal.records import RMGR_INFO_MASK, RMGR_XLOG

_POLARDB_RECORD = 0xF0


@dataclass(frozen=True, slots=True)
class Touch:
    """A record that touches a page; has_image: it holds the page as it is afterwards."""

    lsn: Lsn
    has_image: bool


class LastTouches:
    """Watches all WAL of a stretch, in its order, for the last record about each of some pages."""

    def __init__(self, pages: Iterable[BlockId]) -> None:
        self._pages: dict[RelationFile, set[BlockId]] = {}
        for page in pages:
            self._pages.setdefault(page.relation, set()).add(page)
        self._last: dict[BlockId, Touch] = {}
        self.unlogged: Lsn | None = None
        """Where wal_level became minimal: from then on pages may have changed without a record."""

    def accept(self, marks: Marks, magic: int) -> None:
        """Take the next records, of a scanner that was made with `with_blocks`."""
        for mark in marks.select((MarkKind.PARAMETER_CHANGE,)):
            if mark.name not in ("replica", "logical"):
                self.unlogged = mark.lsn
        for record in records_about(marks, dict.fromkeys(self._pages, ()), magic=magic):
            lsn = Lsn(record.lsn)
            # A snapshot of a page for PolarDB's replicas is not what its replay puts in place.
            is_snapshot = record.rmgr == RMGR_XLOG and record.info & RMGR_INFO_MASK == _POLARDB_RECORD
            for reference in block_references(record):
                page = reference.page
                if page in self._pages.get(page.relation, ()):
                    self._last[page] = Touch(lsn, has_image=reference.has_image and not is_snapshot)
            # What stands on pages after files came and went is not followed up: another record may say it later.
            if (made := made_relation(record)) is not None:
                self._lose(made, lsn)
            for removed in removed_relations(record):
                self._lose(removed, lsn)
            if (shortened := shortened_relation(record)) is not None:
                self._lose(shortened[0], lsn, shortened[1])
            if (database := changed_database(record)) is not None:
                for relation in self._pages:
                    if relation.database_oid == database:
                        self._lose(relation, lsn)

    def _lose(self, relation: RelationFile, lsn: Lsn, first_block: int = 0) -> None:
        for page in self._pages.get(relation, ()):
            if page.block >= first_block or page.fork != MAIN_FORK:
                self._last[page] = Touch(lsn, has_image=False)

    def last(self, page: BlockId) -> Touch | None:
        """Return the last record about a page, after all WAL was accepted; None if none is."""
        return self._last.get(page)
