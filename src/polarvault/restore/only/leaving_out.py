"""Decide which databases are left out, and see that a server can do without them. Start reading here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from polarvault.backupset.model import Area
from polarvault.errors import BackupUnusable, UsageError
from polarvault.instance.model import Role
from polarvault.model.names import shown_name
from polarvault.pgfiles.databases import (
    MAP_NAME,
    PG_DATABASE,
    TRANSACTIONS_PER_FILE,
    DatabaseRow,
    file_number_of,
    has_committed,
    live_databases,
    pg_xact_name,
)
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.only.closing import reject_lines
from polarvault.restore.only.model import LeftOut
from polarvault.restore.only.wal import check_replay
from polarvault.restore.plan.outside import HBA_FILE

ALWAYS = ("postgres", "template0", "template1")


def check_only(request: RestoreRequest) -> None:
    """Raise UsageError for what does not go with --only."""
    if not request.only:
        return
    wrong = {
        "--delta": request.delta, "--as": request.role is not Role.PRIMARY, "--merge": request.merge,
        "a chain of backups": bool(request.older),
    }  # fmt: skip
    for word, is_given in wrong.items():
        if is_given:
            raise UsageError(f"--only does not go with {word}", hint="leave one of them out")


def leave_out(plan: RestorePlan) -> RestorePlan:
    """Return the plan without what was not asked for; raise where a server could not do without it."""
    source, request = plan.source, plan.request
    if not isinstance(source, BackupInRepository):
        raise UsageError(
            "--only restores out of a repository alone", hint=f"polarvault import CLUSTER {plan.source.path}"
        )
    if plan.is_polardb and source.reader.record.facts.details.get("full_page_writes") is not True:
        raise BackupUnusable(
            "--only needs whole pages in the WAL, and this PolarDB wrote it with full_page_writes off; nothing was "
            "written",
            hint="restore all databases",
        )
    databases = {row.name: row.oid for row in _databases(source, plan.major_version)}
    unknown = [name for name in request.only if name not in databases]
    if unknown:
        there = ", ".join(map(shown_name, sorted(databases)))
        raise UsageError(
            f"the backup has no database {', '.join(map(shown_name, unknown))}; nothing was written",
            hint=f"it has: {there}" if databases else "its pg_database cannot be read: restore all databases",
        )
    left = {oid: name for name, oid in databases.items() if name not in (*request.only, *ALWAYS)}
    out = _counted(source, LeftOut(left))
    plan = replace(plan, left_out=out)
    if not left:
        return plan
    check_replay(plan, frozenset(left))
    files, warnings = dict(plan.files), list(plan.warnings)
    path = os.path.join(plan.layout.local, HBA_FILE)
    content = files.get(path, plan.inventory.file(HBA_FILE))
    if plan.debian is None and content is not None:
        files[path] = reject_lines(left.values()) + content
    else:
        warnings.append(
            "pg_hba.conf is not written by this restore: let nobody connect to the databases that are left out"
        )
    space = tuple(replace(need, needed=max(0, need.needed - out.bytes)) for need in plan.space)
    return replace(plan, files=files, warnings=tuple(warnings), space=space)


def _counted(source: BackupInRepository, out: LeftOut) -> LeftOut:
    count = size = 0
    for row in source.reader.rows():
        if row.kind is FileKind.FILE and out.covers(source.entry(row)):
            count, size = count + 1, size + row.size
    return replace(out, files=count, bytes=size)


def _databases(source: BackupInRepository, major: int) -> Iterable[DatabaseRow]:
    """Return the databases by the files of the backup: pg_database, its place, and which transactions have ended."""
    rows: dict[str, FileRow] = {}
    for row in source.reader.rows():
        name = source.entry(row).name
        is_catalog = name.startswith(("global/", "pg_xact/"))
        if row.kind is FileKind.FILE and source.entry(row).area is not Area.TABLESPACE and is_catalog:
            # Of PolarDB's two halves the shared one comes later, and is the one that counts.
            rows[name] = row

    def content(name: str) -> bytes:
        row = rows.get(name)
        return b"" if row is None else b"".join(map(bytes, source.reader.stream(row)))

    number = file_number_of(content(MAP_NAME), PG_DATABASE)
    if number is None:
        return []

    def committed(transaction_id: int) -> bool | None:
        return has_committed(content(pg_xact_name(transaction_id)), transaction_id % TRANSACTIONS_PER_FILE)

    return list(live_databases(content(f"global/{number}"), major, committed))
