"""pg_control, backup_label and the rest as bytes, for tests that need no server."""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c

from polarvault.model.lsn import Lsn
from polarvault.verify.facts.judge import BackupFacts, WalRange

SYSTEM_IDENTIFIER = 7711101783964903611
_CRC = {1300: 288, 1700: 288, 1800: 292, 1905: 308}
# Minimum recovery point, settings of hot standby, block sizes, WAL sizes, checksum version; as od -A d shows them.
_PLACES = {1905: (144, 188, 224, 236, 268)}
_USUAL_PLACES = (136, 180, 216, 224, 252)
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
    checksums: int = 1,
) -> bytes:
    content = bytearray(8192)
    struct.pack_into("<QIIi", content, 0, system, version, catalog, state)
    struct.pack_into("<QQI", content, 32, checkpoint, redo, timeline)
    minimum_at, settings_at, blocks_at, wal_at, checksums_at = _PLACES.get(version, _USUAL_PLACES)
    struct.pack_into("<Q", content, minimum_at, minimum)
    struct.pack_into("<5i", content, settings_at, 100, 8, 10, 0, 64)
    struct.pack_into("<2I", content, blocks_at, block, 131072)
    struct.pack_into("<2I", content, wal_at, 8192, segment)
    struct.pack_into("<I", content, checksums_at, checksums)
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
