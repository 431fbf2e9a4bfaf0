"""The use case: a clone of the source just before a mistake, a dump of the tables in it, and the clone is gone.

Everything that would be refused at the end is refused at the beginning, before a clone is made. In the clone what was
prepared on the source is rolled back, because it may hold the very lock that the dump waits for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import psycopg

from polarvault.clones.create import Created
from polarvault.clones.model import CloneRecord
from polarvault.errors import UsageError
from polarvault.flashback.copying import give_name
from polarvault.flashback.dumping import dump, programs_of
from polarvault.flashback.errors import DumpFailed
from polarvault.flashback.kept_clone import Watching, clone_for, why_it_stopped
from polarvault.flashback.model import BroughtTable, TableRequest, TableResult
from polarvault.flashback.names import TableName
from polarvault.flashback.output import check_output, new_file
from polarvault.flashback.session import connect, roll_back_prepared
from polarvault.flashback.stages import Stages
from polarvault.flashback.tables import bound_to, count_rows, find_tables
from polarvault.flashback.target import Target
from polarvault.instance.host import Host

_SPOOL = "tables.dump"


def bring_back(
    request: TableRequest, target: Target | None, host: Host, stages: Stages, *, draw: int,
    watching: Watching, words: str,
) -> TableResult:  # fmt: skip
    """Bring tables back as they were, into a file or into a database; words: which moment, watching: see `clone_for`.

    The clone is gone on return, and after a failure or an interruption; the file is durable, or not there.
    """
    check(request)
    if request.output is not None:
        check_output(request.output)
    if target is not None:
        # A name without a schema has one when the clone has been asked for it, and is looked for then.
        target.check([name for name in map(request.name_in_target, request.tables) if name.schema is not None])
    with clone_for(request.clone, host, stages, draw=draw, watching=watching, words=words) as created:
        try:
            brought = _Bringing(request, target, created, stages)
            brought.run()
        except (psycopg.Error, DumpFailed) as problem:
            stopped = why_it_stopped(created.place)
            if stopped is not None:
                raise stopped from problem
            if isinstance(problem, psycopg.Error):
                raise DumpFailed(f"the clone's server refused: {str(problem).strip()}") from problem
            raise
    return brought.result(stages)


def check(request: TableRequest) -> None:
    """Raise UsageError for what cannot be meant."""
    if len(set(request.tables)) != len(request.tables):
        raise UsageError("a table is named twice", hint="give each --table once")
    if request.as_name is not None and len(request.tables) > 1:
        raise UsageError(
            "--as is another name for one table, and several are asked for",
            hint="bring each back by a command of its own",
        )


class _Bringing:
    """What is done while the clone is there."""

    def __init__(self, request: TableRequest, target: Target | None, created: Created, stages: Stages) -> None:
        self._request = request
        self._target = target
        self._place = created.place
        self._record: CloneRecord = created.record
        self._stages = stages
        self._warnings = list(created.warnings)
        self._notes: list[str] = []
        self._size_bytes = 0

    def run(self) -> None:
        record, request = self._record, self._request
        # What is missing is told before anything else is done.
        self._pg_dump, self._pg_restore = programs_of(record)
        with self._stages.of("look", "looking for the tables"):
            rolled_back = roll_back_prepared(record)
            if rolled_back:
                self._notes.append(f"{rolled_back} transactions that were prepared at that moment are not in it")
            self._tables = find_tables(record, request.tables, request.database)
            self._database = self._tables[0].database
            with connect(record, self._database) as connection:
                self._tell_bonds(connection)
                self._names = [[member.name for member in table.members] for table in self._tables]
                if self._target is not None:
                    self._make_way(connection, self._target)
        if self._target is None:
            assert request.output is not None
            with new_file(request.output) as descriptor:
                self._dump(descriptor)
            return
        spool = os.path.join(self._place.directory, _SPOOL)
        with new_file(spool) as descriptor:
            self._dump(descriptor)
        with self._stages.of("restore", f"restoring into {self._target.words}"):
            self._notes += self._target.restore(self._pg_restore, spool, self._tables)

    def _tell_bonds(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        bound = bound_to(connection, self._tables)
        self._notes += [f"a foreign key of another table, not in it: {one};" for one in bound.foreign_keys]
        if bound.views:
            self._notes.append(f"views that read it, not in it: {', '.join(bound.views)}")
        self._notes += [f"not in it: {one};" for one in bound.statistics]
        for table in self._tables:
            if table.is_unlogged:
                self._warnings.append(f"{table.name} was unlogged: neither WAL nor a backup has its rows")

    def _make_way(self, connection: psycopg.Connection[tuple[object, ...]], target: Target) -> None:
        """Give the table its other name, and look whether names are free that only the clone knows."""
        wanted = self._request.as_name
        if wanted is not None:
            [table] = self._tables
            full = self._request.name_in_target(table.name)
            target.check([full])
            assert full.schema is not None
            self._names[0], left_off = give_name(connection, table, full, target.taken_in(full.schema))
            self._notes += [f"the copy is without {one}" for one in left_off]
        else:
            target.check([name for names in self._names for name in names])

    def _dump(self, descriptor: int) -> None:
        names = [name for names in self._names for name in names]
        self._rows: list[int | None] = [None] * len(self._tables)
        counting = threading.Thread(target=self._count, name="count", daemon=True)
        with self._stages.of("dump", f"dumping {', '.join(str(names[0]) for names in self._names)}"):
            counting.start()
            dump(
                self._pg_dump, self._record, self._database, names, descriptor, data_only=self._request.data_only,
                encoding=self._encoding(names), is_kept=self._target is None,
            )  # fmt: skip
            counting.join()
        self._size_bytes = os.fstat(descriptor).st_size

    def _encoding(self, names: Sequence[TableName]) -> str | None:
        """Return the encoding of names that are not ASCII: pg_dump takes them for the database's own."""
        if all(str(name).isascii() for name in names):
            return None
        with connect(self._record, self._database) as connection:
            row = connection.execute("SELECT getdatabaseencoding()").fetchone()
        # These two are not converted from.
        return None if row is not None and row[0] in ("UTF8", "SQL_ASCII", "MULE_INTERNAL") else "UTF8"

    def _count(self) -> None:
        """Count beside pg_dump, which reads the same pages; a number that cannot be had is left out."""
        with suppress(psycopg.Error), connect(self._record, self._database) as connection:
            for number, names in enumerate(self._names):
                self._rows[number] = count_rows(connection, names[0])

    def result(self, stages: Stages) -> TableResult:
        request = self._request
        return TableResult(
            source=self._record.source,
            moment=self._record.moment,
            lsn=self._record.lsn,
            database=self._database,
            tables=tuple(
                BroughtTable(table.name, names[0] if request.as_name else None, len(names) - 1, rows)
                for table, names, rows in zip(self._tables, self._names, self._rows, strict=True)
            ),
            output=request.output,
            size_bytes=self._size_bytes,
            into=None if self._target is None else self._target.words,
            stages=stages.done,
            notes=tuple(self._notes),
            warnings=tuple(self._warnings),
        )
