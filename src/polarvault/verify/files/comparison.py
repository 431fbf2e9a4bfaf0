"""What the manifest says against what was found: pure judgements, in pg_verifybackup's own words."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping

from polarvault.backupset.model import Area, Part
from polarvault.model.finding import Finding, Severity, problem
from polarvault.pgfiles.manifest import ManifestFile, checksum
from polarvault.verify.files.contents import SETTINGS, Contents
from polarvault.verify.files.reading import FileReading
from polarvault.verify.files.trees import IgnoreRules, unreadable
from polarvault.verify.layout import Half

_NAMED = 5
_DAMAGED = "the file is not the one that the server sent: restored, its data is wrong or the server does not start"
_OF_A_SERVER = (
    "a server was started in this directory, which is no backup any more: verify the backup that it came from"
)
_OTHER_BACKUP = "restore another backup; if this is a copy, compare it with the original and copy the file again"


def compare_names(found: Contents, expected: Mapping[str, ManifestFile], ignored: IgnoreRules) -> Iterator[Finding]:
    """Yield a finding for each file that is missing, too much, or of another size.

    What is missing of a tar that could not be read to its end is one finding: it can be all of the backup. What could
    not be looked at was reported as that, and is not missing.
    """
    half, sizes = found.half, found.sizes
    # A server that was started in a backup makes files all the time, and needs them.
    is_server = "postmaster.pid" in sizes
    for path, size in sizes.items():
        entry = expected.get(path)
        if entry is None:
            yield problem(
                "extra-file", half.name(path), f'"{half.name(path)}" is present on disk but not in the manifest',
                "it was not part of the backup when it was taken, and would be restored with it",
                _OF_A_SERVER if is_server else f"move it to where it belongs, or leave it out: -i {shlex.quote(path)}",
            )  # fmt: skip
        elif entry.size != size:
            yield problem(
                "wrong-size", half.name(path),
                f'"{half.name(path)}" has size {size} on disk but size {entry.size} in the manifest',
                _DAMAGED, _OTHER_BACKUP,
            )  # fmt: skip
    missing = [
        path for path in expected if path not in sizes and not ignored.covers(path) and not found.is_refused(path)
    ]
    behind: dict[Part, list[str]] = {}
    for path in missing:
        part = _cut_tar(found, path) if found.cut_tars else None
        if part is not None:
            behind.setdefault(part, []).append(path)
            continue
        yield problem(
            "missing-file", half.name(path), f'"{half.name(path)}" is present in the manifest but not on disk',
            "what was in it cannot be restored", _OTHER_BACKUP,
        )  # fmt: skip
    for part, paths in behind.items():
        yield _behind_damage(found, part, paths)


def _cut_tar(found: Contents, path: str) -> Part | None:
    """Return the tar that a file belongs into, if that could not be read to its end."""
    oids = {str(part.tablespace_oid): part for part in found.half.tars if part.area is Area.TABLESPACE}
    top, _, rest = path.partition("/")
    own = oids.get(rest.partition("/")[0]) if top == "pg_tblspc" else None
    if own is not None:
        return own if own in found.cut_tars else None
    return next((part for part in found.cut_tars if part.area is not Area.TABLESPACE), None)


def _behind_damage(found: Contents, part: Part, paths: list[str]) -> Finding:
    tar, last = os.path.basename(part.path), found.cut_tars[part]
    count = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    where = f' behind "{last}"' if last else ""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    names = ", ".join(f'"{found.half.name(path)}"' for path in paths[:_NAMED])
    return problem(
        "missing-file", tar, f"{count} of the manifest could not be read from {tar}{where}: {names}{more}",
        "what was in them cannot be restored", _OTHER_BACKUP,
    )  # fmt: skip


def compare_reading(reading: FileReading, entry: ManifestFile | None) -> Finding | None:
    """Return a finding when the content of a file is not what the manifest says."""
    name = reading.task.name
    if reading.problem is not None:
        return unreadable("read file", name, reading.problem)
    if entry is None or entry.algorithm is None or reading.checksum is None:
        return None
    if reading.size != entry.size:
        return problem(
            "wrong-size", name, f'file "{name}" should contain {entry.size} bytes, but read {reading.size} bytes',
            "it was cut, or changed while it was read", "see who writes into the backup, and verify it again",
        )  # fmt: skip
    if reading.checksum != (entry.checksum or "").lower():
        return problem(
            "wrong-checksum", name, f'checksum mismatch for file "{name}"', _DAMAGED,
            _OTHER_BACKUP,
        )  # fmt: skip
    return None


def judge_settings(half: Half, entry: ManifestFile | None, content: bytes | None) -> Finding | None:
    """Return a warning when postgresql.auto.conf is not what the server sent, with at most lines added at its end.

    pg_basebackup -R adds lines, and so pg_verifybackup leaves the file out; a damaged one still changes what the
    restored server does.
    """
    if entry is None or entry.algorithm is None or content is None:
        return None
    if len(content) >= entry.size and checksum(content[: entry.size], entry.algorithm) == entry.checksum:
        return None
    name = half.name(SETTINGS)
    return Finding(
        severity=Severity.WARNING,
        check="changed-settings",
        subject=name,
        message=f'"{name}" is not what the server sent, apart from lines that may have been added',
        meaning="a restored server takes its settings from it; ALTER SYSTEM on the copy changes it, and so does damage",
        advice=f"read it before the restored server is started: {name}",
    )
