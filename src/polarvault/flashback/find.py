"""The use case: which transactions changed a table, and how many rows, read from the WAL.

Which files a table has, only the catalogs tell: a clone at the beginning is asked, and its answer is followed through
the WAL (`following`). A table that did not exist then is asked for at the end, where nothing can be followed: what was
done to files that it had before is not seen, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import psycopg

from polarvault.clones.model import CloneRequest
from polarvault.flashback.errors import DumpFailed, TableNotFound
from polarvault.flashback.files import Catalogs, read_files
from polarvault.flashback.following import ChangingTransaction, Follower
from polarvault.flashback.kept_clone import Watching, clone_for, why_it_stopped
from polarvault.flashback.model import Stage
from polarvault.flashback.names import TableName
from polarvault.flashback.reading import ReadWal, read_changes, wal_behind
from polarvault.flashback.session import connect
from polarvault.flashback.stages import Stages
from polarvault.flashback.tables import find_tables
from polarvault.instance.host import Host
from polarvault.model.lsn import Lsn
from polarvault.recovery.target import RecoveryTarget, TargetKind, format_time


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRequest:
    """What the user asked for; the clone goes to `since`."""

    clone: CloneRequest
    table: TableName
    database: str | None
    since: RecoveryTarget
    until: RecoveryTarget | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindResult:
    """What was found. notes: what could not be known, in words."""

    source: str
    database: str
    table: TableName
    partitions: int
    transactions: tuple[ChangingTransaction, ...]
    read: ReadWal
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a clone's catalogs say: lsn, where it stands, None: at the end."""

    source: str
    database: str
    table: TableName
    partitions: int
    catalogs: Catalogs
    lsn: Lsn | None


def find_changes(
    request: FindRequest, host: Host, stages: Stages, *, draw: int, watching: Watching,
    progress: Callable[[int, int], None],
) -> FindResult:  # fmt: skip
    """Return the transactions that committed since a time and changed the table; the clones are gone.

    Raises TableNotFound for a table that is in the catalogs neither at the beginning nor at the end.
    """
    notes: list[str] = []
    try:
        asked = _ask(request, request.since, host, stages, draw, watching, follows=True)
    except TableNotFound:
        end = request.until or RecoveryTarget(TargetKind.LATEST)
        stages.say("it did not exist then; the end is asked")
        asked = _ask(request, end, host, stages, draw, watching, follows=False)
    with stages.of("read", "reading WAL"):
        backup = request.clone.shelf.find(
            asked.source, shared_from=request.clone.shared_from, force=request.clone.force
        )
        wal = wal_behind(request.clone, backup)
        follower = Follower(
            asked.catalogs.tables,
            asked.catalogs.pg_class,
            asked.catalogs.pg_inherits,
            asked.catalogs.default_tablespace,
        )
        until = request.until.time if request.until is not None else None
        read = read_changes(wal, follower, from_lsn=asked.lsn, until=until, progress=progress)
    if asked.lsn is None and not follower.is_followed(0):
        notes.append(
            f"{asked.table} did not exist at {_time(request.since)}, and the WAL that was read does not hold how it was"
            " made: only what was done to the files that it had at the end is known"
        )
    notes += _not_known(follower, read, request)
    return FindResult(
        source=asked.source, database=asked.database, table=asked.table, partitions=asked.partitions,
        transactions=tuple(one for one in follower.transactions if _is_asked_for(one, request)), read=read,
        notes=tuple(notes), stages=stages.done,
    )  # fmt: skip


def _ask(
    request: FindRequest, target: RecoveryTarget, host: Host, stages: Stages, draw: int, watching: Watching, *,
    follows: bool,
) -> _Asked:  # fmt: skip
    clone = replace(request.clone, recovery=replace(request.clone.recovery, target=target))
    with clone_for(clone, host, stages, draw=draw, watching=watching, words=f"at {target}") as created:
        record = created.record
        try:
            with stages.of("look", "looking for the table"):
                [table] = find_tables(record, [request.table], request.database)
                with connect(record, table.database) as connection:
                    catalogs = read_files(connection, [table], follows=follows)
        except psycopg.Error as problem:
            raise why_it_stopped(created.place) or DumpFailed(
                f"the clone's server refused: {str(problem).strip()}"
            ) from problem
    lsn = Lsn.parse(record.lsn) if follows and record.lsn is not None else None
    return _Asked(record.source, table.database, table.name, len(table.members) - 1, catalogs, lsn)


def _is_asked_for(one: ChangingTransaction, request: FindRequest) -> bool:
    since, until = request.since.time, request.until.time if request.until is not None else None
    assert since is not None
    return one.time is not None and one.time >= since and (until is None or one.time <= until)


def _not_known(follower: Follower, read: ReadWal, request: FindRequest) -> list[str]:
    notes = []
    if follower.lost is not None:
        notes.append(
            f"{follower.lost[1]}, at LSN {Lsn(follower.lost[0])}: files that the table got behind that are not known"
        )
    notes += [
        f"the table with OID {oid} became a part of it at LSN {Lsn(lsn)}: what was done to it is not counted"
        for oid, lsn in follower.unknown_parts
    ]
    is_over = request.until is not None and read.last_time is not None and request.until.time is not None
    if not (is_over and read.last_time > request.until.time):  # type: ignore[operator, union-attr]
        last = f", with the last transaction at {format_time(read.last_time)}" if read.last_time else ""
        notes.append(f"the WAL that is there ends at LSN {read.end}{last}; what came later is not known")
    if follower.open_xids:
        shown = ", ".join(map(str, sorted(follower.open_xids)[:10]))
        notes.append(f"transactions that had changed it and not ended there: {shown}")
    return notes


def _time(target: RecoveryTarget) -> str:
    assert target.time is not None
    return format_time(target.time)
