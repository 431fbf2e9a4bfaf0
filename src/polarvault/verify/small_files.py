"""The small files of a backup from which the rest is judged: pg_control, backup_label, PG_VERSION, tablespace_map."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.backupset.inventory import parse_major_version
from polarvault.errors import BackupUnusable, IntegrityError
from polarvault.model import versions
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label, parse_tablespace_map
from polarvault.pgfiles.control import ControlFile, parse_control, parse_known_control
from polarvault.verify.files.contents import Contents, Report

NEWER = f"the backup is of a server that is newer than {versions.KNOWN_VERSIONS}"
"""Why it is not judged by what only known versions write."""


class SmallFiles:
    """Their contents, None where there is none, and what they say, None where it makes no sense: the facts say why."""

    def __init__(self, contents: Sequence[Contents], report: Report) -> None:
        local, data = contents[0], contents[-1]
        self.control_bytes = data.read_small("global/pg_control", report)
        self.label_bytes = local.read_small("backup_label", report)
        self.version_bytes = local.read_small("PG_VERSION", report)
        self.tablespace_map = _read_map(local, report)
        self.control = _parsed_control(self.control_bytes)
        self.is_newer = _is_newer(self.version_bytes, self.control_bytes, self.control)
        self.label = _parsed_label(self.label_bytes)


def _read_map(local: Contents, report: Report) -> dict[int, str] | None:
    content = local.read_small("tablespace_map", report)
    if content is None:
        return None
    try:
        return parse_tablespace_map(content)
    except BackupUnusable as damage:
        from polarvault.model.finding import problem

        report(
            problem(
                "tablespace-map", local.half.name("tablespace_map"), damage.message,
                "the tablespaces of a server that starts with it are missing", "use another backup",
            )
        )  # fmt: skip
        return None


def _parsed_control(content: bytes | None) -> ControlFile | None:
    try:
        return None if content is None else parse_control(content)
    except IntegrityError:
        # judge_facts says what is wrong with it.
        return None


def _is_newer(version: bytes | None, control_bytes: bytes | None, control: ControlFile | None) -> bool:
    """Tell whether the backup is of a server newer than all known ones: by PG_VERSION, or by pg_control beside it."""
    major = parse_major_version(version)
    if major is None or control_bytes is None:
        return major is not None and versions.is_newer(major)
    try:
        return versions.is_newer(major) or parse_known_control(control_bytes, major) is None
    except IntegrityError:
        return False


def _parsed_label(content: bytes | None) -> BackupLabel | None:
    try:
        return None if content is None else parse_backup_label(content)
    except BackupUnusable:
        return None
