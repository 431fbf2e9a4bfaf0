"""Follow a table through the WAL: which files it gets, what each transaction does to its rows. Pure.

Which file a table has stands in its row of pg_class. That row is followed from update to update by its place (block and
item), from where it was when the catalogs were read; so every new file is known, whatever made it: TRUNCATE, VACUUM
FULL, CLUSTER, ALTER TABLE. What a transaction does counts when its commit comes, and that of its subtransactions with
it: the commit lists those that are part of it.

The row cannot be followed over a VACUUM FULL of pg_class itself; then `lost` says where.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from polarvault.flashback.changes import (
    DELETE,
    FILE_AT,
    FILE_BYTES,
    HOT_UPDATE,
    INSERT,
    NAME_AT,
    NAME_BYTES,
    OPERATION_MASK,
    RELMAP_UPDATE,
    RMGR_HEAP,
    RMGR_RELMAP,
    RMGR_STANDBY,
    RMGR_STORAGE,
    RUNNING_XACTS,
    STORAGE_CREATE,
    TRUNCATE,
    UPDATE,
    RowMove,
    What,
    deleted_row,
    inserted_row,
    moved_row,
    needs_whole,
    rows_of,
    truncated_tables,
    updated_bytes,
)
from polarvault.flashback.names import TableName
from polarvault.model.relation import BlockId, RelationFile
from polarvault.wal.blocks import KeptRecord, block_references, made_fork, main_data
from polarvault.wal.marks import (
    HAS_DATABASE,
    HAS_FLAGS,
    HAS_SUBTRANSACTIONS,
    TRANSACTION_KINDS,
    TRANSACTION_MASK,
    MarkKind,
    MarkRecord,
    is_prepared,
)
from polarvault.wal.records import RMGR_TRANSACTION, Record

Whole = Callable[[KeptRecord], Record | None]
# Records that are of interest although they name none of the relations: resource manager and info.
CODES = frozenset(
    rmgr << 8 | info
    for info in range(256)
    for rmgr, operation in (
        (RMGR_TRANSACTION, None),
        (RMGR_RELMAP, None),
        (RMGR_HEAP, TRUNCATE),
        (RMGR_STORAGE, STORAGE_CREATE),
        (RMGR_STANDBY, RUNNING_XACTS),
    )
    if operation is None or info & OPERATION_MASK == operation
)
_HALF = 1 << 31
# Temporary tables have rows in pg_class as well, millions of them on some days.
_MOST_BORN = 100_000


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table or partition as the catalogs have it. place: of its row in pg_class, None if that is not to be followed.

    file: None for one without rows of its own, as a partitioned table.
    """

    oid: int
    name: str
    file: RelationFile | None
    place: tuple[int, int] | None


@dataclass(slots=True)
class Work:
    """What a transaction has done to the tables. events: in words, with the table's name."""

    rows: dict[What, int] = field(default_factory=dict)
    tables: set[int] = field(default_factory=set)
    truncated: set[str] = field(default_factory=set)
    rewritten: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)

    @property
    def is_event(self) -> bool:
        """Tell whether a table was emptied or dropped by it."""
        return bool(self.truncated or self.dropped)

    @property
    def is_nothing(self) -> bool:
        """Tell whether nothing is left of it."""
        return not any(self.rows.values()) and not (self.truncated or self.rewritten or self.dropped)

    def add(self, other: Work) -> None:
        """Add a subtransaction's."""
        for what, count in other.rows.items():
            self.rows[what] = self.rows.get(what, 0) + count
        for name in ("tables", "truncated", "rewritten", "dropped"):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True, slots=True)
class ChangingTransaction:
    """A transaction that has committed. is_whole: false for one that may have begun before reading did."""

    xid: int
    time: datetime | None
    lsn: int
    work: Work
    is_whole: bool


@dataclass(slots=True)
class _Version:
    """A version of a table's row in pg_class; xid 0: its transaction has committed. content: see `changes`."""

    place: tuple[int, int] | None
    content: bytes
    xid: int = 0


class Follower:
    """Feed records in the order of the WAL; get the transactions that changed the tables."""

    def __init__(
        self, tables: Sequence[TableFile], pg_class: RelationFile, pg_inherits: RelationFile, database_tablespace: int
    ) -> None:
        self._tables = list(tables)
        self._numbers = {table.oid: number for number, table in enumerate(tables)}
        self._pg_inherits = pg_inherits
        # Relations that were made since: any of them may become a part of one of the tables.
        self._born: dict[int, TableFile] = {}
        self._born_at: dict[tuple[int, int], int] = {}
        self._database = pg_class.database_oid
        self._default_tablespace = database_tablespace
        self._pg_class = pg_class
        self._files = {table.file: number for number, table in enumerate(tables) if table.file is not None}
        self._versions = [[_first_version(table, database_tablespace)] for table in tables]
        # Files that were made and are not known to be a table's yet: whether rows went into them, and by whom.
        self._fresh: dict[RelationFile, tuple[bool, int]] = {}
        self._open: dict[int, Work] = {}
        self._first_xid: int | None = None
        self.lost: tuple[int, str] | None = None
        """Where the files could not be followed any more, and why."""
        self.unknown_parts: list[tuple[int, int]] = []
        """Relations that became a part of one of the tables, by OID, and where: their files are not known."""
        self.transactions: list[ChangingTransaction] = []

    @property
    def needles(self) -> Iterable[RelationFile]:
        """The relations of whose records all are wanted."""
        return [*self._files, *self._fresh, self._pg_class, self._pg_inherits]

    @property
    def files(self) -> Mapping[RelationFile, int]:
        """The files whose rows count, with the number of the table."""
        return self._files

    def add(self, counts: Mapping[tuple[int, int, What], int]) -> None:
        """Add rows by table, transaction and what was done to them, of transactions that have not ended yet."""
        for (table, xid, what), count in counts.items():
            work = self._open.setdefault(xid, Work())
            work.rows[what] = work.rows.get(what, 0) + count
            work.tables.add(table)

    @property
    def open_xids(self) -> set[int]:
        """Transactions that have done something and not ended: nothing is known of them."""
        return {xid for xid, work in self._open.items() if not work.is_nothing}

    def wants(self, xid: int, rmgr: int, info: int) -> bool:
        """Tell whether a record of `CODES` is wanted."""
        if rmgr == RMGR_TRANSACTION:
            return xid in self._open or bool(info & HAS_FLAGS) or is_prepared(rmgr, info)
        return rmgr != RMGR_STANDBY or self._first_xid is None

    def take(self, record: KeptRecord, whole: Whole, *, follows: bool) -> None:
        """Take the next record. whole: gives it with all of its body; follows: pg_class has come to what was read."""
        operation = record.info & OPERATION_MASK
        if record.rmgr == RMGR_TRANSACTION:
            self._take_end(record)
        elif record.rmgr == RMGR_STANDBY and operation == RUNNING_XACTS:
            self._take_running(record)
        elif record.rmgr == RMGR_STORAGE and (made := made_fork(record)) is not None:
            # Whoever rewrites a table has locked it, and has a number by then.
            if made[1] == 0 and made[0].database_oid == self._database and record.xid:
                self._fresh.setdefault(made[0], (False, record.xid))
                self._work(record)
        elif record.rmgr == RMGR_RELMAP and record.info & 0xF0 == RELMAP_UPDATE:
            self._take_map(record, follows=follows)
        elif record.rmgr == RMGR_HEAP and operation == TRUNCATE:
            self._take_truncate(record)
        else:
            self._take_rows(record, whole, follows=follows)

    def _work(self, record: KeptRecord) -> Work:
        return self._open.setdefault(record.xid, Work())

    def _take_rows(self, record: KeptRecord, whole: Whole, *, follows: bool) -> None:
        references = block_references(record)
        if not references or references[0].page.fork != 0:
            return
        relation = references[0].page.relation
        number = self._files.get(relation)
        if number is not None:
            try:
                done = rows_of(record, whole(record) if needs_whole(record) else None)
            except ValueError:
                done = None
            if done is not None:
                work = self._work(record)
                work.rows[done[0]] = work.rows.get(done[0], 0) + done[1]
                work.tables.add(number)
        elif relation in self._fresh:
            self._fresh[relation] = True, self._fresh[relation][1]
        elif follows and record.rmgr == RMGR_HEAP and self.lost is None:
            operation = record.info & OPERATION_MASK
            is_class = relation == self._pg_class and operation in (INSERT, UPDATE, HOT_UPDATE, DELETE)
            is_inherits = relation == self._pg_inherits and operation == INSERT
            full = whole(record) if is_class or is_inherits else None
            if full is not None:
                (self._take_catalog if is_class else self._take_part)(record, full)

    def _take_part(self, record: KeptRecord, full: Record) -> None:
        """Take a row of pg_inherits: a relation becomes a part of another."""
        try:
            part, parent = struct.unpack("<II", inserted_row(full, 8)[1])
        except ValueError as problem:
            self.lost = record.lsn, f"a row of pg_inherits cannot be read there: {problem}"
            return
        if parent not in self._numbers or part in self._numbers:
            return
        made = self._born.pop(part, None)
        if made is None:
            self.unknown_parts.append((part, record.lsn))
            return
        if made.place is not None:
            del self._born_at[made.place]
        number = self._numbers[part] = len(self._tables)
        self._tables.append(made)
        self._versions.append([_first_version(made, self._default_tablespace)])
        if made.file is not None:
            self._files[made.file] = number

    def _take_new(self, full: Record) -> None:
        """Take a new row of pg_class: of a table that is followed from here on, or of one that may become a part."""
        place, row = inserted_row(full, FILE_AT + FILE_BYTES)
        (oid,) = struct.unpack_from("<I", row)
        made = TableFile(oid, _name_in(row), self._file_in(row[FILE_AT:]), place)
        number = self._numbers.get(oid)
        if number is None:
            self._born[oid] = made
            self._born_at[place] = oid
            if len(self._born) > _MOST_BORN:
                forgotten = self._born.pop(next(iter(self._born)))
                if forgotten.place is not None:
                    self._born_at.pop(forgotten.place, None)
        elif all(one.place is None for one in self._versions[number]):
            self._versions[number] = [_first_version(made, self._default_tablespace)]
            if made.file is not None:
                self._files[made.file] = number

    def _move_new(self, full: Record, page: BlockId, move: RowMove) -> None:
        oid = self._born_at.pop(move.old, None)
        if oid is None:
            return
        old = self._born[oid]
        content = updated_bytes(full, move, page, _first_version(old, self._default_tablespace).content)
        self._born[oid] = replace(old, place=move.new, file=self._file_in(content))
        self._born_at[move.new] = oid

    def _file_in(self, content: bytes) -> RelationFile | None:
        file, tablespace = struct.unpack_from("<II", content)
        return RelationFile(tablespace or self._default_tablespace, self._database, file) if file else None

    def _take_catalog(self, record: KeptRecord, full: Record) -> None:
        operation = record.info & OPERATION_MASK
        try:
            if operation == INSERT:
                self._take_new(full)
                return
            if operation == DELETE:
                page, item = deleted_row(full)
                number = self._at((page.block, item))
                if number is not None:
                    self._versions[number].append(_Version(None, b"", record.xid))
                    self._work(record).dropped.add(self._tables[number].name)
                return
            page, move = moved_row(full)
            number = self._at(move.old)
            if number is None:
                self._move_new(full, page, move)
                return
            before = next(one for one in reversed(self._versions[number]) if one.place == move.old)
            content = updated_bytes(full, move, page, before.content)
        except ValueError as problem:
            self.lost = record.lsn, f"a row of pg_class cannot be read there: {problem}"
            return
        self._versions[number].append(_Version(move.new, content, record.xid))
        work = self._work(record)
        if content[:8] != before.content[:8] and self._tables[number].file is not None:
            self._take_new_file(number, content, work)

    def _take_new_file(self, number: int, content: bytes, work: Work) -> None:
        _, _, pages, rows = struct.unpack("<IIif", content)
        relation = self._file_in(content)
        if relation is None:
            return
        has_rows, _ = self._fresh.pop(relation, (False, 0))
        self._files[relation] = number
        name = self._tables[number].name
        # TRUNCATE gives it an empty file; whatever rewrites a table has filled the new one before.
        (work.truncated if not has_rows and pages == 0 and not rows > 0 else work.rewritten).add(name)

    def is_followed(self, number: int) -> bool:
        """Tell whether all the files of a table are known since it was made, or since the catalogs were read."""
        return any(one.place is not None for one in self._versions[number]) or self._tables[number].place is not None

    def _at(self, place: tuple[int, int]) -> int | None:
        for number, versions in enumerate(self._versions):
            if any(one.place == place for one in versions):
                return number
        return None

    def _take_truncate(self, record: KeptRecord) -> None:
        database, oids = truncated_tables(main_data(record))
        if database != self._database:
            return
        for table in self._tables:
            if table.oid in oids:
                self._work(record).truncated.add(table.name)

    def _take_map(self, record: KeptRecord, *, follows: bool) -> None:
        main = main_data(record)
        if len(main) >= 4 and struct.unpack_from("<I", main)[0] == self._database and follows and self.lost is None:
            self.lost = record.lsn, "pg_class or another catalog was rewritten there (VACUUM FULL)"

    def _take_running(self, record: KeptRecord) -> None:
        main = main_data(record)
        if self._first_xid is None and len(main) >= 16:
            # Behind two counts and a flag; whoever is older has begun before.
            (self._first_xid,) = struct.unpack_from("<I", main, 12)

    def _take_end(self, record: KeptRecord) -> None:
        if record.info & TRANSACTION_MASK not in TRANSACTION_KINDS:
            return
        mark = MarkRecord(record.lsn, 0, record.xid, record.rmgr, record.info, record.magic, record.body).decode()
        own = [mark.xid, *_subtransactions(record)]
        works = [work for xid in own if (work := self._open.pop(xid, None)) is not None]
        is_commit = mark.kind is MarkKind.COMMIT
        self._settle_versions(set(own), is_commit=is_commit)
        for file in [file for file, (_, xid) in self._fresh.items() if xid in own]:
            del self._fresh[file]
        if not is_commit or not works:
            return
        total = Work()
        for work in works:
            total.add(work)
        if not total.is_nothing:
            self.transactions.append(
                ChangingTransaction(mark.xid, mark.time, record.lsn, total, self._is_whole(mark.xid))
            )

    def _is_whole(self, xid: int) -> bool:
        return self._first_xid is not None and (xid - self._first_xid) % (1 << 32) < _HALF

    def _settle_versions(self, xids: set[int], *, is_commit: bool) -> None:
        """Keep the last version that has committed, and those of transactions that have not ended."""
        for versions in self._versions:
            for version in versions:
                if version.xid in xids and is_commit:
                    version.xid = 0
            versions[:] = [one for one in versions if one.xid not in xids]
            settled = [place for place, one in enumerate(versions) if one.xid == 0]
            if len(settled) > 1:
                del versions[: settled[-1]]


def _name_in(row: bytes) -> str:
    name = row[NAME_AT : NAME_AT + NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
    return str(TableName(None, name))


def _first_version(table: TableFile, default_tablespace: int) -> _Version:
    content = bytes(FILE_BYTES)
    if table.file is not None:
        tablespace = 0 if table.file.tablespace_oid == default_tablespace else table.file.tablespace_oid
        content = struct.pack("<IIif", table.file.number, tablespace, 0, 0.0)
    return _Version(table.place, content)


def _subtransactions(record: KeptRecord) -> list[int]:
    """Return the subtransactions that end with their transaction."""
    main = main_data(record)
    try:
        flags = struct.unpack_from("<I", main, 8)[0] if record.info & HAS_FLAGS else 0
        if not flags & HAS_SUBTRANSACTIONS:
            return []
        at = 12 + (8 if flags & HAS_DATABASE else 0)
        (count,) = struct.unpack_from("<I", main, at)
        return list(struct.unpack_from(f"<{min(count, (len(main) - at - 4) // 4)}I", main, at + 4))
    except struct.error:
        return []
