"""WAL fetched ahead of a recovery: `wal fetch` starts this beside itself, and finds the next segments in a directory.

Theory. A recovery asks for one segment at a time and replays it before it asks for the next; a start of the program,
a look into the repository and decoding would be waited for each time. So the first fetch from a repository leaves a
process behind (`Prefetcher`) that keeps the next few segments in a directory for state, by the same rules and checks as
a fetch. It holds a lock as long as it lives. A segment is taken from the directory only while that lock is held: what a
killed one, or a power cut, has left is never served, and the next one removes it. It ends when nobody has asked for a
while, or when the server is gone. Nothing depends on it: what it has not, or could not get, the fetch gets itself, and
it alone says what is wrong. Histories and unfinished segments are not fetched ahead, because they may still change.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time

from polarvault.errors import PolarvaultError, StorageFailed
from polarvault.storage.copying import copy_content
from polarvault.storage.files import open_regular
from polarvault.storage.state_directory import data_directories, state_directory
from polarvault.wal.names import is_segment_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, judge_place, parse_segment_header
from polarvault.walarchive.output import Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from polarvault.wal.source import WalSource
    from polarvault.walarchive.fetch import Fetcher

_LOCK, _ASKED, _BUSY, _NEW = ".lock", ".asked", ".busy", ".new"
# What is kept ahead: so many bytes, in so many files, but always one.
_AHEAD_BYTES, _MOST_AHEAD = 128 << 20, 16
# So many times that much has to be free: a recovery that fills the disk of something else is no help.
_FREE = 8
_IDLE_S = 30.0
# After the end of the WAL, or an error, the place is left alone for a while.
_PAUSE_S = 5.0
_POLL_S = 0.02
# A segment that is just being fetched is waited for; it takes as long as fetching it anew.
_WAIT_S = 30.0
_WAIT_POLL_S = 0.002
_THREADS = 2


class Ahead:
    """The directory of one recovery, as a fetch sees it."""

    def __init__(self, directory: str, *, system_identifier: int | None) -> None:
        self.directory = directory
        self._system_identifier = system_identifier

    def take(self, name: str, target: str) -> bool:
        """Give a segment to the server if it is here; False if it has to be fetched."""
        if not self._is_alive():
            return False
        path = os.path.join(self.directory, name)
        give_up_at = time.monotonic() + _WAIT_S
        while not os.path.exists(path):
            is_busy = os.path.exists(path + _BUSY)
            if not is_busy and not os.path.exists(path):
                return False
            if time.monotonic() >= give_up_at or not self._is_alive():
                return False
            time.sleep(_WAIT_POLL_S)
        try:
            size_bytes = self._serve(path, name, target)
        except OSError:
            return False  # The prefetcher has just ended, or it is another file.
        self.ask(name, size_bytes)
        return True

    def ask(self, name: str, size_bytes: int) -> None:
        """Say which segment was served, and the size of segments, so that those behind it are fetched."""
        # Without it, nothing is fetched ahead.
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.join(self.directory, _ASKED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, f"{name} {size_bytes}".encode(), 0)
            finally:
                os.close(descriptor)

    def start(self, words: Sequence[str]) -> None:
        """Start a prefetcher if none lives. words: of `wal fetch`, without the two names."""
        with contextlib.suppress(OSError):
            if not self._is_alive():
                _detach([*words, "--prefetch-into", self.directory])

    def _is_alive(self) -> bool:
        try:
            descriptor = os.open(os.path.join(self.directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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

    def _serve(self, path: str, name: str, target: str) -> int:
        with open_regular(path) as stream:
            header = parse_segment_header(os.pread(stream.fileno(), LONG_HEADER_BYTES, 0))
            if header is None or judge_place(name, header).problem is not None:
                raise OSError("it is another segment")
            if self._system_identifier not in (None, header.system_identifier):
                raise OSError("it is of another cluster")
            try:
                os.rename(path, target)
            except OSError:
                # Another file system.
                with Output(target) as output:
                    copy_content(stream.fileno(), output.descriptor, header.segment_size_bytes)
                    output.resize(header.segment_size_bytes)
                    output.publish()
                os.unlink(path)
            return header.segment_size_bytes


def open_ahead(
    environment: Mapping[str, str], told: str, target: str, *, system_identifier: int | None, make: bool
) -> Ahead | None:
    """Return the directory of a recovery: of what the command was told, and where the server wants its WAL.

    None if this account has no place for it or, unless it is to be made, nothing was fetched ahead yet.
    """
    import hashlib

    place = os.path.dirname(os.path.abspath(target))
    try:
        found = os.stat(place)
    except OSError:
        return None
    key = f"{told}\n{os.path.realpath(place)} {found.st_dev} {found.st_ino}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    directory = state_directory(environment, "fetched", name, outside=data_directories(target), make=make)
    return None if directory is None else Ahead(directory, system_identifier=system_identifier)


def _detach(words: Sequence[str]) -> None:
    """Run the program in a process that neither the server nor a terminal can end by accident."""
    import polarvault

    program = os.path.join(os.path.dirname(os.path.abspath(polarvault.__file__)), "__main__.py")
    # By file and by absolute path, as in a restore_command.
    command = [os.path.abspath(sys.executable), "-I", program, "wal", "fetch", *words]
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
            os.execv(command[0], command)
    finally:
        os._exit(0)


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
            descriptor = os.open(os.path.join(self._directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if _locked(descriptor):
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
            with open_regular(os.path.join(self._directory, _ASKED)) as stream:
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
        found = os.statvfs(self._directory)
        if found.f_bavail * found.f_frsize < _FREE * count * size:
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
        busy = path + _BUSY
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
        kept = {_LOCK, _ASKED, *names, *(name + _BUSY for name in names)}
        with contextlib.suppress(OSError):
            for name in set(os.listdir(self._directory)) - kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._directory, name))

    def _leave(self) -> None:
        """Remove the directory; whoever comes meanwhile makes another one, or does without."""
        self._clear(())
        with contextlib.suppress(OSError):
            for name in (_ASKED, _LOCK):
                os.unlink(os.path.join(self._directory, name))
            os.rmdir(self._directory)


def refuse_to_warn(message: str) -> None:
    """Raise: what a person has to hear of is left to the fetch itself."""
    raise StorageFailed(message)


def server_runs() -> Callable[[], bool]:
    """Return what tells whether the server still runs in whose data directory this was started."""
    beginning = os.path.exists("postmaster.pid")
    return lambda: not beginning or os.path.exists("postmaster.pid")


def _locked(descriptor: int) -> bool:
    # A fetch that looks whether anybody is here holds the lock for a moment.
    for _ in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
        else:
            return True
    return False
