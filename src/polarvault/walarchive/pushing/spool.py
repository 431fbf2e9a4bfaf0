"""A local directory that takes WAL while the repository is away; what is in it is uploaded by later pushes.

A file that is in the spool counts as archived: it is durable here, and the server may forget it. So nothing is ever
removed that is not durable in every repository, and a spool that is full refuses.
"""

from __future__ import annotations

import contextlib
import os
import time

from polarvault.errors import DiskFull, PolarvaultError, RepositoryNotFound, StorageFailed, UsageError
from polarvault.model.ownership import others_may_change
from polarvault.storage.below import Below
from polarvault.storage.files import make_directories, open_regular, storage_failed
from polarvault.wal.names import is_backup_history_name, is_history_name, is_segment_name
from polarvault.walarchive.pushing.directory import DirectoryPusher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A repository that did not answer is not asked again for so long, or for twice as long as it took to find that out: one
# that hangs takes minutes, in which the server archives nothing.
_AWAY_S, _LONGEST_AWAY_S = 20.0, 3600.0
_AWAY_TIMES = 2.0
_AWAY_NAME = ".away"
# The server waits while older files are uploaded before its own.
_UPLOAD_S = 20.0


class Spool:
    """The spool of one cluster: a directory of its name below the one that was given, made if it is missing.

    most_bytes: what the files may take together.
    """

    def __init__(self, directory: str, cluster: str, most_bytes: int) -> None:
        self.path = os.path.join(os.path.abspath(directory), cluster)
        self._most_bytes = most_bytes
        try:
            # Another push may make it at the same time.
            with contextlib.suppress(FileExistsError):
                make_directories(self.path, 0o700, sync=True)
        except OSError as problem:
            raise storage_failed(problem, "make the directory", self.path) from problem
        try:
            is_open_to_others = others_may_change(os.stat(self.path))
        except OSError as problem:
            raise storage_failed(problem, "look at", self.path) from problem
        if is_open_to_others:
            # What lies there is uploaded as WAL of the cluster.
            raise UsageError(
                f'the spool "{self.path}" belongs to another account, or others may write into it',
                hint=f'see what is in it, then make it this account\'s own: chmod 700 "{self.path}"',
            )
        self._pusher = DirectoryPusher(self.path)

    def waiting(self) -> list[str]:
        """Return the paths of what is to be uploaded: histories first, then in the order of the WAL."""
        return sorted(
            (os.path.join(self.path, name) for name in self._names()),
            key=lambda path: (not is_history_name(os.path.basename(path)), os.path.basename(path)[8:], path),
        )

    def upload(self, push: Callable[[str], object], *, within_s: float | None = _UPLOAD_S) -> int:
        """Push what waits and remove it here; return how many files that were. push: durable when it returns.

        One that is refused stays, and its error is raised when the others are through; a repository that is away ends
        it at once. After within_s no other is begun.
        """
        begun, done = time.monotonic(), 0
        refused: PolarvaultError | None = None
        for path in self.waiting():
            if within_s is not None and done and time.monotonic() - begun >= within_s:
                break
            try:
                push(path)
            except PolarvaultError as problem:
                if is_away(problem):
                    raise
                refused = refused or problem
                continue
            self._remove(path)
            if not done:
                # It answers: what is archived next goes there, and not into the spool until somebody looks again.
                self._forget_away()
            done += 1
        if refused is not None:
            raise refused
        return done

    def keep(self, path: str) -> None:
        """Take a file; durable on return. DiskFull if it does not fit. The same one again is a success."""
        name = os.path.basename(path)
        taken = self._taken(but=name)
        try:
            size = os.stat(path).st_size
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem
        if taken + size > self._most_bytes:
            raise DiskFull(
                f'the spool "{self.path}" is full: it holds {taken} bytes, "{name}" has {size}, and '
                f"--spool-max allows {self._most_bytes}",
                hint="bring the repository back, or give the spool more; the server keeps what is not archived",
            )
        self._pusher.push(path)

    def note_away(self, took_s: float = 0.0) -> None:
        """Remember that the repository has just not answered, and how long it took to find that out."""
        # Where there is no room for it, the repository is asked again sooner.
        with contextlib.suppress(OSError), Below(self.path) as below:
            below.write(_AWAY_NAME, b"%d" % min(took_s, _LONGEST_AWAY_S), 0o600, sync=False, replace=True)

    def _forget_away(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, _AWAY_NAME))

    def was_away(self) -> bool:
        """Tell whether the repository did not answer a moment ago."""
        try:
            with open_regular(os.path.join(self.path, _AWAY_NAME)) as stream:
                age_s = time.time() - os.fstat(stream.fileno()).st_mtime
                took_s = min(int(stream.read(16) or b"0"), _LONGEST_AWAY_S)
        except (OSError, ValueError):
            return False
        return 0 <= age_s < max(_AWAY_S, _AWAY_TIMES * took_s)

    def _remove(self, path: str) -> None:
        try:
            # Another upload may have been quicker, and had it durable as well.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as problem:
            raise storage_failed(problem, "remove", path) from problem

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self.path)
        except OSError as problem:
            raise storage_failed(problem, "read", self.path) from problem
        return [
            name
            for name in found
            if is_segment_name(name.removesuffix(".partial")) or is_history_name(name) or is_backup_history_name(name)
        ]

    def _taken(self, *, but: str) -> int:
        taken = 0
        for name in self._names():
            try:
                taken += os.stat(os.path.join(self.path, name)).st_size if name != but else 0
            except FileNotFoundError:
                continue  # It was uploaded meanwhile.
        return taken


def is_away(problem: PolarvaultError) -> bool:
    """Tell an error of a repository that cannot be used now from a refusal of the file."""
    return isinstance(problem, (StorageFailed, RepositoryNotFound))


def push_or_keep(path: str, push: Callable[[str], object], spool: Spool) -> tuple[bool, PolarvaultError | None]:
    """Push what waits in the spool, then a file; or keep it. Return whether it was kept, and what has to be said.

    What cannot be pushed for another reason than that the repository is away is an error, as without a spool. What is
    wrong with an older file does not keep a newer one from being archived: it stays in the spool, and is said.
    """
    if spool.was_away():
        spool.keep(path)
        return True, None
    begun = time.monotonic()
    why: PolarvaultError | None = None
    try:
        spool.upload(push)
    except PolarvaultError as problem:
        why = problem
    if why is None or not is_away(why):
        try:
            push(path)
        except PolarvaultError as problem:
            if not is_away(problem):
                raise
            why = problem
        else:
            return False, why
    took_s = time.monotonic() - begun
    spool.keep(path)
    spool.note_away(took_s)
    return True, why
