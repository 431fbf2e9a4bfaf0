"""A process that a command leaves behind: it has no ties to whoever started it, and is known by the lock that it holds.

It works in a directory for state. The lock is the kernel's (flock): the process's death, whatever it died of, frees it,
so that nobody waits for a dead one, and there are never two. `wal fetch` and `wal push` import this for every segment:
nothing heavy may be imported at the top.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from polarvault.storage.files import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOCK = ".lock"
_LOCK_BYTES = 64 << 10
_TRIES, _TRY_AGAIN_S = 50, 0.02


def is_alive(directory: str) -> bool:
    """Tell whether a process works in a directory."""
    try:
        descriptor = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def hold(directory: str) -> int | None:
    """Become the process of a directory: return the descriptor of its lock, or None if there is one. Raise OSError."""
    descriptor = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Who looks whether anybody is here holds the lock for a moment.
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_AGAIN_S)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor
    os.close(descriptor)
    return None


def say_work(descriptor: int, work: bytes) -> None:
    """Write into one's lock what the work is; b"": none any more, although the process still lives."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, work, 0)


def said_work(directory: str) -> bytes:
    """Return what stands in the lock; it means something only while `is_alive`."""
    try:
        with open_regular(os.path.join(directory, LOCK)) as stream:
            return stream.read(_LOCK_BYTES)
    except OSError:
        return b""


def server_runs() -> Callable[[], bool]:
    """Return what tells whether the server still runs in whose data directory this is called."""
    path = os.path.abspath("postmaster.pid")
    beginning = os.path.exists(path)
    return lambda: not beginning or os.path.exists(path)


def detach(words: Sequence[str]) -> None:
    """Run the program in a process that neither the server nor a terminal can end by accident. Raise OSError.

    It begins in this directory, and has nothing open but /dev/null: nobody who reads to the end of a pipe waits for it.
    """
    import polarvault

    program = os.path.join(os.path.dirname(os.path.abspath(polarvault.__file__)), "__main__.py")
    # By file and by absolute path, as in a restore_command.
    command = [os.path.abspath(sys.executable), "-I", program, *words]
    most = os.sysconf("SC_OPEN_MAX")
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    # Nothing but system calls from here on: what fails must not come back as a second server's command.
    try:
        os.setsid()
        if os.fork() == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            # Servers hand on pipes and sockets of their own, too.
            os.closerange(3, most)
            os.execv(command[0], command)
    finally:
        os._exit(0)
