"""Compare the files of a backup with its manifest, by name and size, before they are copied.

The server cannot tell that the end of a table is gone: a file that was cut, or a lost segment behind the first, is a
shorter table to it, and every page and index entry that is left is sound. Contents are left to the server, which reads
every page, and to `polarvault verifybackup`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from polarvault.backupset.backup import verify_command
from polarvault.backupset.model import Form
from polarvault.errors import PolarvaultError
from polarvault.model.finding import Finding, Severity
from polarvault.restore.model import RestorePlan
from polarvault.verify.request import VerifyRequest
from polarvault.verify.run import verify_backup

_CHECKS = ("missing-file", "wrong-size", "unreadable", "tar-damaged", "missing-database", "missing-directory")
# What a backup tells of itself, without a manifest.
_NO_MANIFEST = "that no file is missing or shorter than it was: the backup has no manifest"
# A damaged disk can lack thousands; these tell enough.
_SHOWN_FILES = 20


@dataclass(frozen=True, slots=True)
class Compared:
    """What is missing or cut; not_proved says why nothing could be compared."""

    findings: tuple[Finding, ...] = ()
    not_proved: str | None = None


class _Silent:
    """Takes what a verification says as it goes."""

    def finding(self, finding: Finding) -> None:
        """Wait for the end."""

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Say nothing."""


def compare_with_manifest(plan: RestorePlan, *, jobs: int) -> Compared:
    """Compare names and sizes of all files; never raises for what is wrong with the backup."""
    path, form = plan.source.path, plan.source.form
    if form is Form.REPOSITORY:
        # Its index names and hashes everything, and a restore reads all of it.
        return Compared()
    if form is Form.TAR_FILE:
        return Compared(not_proved=_NO_MANIFEST)
    request = VerifyRequest(
        path,
        shared_half=plan.request.shared_from,
        format="plain" if form is Form.PLAIN else "tar",
        check_checksums=False,
        check_wal=False,
        pages=False,
        jobs=jobs,
    )
    try:
        found = verify_backup(request, _Silent()).findings
    except PolarvaultError as problem:
        return Compared(not_proved=f"that no file is missing or shorter than it was: {problem.message}")
    damaged = [finding for finding in found if finding.check == "manifest"]
    # That empty directories are gone is a warning, and the restore makes them.
    counts = (one for one in found if one.check != "missing-directory" or one.severity is Severity.PROBLEM)
    wrong = [_of_a_drill(finding, path) for finding in counts if finding.check in _CHECKS]
    if len(wrong) > _SHOWN_FILES:
        more = f"{len(wrong) - _SHOWN_FILES} more files are missing, cut or cannot be read"
        wrong = [*wrong[:_SHOWN_FILES], replace(wrong[-1], subject=path, message=more)]
    why = f"that no file is missing or shorter than it was: {damaged[0].message}" if damaged else None
    if damaged and not os.path.isfile(os.path.join(path, "backup_manifest")):
        why = _NO_MANIFEST
    return Compared(tuple(wrong), why)


def _of_a_drill(finding: Finding, path: str) -> Finding:
    # Settings are edited by hand in many a backup, and the server has read them.
    is_setting = finding.check == "wrong-size" and finding.subject.endswith(".conf")
    return replace(
        finding,
        severity=Severity.WARNING if is_setting else finding.severity,
        advice=f"restore another backup; to see all that is wrong: {verify_command(path)}",
    )
