"""What postmaster.pid says of a running server: its process, where it listens, how far its start has come.

The server writes one fact a line (server: utils/pidfile.h): 1 process id, 2 data directory, 3 start time, 4 port, 5 the
first socket directory, 6 the first listen address, 7 shared memory, 8 status. None of it depends on a language.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum

from polarvault.errors import StartFailed
from polarvault.storage.files import open_regular

LOCK_FILE_NAME = "postmaster.pid"
# A standalone server writes its number with a minus; Python takes digits of other scripts, and PostgreSQL does not.
_NUMBER = re.compile(r"-?[0-9]{1,9}\Z")
_PID, _PORT, _SOCKET_DIRECTORY, _ADDRESS, _STATUS = 0, 3, 4, 5, 7


class ServerStatus(Enum):
    """The status line (server: PM_STATUS_*); padded with blanks there."""

    STARTING = "starting"
    STOPPING = "stopping"
    READY = "ready"
    STANDBY = "standby"

    @property
    def takes_connections(self) -> bool:
        """Tell whether a session is refused for another reason than that the server is not ready."""
        return self in (ServerStatus.READY, ServerStatus.STANDBY)


@dataclass(frozen=True, slots=True)
class LockFile:
    """The facts of one postmaster.pid; those that are not written yet are None."""

    pid: int | None
    host: str | None
    port: int | None
    status: ServerStatus | None


def read_lock_file(data_directory: str) -> LockFile | None:
    """Return what the lock file says; None when there is none or it cannot be read."""
    try:
        with open_regular(os.path.join(data_directory, LOCK_FILE_NAME)) as stream:
            lines = stream.read(4096).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None

    def line(number: int) -> str:
        return lines[number].strip() if number < len(lines) else ""

    statuses = {status.value: status for status in ServerStatus}
    return LockFile(
        pid=int(line(_PID)) if _NUMBER.match(line(_PID)) else None,
        host=_host(data_directory, line(_SOCKET_DIRECTORY), line(_ADDRESS)),
        port=int(line(_PORT)) if _NUMBER.match(line(_PORT)) else None,
        status=statuses.get(line(_STATUS)),
    )


def _host(data_directory: str, socket_directory: str, address: str) -> str | None:
    if not socket_directory:
        return address.replace("*", "localhost") or None
    # `@name` is a socket without a file; any other relative place counts from the server's working directory, which is
    # its data directory.
    if socket_directory.startswith(("/", "@")):
        return socket_directory
    return os.path.normpath(os.path.join(data_directory, socket_directory))


def is_running(data_directory: str) -> bool:
    """Tell whether a server runs there: the lock file is there, and its process lives.

    A server that was killed leaves the file, and where nobody reaps it, a process table entry as well.
    """
    lock = read_lock_file(data_directory)
    if lock is None:
        return False
    # Not a number yet: it is just being written.
    return lock.pid is None or _is_alive(abs(lock.pid))


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            # The state follows the program's name, which stands in parentheses.
            return stream.read().rpartition(")")[2].split()[:1] != ["Z"]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # It is there, and somebody else's.
    return True


def server_address(data_directory: str) -> tuple[str, int]:
    """Return where a running server listens: a socket directory or an address, and the port. Raise StartFailed."""
    lock = read_lock_file(data_directory)
    if lock is None or lock.host is None or lock.port is None:
        raise StartFailed(f'"{data_directory}/{LOCK_FILE_NAME}" cannot be read: the server stopped again')
    return lock.host, lock.port
