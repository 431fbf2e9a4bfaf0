"""The directories that a restore fills, and how to take back exactly what it made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence

from polarvault.instance.model import Account
from polarvault.storage.files import storage_failed
from polarvault.storage.occupants import not_empty, occupant_of

_REMOVE_ATTEMPTS = 20
_REMOVE_PAUSE_S = 0.1


class Targets:
    """Claimed directories; `undo` removes what was made since, and nothing that was there before."""

    def __init__(self, account: Account, *, directory_mode: int) -> None:
        self._account = account
        self._mode = directory_mode
        self._made: list[str] = []
        self._emptied: list[tuple[str, int]] = []

    def claim(self, directories: Sequence[str]) -> None:
        """Make each directory, or take an empty one; raise TargetNotEmpty for any other."""
        for directory in directories:
            try:
                self._claim(directory)
            except OSError as problem:
                raise storage_failed(problem, "create directory", directory) from problem

    def _claim(self, directory: str) -> None:
        missing = []
        parent = directory
        while not os.path.lexists(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        if not missing:
            # Checked again here: between the plan and now somebody may have put something there.
            if (occupant := occupant_of(directory)) is not None:
                raise not_empty(occupant, replaceable=True)
            self._emptied.append((directory, os.stat(directory).st_mode & 0o7777))
        for path in reversed(missing):
            # Noted first: an interruption between the two lines would leave the directory behind.
            self._made.append(path)
            os.mkdir(path)
            self._own(path)
        # The server refuses a data directory that others can read (manual, 19.2).
        os.chmod(directory, self._mode)
        self._own(directory)

    def _own(self, path: str) -> None:
        if os.geteuid() == 0:
            os.chown(path, self._account.uid, self._account.gid)

    def undo(self) -> None:
        """Remove what was made; safe to call twice. A directory that was there before stays, empty."""
        for directory, mode in self._emptied:
            for name in os.listdir(directory):
                path = os.path.join(directory, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    _remove_tree(path)
                else:
                    os.unlink(path)
            os.chmod(directory, mode)
        for path in reversed(self._made):
            _remove_tree(path)
        self._emptied, self._made = [], []


def _remove_tree(path: str) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
        # A signal that arrives while a worker thread starts leaves that worker unjoined: let it finish its step.
        time.sleep(_REMOVE_PAUSE_S)
