"""Are all databases there? A directory that the server skipped, because it is a link, is in no manifest.

The server sends neither links nor what lies behind them, with a warning only (server: backup/basebackup.c, "skipping
special file"): the backup then agrees with its manifest and lacks a database, or the state of all transactions. So the
rows of pg_database are compared with the directories, and the directories with what each of them must hold.

  missing-database    a database that pg_database has, without a directory
  missing-directory   pg_xact and the like hold nothing (a problem; empty directories are a warning of `directories`)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from polarvault.model.finding import Finding, Severity, problem
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.databases import (
    DEFAULT_TABLESPACE,
    MAP_NAME,
    PG_DATABASE,
    TRANSACTIONS_PER_FILE,
    DatabaseRow,
    file_number_of,
    has_committed,
    live_databases,
    pg_xact_name,
)
from polarvault.verify.files.contents import Contents, Report
from polarvault.verify.files.trees import IgnoreRules

# Never without a file in any cluster.
_NEVER_EMPTY = ("global", "base", "pg_xact", "pg_multixact")
_LOST = "it was skipped when the backup was taken, as the server does with a directory that is a link: "
_CHECK_SOURCE = "look at the source: find DATADIR -type l; put the directory itself in the place of the link, and take "
_CHECK_SOURCE += "another backup (a tablespace is the way to have a database on another disk)"


@dataclass(frozen=True, slots=True)
class LostDatabase:
    """A database without a directory; place: the directory that should be there."""

    row: DatabaseRow
    place: str


def missing_parts(contents: Sequence[Contents], names: Iterable[str], ignored: IgnoreRules) -> Iterator[Finding]:
    """Yield a problem for each directory that holds nothing although every cluster has something there.

    names: all paths in the halves, those that the manifests list included: what is missing of them is said already.
    """
    tops = {name.partition("/")[0] for name in {name.rpartition("/")[0] or name for name in names}}
    for directory in _NEVER_EMPTY:
        is_said = any(found.is_refused(directory) or found.cut_tars for found in contents)
        if directory not in tops and not is_said and not ignored.covers(directory):
            subject = contents[-1].half.name(directory)
            yield problem(
                "missing-directory", subject, f'"{subject}" is not in the backup, or holds nothing',
                f"{_LOST}the restored server does not start, or has no data", _CHECK_SOURCE,
            )  # fmt: skip


def lost_databases(
    contents: Contents, names: Iterable[str], ignored: IgnoreRules, *, major: int | None, report: Report
) -> list[LostDatabase]:
    """Return the databases of pg_database that have no directory; names: as for `missing_parts`, of the data's half."""
    relation_map = contents.read_small(MAP_NAME, report)
    number = None if relation_map is None else file_number_of(relation_map, PG_DATABASE)
    content = None if number is None else contents.read_small(f"global/{number}", report)
    if content is None or major is None or contents.cut_tars:
        return []
    held: set[tuple[str, str]] = set()
    # By directory: there are far fewer of them than files.
    for directory in {name.rpartition("/")[0] for name in names}:
        parts = directory.split("/", 4)
        if parts[0] == "base" and len(parts) > 1:
            held.add(("base", parts[1]))
        elif parts[0] == "pg_tblspc" and len(parts) > 3:
            held.add((parts[1], parts[3]))
    known: dict[str, bytes | None] = {}

    def committed(transaction_id: int) -> bool | None:
        name = pg_xact_name(transaction_id)
        if name not in known:
            known[name] = contents.read_small(name, report)
        file = known[name]
        return None if file is None else has_committed(file, transaction_id % TRANSACTIONS_PER_FILE)

    lost = []
    for row in live_databases(content, major, committed):
        is_default = row.tablespace_oid == DEFAULT_TABLESPACE
        key = ("base" if is_default else str(row.tablespace_oid), str(row.oid))
        place = f"base/{row.oid}" if is_default else f"pg_tblspc/{row.tablespace_oid}/*/{row.oid}"
        ours = place.partition("/*")[0]
        if key not in held and not ignored.covers(ours) and not contents.is_refused(ours):
            lost.append(LostDatabase(row, place))
    return lost


def judge_lost(
    lost: Sequence[LostDatabase], changed: frozenset[int] | None, start_lsn: Lsn | None, contents: Contents
) -> Iterator[Finding]:
    """Yield a finding for each database that is lost; not for one that the WAL of the backup makes or drops.

    changed: the databases that it makes or drops; None: it was not read, or not all of it.
    """
    for one in lost:
        if changed is not None and one.row.oid in changed:
            continue
        # Without the WAL a row from the time of the backup may be that of a database that was just being made.
        is_sure = changed is not None or start_lsn is None or one.row.lsn < start_lsn
        subject = contents.half.name(one.place)
        meaning = _LOST + "the restored server knows the database, and nobody can connect to it"
        if changed is None:
            meaning += "; unless it was dropped or made while the backup was taken, which the WAL would tell"
        yield Finding(
            severity=Severity.PROBLEM if is_sure else Severity.WARNING,
            check="missing-database",
            subject=subject,
            message=f'database "{one.row.name}" is not in the backup: there is nothing in "{subject}"',
            meaning=meaning,
            advice=_CHECK_SOURCE,
        )
