"""The process that pushes WAL ahead of the server's asking; `ahead` has the theory, and the call's half.

It takes what the server wants archived, looks again when that is done, and ends when there has been nothing for a
while, when the server does not take what was pushed (nobody asks), when the server is gone, or at the first failure.
Each thread is at one file, of which it holds one range in memory, however large segments are.
"""

from __future__ import annotations

import os
import threading
import time

from polarvault.errors import PolarvaultError
from polarvault.storage.files import open_regular
from polarvault.walarchive.pushing.ahead import ASKED, may_be_ahead, ready_names
from polarvault.walarchive.pushing.marks import file_identity, place_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polarvault.walarchive.pushing.marks import Marks

# One more than most machines here have cores to spare: one of them waits for the disk.
_THREADS = 3
# Starting anew costs as much as two segments, so that the next ones are waited for a moment.
_LINGER_S = 3.0
_IDLE_S = 60.0
_SCAN_S = 1.0
_POLL_S = 0.02


class Forerunner:
    """Pushes what waits in a pg_wal. own: the name that its first call pushes; push: durable when it returns.

    places: of `place_identity`, from before the repositories were opened; it ends when they are not the same any more.
    is_wanted: asked between two files. give_up: called at once when a push fails, while other threads may be at theirs.
    """

    def __init__(
        self,
        marks: Marks,
        directory: str,
        push: Callable[[str], object],
        places: Sequence[str],
        *,
        own: str,
        is_wanted: Callable[[], bool] = lambda: True,
        give_up: Callable[[], None] = lambda: None,
        linger_s: float = _LINGER_S,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._marks, self._directory, self._push, self._places, self._own = marks, directory, push, places, own
        self._is_wanted, self._give_up = is_wanted, give_up
        self._linger_s, self._idle_s = linger_s, idle_s
        # Held by the thread that chooses, also while it waits for something to choose.
        self._choosing = threading.Lock()
        self._stop = threading.Event()
        # Changed without the lock, each by one operation of a dict or set.
        # Each with what was asked when it was done.
        self._done: dict[str, tuple[str, int]] = {}
        self._at_work: set[str] = set()
        self._waiting: list[str] = []
        self._seen: set[str] = set()
        self._asked: tuple[str, int] = ("", 0)
        self._scanned_at = float("-inf")
        self._progress_at = time.monotonic()

    def run(self) -> None:
        """Work until nothing is left; what was begun is finished. Raises nothing for a push that fails."""
        # What was asked of another one before us is nothing to us.
        self._asked = self._read_asked()
        threads = [threading.Thread(target=self._work, name="wal-push") for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (name := self._next()) is not None and self._archive(name):
                pass
        finally:
            self._stop.set()

    def _archive(self, name: str) -> bool:
        path = os.path.join(self._directory, name)
        try:
            identity = file_identity(path)
            self._push(path)
            is_marked = self._marks.leave(path, identity, self._places)
        except (PolarvaultError, OSError):
            is_marked = False
        if not is_marked:
            # The server's own call says what is wrong; it must not wait for us until the others are through.
            self._give_up()
            return False
        self._done[name] = self._read_asked()
        self._at_work.discard(name)
        return True

    def _next(self) -> str | None:
        """Return the name of the next file, or None when it is time to end."""
        with self._choosing:
            end_at = time.monotonic() + self._linger_s
            while not self._stop.is_set() and time.monotonic() < end_at:
                if (name := self._choose()) is not None:
                    self._at_work.add(name)
                    return name
                if self._at_work:
                    # A large one keeps another thread for as long; what comes meanwhile is not left to the calls.
                    end_at = time.monotonic() + self._linger_s
                time.sleep(_POLL_S)
            return None

    def _choose(self) -> str | None:
        if (asked := self._newly_asked()) is not None:
            return asked
        if not self._waiting or time.monotonic() - self._scanned_at >= _SCAN_S:
            self._scan()
        while self._waiting:
            name = self._waiting.pop()
            if name not in self._at_work and name not in self._done and not self._is_marked(name):
                return name
        return None

    def _newly_asked(self) -> str | None:
        """Return a file that a call has begun to wait for, although nobody is at it and no mark is there.

        So it is with one that was passed over, and with one whose mark was used by a call that did not live to say so.
        """
        if (asked := self._read_asked()) == self._asked:
            return None
        self._asked, self._progress_at = asked, time.monotonic()
        name, path = asked[0], os.path.join(self._directory, asked[0])
        # In this order: what was at work a moment ago is done now. What was asked for when it was done has its answer.
        if name in self._at_work or self._done.get(name) == asked or self._has_mark(path):
            return None
        return name if name in ready_names(self._directory) and may_be_ahead(path) else None

    def _read_asked(self) -> tuple[str, int]:
        try:
            with open_regular(os.path.join(self._marks.directory, ASKED)) as stream:
                return stream.read(64).decode("ascii"), os.fstat(stream.fileno()).st_mtime_ns
        except (OSError, ValueError):
            return "", 0

    def _scan(self) -> None:
        self._scanned_at = time.monotonic()
        names = ready_names(self._directory)
        found = set(names)
        if self._seen - found:
            self._progress_at = self._scanned_at
        self._seen = found
        is_there = all(place_identity(one.partition("\t")[0]) == one for one in self._places)
        if self._scanned_at - self._progress_at >= self._idle_s or not is_there or not self._is_wanted():
            self._stop.set()
            self._waiting = []
            return
        for name in self._done.keys() - found:
            del self._done[name]
        self._marks.forget_others(found)
        # The last one comes first; its own call is at the one that has started us.
        self._waiting = [name for name in reversed(names) if name not in self._done and name != self._own]

    def _is_marked(self, name: str) -> bool:
        """Tell whether a name is not to be pushed: one before us has done it, or it is no file that goes ahead."""
        path = os.path.join(self._directory, name)
        if may_be_ahead(path) and not self._has_mark(path):
            return False
        self._done[name] = self._asked
        return True

    def _has_mark(self, path: str) -> bool:
        try:
            return self._marks.has(path)
        except PolarvaultError:
            return True  # The server has taken the file away since.
