"""A backup in a repository, as text or JSON: what was read, what of it was new, what that cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polarvault.backup.take import BackupResult, TakenBackups
from polarvault.report.json_document import iso
from polarvault.report.units import format_bytes, printable


def taken_text(taken: TakenBackups) -> Iterator[str]:
    """Yield the table of the backup in each repository, and where it is not."""
    for result in taken.results:
        yield from result_text(result)
    for address, problem in taken.failed.items():
        good = taken.results[0]
        yield printable(f"{good.cluster}@{good.recorded.outcome.label} is NOT in {address}: {problem.message}")
        yield printable(
            f"  catch up, if it is a copy of the same repository: polarvault repo sync {good.address} {address}"
        )


def taken_json(taken: TakenBackups) -> dict[str, Any]:
    """Return the same as --json prints it: the first backup's fields, and each repository's own."""
    return {
        **result_json(taken.results[0]),
        "repositories": [
            {
                "repository": result.address,
                "parent": result.recorded.parent.label,
                "stored_bytes": result.recorded.outcome.counts.stored_bytes,
                "failure": None,
            }
            for result in taken.results
        ]
        + [
            {"repository": address, "parent": None, "stored_bytes": 0, "failure": problem.message}
            for address, problem in taken.failed.items()
        ],
    }


def result_text(result: BackupResult) -> Iterator[str]:
    """Yield the table that ends a backup, and what is wrong with it."""
    recorded, counts = result.recorded, result.recorded.outcome.counts
    facts, parent = recorded.facts, recorded.parent
    seconds = (facts.finished - facts.started).total_seconds()
    yield f"{result.cluster}@{recorded.outcome.label} in {result.address}"
    rows = [
        ("kind", "full" if parent.label is None else f"incremental to {parent.label}"),
        ("why", parent.reason),
        ("read", f"{format_bytes(counts.read_bytes)} in {recorded.outcome.files} files and directories"),
        ("changed", format_bytes(counts.changed_bytes)),
        ("new", _new(counts.new_bytes, counts.adopted_bytes)),
        ("stored", f"{format_bytes(counts.stored_bytes)}{_ratio(counts.read_bytes, counts.stored_bytes)}"),
        ("requests", f"{result.requests.puts} writes, {result.requests.gets} reads, {result.requests.lists} lists"),
        ("took", f"{seconds:.1f} s"),
        ("WAL", f"{facts.start_lsn} to {facts.stop_lsn} on timeline {facts.stop_timeline_id}"),
    ]
    for name, text in rows:
        yield printable(f"  {name:9} {text}")
    if result.is_damaged:
        yield (
            f"  damaged   {result.bad_pages} pages of the server are damaged; they are in the backup as they are, "
            f"marked: polarvault show {result.cluster}@{recorded.outcome.label}"
        )


def _new(new_bytes: int, adopted_bytes: int) -> str:
    adopted = f", {format_bytes(adopted_bytes)} of it stored before by a backup that was cut off"
    return f"{format_bytes(new_bytes)}{adopted if adopted_bytes else ''}"


def _ratio(read_bytes: int, stored_bytes: int) -> str:
    return f", 1/{read_bytes / stored_bytes:.1f} of what was read" if read_bytes and stored_bytes else ""


def result_json(result: BackupResult) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    recorded, counts = result.recorded, result.recorded.outcome.counts
    facts = recorded.facts
    return {
        "cluster": result.cluster,
        "label": recorded.outcome.label,
        "repository": result.address,
        "parent": recorded.parent.label,
        "reason": recorded.parent.reason,
        "server": result.received.facts.identity.product,
        "system_identifier": str(facts.system_identifier),
        "started": iso(facts.started),
        "finished": iso(facts.finished),
        "start_lsn": str(facts.start_lsn),
        "stop_lsn": str(facts.stop_lsn),
        "timeline": facts.stop_timeline_id,
        "files": recorded.outcome.files,
        "received_bytes": result.received.received_bytes,
        "left_out_files": result.stored.left_out_files,
        "left_out_bytes": result.stored.left_out_bytes,
        "read_bytes": counts.read_bytes,
        "changed_bytes": counts.changed_bytes,
        "new_bytes": counts.new_bytes,
        "adopted_bytes": counts.adopted_bytes,
        "stored_bytes": counts.stored_bytes,
        "packs": recorded.outcome.packs,
        "requests": {"puts": result.requests.puts, "gets": result.requests.gets, "lists": result.requests.lists},
        "checked_pages": facts.details["checked_pages"],
        "bad_pages": result.bad_pages,
        "damage": [
            {"path": one.path, "block": one.block, "why": one.why, "part": one.part} for one in facts.damage
        ],
    }  # fmt: skip
