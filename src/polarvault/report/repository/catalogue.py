"""Backups of a repository as tables and JSON: all of a cluster, and everything about one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polarvault.report.json_document import iso
from polarvault.report.units import format_bytes, printable
from polarvault.repository.catalogue.listing import ListedBackup

if TYPE_CHECKING:
    from polarvault.repository.reading.backup_reader import BackupReader
    from polarvault.repository.reading.refs import UsedPack

_HEAD = ("LABEL", "STATE", "KIND", "STARTED (UTC)", "TOOK", "SIZE", "NEW", "STORED", "WAL", "RESTORABLE UNTIL", "NOTE")
_RIGHT = frozenset({4, 5, 6, 7})


def listed_text(cluster: str, backups: Sequence[ListedBackup]) -> Iterator[str]:
    """Yield the backups of a cluster as a table."""
    if not backups:
        yield f"{cluster}: no backups"
        return
    yield f"{cluster}: {len(backups)} backup{'s' * (len(backups) != 1)}"
    yield from _table([_HEAD, *map(_row, backups)])


def _row(one: ListedBackup) -> tuple[str, ...]:
    state = one.state + (", pinned" if one.standing.pinned else "")
    if one.record is None:
        return (one.label, state, "", "", "", "", "", "", "", "", one.problem)
    facts, counts = one.record.facts, one.record.counts
    return (
        one.label,
        state,
        "full" if one.record.parent is None else "incremental",
        f"{facts.started:%Y-%m-%d %H:%M:%S}",
        _seconds((facts.finished - facts.started).total_seconds()),
        format_bytes(counts["read_bytes"]),
        format_bytes(counts["new_bytes"]),
        format_bytes(counts["stored_bytes"]),
        f"{facts.start_lsn} - {facts.stop_lsn}",
        "its WAL is missing" if one.wal_end is None else f"{one.wal_end} ({facts.stop_timeline_id})",
        one.note,
    )


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [
            cell.rjust(width) if number in _RIGHT else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def listed_json(cluster: str, repository: str, backups: Iterable[ListedBackup]) -> dict[str, Any]:
    """Return the same as --json prints it; sizes are bytes."""
    return {"name": cluster, "repository": repository, "backups": [backup_json(one) for one in backups]}


def backup_json(one: ListedBackup) -> dict[str, Any]:
    """Return what is known of a backup without reading its index."""
    found: dict[str, Any] = {
        "label": one.label,
        "state": one.state,
        "pinned": one.standing.pinned,
        "note": one.note or None,
        "verified": None if one.verified is None else iso(one.verified),
        "problem": one.problem or None,
    }
    if one.record is None:
        return found
    facts, counts = one.record.facts, one.record.counts
    return found | {
        "parent": one.record.parent,
        "reason": facts.reason,
        "started": iso(facts.started),
        "finished": iso(facts.finished),
        "system_identifier": str(facts.system_identifier),
        "server_version": facts.server_version,
        "start_lsn": str(facts.start_lsn),
        "stop_lsn": str(facts.stop_lsn),
        "timeline": facts.stop_timeline_id,
        "wal_end": None if one.wal_end is None else str(one.wal_end),
        "read_bytes": counts["read_bytes"],
        "changed_bytes": counts["changed_bytes"],
        "new_bytes": counts["new_bytes"],
        "stored_bytes": counts["stored_bytes"],
        "damage": [
            {"path": one.path, "block": one.block, "part": one.part, "why": one.why} for one in facts.damage
        ],
    }  # fmt: skip


def shown_text(cluster: str, one: ListedBackup, reader: BackupReader, packs: Sequence[UsedPack]) -> Iterator[str]:
    """Yield everything about one backup."""
    assert one.record is not None
    facts, details = one.record.facts, one.record.facts.details
    yield f"{cluster}@{one.label}"
    own = [pack for pack in packs if pack.size_bytes is not None]
    others = Counter(pack.label for pack in packs if pack.size_bytes is None)
    rows = [
        ("state", one.state + (", pinned" if one.standing.pinned else "")),
        ("note", one.note),
        ("verified", "never" if one.verified is None else f"{one.verified:%Y-%m-%d %H:%M:%S} UTC"),
        ("kind", "full" if one.record.parent is None else f"incremental to {one.record.parent}"),
        ("why", facts.reason),
        ("started", f"{facts.started:%Y-%m-%d %H:%M:%S} UTC"),
        ("took", _seconds((facts.finished - facts.started).total_seconds())),
        ("server", f"{'PolarDB' if details.get('polardb') else 'PostgreSQL'} {details.get('version', '')}"),
        ("system", str(facts.system_identifier)),
        ("WAL", f"{facts.start_lsn} to {facts.stop_lsn} on timeline {facts.stop_timeline_id}"),
        ("until", "its WAL is missing" if one.wal_end is None else f"{one.wal_end} on the same timeline"),
        ("size", format_bytes(one.record.counts["read_bytes"])),
        ("changed", format_bytes(one.record.counts["changed_bytes"])),
        ("new", format_bytes(one.record.counts["new_bytes"])),
        ("stored", f"{format_bytes(one.record.counts['stored_bytes'])} in {len(own)} packs of its own"),
        ("uses", ", ".join(f"{count} of {label}" for label, count in sorted(others.items())) or "no other's packs"),
    ]
    for name, text in rows:
        if text:
            yield printable(f"  {name:9} {text}")
    for damage in facts.damage:
        yield printable(f"  damaged   {damage.path} block {damage.block}: {damage.why}")
    sizes = database_sizes(reader)
    names: Mapping[str, Any] = details.get("databases") or {}
    yield "  databases"
    for (space, oid), size in sorted(sizes.items(), key=lambda item: -item[1]):
        name = names.get(oid, "")
        where = f" in tablespace {space}" if space else ""
        yield printable(f"    {format_bytes(size):>10}  {oid or 'shared'} {name}{where}".rstrip())


def database_sizes(reader: BackupReader) -> Counter[tuple[int, str]]:
    """Return bytes by oid of tablespace (0: the default one) and oid of database ("": shared catalogs and all else)."""
    found: Counter[tuple[int, str]] = Counter()
    for row in reader.rows():
        part = reader.root.parts[row.part]
        words = row.name.split("/")
        if part.oid and len(words) == 3:
            found[part.oid, words[1]] += row.size
        elif words[0] == "base" and len(words) == 3:
            found[0, words[1]] += row.size
        else:
            found[0, ""] += row.size
    return found


def relation_sizes(reader: BackupReader) -> Counter[tuple[int, str, str]]:
    """Return bytes by oid of tablespace, path without fork and segment, over all of a relation's files."""
    found: Counter[tuple[int, str, str]] = Counter()
    for row in reader.rows():
        directory, _, name = row.name.rpartition("/")
        number = name.partition(".")[0].partition("_")[0]
        if row.size and number.isdecimal() and directory:
            found[reader.root.parts[row.part].oid, directory, number] += row.size
    return found


def shown_json(cluster: str, one: ListedBackup, reader: BackupReader, packs: Sequence[UsedPack]) -> dict[str, Any]:
    """Return the same as --json prints it, with the sizes of relations."""
    assert one.record is not None
    names: Mapping[str, Any] = one.record.facts.details.get("databases") or {}
    return {
        "cluster": cluster,
        "backup": backup_json(one),
        "details": dict(one.record.facts.details),
        "packs": [
            {"label": pack.label, "number": pack.number, "live_bytes": pack.live_bytes, "size_bytes": pack.size_bytes}
            for pack in packs
        ],
        "databases": [
            {"tablespace": space, "oid": oid, "name": names.get(oid), "bytes": size}
            for (space, oid), size in sorted(database_sizes(reader).items())
        ],
        "relations": [
            {"tablespace": space, "path": f"{directory}/{number}", "bytes": size}
            for (space, directory, number), size in sorted(relation_sizes(reader).items())
        ],
    }  # fmt: skip


def file_lines(reader: BackupReader, *, as_json: bool) -> Iterator[str]:
    """Yield a line for every file, directory and link of a backup; as JSON objects for DuckDB and jq."""
    for row in reader.rows():
        part = reader.root.parts[row.part]
        if as_json:
            yield json.dumps(
                {
                    "area": part.area.value, "tablespace": part.oid, "path": row.name, "kind": row.kind.name.lower(),
                    "bytes": row.size, "mode": f"{row.mode:o}", "mtime": row.mtime,
                    "link": row.link.decode("utf-8", "surrogateescape") or None,
                }
            )  # fmt: skip
            continue
        where = f"pg_tblspc/{part.oid}/" if part.oid else "polar_shared_data/" if part.area.value == "shared" else ""
        yield printable(f"{row.mode & 0o7777:04o} {row.size:>12} {where}{row.name}")
