"""Which of the user's paths mean PFS: addresses, and bare paths that begin with the name of a disk."""

from __future__ import annotations

import os
import stat

from polarvault.errors import UsageError
from polarvault.model.pfs_address import PfsAddress, disk_of_path, is_pfs_address, parse_pfs_address, parse_pfs_path


def pfs_place(option: str, path: str, disk: str | None = None) -> PfsAddress | None:
    """Return the place in PFS that somebody means; None for a directory of this machine.

    disk: named by an option of its own, as the official tool has it: then a bare path is one of PFS. Raises UsageError
    for an address that is none, and for a bare path of which nobody can tell what it means.
    """
    if is_pfs_address(path):
        address = parse_pfs_address(path, option)
    elif disk:
        address = parse_pfs_path(path, option)
    else:
        maybe = disk_of_path(path, os.path.isdir, _is_block_device)
        if maybe is not None:
            raise UsageError(
                f"{option} {path}: there is no directory /{maybe} on this machine, and /dev/{maybe} is a disk, so this "
                "looks like a path in PFS",
                hint=f"if it is one, write {option} pfsd://{path}; for an ordinary directory make /{maybe} first",
            )
        return None
    if disk and address.disk != disk:
        raise UsageError(
            f"{option} {path} is not on disk {disk}: a path in PFS begins with the name of its disk",
            hint=f"write /{disk}/DIRECTORY; for an ordinary directory leave the name of the disk out",
        )
    return address


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
