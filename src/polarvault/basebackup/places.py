"""Where a backup may go, beyond what the options say of themselves: looked at before the server is spoken to."""

from __future__ import annotations

from polarvault.basebackup.request import BackupRequest
from polarvault.errors import UsageError
from polarvault.storage.pfs_paths import pfs_place
from polarvault.storage.trees.pfs.mount import DEFAULT_CLUSTER, MOST_HOST_ID, PfsMount


def check_places(request: BackupRequest) -> None:
    """Raise UsageError for a directory of PFS where it cannot be: as a path of this machine it would mean another."""
    if request.directory is not None and pfs_place("-D", request.directory) is not None:
        raise UsageError(
            f"-D {request.directory} lies in PFS, and a backup's local half, and tar files, are not written there",
            hint="name a directory of this machine: -D DIRECTORY; the shared half may go into PFS: --polardata",
        )
    if pfs_target(request) is not None and not request.is_plain:
        raise UsageError(
            f"--polardata {request.polardata} lies in PFS, where only plain format goes",
            hint="leave -Ft out, or name a directory of this machine: --polardata DIRECTORY",
        )


def pfs_target(request: BackupRequest) -> PfsMount | None:
    """Return how the disk of --polardata is mounted where that lies in PFS; None for a directory of this machine."""
    if request.polardata is None:
        return None
    address = pfs_place("--polardata", request.polardata, request.polar_disk_name)
    if address is None:
        return None
    text = request.polar_host_id
    if text is None:
        raise UsageError(
            f"--polardata {request.polardata} lies in PFS, where every writer needs a number of its own",
            hint="name one that no server on this disk has, on whichever host: --polar_host_id N",
        )
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_HOST_ID):
        raise UsageError(f"--polar_host_id {text}: a host number in PFS is 1 to {MOST_HOST_ID}")
    return PfsMount(address, cluster=request.polar_storage_cluster_name or DEFAULT_CLUSTER, host_id=int(text))
