"""Whether WAL leaves the server, by its archiver or by a receiver: without it a backup leads only to its own end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.session import MONITOR, CheckSession
from polarvault.check.verdict import setting_change
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes

# Commands that report success and keep nothing.
_THROWS_AWAY = frozenset({"true", "/bin/true", "/usr/bin/true", ":", "cd .", "exit 0"})
_MANY_WAITING = 10
# What the programs call themselves that keep WAL on disk (application_name).
_RECEIVERS = ("pg_receivewal", "polarvault", "barman_receive_wal")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivingFacts:
    """What pg_stat_archiver and the settings say; times as text in UTC, None for never or unknown.

    failing: the last failure is newer than the last success. ready: segments that wait for the archiver.
    receivers: programs that receive WAL through a slot of their own.
    """

    mode: str | None
    command: str | None
    library: str | None
    in_recovery: bool
    archived_count: int
    last_archived_wal: str | None
    last_archived_time: str | None
    failed_count: int
    last_failed_wal: str | None
    last_failed_time: str | None
    failing: bool
    ready: int | None
    segment_bytes: int
    receivers: Sequence[str]


def check_archiving(session: CheckSession) -> list[Finding]:
    """Return the findings about archiving."""
    return judge_archiving(read_archiving(session))


def read_archiving(session: CheckSession) -> ArchivingFacts:
    """Ask for settings, statistics and what waits."""
    mode = session.setting("archive_mode")
    row = session.row(
        "SELECT *, last_failed_time > coalesce(last_archived_time, '-infinity') AS failing"
        " FROM pg_catalog.pg_stat_archiver",
        what="archiver statistics",
    )
    row = row or {}
    has_library = versions.of_server(session.version_num).has_archive_library
    ready = None
    if mode in ("on", "always"):
        ready = session.value(
            "SELECT count(*) FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
            what="WAL that waits for the archiver",
            grant=MONITOR,
        )
    return ArchivingFacts(
        mode=mode,
        command=session.setting("archive_command"),
        library=session.setting("archive_library") if has_library else None,
        in_recovery=bool(session.in_recovery),
        archived_count=int(row.get("archived_count") or 0),
        last_archived_wal=row.get("last_archived_wal"),
        last_archived_time=row.get("last_archived_time"),
        failed_count=int(row.get("failed_count") or 0),
        last_failed_wal=row.get("last_failed_wal"),
        last_failed_time=row.get("last_failed_time"),
        failing=row.get("failing") == "t",
        ready=int(ready) if ready else None,
        segment_bytes=session.size_setting("wal_segment_size") or 0,
        receivers=_read_receivers(session),
    )


def _read_receivers(session: CheckSession) -> list[str]:
    names = ", ".join(f"'{name}'" for name in _RECEIVERS)
    rows = session.rows(
        "SELECT r.application_name || ' (slot ' || s.slot_name || ')' AS name FROM pg_catalog.pg_stat_replication AS r"
        " JOIN pg_catalog.pg_replication_slots AS s ON s.active_pid = r.pid"
        f" WHERE NOT s.temporary AND s.slot_type = 'physical' AND r.application_name IN ({names}) ORDER BY 1"
    )
    return [row["name"] or "" for row in rows or []]


def judge_archiving(facts: ArchivingFacts) -> list[Finding]:
    """Return the findings about archiving."""
    if facts.mode is None:
        return []
    received = f"WAL is received by {', '.join(facts.receivers)}" if facts.receivers else None
    if facts.mode == "off":
        return [_not_archived(received)]
    if facts.in_recovery and facts.mode == "on":
        return [ok("archiving", "archive_mode", "archive_mode is on: this standby archives once it is promoted")]
    if facts.command == "" and not facts.library:
        return [_no_command(facts)]
    return [_state(facts), *_keeps_nothing(facts), *_backlog(facts)]


def _not_archived(received: str | None) -> Finding:
    if received:
        return ok("archiving", "archive_mode", f"archive_mode is off; {received}")
    return warning(
        "archiving",
        "archive_mode",
        "archive_mode is off, and nobody receives WAL through a slot",
        meaning="a backup leads back to its own end and no further: what came after the last backup is lost with the "
        "server, and no moment in between can be reached",
        advice="into a repository: polarvault wal stream CLUSTER --slot polarvault --create-slot\n"
        "into a directory: polarvault receivewal --create-slot -S polarvault\n"
        "polarvault receivewal -S polarvault -D WAL_DIRECTORY\n"
        "or let the server archive: archive_mode = on (read at its start) and "
        "archive_command = 'polarvault wal push %p'",
    )


def _no_command(facts: ArchivingFacts) -> Finding:
    library = " and archive_library" if facts.library is not None else ""
    return problem(
        "archiving",
        "archive_command",
        f"archive_mode is {facts.mode}, but archive_command{library} is empty{_waiting(facts)}",
        meaning="WAL piles up in pg_wal until the disk is full, and none of it is archived",
        advice=setting_change("archive_command", "'test ! -f /archive/%f && cp %p /archive/%f'", restart=False)
        + "\nor, without an archiver: "
        + setting_change("archive_mode", "off", restart=True),
    )


def _state(facts: ArchivingFacts) -> Finding:
    success = "nothing has been archived yet"
    if facts.last_archived_wal:
        success = f"last success {facts.last_archived_wal} at {_moment(facts.last_archived_time)}"
    if not facts.failing:
        failures = ""
        if facts.failed_count:
            failures = f"; {facts.failed_count} failures, the last at {_moment(facts.last_failed_time)}"
        return ok("archiving", "archive_mode", f"archive_mode is {facts.mode}; {success}{failures}")
    command = f"\nas the server's user: {facts.command}" if facts.command else ""
    return problem(
        "archiving",
        "archive_command" if facts.command else "archive_library",
        f"archiving fails: last failure {facts.last_failed_wal} at {_moment(facts.last_failed_time)} "
        f"({facts.failed_count} in all), {success}{_waiting(facts)}",
        meaning="WAL since then is on the server alone, where no recovery finds it, and fills the disk in the end",
        advice="read the error in the server's log, and try the command by hand (%p: a path below the data directory, "
        f"%f: its file name):{command}",
    )


def _keeps_nothing(facts: ArchivingFacts) -> list[Finding]:
    if facts.library or (facts.command or "").strip() not in _THROWS_AWAY or facts.receivers:
        return []
    return [
        warning(
            "archive-command",
            "archive_command",
            f"archive_command is '{facts.command}', which keeps nothing",
            meaning="the server reports success and removes the WAL: a backup leads back to its own end and no further",
            advice=setting_change("archive_command", "'test ! -f /archive/%f && cp %p /archive/%f'", restart=False),
        )
    ]


def _backlog(facts: ArchivingFacts) -> list[Finding]:
    if facts.failing or facts.ready is None or facts.ready < _MANY_WAITING:
        return []
    return [
        warning(
            "archive-backlog",
            "archive_command",
            f"the archiver is behind{_waiting(facts)}",
            meaning="what waits is not in the archive yet, and fills pg_wal",
            advice="look whether the command is slow or hangs: SELECT * FROM pg_stat_archiver;",
        )
    ]


def _waiting(facts: ArchivingFacts) -> str:
    if not facts.ready:
        return ""
    return f"; {facts.ready} files ({format_bytes(facts.ready * facts.segment_bytes)} of WAL at most) wait"


def _moment(text: str | None) -> str:
    return f"{text[:19]} UTC" if text else "an unknown time"
