"""Text of the replication commands, for every server version (manual, "Streaming Replication Protocol")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def base_backup_command(options: BaseBackupOptions, server_version_num: int) -> str:
    """Return the BASE_BACKUP command in the syntax that the server knows."""
    if server_version_num >= 150000:
        return "BASE_BACKUP (" + ", ".join(_new_syntax(options)) + ")"
    return "BASE_BACKUP " + " ".join(_old_syntax(options))


def _new_syntax(options: BaseBackupOptions) -> Sequence[str]:
    words = [f"LABEL {quote_literal(options.label)}"]
    if options.progress:
        words.append("PROGRESS")
    if options.checkpoint_fast:
        words.append("CHECKPOINT 'fast'")
    if options.wal:
        words.append("WAL")
    if not options.wait:
        words.append("WAIT 0")
    if options.max_rate_kb:
        words.append(f"MAX_RATE {options.max_rate_kb}")
    if options.tablespace_map:
        words.append("TABLESPACE_MAP")
    if not options.verify_checksums:
        words.append("VERIFY_CHECKSUMS 0")
    if options.manifest:
        words.append(f"MANIFEST {quote_literal(options.manifest)}")
        if options.manifest_checksums:
            words.append(f"MANIFEST_CHECKSUMS {quote_literal(options.manifest_checksums)}")
    if options.incremental:
        words.append("INCREMENTAL")
    words.append(f"TARGET {quote_literal(options.target or 'client')}")
    if options.target_detail is not None:
        words.append(f"TARGET_DETAIL {quote_literal(options.target_detail)}")
    if options.compression:
        words.append(f"COMPRESSION {quote_literal(options.compression)}")
        if options.compression_detail:
            words.append(f"COMPRESSION_DETAIL {quote_literal(options.compression_detail)}")
    return words


def _old_syntax(options: BaseBackupOptions) -> Sequence[str]:
    words = [f"LABEL {quote_literal(options.label)}"]
    if options.progress:
        words.append("PROGRESS")
    if options.checkpoint_fast:
        words.append("FAST")
    if options.wal:
        words.append("WAL")
    if not options.wait:
        words.append("NOWAIT")
    if options.max_rate_kb:
        words.append(f"MAX_RATE {options.max_rate_kb}")
    if options.tablespace_map:
        words.append("TABLESPACE_MAP")
    if not options.verify_checksums:
        words.append("NOVERIFY_CHECKSUMS")
    if options.manifest:
        words.append(f"MANIFEST {quote_literal(options.manifest)}")
        if options.manifest_checksums:
            words.append(f"MANIFEST_CHECKSUMS {quote_literal(options.manifest_checksums)}")
    return words


def create_physical_slot_command(
    name: str, server_version_num: int, *, temporary: bool = False, reserve_wal: bool = True
) -> str:
    """Return CREATE_REPLICATION_SLOT for a physical slot."""
    words = ["CREATE_REPLICATION_SLOT", quote_identifier(name)]
    if temporary:
        words.append("TEMPORARY")
    words.append("PHYSICAL")
    if reserve_wal:
        words.append("(RESERVE_WAL)" if server_version_num >= 150000 else "RESERVE_WAL")
    return " ".join(words)


def start_replication_command(start: str, timeline_id: int, *, slot: str | None) -> str:
    """Return START_REPLICATION for physical WAL.

    PolarDB's POLAR_REPL_MODE clause is left out on purpose: without it the server behaves as PostgreSQL does, and its
    'replica' mode would stream no WAL and throttle the primary (facts 1.1).
    """
    through = f"SLOT {quote_identifier(slot)} " if slot else ""
    return f"START_REPLICATION {through}{start} TIMELINE {timeline_id}"
