"""What PolarDB's large WAL segments cost, and its limit on walsenders of ordinary roles."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.check.verdict import setting_change
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes

_DAY_S = 86_400
# What switching by the clock alone may cost an archive in a day. A judgement, not a limit of the server: PostgreSQL's
# 16 MB segments stay below it at one switch a minute (23 GB), segments of 1 GB at one an hour.
_SWITCH_COST_PER_DAY = 100 << 30
_ORDINARY_SEGMENT = 16 << 20
_WALSENDERS_OF_A_BACKUP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WalCostFacts:
    """Settings around segments; archive_timeout_s is 0 where the server does not switch by the clock."""

    segment_bytes: int
    archiving: bool
    archive_timeout_s: int
    wal_keep_bytes: int | None
    switch_in_backup: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalsenderLimitFacts:
    """limit: polar_max_non_super_wal_snd, -1 for none. others: walsenders of other connections of ordinary roles."""

    limit: int
    is_superuser: bool
    others: int


def check_wal_costs(session: CheckSession) -> list[Finding]:
    """Return the findings about segments."""
    segment = session.size_setting("wal_segment_size")
    if not segment:
        return []
    timeout = session.value(
        "SELECT extract(epoch FROM pg_catalog.current_setting('archive_timeout')::interval)::bigint"
    )
    switch = session.value("SELECT pg_catalog.current_setting('polar_enable_switch_wal_in_backup', true)")
    return judge_wal_costs(
        WalCostFacts(
            segment_bytes=segment,
            archiving=session.setting("archive_mode") in ("on", "always"),
            archive_timeout_s=int(timeout or 0),
            wal_keep_bytes=session.size_setting("wal_keep_size"),
            switch_in_backup=None if switch is None else switch == "on",
        )
    )


def judge_wal_costs(facts: WalCostFacts) -> list[Finding]:
    """Return the findings about segments."""
    segment = format_bytes(facts.segment_bytes)
    findings = []
    per_day = facts.segment_bytes * _DAY_S // facts.archive_timeout_s if facts.archive_timeout_s else 0
    if facts.archiving and per_day > _SWITCH_COST_PER_DAY:
        findings.append(
            warning(
                "polardb-archive-timeout",
                "archive_timeout",
                f"archive_timeout is {facts.archive_timeout_s} s with WAL segments of {segment}: "
                f"up to {format_bytes(per_day)} a day in the archive",
                meaning="every switch archives a whole segment, however little is in it; the rest is zeros, which "
                "compress to nothing",
                advice="compress in archive_command, or receive WAL as it is written, which needs no switches: "
                "polarvault receivewal -D WAL_DIRECTORY -S SLOT\nand then: "
                + setting_change("archive_timeout", "0", restart=False),
            )
        )
    if facts.wal_keep_bytes and 0 < facts.wal_keep_bytes < facts.segment_bytes:
        findings.append(
            warning(
                "polardb-wal-keep-size",
                "wal_keep_size",
                f"wal_keep_size is {format_bytes(facts.wal_keep_bytes)}, less than one WAL segment of {segment}: "
                "it keeps nothing",
                meaning="the server counts in whole segments and rounds down: a standby or receiver that pauses "
                "may find its WAL removed",
                advice="use a slot, or: "
                + setting_change("wal_keep_size", f"'{facts.segment_bytes >> 20}MB'", restart=False),
            )
        )
    return _segment(facts, segment) + findings


def _segment(facts: WalCostFacts, segment: str) -> list[Finding]:
    """Tell what backups cost in segments, where that is worth knowing."""
    check, subject = "polardb-segment-size", "wal_segment_size"
    if facts.switch_in_backup:
        message = f"polar_enable_switch_wal_in_backup is on: every backup ends a WAL segment of {segment} early"
        return [ok(check, subject, message)]
    if facts.segment_bytes <= _ORDINARY_SEGMENT:
        return []
    return [
        ok(
            check,
            subject,
            f"WAL segments of {segment}: a backup by polarvault ends none early, other tools' -X none and -X fetch do",
        )
    ]


def check_walsender_limit(session: CheckSession) -> list[Finding]:
    """Return the findings about polar_max_non_super_wal_snd; none where there is no limit."""
    limit = session.setting("polar_max_non_super_wal_snd")
    if limit is None or int(limit) < 0:
        return []
    ours = session.replication.pgconn.backend_pid if session.replication else 0
    row = session.row(
        "SELECT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user) AS super,"
        " (SELECT count(*) FROM pg_catalog.pg_stat_replication AS s JOIN pg_catalog.pg_roles AS r ON r.oid = s.usesysid"
        f" WHERE NOT r.rolsuper AND s.pid <> {ours}) AS others",
        what="walsenders of ordinary roles",
    )
    if row is None:
        return []
    return judge_walsender_limit(
        WalsenderLimitFacts(limit=int(limit), is_superuser=row["super"] == "t", others=int(row["others"] or 0))
    )


def judge_walsender_limit(facts: WalsenderLimitFacts) -> list[Finding]:
    """Return the finding about the limit: a backup that streams its WAL needs two walsenders."""
    name = "polar_max_non_super_wal_snd"
    check = "polardb-walsender-limit"
    if facts.is_superuser:
        return [ok(check, name, f"{name} is {facts.limit}, which does not concern superusers")]
    free = max(facts.limit - facts.others, 0)
    if free >= _WALSENDERS_OF_A_BACKUP:
        return [ok(check, name, f"{name} is {facts.limit}: {free} walsenders are free for ordinary roles")]
    return [
        problem(
            check,
            name,
            f"{name} is {facts.limit} and {facts.others} are in use: {free} free for ordinary roles, a backup needs "
            f"{_WALSENDERS_OF_A_BACKUP}",
            meaning="the server refuses the backup's connection (53300), whatever max_wal_senders allows",
            advice=setting_change(name, str(facts.others + _WALSENDERS_OF_A_BACKUP), restart=False)
            + "\nor take the backup with a superuser",
        )
    ]
