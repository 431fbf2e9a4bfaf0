"""The process that fetches WAL ahead of a recovery; `ahead` has the theory, and the fetch's half."""

from __future__ import annotations

import contextlib
import os
import time

from polarvault.errors import PolarvaultError, StorageFailed
from polarvault.storage.files import open_regular
from polarvault.wal.names import is_segment_name
from polarvault.walarchive.detached import LOCK, hold
from polarvault.walarchive.fetching.ahead import ASKED, BUSY, KEY
from polarvault.walarchive.store.space import has_space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polarvault.wal.source import WalSource
    from polarvault.walarchive.fetch import Fetcher

_NEW = ".new"
# What is kept ahead: so many bytes, in so many files, but always one.
_AHEAD_BYTES, _MOST_AHEAD = 128 << 20, 16
# So many times that much has to be free: a recovery that fills the disk of something else is no help.
_FREE = 8
_IDLE_S = 30.0
# After the end of the WAL, or an error, the place is left alone for a while.
_PAUSE_S = 5.0
_POLL_S = 0.02
_THREADS = 2


class Prefetcher:
    """Keeps the segments behind the one that was served last. fetcher: must raise instead of warning."""

    def __init__(
        self,
        directory: str,
        sources: Sequence[WalSource],
        fetcher: Fetcher,
        *,
        idle_s: float = _IDLE_S,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._directory, self._sources, self._fetcher = directory, tuple(sources), fetcher
        self._idle_s, self._is_wanted = idle_s, is_wanted
        self._paused_until = 0.0

    def run(self) -> None:
        """Work until nobody asks any more; return at once if another one works here."""
        with contextlib.suppress(FileNotFoundError):
            if (descriptor := hold(self._directory)) is None:
                return
            try:
                self._clear(())
                self._work()
                self._leave()
            finally:
                os.close(descriptor)

    def _work(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        asked, asked_at = self._asked(), time.monotonic()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="wal-fetch") as pool:
            while time.monotonic() - asked_at < self._idle_s and self._is_wanted():
                now = self._asked()
                if now != asked:
                    asked, asked_at = now, time.monotonic()
                missing = self._missing(*asked[:2])
                # Two at a time, in order: what is needed first comes first.
                if not missing or not all(list(pool.map(self._get, missing[:_THREADS]))):
                    time.sleep(_POLL_S)

    def _asked(self) -> tuple[str, int, int]:
        """Return the segment that was served last, the size of segments, and what changes with each."""
        try:
            with open_regular(os.path.join(self._directory, ASKED)) as stream:
                name, size = stream.read(64).decode("ascii").split()
                return name, int(size), os.fstat(stream.fileno()).st_mtime_ns
        except (OSError, ValueError):
            return "", 0, 0

    def _missing(self, asked: str, size: int) -> list[str]:
        """Return the names of the next segments that are not here, and remove what is not among the next ones."""
        from polarvault.model.segment import WalSegment

        if not is_segment_name(asked) or time.monotonic() < self._paused_until:
            return []
        try:
            segment = WalSegment.parse(asked, size)
        except ValueError:
            return []
        count = max(1, min(_MOST_AHEAD, _AHEAD_BYTES // size))
        if not has_space(self._directory, _FREE * count * size):
            return self._pause()
        names = []
        for _ in range(count):
            segment = segment.next()
            names.append(segment.file_name)
        self._clear(names)
        return [name for name in names if not os.path.exists(os.path.join(self._directory, name))]

    def _pause(self) -> list[str]:
        self._paused_until = time.monotonic() + _PAUSE_S
        return []

    def _get(self, name: str) -> bool:
        """Fetch a finished segment; False if it is not there, or anything is wrong with it."""
        path = os.path.join(self._directory, name)
        busy = path + BUSY
        try:
            os.close(os.open(busy, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                if self._is_finished(name) and self._fetcher.fetch(name, path + _NEW):
                    os.rename(path + _NEW, path)
                    return True
            finally:
                os.unlink(busy)
        except (PolarvaultError, OSError):
            pass  # The fetch that needs it says what is wrong.
        self._pause()
        return False

    def _is_finished(self, name: str) -> bool:
        return any(copy.is_final for source in self._sources for copy in source.copies(name))

    def _clear(self, names: Sequence[str]) -> None:
        kept = {LOCK, ASKED, KEY, *names, *(name + BUSY for name in names)}
        with contextlib.suppress(OSError):
            for name in set(os.listdir(self._directory)) - kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._directory, name))

    def _leave(self) -> None:
        """Remove the directory; whoever comes meanwhile makes another one, or does without."""
        self._clear(())
        with contextlib.suppress(OSError):
            for name in (ASKED, KEY, LOCK):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._directory, name))
            os.rmdir(self._directory)


def refuse_to_warn(message: str) -> None:
    """Raise: what a person has to hear of is left to the fetch itself."""
    raise StorageFailed(message)
