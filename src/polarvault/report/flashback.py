"""One table back, and who changed it: as text and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.flashback.changes import What
from polarvault.flashback.find import FindResult
from polarvault.flashback.following import ChangingTransaction
from polarvault.flashback.model import Stage, TableResult
from polarvault.flashback.names import TableName
from polarvault.model.lsn import Lsn
from polarvault.model.units import format_bytes
from polarvault.recovery.target import format_time
from polarvault.report.json_document import iso

_MOST_LINES, _MOST_NAMES = 40, 5
_PAST = {What.DELETE: "deleted", What.UPDATE: "updated", What.INSERT: "inserted"}


def table_json(result: TableResult) -> dict[str, Any]:
    """Return what came out."""
    return {
        "source": result.source,
        "moment": result.moment,
        "lsn": result.lsn,
        "database": result.database,
        "tables": [
            {"name": str(one.name), "as_name": one.as_name and str(one.as_name), "rows": one.rows,
             "partitions": one.partitions}
            for one in result.tables
        ],
        "output": result.output,
        "size_bytes": result.size_bytes,
        "into": result.into,
        "stages": stages_json(result.stages),
    }  # fmt: skip


def stages_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages with their seconds."""
    return [{"stage": one.name, "seconds": round(one.seconds, 3)} for one in stages]


def table_text(result: TableResult) -> Iterator[str]:
    """Yield what came out, and what to type next."""
    for one in result.tables:
        rows = "rows not counted" if one.rows is None else f"{one.rows} rows"
        parts = f" in {one.partitions} partitions" if one.partitions else ""
        name = f"{one.name}, as {one.as_name}" if one.as_name else str(one.name)
        yield f"{name}: {rows}{parts}, of database {result.database} at {result.moment}"
    for note in result.notes:
        yield f"  {note}"
    if result.output is not None:
        yield f"  {result.output}, {format_bytes(result.size_bytes)}"
        yield f"  see what is in it: pg_restore -l {shlex.quote(result.output)}"
    else:
        yield f"  restored into {result.into}"
    yield f"  {stages_text(result.stages)}"


def find_json(result: FindResult) -> dict[str, Any]:
    """Return what was found."""
    return {
        "source": result.source,
        "database": result.database,
        "table": str(result.table),
        "partitions": result.partitions,
        "transactions": [
            {
                "xid": one.xid,
                "time": iso(one.time),
                "lsn": str(Lsn(one.lsn)),
                "deletes": one.work.rows.get(What.DELETE, 0),
                "updates": one.work.rows.get(What.UPDATE, 0),
                "inserts": one.work.rows.get(What.INSERT, 0),
                "truncated": sorted(one.work.truncated),
                "rewritten": sorted(one.work.rewritten),
                "dropped": sorted(one.work.dropped),
                "is_whole": one.is_whole,
            }
            for one in result.transactions
        ],
        "read_from": str(result.read.start),
        "read_to": str(result.read.end),
        "last_time": iso(result.read.last_time),
        "stages": stages_json(result.stages),
    }


def find_text(result: FindResult, command: str) -> Iterator[str]:
    """Yield the transactions, what is not known, and what to type next; command: up to the transaction."""
    parts = f" and its {result.partitions} partitions" if result.partitions else ""
    found = result.transactions
    yield f"{len(found)} transactions changed {result.table}{parts} of database {result.database}"
    shown = set(sorted(range(len(found)), key=lambda number: _weight(found[number]), reverse=True)[:_MOST_LINES])
    for number, one in enumerate(found):
        if number in shown:
            when = "time unknown" if one.time is None else format_time(one.time)
            yield f"  {when}  xid {one.xid}  LSN {Lsn(one.lsn)}  {_work_words(one)}"
    if len(found) > len(shown):
        yield f"  and {len(found) - len(shown)} that did less; all of them: --json"
    for note in result.notes:
        yield f"  note: {note}"
    worst = max(found, key=_weight, default=None)
    if worst is not None and (
        worst.work.is_event or any(worst.work.rows.get(one) for one in (What.DELETE, What.UPDATE))
    ):
        yield f"as it was before the largest of them: {command} --before-xid {worst.xid} {_places(result.table)}"
    yield stages_text(result.stages)


def _places(table: TableName) -> str:
    return f"-o {table.name if table.name.isidentifier() else 'table'}.dump"


def _weight(one: ChangingTransaction) -> tuple[bool, bool, int, int]:
    """Return what tells which transaction has destroyed more."""
    work, rows = one.work, one.work.rows
    gone = rows.get(What.DELETE, 0) + rows.get(What.UPDATE, 0)
    return bool(work.dropped), bool(work.truncated), gone, rows.get(What.INSERT, 0)


def _work_words(one: ChangingTransaction) -> str:
    work, rows = one.work, one.work.rows
    words = [f"{past} {rows[what]}" for what, past in _PAST.items() if rows.get(what)]
    for names, past in ((work.truncated, "truncated"), (work.rewritten, "rewrote"), (work.dropped, "dropped")):
        shown = sorted(names)[:_MOST_NAMES]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        words += [f"{past} {', '.join(shown)}{more}"] if names else []
    begun = "" if one.is_whole else " (may have begun before the WAL that was read: perhaps more)"
    return ", ".join(words) + begun


def stages_text(stages: Sequence[Stage]) -> str:
    """Return how long it took, in one line."""
    parts = ", ".join(f"{one.name} {one.seconds:.1f} s" for one in stages)
    return f"took {sum(one.seconds for one in stages):.1f} s: {parts}"
