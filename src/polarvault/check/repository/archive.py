"""Whether the server's WAL arrives in the repository: the same cluster, the last archived segment, a switched one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.model.units import format_bytes
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.repository.wal.source import covered_end
from polarvault.wal.names import is_segment_name

_POLL_S = 0.5
# One is being written, and one may be on its way.
_SEGMENTS_BEHIND = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFacts:
    """The server's WAL and that of the repository.

    known: the system identifiers that the repository has of the cluster. server_lsn: up to where the server has
    written; end: up to where the repository has WAL of that timeline, None without any. archived: the last segment that
    the server's archiver says it has archived, held: whether the repository has all of it; None where it need not.
    """

    system_identifier: int
    known: tuple[int, ...]
    timeline_id: int
    segment_bytes: int
    server_lsn: Lsn
    end: Lsn | None = None
    archived: str | None = None
    held: bool | None = None


def check_archive(cluster: str, place: str, repository: Repository, session: CheckSession) -> list[Finding]:
    """Return the findings about the WAL that is there; none where the server could not be asked who it is."""
    facts = read_archive(cluster, repository, session)
    return [] if facts is None else judge_archive(cluster, place, facts)


def read_archive(cluster: str, repository: Repository, session: CheckSession) -> ArchiveFacts | None:
    """Ask both."""
    identity = session.identity
    if identity is None:
        return None
    system_identifier = int(identity.system_identifier)
    known = tuple(repository.generations(cluster))
    end, archived, held = None, None, None
    if system_identifier in known:
        wal = repository.wal_of(cluster, system_identifier)
        stored = wal.ranges(identity.timeline_id)
        end = max((one.last for one in stored), default=None)
        archived = session.value("SELECT last_archived_wal FROM pg_catalog.pg_stat_archiver")
        archived = archived if archived is not None and is_segment_name(archived) else None
        if archived is not None:
            held = _is_held(wal, archived)
    return ArchiveFacts(
        system_identifier=system_identifier, known=known, timeline_id=identity.timeline_id,
        segment_bytes=identity.segment_size_bytes, server_lsn=identity.flush_lsn, end=end, archived=archived, held=held,
    )  # fmt: skip


def _is_held(wal: RepositoryWal, name: str) -> bool | None:
    """Tell whether a segment is there as a whole; None if it is older than everything that is there."""
    try:
        segment = WalSegment.parse(name, wal.segment_bytes)
    except ValueError:
        # From before pg_resetwal gave segments another size.
        return None
    ranges = wal.ranges(segment.timeline_id)
    if ranges and segment.end <= ranges[0].first:
        return None
    own = [one for one in ranges if one.segment == segment]
    return covered_end(segment, own) == segment.end


def judge_archive(cluster: str, place: str, facts: ArchiveFacts) -> list[Finding]:
    """Return the findings about cluster and WAL."""
    if facts.system_identifier not in facts.known:
        if not facts.known:
            return [ok("repository-cluster", place, f"it holds nothing of {cluster} yet")]
        known = ", ".join(map(str, facts.known))
        return [
            warning(
                "repository-cluster", place,
                f"it knows {cluster} by the system identifier {known}, and the server has {facts.system_identifier}",
                "after pg_upgrade or initdb that is as it should be; else this is another cluster's name",
                f"polarvault backup {cluster} begins anew; another cluster takes another name",
            )
        ]  # fmt: skip
    same = ok("repository-cluster", place, f"it knows {cluster} by the server's system identifier")
    return [same, _arrival(cluster, place, facts)]


def _arrival(cluster: str, place: str, facts: ArchiveFacts) -> Finding:
    push = f"polarvault wal stream {cluster}\nor: archive_command = 'polarvault wal push %p --cluster {cluster}'"
    if facts.held is False:
        return problem(
            "repository-wal", place,
            f"the server's archiver has archived {facts.archived}, and it is not here",
            "WAL is archived to another place: nothing behind a backup can be restored from here", push,
        )  # fmt: skip
    if facts.end is None:
        return warning(
            "repository-wal", place, f"there is no WAL of timeline {facts.timeline_id}",
            "a backup leads to its own end and no further", push,
        )  # fmt: skip
    behind = max(0, facts.server_lsn - facts.end)
    message = f"WAL of timeline {facts.timeline_id} is here up to {facts.end}, {format_bytes(behind)} behind the server"
    if behind > _SEGMENTS_BEHIND * facts.segment_bytes:
        return warning(
            "repository-wal", place, message, "so much would be lost with the server",
            f"{push}\nsee why it does not: SELECT * FROM pg_stat_archiver;",
        )  # fmt: skip
    return ok("repository-wal", place, message)


def check_switch(
    cluster: str,
    place: str,
    repository: Repository,
    session: CheckSession,
    *,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Finding]:
    """Have the server switch its segment, and wait until it is in the repository."""
    identity = session.identity
    if identity is None or session.sql is None:
        return [_no_switch(place, "the server cannot be asked", "mend the connections first")]
    if session.in_recovery:
        return [_no_switch(place, "a standby does not switch segments", "check the primary")]
    # Where nothing was written since the last switch, there is none.
    session.rows("SELECT pg_catalog.pg_logical_emit_message(false, 'polarvault', 'check')")
    name = session.value(
        "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())", what="a switch of WAL segments",
        grant="EXECUTE ON FUNCTION pg_catalog.pg_switch_wal()",
    )  # fmt: skip
    if name is None:
        return [_no_switch(place, "the role may not switch segments", "see the finding visibility for the GRANT")]
    began = clock()
    while True:
        took_s = clock() - began
        if _has_arrived(repository, cluster, int(identity.system_identifier), name):
            return [ok("wal-switch", place, f"{name} was switched, and has arrived within {took_s:.1f} s")]
        if took_s > limit_s:
            break
        # Nobody tells us: the archiver or a receiver brings it.
        sleep(_POLL_S)
    return [
        problem(
            "wal-switch", place, f"{name} was switched, and has not arrived within {limit_s:g} s",
            "what is written is not archived here, or late: so much is lost with the server",
            "SELECT * FROM pg_stat_archiver; the server's log, or a receiver's; or wait longer: --switch-timeout SECS",
        )
    ]  # fmt: skip


def _has_arrived(repository: Repository, cluster: str, system_identifier: int, name: str) -> bool:
    # The first segment that is pushed makes the generation.
    if system_identifier not in repository.generations(cluster):
        return False
    wal = repository.wal_of(cluster, system_identifier)
    segment = WalSegment.parse(name, wal.segment_bytes)
    return covered_end(segment, wal.segment_ranges(segment)) == segment.end


def _no_switch(place: str, why: str, advice: str) -> Finding:
    return warning("wal-switch", place, f"no segment was switched: {why}", "whether WAL arrives was not tried", advice)
