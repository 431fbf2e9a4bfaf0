"""What a backup says of itself, for `polarvault restore`."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from polarvault import __version__
from polarvault.taking.facts import ReceivedBackup

DESCRIPTION = "polarvault_backup.json"


def describe_backup(received: ReceivedBackup, *, shared_half: str | None, finished: datetime) -> bytes:
    """Return the JSON that tells `polarvault restore` what it has before it; times are UTC."""
    facts = received.facts
    identity = facts.identity
    fields = {
        "format": 1,
        "label": facts.label,
        "server_version": identity.version,
        "server_version_num": identity.version_num,
        "system_identifier": identity.system_identifier,
        "polardb": identity.polar_version is not None,
        "polar_version": identity.polar_version,
        "shared_storage": identity.shared_storage,
        "shared_half": shared_half,
        "wal_segment_size": identity.segment_size_bytes,
        "data_checksums": identity.data_checksums,
        "start_lsn": str(facts.start.start_lsn),
        "stop_lsn": str(received.stop_lsn),
        "timeline": facts.start.timeline_id,
        "started_at": facts.started.astimezone(UTC).isoformat(timespec="seconds"),
        "finished_at": finished.astimezone(UTC).isoformat(timespec="seconds"),
        "wal_method": facts.wal_method,
        "tool": f"polarvault {__version__}",
    }
    return (json.dumps(fields, indent=1) + "\n").encode()
