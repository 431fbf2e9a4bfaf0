"""How large a backup will be, and whether --target can take it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass

from polarvault.check.session import MONITOR, CheckSession
from polarvault.errors import StorageFailed
from polarvault.instance.host import Host, existing_ancestor
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes
from polarvault.server.connection import is_on_this_machine
from polarvault.storage.occupants import Occupancy, enclosing_occupant, not_empty

# A streamed backup keeps at least the segment it begins in and the one it ends in.
_WAL_SEGMENTS = 2
_COMFORTABLE_SHARE = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeFacts:
    """Bytes of a plain, uncompressed backup; hidden: databases whose size the role may not know."""

    database_bytes: int
    wal_bytes: int
    databases: int
    hidden: int

    @property
    def total_bytes(self) -> int:
        """The estimate."""
        return self.database_bytes + self.wal_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """A directory on this machine; obstacle: why it cannot be used, None when it can."""

    path: str
    ancestor: str
    obstacle: str | None
    advice: str | None
    available_bytes: int | None


def check_target(session: CheckSession) -> list[Finding]:
    """Return the findings about size and target."""
    size = read_size(session)
    findings = judge_size(size) if size else []
    if session.target is None:
        return findings
    return [*findings, *judge_target(read_target(session.target, _data_directory_here(session)), size)]


def _data_directory_here(session: CheckSession) -> str | None:
    """Return the server's data directory if the server runs on this machine."""
    connection = session.sql or session.replication
    if connection is None or not is_on_this_machine(connection):
        return None
    return session.setting("data_directory")


def read_size(session: CheckSession) -> SizeFacts | None:
    """Ask for the size of every database; None where SQL is refused."""
    rows = session.rows(
        "SELECT CASE WHEN pg_catalog.has_database_privilege(oid, 'CONNECT')"
        " OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') THEN pg_catalog.pg_database_size(oid) END AS size"
        " FROM pg_catalog.pg_database",
        what="sizes of databases",
    )
    if rows is None:
        return None
    known = [int(row["size"]) for row in rows if row["size"] is not None]
    hidden = len(rows) - len(known)
    if hidden:
        session.miss("sizes of some databases", "no right to connect to them", grant=MONITOR)
    segment = session.size_setting("wal_segment_size") or 0
    return SizeFacts(database_bytes=sum(known), wal_bytes=_WAL_SEGMENTS * segment, databases=len(known), hidden=hidden)


def read_target(path: str, data_directory: str | None = None) -> TargetFacts:
    """Look at the directory, or at the one it would be made in; data_directory: of a server on this machine."""
    ancestor = existing_ancestor(path)
    obstacle, advice = _obstacle(path, ancestor)
    around = enclosing_occupant(path)
    if around is not None and around.occupancy is not Occupancy.BACKUP:
        obstacle = f'"{path}" lies inside of "{around.path}", which is {around.occupancy.value}'
        advice = "choose a place elsewhere, best on another disk or machine"
    if data_directory and f"{os.path.realpath(path)}/".startswith(f"{os.path.realpath(data_directory)}/"):
        obstacle = f'"{path}" lies inside the data directory of the server, {data_directory}'
        advice = "choose a place elsewhere, best on another disk or machine"
    try:
        _, available = Host().available_bytes(path)
    except StorageFailed as failed:
        return TargetFacts(
            path=path, ancestor=ancestor, obstacle=failed.message, advice=failed.hint, available_bytes=None
        )
    return TargetFacts(path=path, ancestor=ancestor, obstacle=obstacle, advice=advice, available_bytes=available)


def _obstacle(path: str, ancestor: str) -> tuple[str | None, str | None]:
    elsewhere = "give a directory that does not exist yet, or an empty one"
    # Between the path and the directory that exists there may be a file.
    first_missing = path if path == ancestor else os.path.join(ancestor, os.path.relpath(path, ancestor).split("/")[0])
    if path != ancestor and os.path.lexists(first_missing):
        return f'"{first_missing}" is not a directory', elsewhere
    try:
        occupant = Host().occupant(path)
    except StorageFailed as failed:
        return failed.message, failed.hint or elsewhere
    if occupant is not None:
        refusal = not_empty(occupant)
        return refusal.message, refusal.hint or elsewhere
    if os.statvfs(ancestor).f_flag & os.ST_RDONLY:
        return f'the file system of "{ancestor}" is mounted read-only', "choose another target"
    if not os.access(ancestor, os.W_OK | os.X_OK):
        return f'directory "{ancestor}" cannot be written to', f"check owner and mode: ls -ld {shlex.quote(ancestor)}"
    return None, None


def judge_size(size: SizeFacts) -> list[Finding]:
    """Return the estimate as a finding of its own; it is of use without a target too."""
    unseen = f"; {size.hidden} more may not be seen" if size.hidden else ""
    message = (
        f"a plain backup takes about {format_bytes(size.total_bytes)}: {size.databases} databases with "
        f"{format_bytes(size.database_bytes)}{unseen}, and {format_bytes(size.wal_bytes)} of WAL or more"
    )
    return [ok("backup-size", "backup", message)]


def judge_target(target: TargetFacts, size: SizeFacts | None) -> list[Finding]:
    """Return the findings about the directory; both when it is unusable and too small."""
    findings = []
    if target.obstacle is not None:
        findings.append(
            problem(
                "target", target.path, target.obstacle,
                meaning="a backup must not go there: it would be refused, or become part of what it backs up",
                advice=target.advice or "choose another target",
            )
        )  # fmt: skip
    else:
        state = "is empty" if target.path == target.ancestor else f"will be made in {target.ancestor}"
        findings.append(ok("target", target.path, f"{target.path} {state}"))
    if target.available_bytes is None:
        if target.obstacle is None:
            unknown = f"the file system of {target.ancestor} does not tell how much room it has"
            findings.append(ok("target-space", target.path, unknown))
        return findings
    return [*findings, _space(target, target.available_bytes, size)]


def _space(target: TargetFacts, available: int, size: SizeFacts | None) -> Finding:
    there = f"{format_bytes(available)} available in {target.ancestor}"
    if size is None:
        return ok("target-space", target.path, f"{there}; the size of the backup could not be asked")
    need = f"{there}, about {format_bytes(size.total_bytes)} needed"
    advice = "free space, choose another --target, or compress: polarvault basebackup -Ft -Z zstd ..."
    if available < size.total_bytes:
        return problem(
            "target-space", target.path, need,
            meaning="a plain backup fails when the file system is full, and removes what it wrote", advice=advice,
        )  # fmt: skip
    if available < size.total_bytes * _COMFORTABLE_SHARE:
        return warning(
            "target-space", target.path, need,
            meaning="WAL that is written while the backup runs comes on top, and may not fit", advice=advice,
        )  # fmt: skip
    return ok("target-space", target.path, need)
