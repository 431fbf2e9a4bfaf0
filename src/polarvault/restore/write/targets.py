"""The directories that a restore fills, and how to take back exactly what it made."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress

from polarvault.errors import StorageFailed, TargetNotEmpty
from polarvault.instance.account import working_as_account
from polarvault.instance.model import Account
from polarvault.storage.below import Below
from polarvault.storage.files import fsync_parent, storage_failed

_REMOVE_ATTEMPTS = 20
_REMOVE_PAUSE_S = 0.1


class Targets:
    """Claimed directories; `undo` removes what was made since, and nothing that was there before.

    With sync the names of those that are made are durable once they are claimed.

    Everything is done with the rights of the account that is to own it. Root's are used for two things: to make a
    directory where the account may not, and to give it an empty one; each by descriptor, and never through a link.
    """

    def __init__(self, account: Account, *, directory_mode: int, sync: bool) -> None:
        self._account = account
        self._sync = sync
        self._mode = directory_mode
        self._made: list[str] = []
        self._emptied: list[tuple[str, os.stat_result]] = []

    def claim(self, directories: Sequence[str]) -> None:
        """Make each directory, or take an empty one; raise TargetNotEmpty for any other."""
        # Outer before inner: one tablespace may lie inside of another.
        for directory in sorted(directories, key=lambda path: path.count(os.sep)):
            try:
                self._claim(directory)
            except OSError as problem:
                raise storage_failed(problem, "create directory", directory) from problem
            self._check_access(directory)

    def _check_access(self, directory: str) -> None:
        with working_as_account(self._account):
            may = os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
        if not may:
            raise StorageFailed(
                f'user {self._account.name}, who is to own the restored server, cannot enter "{directory}"',
                hint=f"see who may pass on the way there: namei -l {shlex.quote(directory)}; or choose another "
                "directory",
            )

    def _claim(self, directory: str) -> None:
        missing = []
        parent = directory
        while not os.path.lexists(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        if not missing:
            self._take_empty(directory)
        for path in reversed(missing):
            # Noted first: an interruption between the two lines would leave the directory behind.
            self._made.append(path)
            self._make(path, self._mode if path == directory else None)
            # What the restore syncs at its end is below the target: a parent made here would not be among it.
            if self._sync:
                fsync_parent(path)

    def _take_empty(self, directory: str) -> None:
        # From the top, component by component, so that no link which has appeared since is followed.
        with Below("/") as system:
            name = os.path.realpath(directory).lstrip("/")
            # Checked again here: between the plan and now somebody may have put something there.
            if system.names(name):
                raise TargetNotEmpty(f'directory "{directory}" exists but is not empty', hint="it was not touched")
            descriptor = system.open_directory(name)
            try:
                status = os.fstat(descriptor)
                self._emptied.append((directory, status))
                if status.st_uid != self._account.uid and os.geteuid() == 0:
                    self._check_gift(directory, status)
                    os.fchown(descriptor, self._account.uid, self._account.gid)
                # The server refuses a data directory that others can read (manual, 19.2).
                os.fchmod(descriptor, self._mode)
            finally:
                os.close(descriptor)

    def _check_gift(self, directory: str, status: os.stat_result) -> None:
        """Refuse to give away a directory to which a link leads that is not root's: anybody may have made it."""
        path = directory
        while path != os.path.dirname(path):
            if os.path.islink(path) and os.lstat(path).st_uid != 0:
                raise StorageFailed(
                    f'"{directory}" belongs to user {status.st_uid}, and the link "{path}" on the way to it is not '
                    f"root's: it is not given to {self._account.name}",
                    hint=f"name the directory itself: -D {shlex.quote(os.path.realpath(directory))}",
                )
            path = os.path.dirname(path)

    def _make(self, path: str, mode: int | None) -> None:
        try:
            with working_as_account(self._account):
                os.mkdir(path)
                if mode is not None:
                    os.chmod(path, mode)
            return
        except PermissionError:
            if os.geteuid() != 0:
                raise
        # The account may not write there, so it cannot put a link in the way either.
        with Below("/", owner=(self._account.uid, self._account.gid)) as system:
            name = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)).lstrip("/")
            if not system.make_directory(name, 0o755 if mode is None else mode):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            if mode is not None:
                system.change_mode(name, mode)

    def undo(self) -> None:
        """Remove what was made; safe to call twice. A directory that was there before stays, empty, as it was."""
        with working_as_account(self._account):
            for directory, _ in self._emptied:
                _empty(directory)
            for path in reversed(self._made):
                _remove_tree(path)
        for path in reversed(self._made):
            # In a place where the account may not write: what is left of it is an empty directory.
            with suppress(OSError):
                os.rmdir(path)
        for directory, status in self._emptied:
            with suppress(OSError), Below("/") as system:
                descriptor = system.open_directory(os.path.realpath(directory).lstrip("/"))
                try:
                    if os.geteuid() == 0:
                        os.fchown(descriptor, status.st_uid, status.st_gid)
                    os.fchmod(descriptor, status.st_mode & 0o7777)
                finally:
                    os.close(descriptor)
        self._emptied, self._made = [], []


def _empty(directory: str) -> None:
    with suppress(OSError):
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if os.path.isdir(path) and not os.path.islink(path):
                _remove_tree(path)
            else:
                with suppress(OSError):
                    os.unlink(path)


def _remove_tree(path: str) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path) or not _holds_something(path):
            return
        # A signal that arrives while a worker thread starts leaves that worker unjoined: let it finish its step.
        time.sleep(_REMOVE_PAUSE_S)


def _holds_something(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(entries)
    except OSError:
        return True
