"""pg_control, backup_label and the rest as bytes, for tests that need no server."""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c

from polarvault.model.lsn import Lsn
from polarvault.verify.facts.judge import BackupFacts, WalRange

SYSTEM_IDENTIFIER = 7711101783964903611
_CRC = {1300: 288, 1700: 288, 1800: 292}
IN_ARCHIVE_RECOVERY, IN_PRODUCTION = 5, 6


def control_bytes(
    version: int = 1300,
    catalog: int = 202209061,
    state: int = IN_PRODUCTION,
    segment: int = 16 << 20,
    timeline: int = 3,
    *,
    system: int = SYSTEM_IDENTIFIER,
    checkpoint: int = 0x50144378,
    redo: int = 0x50144340,
    minimum: int = 0,
    block: int = 8192,
) -> bytes:
    content = bytearray(8192)
    struct.pack_into("<QIIi", content, 0, system, version, catalog, state)
    struct.pack_into("<QQI", content, 32, checkpoint, redo, timeline)
    struct.pack_into("<Q", content, 136, minimum)
    struct.pack_into("<5i", content, 180, 100, 8, 10, 0, 64)
    struct.pack_into("<4I", content, 216, block, 131072, 8192, segment)
    struct.pack_into("<I", content, 252, 1)
    return with_crc(content, version)


def with_crc(content: bytes | bytearray, version: int = 1300) -> bytes:
    """Give pg_control the CRC that belongs to its content."""
    changed = bytearray(content)
    struct.pack_into("<I", changed, _CRC[version], google_crc32c.value(bytes(changed[: _CRC[version]])))
    return bytes(changed)


def label_bytes(
    *,
    start: str = "0/50144340",
    segment: str = "000000030000000000000050",
    checkpoint: str = "0/50144378",
    method: str = "streamed",
    taken_from: str = "primary",
    timeline: int = 3,
    more: str = "",
) -> bytes:
    return (
        f"START WAL LOCATION: {start} (file {segment})\nCHECKPOINT LOCATION: {checkpoint}\nBACKUP METHOD: {method}\n"
        f"BACKUP FROM: {taken_from}\nSTART TIME: 2026-11-22 12:00:00 UTC\nLABEL: a label\nSTART TIMELINE: {timeline}\n"
        f"{more}"
    ).encode()


def facts(**changes: Any) -> BackupFacts:
    """Return the facts of a good backup of a PostgreSQL 15, some of them changed."""
    good: dict[str, Any] = {
        "control": control_bytes(),
        "control_path": "global/pg_control",
        "label": label_bytes(),
        "label_path": "backup_label",
        "version": b"15\n",
        "manifest_system_identifier": None,
        "wal_ranges": (WalRange(3, Lsn(0x50144340), Lsn(0x50150000)),),
        "tablespace_map": None,
        "tablespace_links": {},
        "tablespace_tars": frozenset(),
        "is_tar": False,
        "is_polardb": False,
    }
    return BackupFacts(**good | changes)
