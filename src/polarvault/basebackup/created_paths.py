"""Target directories: verified empty before use, emptied or removed after a failure, as pg_basebackup does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from polarvault.errors import TargetNotEmpty
from polarvault.storage import files


class CreatedPaths:
    """Remembers which directories this backup made and which it found empty."""

    def __init__(self, directory_mode: int) -> None:
        self._mode = directory_mode
        self._made: list[str] = []
        self._found: list[str] = []

    def claim(self, directory: str) -> None:
        """Make the directory, or accept an empty one; raise TargetNotEmpty otherwise."""
        try:
            if os.path.isdir(directory):
                if os.listdir(directory):
                    raise TargetNotEmpty(
                        f'directory "{directory}" exists but is not empty',
                        hint="choose another directory, or remove what is in it if it is not needed",
                    )
                self._found.append(directory)
                return
            # Remember the topmost directory made, so that a failure removes the parents as well.
            top = directory
            while not os.path.exists(parent := os.path.dirname(os.path.abspath(top))):
                top = parent
            os.makedirs(directory, self._mode)
            self._made.append(directory)
        except OSError as problem:
            raise files.storage_failed(problem, "create directory", directory) from problem

    def clean_up(self, say: Callable[[str], None]) -> None:
        """Undo everything: remove what was made, empty what was found."""
        for directory in reversed(self._made):
            say(f'removing directory "{directory}"')
            shutil.rmtree(directory, ignore_errors=True)
        for directory in reversed(self._found):
            say(f'removing contents of directory "{directory}"')
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)

    def say_kept(self, say: Callable[[str], None]) -> None:
        """Tell what is left in place."""
        for directory in self._made + self._found:
            say(f'directory "{directory}" not removed at user\'s request')
