"""Other processes of this machine, as /proc shows them (proc(5)); on a machine without it nothing is known."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

# Stopped by a signal, or by a debugger.
_STOPPED = ("T", "t")
# Waits for a disk or a network file system, and cannot be interrupted.
_WAITS_FOR_DISK = "D"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that lives. started: clock ticks since the machine did, which tells a process from a later namesake."""

    pid: int
    state: str
    started: int

    @property
    def is_stopped(self) -> bool:
        """Tell whether it does nothing until somebody lets it go on (SIGSTOP, Ctrl-Z, a debugger)."""
        return self.state in _STOPPED

    @property
    def waits_for_disk(self) -> bool:
        """Tell whether it is in a wait that no signal ends; for a moment that is normal."""
        return self.state == _WAITS_FOR_DISK


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment by a clock that nobody sets: seconds since a start of the machine, and which start that was."""

    uptime_s: float
    boot_id: str


def look_at_process(pid: int) -> Process | None:
    """Return a process that lives and can be seen; None for one that has ended, though nobody has reaped it yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            # What follows the program's name, which may hold anything, in parentheses.
            fields = stream.read().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else Process(pid, fields[0], int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def present_moment() -> Moment:
    """Return the present moment."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            boot_id = stream.read().strip()
    except OSError:
        boot_id = ""
    return Moment(time.clock_gettime(time.CLOCK_BOOTTIME), boot_id)


def own_process() -> Process | None:
    """Return this process."""
    return look_at_process(os.getpid())
