"""WAL pushed ahead of the server's asking: an archiver asks for one segment at a time.

Theory. The server notes in archive_status, beside its WAL, what is to be archived (server: access/transam/pgarch.c).
Where more than a few files wait there, a call leaves a process behind (`forerunner`) that pushes them in the server's
order and leaves a mark for each that is durable; the call itself answers as soon as its own file is durable. As long as
the process lives, which its lock tells, a call whose file has no mark yet waits for it. Nothing depends on the process:
whatever becomes of it, the call pushes its file itself, and it alone says what is wrong. A process that one failure has
ended leaves the others to the server's calls, too: what is wrong with one file is mostly wrong with all.
"""

from __future__ import annotations

import os
import time

from polarvault.wal.names import is_backup_history_name, is_segment_name
from polarvault.walarchive.detached import detach, is_alive, said_work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from polarvault.walarchive.pushing.marks import Marks

ASKED = ".asked"
_READY = ".ready"
# Below that a process costs as much as what it takes over: its start is a good part of pushing a segment.
_FEWEST_FILES = 2
_LOOK_AT = 64
# A file that takes longer than that at the slowest is pushed by its own call: the process hangs.
_WAIT_S, _SLOWEST_BYTES_S = 30.0, 4 << 20
_POLL_S = 0.003


def ready_names(directory: str) -> list[str]:
    """Return the names of all files in a pg_wal that the server wants archived, in its order."""
    try:
        found = os.listdir(os.path.join(directory, "archive_status"))
    except OSError:
        return []  # No server's pg_wal.
    return sorted(name.removesuffix(_READY) for name in found if name.endswith(_READY))


def may_be_ahead(path: str) -> bool:
    """Tell whether a file may be pushed by other than its own call; histories, which come first anyway, may not."""
    name = os.path.basename(path)
    if not (is_segment_name(name.removesuffix(".partial")) or is_backup_history_name(name)):
        return False
    # No link is followed out of the directory: these names were not given to us.
    return not os.path.islink(path)


def waiting_beside(path: str) -> Iterator[str]:
    """Yield the paths of the other files that the server wants archived and that may be pushed ahead, in its order."""
    directory, own = os.path.split(os.path.abspath(path))
    for name in ready_names(directory):
        if name != own and may_be_ahead(beside := os.path.join(directory, name)):
            yield beside


class Ahead:
    """What was pushed ahead, as the call sees it that pushes `path`."""

    def __init__(self, marks: Marks, path: str, *, wait_s: float = _WAIT_S) -> None:
        self._marks, self._path, self._wait_s = marks, os.path.abspath(path), wait_s
        self._work = work_of(marks, os.path.dirname(self._path))

    def take(self) -> bool:
        """Wait for the process, if there is one, until it has archived the file; False if the call has to do it."""
        if not self._is_at_work() or not self._may_be_ahead():
            return False
        give_up_at = time.monotonic() + self._wait_s + _size_of(self._path) / _SLOWEST_BYTES_S
        if self._marks.take(self._path):
            return True  # Left a moment ago: asking for it would have it pushed once more.
        self._ask()
        while not self._marks.take(self._path):
            if not self._is_at_work():
                # It may have left the mark between the two looks.
                return self._marks.take(self._path)
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(_POLL_S)
        return True

    def start(self, words: Sequence[str]) -> None:
        """Start the process where that is worth it and none lives. words: what makes of `wal push` that process."""
        if not self._is_worth_it() or is_alive(self._marks.directory):
            return
        try:
            detach(["wal", "push", *words])
        except OSError:
            return  # No process, or no memory for one: each call pushes its own file.

    def _is_worth_it(self) -> bool:
        found = 0
        for looked_at, beside in enumerate(waiting_beside(self._path)):
            found += not self._marks.has(beside)
            if found >= _FEWEST_FILES or looked_at >= _LOOK_AT:
                break
        return found >= _FEWEST_FILES

    def _may_be_ahead(self) -> bool:
        directory, name = os.path.split(self._path)
        # Not what a person pushes: the process takes what the server wants.
        return may_be_ahead(self._path) and os.path.exists(os.path.join(directory, "archive_status", name + _READY))

    def _is_at_work(self) -> bool:
        # One that works on another directory, or has given up, is not waited for.
        return is_alive(self._marks.directory) and said_work(self._marks.directory) == self._work

    def _ask(self) -> None:
        """Say which file is waited for, in case that the process has passed it over."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            descriptor = os.open(os.path.join(self._marks.directory, ASKED), flags, 0o600)
            try:
                os.write(descriptor, os.path.basename(self._path).encode())
            finally:
                os.close(descriptor)
        except OSError:
            return  # Then it is not waited for longer than until the process ends.


def work_of(marks: Marks, directory: str) -> bytes:
    """Return what a process says that it does: for which command line, and in which pg_wal."""
    return f"{marks.told}\n{directory}".encode("utf-8", "surrogateescape")


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
