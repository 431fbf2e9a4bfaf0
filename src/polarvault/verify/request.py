"""What the user asked to be verified."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """A whole `verifybackup`; paths as given.

    format: "plain", "tar", or None: see what is there. ignored: paths relative to the backup. pages: check page
    checksums; None: if the cluster has them. wal_path: the directory or tar that holds the WAL, if it is not in the
    backup. jobs: threads, 0: as many as there are processors, and one more.
    """

    backup: str
    shared_half: str | None = None
    format: str | None = None
    manifest_path: str | None = None
    ignored: tuple[str, ...] = ()
    wal_path: str | None = None
    check_checksums: bool = True
    check_wal: bool = True
    pages: bool | None = None
    exit_on_error: bool = False
    jobs: int = 0

    @property
    def given_manifest(self) -> str | None:
        """The manifest that was named, as an absolute path; an empty name stays one, which no file has."""
        return os.path.abspath(self.manifest_path) if self.manifest_path else self.manifest_path
