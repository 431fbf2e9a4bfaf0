"""backup_label and tablespace_map: what a base backup says about itself (server file access/transam/xlogbackup.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from polarvault.errors import BackupUnusable
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.names import shown_name
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.control import ControlFile

_START = re.compile(r"START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file ([0-9A-F]{24})\)$")
_OID = re.compile(r"[0-9]{1,10}\Z")
_FIELD = re.compile(r"([A-Z][A-Z ]+): (.*)$")


@dataclass(frozen=True, slots=True)
class BackupLabel:
    """The fields of backup_label; start_segment is the WAL file that recovery reads first."""

    start_lsn: Lsn
    start_segment: str
    checkpoint_lsn: Lsn
    method: str
    taken_from: str
    start_time: str
    label: str
    timeline_id: int
    incremental_from_lsn: Lsn | None
    """Where the backup began that this one is incremental to, and on which timeline; None for a full one."""
    incremental_from_timeline: int | None = None

    @property
    def is_from_standby(self) -> bool:
        """Tell whether the server that was backed up was in recovery."""
        return self.taken_from == "standby"


def standby_label(control: ControlFile, time: datetime, label: str) -> bytes:
    """Return the label of files of one moment: recovery from the redo point to pg_control's minimum recovery point.

    As a standby's label has it, the server then takes that point for the end of the backup (server: xlogrecovery.c,
    backupFromStandby), and refuses to be used before. control: of a server in recovery, or shut down in it.
    """
    segment = WalSegment.holding(control.redo_lsn, control.timeline_id, control.wal_segment_size)
    return (
        f"START WAL LOCATION: {control.redo_lsn} (file {segment.file_name})\n"
        f"CHECKPOINT LOCATION: {control.checkpoint_lsn}\n"
        "BACKUP METHOD: streamed\n"
        "BACKUP FROM: standby\n"
        f"START TIME: {time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
        f"LABEL: {label}\n"
        f"START TIMELINE: {control.timeline_id}\n"
    ).encode("utf-8", "surrogateescape")


def parse_backup_label(content: bytes, what: str = "backup_label") -> BackupLabel:
    """Parse backup_label; raise BackupUnusable when a line that recovery needs is missing."""
    lines = content.decode("utf-8", "replace").splitlines()
    start = _START.match(lines[0].rstrip()) if lines else None
    fields = {match[1]: match[2].rstrip() for line in lines if (match := _FIELD.match(line))}
    try:
        if start is None:
            raise ValueError("its first line is not START WAL LOCATION")
        incremental = fields.get("INCREMENTAL FROM LSN")
        return BackupLabel(
            start_lsn=Lsn.parse(start[1]),
            start_segment=start[2],
            checkpoint_lsn=Lsn.parse(fields["CHECKPOINT LOCATION"]),
            method=fields.get("BACKUP METHOD", ""),
            taken_from=fields.get("BACKUP FROM", ""),
            start_time=fields.get("START TIME", ""),
            label=fields.get("LABEL", ""),
            timeline_id=_timeline(fields["START TIMELINE"]) if "START TIMELINE" in fields else int(start[2][:8], 16),
            incremental_from_lsn=Lsn.parse(incremental) if incremental else None,
            incremental_from_timeline=_timeline(fields["INCREMENTAL FROM TLI"])
            if "INCREMENTAL FROM TLI" in fields
            else None,
        )
    except (ValueError, KeyError) as problem:
        reason = f"the line {problem} is missing" if isinstance(problem, KeyError) else str(problem)
        raise BackupUnusable(
            f"{what} is damaged: {reason}",
            hint="never edit or delete it: without it the server starts from the wrong checkpoint. Use another backup",
        ) from problem


def _timeline(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", text) is None or not 1 <= int(text) <= limits.TIMELINE_ID:
        raise ValueError(f"{shown_name(text)} is no timeline")
    return int(text)


def parse_tablespace_map(content: bytes) -> dict[int, str]:
    """Parse tablespace_map: one ``oid path`` a line, line ends and backslashes in paths escaped by a backslash."""
    found: dict[int, str] = {}
    text = content.decode("utf-8", "surrogateescape")
    for entry in re.findall(r"((?:\\.|[^\\\n\r])+)", text, re.DOTALL):
        oid, separator, path = entry.partition(" ")
        if not separator or _OID.match(oid) is None:
            raise BackupUnusable(f"tablespace_map is damaged: {shown_name(entry)} is not an oid and a path")
        found[int(oid)] = re.sub(r"\\(.)", r"\1", path, flags=re.DOTALL)
    return found
