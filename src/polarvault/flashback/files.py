"""Ask the catalogs of a clone which files a table has, and where its row in pg_class is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.flashback.following import TableFile
from polarvault.flashback.model import FoundTable
from polarvault.flashback.session import Connection
from polarvault.model.relation import RelationFile

_DATABASE = """
    SELECT oid::bigint, dattablespace::bigint, pg_relation_filenode('pg_catalog.pg_class')::bigint,
           pg_relation_filenode('pg_catalog.pg_inherits')::bigint
      FROM pg_database WHERE datname = current_database()
"""
_FILES = """
    SELECT oid::bigint, pg_relation_filenode(oid)::bigint, reltablespace::bigint, ctid::text FROM pg_class
     WHERE oid = ANY (%s::bigint[]::oid[])
"""
_PLACE = re.compile(r"\((\d+),(\d+)\)")


@dataclass(frozen=True, slots=True)
class Catalogs:
    """What the catalogs say about tables at one moment. default_tablespace: the database's own."""

    tables: tuple[TableFile, ...]
    pg_class: RelationFile
    pg_inherits: RelationFile
    default_tablespace: int


def read_files(connection: Connection, tables: Sequence[FoundTable], *, follows: bool) -> Catalogs:
    """Return the files of tables and of their partitions; raise psycopg.Error.

    follows: the WAL behind this moment is read, so that the places of their rows in pg_class are good for something.
    """
    row = connection.execute(_DATABASE).fetchone()
    assert row is not None
    database, default_tablespace, pg_class, pg_inherits = row
    names = {member.oid: str(member.name) for table in tables for member in table.members}
    found = []
    for oid, file, tablespace, place in connection.execute(_FILES, (list(names),)).fetchall():
        match = _PLACE.fullmatch(place)
        relation = None if file is None else RelationFile(tablespace or default_tablespace, database, file)
        is_placed = follows and match is not None
        found.append(
            TableFile(oid, names[oid], relation, (int(match[1]), int(match[2])) if match and is_placed else None)
        )
    # The table itself first.
    found.sort(key=lambda table: list(names).index(table.oid))
    return Catalogs(
        tuple(found),
        RelationFile(default_tablespace, database, pg_class),
        RelationFile(default_tablespace, database, pg_inherits),
        default_tablespace,
    )
