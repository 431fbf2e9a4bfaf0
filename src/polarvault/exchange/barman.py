"""Barman's plain layout: `SERVER/base/ID/data`, what it knows of the backup, and all WAL in `SERVER/wals`.

What it knows lies in `SERVER/base/ID/backup.info`; newer versions have `SERVER/meta/ID-backup.info`. Source: barman 3,
infofile.py (`name=value` lines, lists as Python literals) and xlog.py (hash_dir: a directory for each 16 first digits
of a segment's name).
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from polarvault.errors import BackupUnusable
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.storage.files import open_regular, storage_failed

INFO = "backup.info"
_MOST_TABLESPACES = 65_536


@dataclass(frozen=True, slots=True)
class BarmanInfo:
    """What backup.info says. locations: where the server had its tablespaces, by oid."""

    data: str
    wals: str
    stop_lsn: Lsn | None
    timeline_id: int | None
    server_version: int | None
    began: datetime | None
    ended: datetime | None
    locations: Mapping[int, str] = field(default_factory=dict)

    def wal_directories(self, segment_names: list[str]) -> list[str]:
        """Return the directories that hold segments of these names, and the one of the histories."""
        folders = dict.fromkeys(os.path.join(self.wals, name[:16]) for name in segment_names)
        return [path for path in (*folders, self.wals) if os.path.isdir(path)]


def read_barman(path: str) -> BarmanInfo | None:
    """Return what lies at a path if that is a backup of Barman: its own directory, or `data` in it; else None."""
    for top in map(os.path.abspath, (path, os.path.dirname(os.path.abspath(path)))):
        server = os.path.dirname(os.path.dirname(top))
        places = os.path.join(top, INFO), os.path.join(server, "meta", f"{os.path.basename(top)}-{INFO}")
        info = next(filter(os.path.isfile, places), None)
        data = os.path.join(top, "data")
        if info is not None and os.path.isdir(data):
            return _parse(info, data, os.path.join(server, "wals"), _read(info))
    return None


def _read(path: str) -> dict[str, str]:
    try:
        with open_regular(path) as stream:
            content = stream.read(limits.SMALL_FILE_BYTES)
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    lines = (line.partition("=") for line in content.decode("utf-8", "surrogateescape").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _parse(path: str, data: str, wals: str, fields: Mapping[str, str]) -> BarmanInfo:
    status = fields.get("status")
    if status not in (None, "DONE"):
        raise BackupUnusable(
            f'"{path}" says that the backup is {status}', hint="import one that is DONE: barman list-backups SERVER"
        )
    if fields.get("encryption", "None") != "None" or fields.get("compression", "None") != "None":
        raise BackupUnusable(
            f'the backup in "{data}" is compressed or encrypted by Barman',
            hint="lay it out first: barman recover SERVER ID DIRECTORY, and import that, with --wal",
        )
    try:
        end = fields.get("end_xlog", "None")
        timeline = fields.get("timeline", "None")
        return BarmanInfo(
            data,
            wals,
            None if end == "None" else Lsn.parse(end),
            None if timeline == "None" else int(timeline),
            int(fields["version"]) if fields.get("version", "None") != "None" else None,
            _time(fields.get("begin_time")),
            _time(fields.get("end_time")),
            _locations(fields.get("tablespaces", "None")),
        )
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as problem:
        raise BackupUnusable(f'"{path}" cannot be understood: {problem}', hint="import its data directory") from problem


def _locations(text: str) -> dict[int, str]:
    found = ast.literal_eval(text)
    if found is None:
        return {}
    if not isinstance(found, list) or len(found) > _MOST_TABLESPACES:
        raise ValueError("tablespaces is no list")
    return {int(oid): str(location) for _, oid, location in found}


def _time(text: str | None) -> datetime | None:
    if text is None or text == "None":
        return None
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
