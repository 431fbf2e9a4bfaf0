"""Target directories: verified empty before use, emptied or removed after a failure, as pg_basebackup does."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from polarvault.backupset.unfinished import MARKER_NAME, marker_content
from polarvault.errors import UsageError
from polarvault.model.tablespace_mapping import mapping_option
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.storage.occupants import Occupancy, enclosing_occupant, not_empty, occupant_of


class Elsewhere(Protocol):
    """A place of the backup that is no directory of this machine, and knows itself how to take back what it has."""

    def clean_up(self, say: Callable[[str], None]) -> None:
        """Undo everything."""

    def say_kept(self, say: Callable[[str], None]) -> None:
        """Tell what is left in place."""


class CreatedPaths:
    """Remembers which directories this backup made, which it found empty, and which it has marked as unfinished.

    With sync all that it makes or takes away is durable on return.
    """

    def __init__(self, directory_mode: int, *, sync: bool) -> None:
        self._mode = directory_mode
        self._sync = sync
        self._made: list[str] = []
        self._found: list[str] = []
        self._marked: list[str] = []
        self.elsewhere: list[Elsewhere] = []

    def claim(self, directory: str, *, tablespace: str | None = None) -> None:
        """Make the directory, or accept an empty one; raise TargetNotEmpty otherwise, and UsageError inside a server.

        tablespace: where the source has the tablespace that it is for.
        """
        try:
            if (occupant := occupant_of(directory)) is not None:
                raise not_empty(occupant, tablespace=tablespace)
            _refuse_inside(directory, tablespace=tablespace)
            if os.path.isdir(directory):
                self._found.append(directory)
                return
            # Remember the topmost directory made, so that a failure removes the parents as well.
            top = directory
            while not os.path.exists(parent := os.path.dirname(os.path.abspath(top))):
                top = parent
            files.make_directories(directory, self._mode, sync=self._sync)
            self._made.append(directory)
        except OSError as problem:
            raise files.storage_failed(problem, "create directory", directory) from problem

    def mark(self, directory: str) -> None:
        """Have the directory say that a backup is being made in it; see `backupset.unfinished`."""
        content = marker_content(datetime.now(UTC), os.getpid())
        try:
            with Below(directory) as below:
                # Its name counts; what it says is for people.
                below.write(MARKER_NAME, content, self._mode & 0o640, sync=False)
                # Before anything that it marks: a power cut may leave what was written later and not this name.
                if self._sync:
                    below.sync_directory()
        except OSError as problem:
            raise files.storage_failed(problem, "write", os.path.join(directory, MARKER_NAME)) from problem
        self._marked.append(directory)

    def unmark(self) -> None:
        """The backup is whole: take the marks away, that of the first directory, where people look, last."""
        for directory in reversed(self._marked):
            try:
                with Below(directory) as below:
                    below.unlink(MARKER_NAME)
                    if self._sync:
                        below.sync_directory()
            except OSError as problem:
                raise files.storage_failed(problem, "remove", os.path.join(directory, MARKER_NAME)) from problem
        self._marked.clear()

    def clean_up(self, say: Callable[[str], None]) -> None:
        """Undo everything: remove what was made, empty what was found."""
        for place in self.elsewhere:
            place.clean_up(say)
        for directory in reversed(self._made):
            say(f'removing directory "{directory}"')
            _empty(directory)
            shutil.rmtree(directory, ignore_errors=True)
        for directory in reversed(self._found):
            say(f'removing contents of directory "{directory}"')
            _empty(directory)

    def say_kept(self, say: Callable[[str], None]) -> None:
        """Tell what is left in place."""
        for place in self.elsewhere:
            place.say_kept(say)
        for directory in self._made + self._found:
            say(f'directory "{directory}" not removed at user\'s request')


def _refuse_inside(directory: str, *, tablespace: str | None) -> None:
    """Raise UsageError for a directory inside of a server's: each backup would hold all earlier ones, and itself."""
    around = enclosing_occupant(directory)
    # A backup next to the files of an older one harms no server; pg_basebackup takes it, too.
    if around is None or around.occupancy is Occupancy.BACKUP:
        return
    hint = "choose a place outside of it, best on another disk or machine"
    if tablespace is not None:
        hint = f"give the tablespace's copy another place: {mapping_option(tablespace, 'NEW_DIRECTORY')}"
    raise UsageError(f'"{directory}" lies inside of "{around.path}", which is {around.occupancy.value}', hint=hint)


def _empty(directory: str) -> None:
    """Remove what is in a directory, the mark last: half of a backup must not look like a whole one."""
    # What cannot be removed is left: the failure that brought us here is the one to report.
    with contextlib.suppress(OSError):
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name == MARKER_NAME)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
