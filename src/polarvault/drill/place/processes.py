"""The processes of the drill's server, found by the directory that they were started on; stopped whatever happens.

pg_ctl can be interrupted between starting a server and its writing postmaster.pid, so the process table is asked, too.
"""

from __future__ import annotations

import os
import signal
import time

from polarvault.storage.processes import look_at_process

_POLL_S = 0.05
# A checkpoint of a small buffer cache; an immediate stop takes no time at all.
_FAST_WAIT_S = 60.0
_IMMEDIATE_WAIT_S = 10.0


def started_at(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine did (proc(5)); None if it has ended."""
    found = look_at_process(pid)
    return None if found is None else found.started


def postmaster_of(data: str) -> int | None:
    """Return the process that runs a server on a directory which nobody else uses; None without one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_postmaster(int(name), data):
            return int(name)
    return None


def stop_whatever_runs(data: str) -> None:
    """Stop the server on a directory, gently at first, and wait until it is gone."""
    for number, wait_s in ((signal.SIGINT, _FAST_WAIT_S), (signal.SIGQUIT, _IMMEDIATE_WAIT_S), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + wait_s
        pid = postmaster_of(data)
        if pid is None:
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        # It ends in its own time, and it is no child of ours that could be waited for.
        while started_at(pid) is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _is_postmaster(pid: int, data: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            words = stream.read().split(b"\0")
    except OSError:
        return False
    # Its children change their titles and have no arguments any more.
    if os.path.basename(words[0]) not in (b"postgres", b"postmaster") or os.fsencode(data) not in words:
        return False
    return started_at(pid) is not None
