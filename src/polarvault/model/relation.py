"""Which relation a file or a WAL record belongs to, as the storage sees it."""

from __future__ import annotations

from typing import NamedTuple

MAIN_FORK, FREE_SPACE_FORK, VISIBILITY_FORK, INIT_FORK = range(4)


class RelationFile(NamedTuple):
    """A relation's storage (server: RelFileLocator); the database is 0 for relations that all databases share."""

    tablespace_oid: int
    database_oid: int
    number: int


class BlockId(NamedTuple):
    """A page: of which relation, of which of its forks, and its number there."""

    relation: RelationFile
    fork: int
    block: int
