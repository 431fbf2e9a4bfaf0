"""Wait until something can be read from a descriptor, whatever its number."""

from __future__ import annotations

import errno
import os
import select


def wait_readable(descriptor: int, timeout_s: float | None = None) -> bool:
    """Wait until there is something to read, an end included; False when the time is over. None: without end.

    Not select(2), which knows no descriptors from 1024 on: a process that holds that many files open would fail here.
    Raises ValueError for a negative descriptor, as of a connection that is gone, and OSError for a closed one.
    """
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    # Rounded up: of less than a millisecond a loop would be made that does not wait.
    found = waiting.poll(None if timeout_s is None else max(0, int(timeout_s * 1000 + 0.999)))
    if any(event & select.POLLNVAL for _, event in found):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return bool(found)
