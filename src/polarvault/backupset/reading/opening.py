"""Open one file of a backup by its path: with the rights of the account at work, or root's where no link has led."""

from __future__ import annotations

import os
from typing import BinaryIO

from polarvault.storage.below import Below, NameRefused
from polarvault.storage.files import open_regular
from polarvault.storage.identity import can_read_as_root, reading_as_root


def open_file(path: str) -> BinaryIO:
    """Open a regular file of a backup for reading, unbuffered; raise OSError.

    Links are followed with the account's own rights only: root would read for it what it may not.
    """
    try:
        return open_regular(path)
    except PermissionError:
        if not can_read_as_root():
            raise
    with reading_as_root(), Below(os.path.dirname(path)) as directory:
        descriptor = directory.open_regular(os.path.basename(path))
        owner = directory.status("").st_uid
    status = os.fstat(descriptor)
    if status.st_nlink > 1 and owner not in (0, status.st_uid):
        os.close(descriptor)
        raise NameRefused(path, "it belongs to somebody else than the directory, and has another name elsewhere")
    return open(descriptor, "rb", buffering=0)
