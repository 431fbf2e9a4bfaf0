"""Read a server's log files, which lie where the server's account writes: no link there leads us to another file.

Root reads them, and shows what is in them. So they are opened below the directory that holds them, and never through a
link (`storage.below`), and secrets in them (a command that failed is logged as a whole) are hidden.
"""

from __future__ import annotations

import os
import stat

from polarvault.model.secrets import hide_secrets
from polarvault.storage.below import Below

# A server in trouble repeats itself; what matters is at the end.
MOST_BYTES = 64 << 20


def log_size(root: str, path: str) -> int | None:
    """Return the size of a log file below a directory; None if there is no regular file of that name, or a link."""
    try:
        with Below(root) as below:
            status = below.status(os.path.relpath(path, root))
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read_log(root: str, path: str, *, start: int = 0, most_bytes: int = MOST_BYTES) -> bytes:
    """Return a log file below a directory from a position on, at most the last of it; raise OSError."""
    with Below(root) as below:
        descriptor = below.open_regular(os.path.relpath(path, root))
    with open(descriptor, "rb") as stream:
        stream.seek(max(start, os.fstat(stream.fileno()).st_size - most_bytes))
        return stream.read(most_bytes)


def last_lines_of(content: bytes, lines: int) -> str:
    """Return the last lines of a log as they can be shown."""
    return hide_secrets("\n".join(content.decode("utf-8", "replace").splitlines()[-lines:]))
