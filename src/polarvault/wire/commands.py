"""Text of the replication commands, for every server version (manual, "Streaming Replication Protocol")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polarvault.model import versions


def quote_literal(text: str) -> str:
    """Quote a string constant of the replication grammar (only quotes are special there)."""
    return "'" + text.replace("'", "''") + "'"


def quote_identifier(name: str) -> str:
    """Quote a slot name."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseBackupOptions:
    """What BASE_BACKUP is asked for; a name here is the option's name in the manual."""

    label: str
    progress: bool = True
    checkpoint_fast: bool = False
    wal: bool = False
    wait: bool = True
    max_rate_kb: int | None = None
    tablespace_map: bool = False
    verify_checksums: bool = True
    manifest: str | None = "yes"
    manifest_checksums: str | None = None
    incremental: bool = False
    target: str | None = None
    target_detail: str | None = None
    compression: str | None = None
    compression_detail: str | None = None


# How servers before 15 spell what newer ones write as an option with a value.
_OLD_SPELLING = {"CHECKPOINT 'fast'": "FAST", "WAIT 0": "NOWAIT", "VERIFY_CHECKSUMS 0": "NOVERIFY_CHECKSUMS"}


def base_backup_command(options: BaseBackupOptions, server_version_num: int) -> str:
    """Return the BASE_BACKUP command in the syntax that the server knows."""
    words = list(_common_words(options))
    if versions.of_server(server_version_num).takes_option_lists:
        return "BASE_BACKUP (" + ", ".join([*words, *_newer_words(options)]) + ")"
    return "BASE_BACKUP " + " ".join(_OLD_SPELLING.get(word, word) for word in words)


def _common_words(options: BaseBackupOptions) -> Iterator[str]:
    yield f"LABEL {quote_literal(options.label)}"
    if options.progress:
        yield "PROGRESS"
    if options.checkpoint_fast:
        yield "CHECKPOINT 'fast'"
    if options.wal:
        yield "WAL"
    if not options.wait:
        yield "WAIT 0"
    if options.max_rate_kb:
        yield f"MAX_RATE {options.max_rate_kb}"
    if options.tablespace_map:
        yield "TABLESPACE_MAP"
    if not options.verify_checksums:
        yield "VERIFY_CHECKSUMS 0"
    if options.manifest:
        yield f"MANIFEST {quote_literal(options.manifest)}"
        if options.manifest_checksums:
            yield f"MANIFEST_CHECKSUMS {quote_literal(options.manifest_checksums)}"


def _newer_words(options: BaseBackupOptions) -> Iterator[str]:
    """Yield what exists since PostgreSQL 15 (INCREMENTAL: 17)."""
    if options.incremental:
        yield "INCREMENTAL"
    yield f"TARGET {quote_literal(options.target or 'client')}"
    if options.target_detail is not None:
        yield f"TARGET_DETAIL {quote_literal(options.target_detail)}"
    if options.compression:
        yield f"COMPRESSION {quote_literal(options.compression)}"
        if options.compression_detail:
            yield f"COMPRESSION_DETAIL {quote_literal(options.compression_detail)}"


def create_physical_slot_command(
    name: str, server_version_num: int, *, temporary: bool = False, reserve_wal: bool = True
) -> str:
    """Return CREATE_REPLICATION_SLOT for a physical slot."""
    words = ["CREATE_REPLICATION_SLOT", quote_identifier(name)]
    if temporary:
        words.append("TEMPORARY")
    words.append("PHYSICAL")
    if reserve_wal:
        words.append("(RESERVE_WAL)" if versions.of_server(server_version_num).takes_option_lists else "RESERVE_WAL")
    return " ".join(words)


def start_replication_command(start: str, timeline_id: int, *, slot: str | None) -> str:
    """Return START_REPLICATION for physical WAL.

    PolarDB's POLAR_REPL_MODE clause is left out on purpose: without it the server behaves as PostgreSQL does, and its
    'replica' mode would stream no WAL and throttle the primary (facts 1.1).
    """
    through = f"SLOT {quote_identifier(slot)} " if slot is not None else ""
    return f"START_REPLICATION {through}{start} TIMELINE {timeline_id}"
