"""The end of a backup_manifest: between which LSNs the backup was taken. Read without the thousands of files before it.

Source: PostgreSQL manual, 76.1 (backup manifest format): WAL-Ranges stands behind all files, before the checksum.
"""

from __future__ import annotations

import json
import os
import re

from polarvault.backupset.model import ManifestSpan
from polarvault.backupset.reading.opening import open_file
from polarvault.model.lsn import Lsn

# A range takes about 80 bytes, and there is one for each timeline that the backup saw.
_END_BYTES = 64 << 10
_RANGES = re.compile(rb'"WAL-Ranges"\s*:\s*(\[[^\]]*\])')


def load_manifest_span(path: str) -> ManifestSpan | None:
    """Return where a manifest says that its backup began and ended; None when there is no manifest that says it.

    Whether a manifest is right is verifybackup's question, and one that is damaged is as good as none here.
    """
    try:
        with open_file(path) as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END_BYTES))
            return parse_manifest_span(stream.read(_END_BYTES), path)
    except OSError:
        return None


def parse_manifest_span(content: bytes, path: str) -> ManifestSpan | None:
    """Return what the end of a manifest says; path: what it is called."""
    try:
        found = _RANGES.search(content[-_END_BYTES:])
        ranges = json.loads(found[1]) if found else []
        # The oldest timeline is the one that recovery begins on; the server names the newest first.
        ordered = sorted(ranges, key=lambda one: int(one["Timeline"]))
        first, last = ordered[0], ordered[-1]
        return ManifestSpan(path, Lsn.parse(first["Start-LSN"]), Lsn.parse(last["End-LSN"]), int(last["Timeline"]))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
