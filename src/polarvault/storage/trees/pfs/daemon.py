"""Does pfsd serve a disk on this machine? It holds a lock on a file for as long as it runs.

The number in that file is of the process that started the daemon, and so of none (PolarDB-FileSystem: pfsd_write_pid).
"""

from __future__ import annotations

import fcntl
import os

from polarvault.storage.trees.pfs.problems import RUN_DIRECTORY


def lock_path(disk: str, run_directory: str = RUN_DIRECTORY) -> str:
    """Return the file on which the daemon of a disk holds its lock."""
    return os.path.join(run_directory, f"pfsd_{disk}.pid")


def is_served(disk: str, run_directory: str = RUN_DIRECTORY) -> bool | None:
    """Tell whether a daemon serves the disk; None where nobody can tell, because the file cannot be read."""
    try:
        descriptor = os.open(lock_path(disk, run_directory), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        if _is_in_table(os.fstat(descriptor).st_ino):
            return True
        # Not shown where processes have numbers of their own (containers). Held for a moment only where nobody has it:
        # a daemon that starts just then says that it runs already, and is started again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _is_in_table(inode: int) -> bool:
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as stream:
            lines = [line.split() for line in stream]
    except OSError:
        return False
    # 1: FLOCK  ADVISORY  WRITE 2730 fe:00:918 0 EOF
    return any("FLOCK" in words and words[-3].rpartition(":")[2] == str(inode) for words in lines if len(words) > 5)
