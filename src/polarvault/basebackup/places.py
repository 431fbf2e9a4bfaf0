"""Where a backup may go, beyond what the options say of themselves: looked at before the server is spoken to."""

from __future__ import annotations

from polarvault.basebackup.request import BackupRequest
from polarvault.errors import UsageError
from polarvault.storage.pfs_paths import pfs_place


def check_places(request: BackupRequest) -> None:
    """Raise UsageError for a directory that is one of PFS: as a path of this machine it would mean another place."""
    for option, path, disk in (
        ("-D", request.directory, None),
        ("--polardata", request.polardata, request.polar_disk_name),
    ):
        if path is not None and pfs_place(option, path, disk) is not None:
            raise UsageError(
                f"{option} {path} lies in PFS, and a backup is not written there",
                hint=f"name a directory of this machine: {option} DIRECTORY",
            )
