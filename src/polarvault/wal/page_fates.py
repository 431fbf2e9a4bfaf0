"""What the WAL of a backup does to pages with wrong checksums: a restore repairs some of them, and drops others. Pure.

A backup copies pages while the server writes them, so a page may be half old and half new; its header can be either
half's, and so its LSN says nothing. Replay repairs it if the first record that touches it holds the whole page or makes
it anew: then it does not look at what stands there (server: access/transam/xlogutils.c, XLogReadBufferForRedoExtended).
Any other record makes it read the page, and recovery stops with "invalid page in block".
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from polarvault.model.relation import (
    FREE_SPACE_FORK,
    MAIN_FORK,
    VISIBILITY_FORK,
    BlockId,
    RelationFile,
)
from polarvault.wal.blocks import (
    KeptRecord,
    block_references,
    changed_database,
    copied_database,
    made_relation,
    records_about,
    removed_relations,
    shortened_relation,
)
from polarvault.wal.marks import Marks

# The server sets a bad page of these to zero when it reads it, and loses nothing (freespace.c, visibilitymap.c). It
# changes them without writing WAL, so they may be torn, too.
_ZEROED_FORKS = (FREE_SPACE_FORK, VISIBILITY_FORK)
# To look for more block numbers than these is slower than to look at every record of the relation.
_MANY = 16


class Fate(Enum):
    """What becomes of a bad page when the backup is restored."""

    # Written whole, removed, or of a relation that does not exist yet.
    REPAIRED = "repaired"
    # A record changes it without writing it whole.
    CHANGED = "changed"
    UNTOUCHED = "untouched"


class PageFates:
    """Watches all WAL of a backup, in its order, for what happens to some pages."""

    def __init__(self, pages: Iterable[BlockId]) -> None:
        self._fates: dict[BlockId, Fate] = {}
        self._open: dict[RelationFile, set[BlockId]] = {}
        for page in pages:
            self._open.setdefault(page.relation, set()).add(page)
        self._databases = {(relation.tablespace_oid, relation.database_oid) for relation in self._open}
        self._made: set[RelationFile] = set()
        self._touched: set[RelationFile] = set()
        self._changed_databases: set[int] = set()

    def accept(self, marks: Marks, magic: int) -> None:
        """Take the next records, of a scanner that was made with `with_blocks`."""
        searches = {
            relation: [page.block for page in pages] if len(pages) <= _MANY and relation in self._touched else ()
            for relation, pages in self._open.items()
            if pages
        }
        for record in records_about(marks, searches, magic=magic):
            self._accept(record)

    def fate(self, page: BlockId) -> Fate:
        """Tell what becomes of a page, after all WAL was accepted."""
        if page in self._fates:
            return self._fates[page]
        if page.relation in self._made or (page.fork in _ZEROED_FORKS and page.relation in self._touched):
            # Made during the backup and not written to the WAL yet: the transaction had not ended, nobody can see it.
            return Fate.REPAIRED
        return Fate.UNTOUCHED

    @property
    def changed_databases(self) -> frozenset[int]:
        """The databases that the WAL makes, fills, moves or drops."""
        return frozenset(self._changed_databases)

    def _accept(self, record: KeptRecord) -> None:
        if (changed := changed_database(record)) is not None:
            self._changed_databases.add(changed)
        for reference in block_references(record):
            page = reference.page
            if page.relation not in self._open:
                continue
            self._touched.add(page.relation)
            if page in self._open[page.relation] and (reference.is_written_whole or page.fork not in _ZEROED_FORKS):
                self._settle(page, Fate.REPAIRED if reference.is_written_whole else Fate.CHANGED)
        if (made := made_relation(record)) is not None:
            self._made.add(made)
        for removed in removed_relations(record):
            self._settle_all(removed, 0)
        if (shortened := shortened_relation(record)) is not None:
            self._settle_all(*shortened)
        if (database := copied_database(record)) in self._databases:
            for relation in list(self._open):
                if database == (relation.tablespace_oid, relation.database_oid):
                    self._settle_all(relation, 0)

    def _settle_all(self, relation: RelationFile, first_block: int) -> None:
        for page in list(self._open.get(relation, ())):
            if page.block >= first_block or page.fork != MAIN_FORK:
                self._settle(page, Fate.REPAIRED)

    def _settle(self, page: BlockId, fate: Fate) -> None:
        self._fates[page] = fate
        self._open[page.relation].remove(page)
