"""The room that has to stay free beside clones and images: a full file system stops what else writes there."""

from __future__ import annotations

import os

from polarvault.clones.model import LEAST_FREE_SHARE, MOST_LEAST_FREE_BYTES
from polarvault.errors import DiskFull
from polarvault.instance.host import Host
from polarvault.model.units import format_bytes


def least_free_of(directory: str, host: Host, asked: int | None = None, *, way: str = "") -> int:
    """Return the bytes that have to stay free on a file system; raise DiskFull if fewer are.

    asked: by the user, None for a share of it. way: another way out, for the hint.
    """
    status = os.statvfs(directory)
    least = asked
    if least is None:
        least = min(MOST_LEAST_FREE_BYTES, int(status.f_blocks * status.f_frsize * LEAST_FREE_SHARE))
    _, available = host.available_bytes(directory)
    if available is not None and available < least:
        raise DiskFull(
            f'only {format_bytes(available)} are free on the file system of "{directory}", and '
            f"{format_bytes(least)} have to stay free for what else writes there",
            hint=f"see what takes it: polarvault clone list, polarvault image list; or free space{way}",
        )
    return least
