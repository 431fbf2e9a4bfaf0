"""What a backup needs of the WAL machinery: wal_level, WAL senders, a slot, and WAL that is kept long enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.check.verdict import setting_change
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes

_NEEDED_SENDERS = 2
_ROOM_FOR_A_SLOT_SEGMENTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WalFacts:
    """Settings and use; sizes are bytes, None is unknown. Our own WAL sender is not among those in use.

    senders: the application name of each WAL sender.
    """

    wal_level: str | None
    max_wal_senders: int | None
    senders: Sequence[str] | None
    max_replication_slots: int | None
    slots_in_use: int | None
    wal_keep_bytes: int | None
    max_slot_wal_keep_bytes: int | None
    segment_bytes: int | None
    summarize_wal: str | None
    spread_checkpoint_s: float | None
    effective_wal_level: str | None = None


def check_wal(session: CheckSession) -> list[Finding]:
    """Return the findings about WAL."""
    return judge_wal(read_wal(session))


def read_wal(session: CheckSession) -> WalFacts:
    """Ask for settings and use."""
    server = versions.of_server(session.version_num)
    own = session.replication.pgconn.backend_pid if session.replication else 0
    senders = session.rows(
        # Who a WAL sender serves is not shown to every role, but that there is one is.
        "SELECT coalesce(r.application_name, '') AS name FROM pg_catalog.pg_stat_get_wal_senders() AS s"
        f" LEFT JOIN pg_catalog.pg_stat_replication AS r ON r.pid = s.pid WHERE s.pid IS NOT NULL AND s.pid <> {own}",
        what="WAL senders in use",
    )
    slots = session.value("SELECT count(*) FROM pg_catalog.pg_replication_slots")
    timing = session.value(
        "SELECT pg_catalog.current_setting('checkpoint_completion_target')::float8"
        " * extract(epoch FROM pg_catalog.current_setting('checkpoint_timeout')::interval)"
    )
    return WalFacts(
        wal_level=session.setting("wal_level"),
        effective_wal_level=session.setting("effective_wal_level") if server.raises_wal_level else None,
        max_wal_senders=_number(session.setting("max_wal_senders")),
        senders=None if senders is None else [row["name"] or "(not visible)" for row in senders],
        max_replication_slots=_number(session.setting("max_replication_slots")),
        slots_in_use=_number(slots),
        wal_keep_bytes=session.size_setting("wal_keep_size"),
        max_slot_wal_keep_bytes=session.size_setting("max_slot_wal_keep_size"),
        segment_bytes=session.size_setting("wal_segment_size"),
        summarize_wal=session.setting("summarize_wal") if server.makes_incremental_backups else None,
        spread_checkpoint_s=float(timing) if timing else None,
    )


def judge_wal(facts: WalFacts) -> list[Finding]:
    """Return the findings about WAL."""
    return [
        *_level(facts),
        *_senders(facts),
        *_slot_room(facts),
        *_kept(facts),
        *_slot_limit(facts),
        *_segments(facts),
        *_checkpoint(facts),
        *_summaries(facts),
    ]


def _level(facts: WalFacts) -> list[Finding]:
    if facts.wal_level is None:
        return []
    if facts.wal_level == "minimal":
        return [
            problem(
                "wal-level",
                "wal_level",
                "wal_level is minimal",
                meaning="the server refuses base backups, and its WAL could not be replayed on one",
                advice=setting_change("wal_level", "replica", restart=True)
                + "; max_wal_senders must be above 0 as well (default 10)",
            )
        ]
    said = f"wal_level is {facts.wal_level}"
    if facts.effective_wal_level not in (None, facts.wal_level):
        said += f"; while there are logical slots it is in effect {facts.effective_wal_level}"
    return [ok("wal-level", "wal_level", said)]


def _senders(facts: WalFacts) -> list[Finding]:
    if facts.max_wal_senders is None or facts.senders is None:
        return []
    free = facts.max_wal_senders - len(facts.senders)
    use = f"{len(facts.senders)} of max_wal_senders = {facts.max_wal_senders} WAL senders are in use"
    if facts.senders:
        named = (f"{name} {count}x" if count > 1 else name for name, count in Counter(facts.senders).items())
        use += f" ({', '.join(named)})"
    if free >= _NEEDED_SENDERS:
        return [ok("wal-senders", "max_wal_senders", use)]
    more = setting_change("max_wal_senders", str(max(10, facts.max_wal_senders + 5)), restart=True)
    if free <= 0:
        meaning = "no backup can begin, and nobody else can stream WAL"
    else:
        meaning = "a backup with -X stream needs two, one of them for the WAL; with -X fetch one is enough"
    return [
        problem(
            "wal-senders",
            "max_wal_senders",
            f"{use}: {max(free, 0)} left, and a backup needs two",
            meaning=meaning,
            advice=f"see who uses them: SELECT pid, usename, application_name, state FROM pg_stat_replication;\n{more}",
        )
    ]


def _slot_room(facts: WalFacts) -> list[Finding]:
    if facts.max_replication_slots is None or facts.slots_in_use is None:
        return []
    use = f"{facts.slots_in_use} of max_replication_slots = {facts.max_replication_slots} slots exist"
    if facts.slots_in_use < facts.max_replication_slots:
        return [ok("slots-free", "max_replication_slots", use)]
    more = setting_change("max_replication_slots", str(max(10, facts.max_replication_slots + 5)), restart=True)
    return [
        problem(
            "slots-free",
            "max_replication_slots",
            f"{use}: none is free",
            meaning="a backup with -X stream makes a temporary slot and fails without one; --no-slot does without, and "
            "the server may then remove WAL before it has been streamed",
            advice=f"drop a slot that nobody needs (SELECT * FROM pg_replication_slots), or:\n{more}",
        )
    ]


def _kept(facts: WalFacts) -> list[Finding]:
    if facts.wal_keep_bytes is None:
        return []
    if facts.wal_keep_bytes == 0:
        message = "wal_keep_size is 0: -X stream and slots do not need it; -X fetch relies on WAL that is still there"
    else:
        message = f"wal_keep_size is {format_bytes(facts.wal_keep_bytes)}"
    return [ok("wal-keep-size", "wal_keep_size", message)]


def _slot_limit(facts: WalFacts) -> list[Finding]:
    limit = facts.max_slot_wal_keep_bytes
    if limit is None:
        return []
    if limit < 0:
        return [ok("slot-wal-limit", "max_slot_wal_keep_size", "max_slot_wal_keep_size is -1: slots are never dropped")]
    message = f"slots may hold back {format_bytes(limit)} of WAL (max_slot_wal_keep_size)"
    if limit >= _ROOM_FOR_A_SLOT_SEGMENTS * (facts.segment_bytes or 0):
        return [ok("slot-wal-limit", "max_slot_wal_keep_size", message)]
    return [
        warning(
            "slot-wal-limit",
            "max_slot_wal_keep_size",
            f"{message}, less than {_ROOM_FOR_A_SLOT_SEGMENTS} segments of {format_bytes(facts.segment_bytes or 0)}",
            meaning="a backup or receiver that falls behind for a moment loses its slot, and with it its WAL",
            advice=setting_change("max_slot_wal_keep_size", "'10GB'", restart=False),
        )
    ]


def _segments(facts: WalFacts) -> list[Finding]:
    if facts.segment_bytes is None:
        return []
    return [ok("wal-segment-size", "wal_segment_size", f"WAL segments have {format_bytes(facts.segment_bytes)}")]


def _checkpoint(facts: WalFacts) -> list[Finding]:
    if facts.spread_checkpoint_s is None:
        return []
    message = f"a backup begins with a checkpoint of up to {facts.spread_checkpoint_s:.0f} s; with -c fast at once"
    return [ok("checkpoint-time", "checkpoint_timeout", message)]


def _summaries(facts: WalFacts) -> list[Finding]:
    if facts.summarize_wal is None:
        return []
    what = "incremental backups are possible" if facts.summarize_wal == "on" else "no incremental backups of the server"
    return [ok("wal-summaries", "summarize_wal", f"summarize_wal is {facts.summarize_wal}: {what}")]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdecimal() else None
