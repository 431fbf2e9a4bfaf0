"""Push what waits beside a file in the same call, in parallel: an archiver asks for one segment at a time.

The server notes in archive_status, beside its WAL, what is to be archived (server: access/transam/pgarch.c). A push of
another file that fails is nobody's failure: it has no mark, and the server's own call for it says what is wrong.
"""

from __future__ import annotations

import os
import threading
import time

from polarvault.errors import PolarvaultError
from polarvault.wal.names import is_backup_history_name, is_segment_name
from polarvault.walarchive.pushing.marks import file_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polarvault.walarchive.pushing.marks import Marks

_READY = ".ready"
# As many names as the server itself looks up at once (NUM_FILES_PER_DIRECTORY_SCAN).
_MOST_FILES = 64
# After this no other file is begun: the server waits for the answer about its own.
_BEGIN_WITHIN_S = 5.0
_THREADS = 3


def waiting_beside(path: str) -> list[str]:
    """Return the paths of the other files that the server wants archived, in its order; histories are left to it."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        found = os.listdir(os.path.join(directory, "archive_status"))
    except OSError:
        return []  # No server's pg_wal.
    names = sorted(name.removesuffix(_READY) for name in found if name.endswith(_READY))
    own = os.path.basename(path)
    # No link is followed out of the directory: these names were not given to us.
    return [
        beside
        for name in names
        if name != own and (is_segment_name(name.removesuffix(".partial")) or is_backup_history_name(name))
        if not os.path.islink(beside := os.path.join(directory, name))
    ]


class Ahead:
    """Pushes other files by threads while the caller pushes its own. push: durable when it returns, else it raises."""

    def __init__(self, push: Callable[[str], object], marks: Marks, places: Callable[[], Sequence[str]]) -> None:
        self._push, self._marks, self._places = push, marks, places
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._waiting: list[str] = []
        self._threads: list[threading.Thread] = []

    def begin(self, paths: Sequence[str]) -> None:
        """Begin to push those that have no mark yet."""
        wanted = [path for path in paths[:_MOST_FILES] if not self._marks.has(path)]
        self._waiting = wanted[::-1]
        until = time.monotonic() + _BEGIN_WITHIN_S
        self._threads = [threading.Thread(target=self._work, args=(until,), name="wal-push") for _ in wanted[:_THREADS]]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no other file."""
        self._stop.set()

    def join(self) -> None:
        """Wait for what was begun."""
        for thread in self._threads:
            thread.join()

    def _work(self, until: float) -> None:
        while not self._stop.is_set() and time.monotonic() < until:
            with self._lock:
                if not self._waiting:
                    return
                path = self._waiting.pop()
            try:
                identity = file_identity(path)
                self._push(path)
                self._marks.leave(path, identity, self._places())
            except (PolarvaultError, OSError):
                # What is wrong with one is mostly wrong with all: the next call tries them again.
                return
