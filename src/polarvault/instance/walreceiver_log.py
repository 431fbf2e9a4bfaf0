"""Why a standby does not stream, from its own log. Pure.

The WAL receiver says it nowhere else: it ends with a FATAL line and is started again every wal_retrieve_retry_interval.
Texts are those of PostgreSQL 13 to 19 in English (replication/walreceiver.c, libpqwalreceiver.c, xlogrecovery.c).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the log says, what to do about it, and whether waiting is in vain."""

    reason: str
    hint: str
    permanent: bool


_CONNECT = re.compile(r"could not connect to the primary server:\s*(.*)")
_FATAL = re.compile(r"\b(?:FATAL|ERROR|LOG|WARNING|PANIC):\s+(.*)")
_HBA = re.compile(
    r'(?:no pg_hba\.conf entry for|pg_hba\.conf rejects) replication connection .*"([^"]*)", user "([^"]*)"'
)
_RULES: tuple[tuple[str, str, bool], ...] = (
    (
        r"requested WAL segment \S+ has already been removed",
        "the primary has removed WAL that this server needs: restore again with --wal DIR, a directory that "
        "has it, or take a new backup and restore it with --slot NAME --create-slot",
        True,
    ),
    (
        r"password authentication failed|no password supplied",
        "correct the password in primary_conninfo (ALTER SYSTEM SET primary_conninfo = '...', then SELECT "
        "pg_reload_conf()) or in ~/.pgpass of the user who runs this server",
        True,
    ),
    (r"must be superuser or replication role|permission denied to start WAL sender",
     "on the primary: ALTER ROLE ... REPLICATION", True),
    (r'replication slot "[^"]*" does not exist',
     "on the primary: SELECT pg_create_physical_replication_slot('NAME', true)", True),
    (r'cannot (?:read from|use) .*replication slot|can no longer (?:get|access) .*slot|has been invalidated',
     "drop the slot on the primary and restore again with --create-slot", True),
    (r'replication slot "[^"]*" is active for PID',
     "another server uses the slot: give this one a slot of its own", False),
    (r"database system identifier differs", "primary_conninfo names another cluster", True),
    (r"highest timeline \d+ of the primary is behind recovery timeline",
     "primary_conninfo names a server that was left behind by a promotion; name the new primary", True),
    (r"new timeline \d+ forked off current database system timeline \d+ before current recovery point|"
     r"is not a child of this server's history|is not in this server's history",
     "the primary was promoted from a point before this server's: take a new backup of it", True),
    (r"insufficient parameter settings", "raise the settings that the log names to the primary's, and restart", True),
    (r"max_wal_senders",
     "raise max_wal_senders on the primary, or free a WAL sender: SELECT * FROM pg_stat_replication", False),
    (r"Connection refused|No such file or directory|timeout expired|could not translate host name|"
     r"the database system is (?:starting up|shutting down)", "start the primary, or correct primary_conninfo", False),
)  # fmt: skip


def diagnose(log: str) -> Diagnosis | None:
    """Return what the last telling line of the log says; None when it tells nothing."""
    for line in reversed(_lines(log)):
        if match := _HBA.search(line):
            return _missing_hba(line, match)
        for pattern, hint, permanent in _RULES:
            if re.search(pattern, line):
                return Diagnosis(_reason(line), hint, permanent)
        if _CONNECT.search(line):
            return Diagnosis(_reason(line), "correct primary_conninfo, or look into the primary's log", False)
    return None


def _lines(log: str) -> list[str]:
    """Join continuation lines, which start with a tab, to the line they belong to."""
    return log.replace("\n\t", " ").splitlines()


def _missing_hba(line: str, match: re.Match[str]) -> Diagnosis:
    host, user = match[1], match[2]
    local = host == "[local]"
    address = "" if local else f" {host}/{128 if ':' in host else 32}"
    wanted = f"{'local' if local else 'host'} replication {user}{address} scram-sha-256"
    return Diagnosis(
        _reason(line), f"add to the primary's pg_hba.conf:  {wanted}  and there: SELECT pg_reload_conf()", True
    )


def _reason(line: str) -> str:
    match = _FATAL.search(line)
    return (match[1] if match else line).strip()
