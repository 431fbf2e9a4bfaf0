"""Snapshots by four commands of the user: for LVM, cloud disks, storage arrays.

Each is a list of words, run without a shell. In the words these are replaced:
  {name}    the name of the thing, polarvault-snapshot-ID or polarvault-clone-ID
  {source}  of `create`: the directories, each a word of its own where the word is nothing else
  {snapshot} of `clone`: the name of the snapshot
  {target}  of `clone`: a directory that the command makes; what is then below it is the copy: target/0, target/1, ...
            in the order of the directories, each with the directory's files
`list` prints a line for each thing that is there: its name, and after a blank the bytes that it takes, if known.
`destroy` is never called for a name that `list` does not print.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from polarvault.errors import PolarvaultError
from polarvault.snapshots.errors import NotOurs, SnapshotFailed, SnapshotRefused
from polarvault.snapshots.model import Atomicity, Kind, Made, Place
from polarvault.snapshots.names import name_of, parse_name
from polarvault.snapshots.programs import run
from polarvault.storage.files import open_regular, write_durably

_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CommandWords:
    """The four commands; is_atomic: what they make of several directories is of one moment."""

    create: tuple[str, ...]
    clone: tuple[str, ...]
    list: tuple[str, ...]
    destroy: tuple[str, ...]
    is_atomic: bool = False
    timeout_s: float = 600.0

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> CommandWords:
        """Return what `dataclasses.asdict` made a record of; raise TypeError for anything else."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        return cls(**values)


class Commands:
    """Keeps one small file for each thing in `at`, which tells what is in it. Implements `model.SnapshotProvider`."""

    def __init__(self, at: str, words: CommandWords) -> None:
        self._at = os.path.abspath(at)
        self._words = words

    @property
    def name(self) -> str:
        """The word for it."""
        return "commands"

    def atomicity(self, directories: Sequence[str]) -> Atomicity:
        """Return what the configuration says."""
        return Atomicity.SET if self._words.is_atomic else Atomicity.NEVER

    def is_atomic(self, directories: Sequence[str]) -> bool:
        """Tell what the configuration says."""
        return self._words.is_atomic

    def create(self, directories: Sequence[str], id_: str) -> Made:
        """Call `create`."""
        for directory in directories:
            if not os.path.isdir(directory):
                raise SnapshotRefused(f'"{directory}" is not a directory', hint=f"see what it is: ls -ld {directory}")
        name = name_of(Kind.SNAPSHOT, id_)
        sources = [os.path.realpath(directory) for directory in directories]
        places = tuple(Place(source, name, str(number), None) for number, source in enumerate(sources))
        made = Made(Kind.SNAPSHOT, id_, self.name, places)
        self._make(made, self._words.create, {"{name}": [name], "{source}": sources})
        return made

    def clone(self, snapshot: Made, target: str, id_: str) -> Made:
        """Call `clone`, and see that every directory is there."""
        name, target = name_of(Kind.CLONE, id_), os.path.abspath(target)
        if os.path.lexists(target):
            raise SnapshotRefused(f'"{target}" exists already', hint="nothing was changed")
        places = tuple(
            Place(place.source, name, place.inside, os.path.join(target, place.inside)) for place in snapshot.places
        )
        made = Made(Kind.CLONE, id_, self.name, places)
        words = {"{name}": [name], "{snapshot}": [name_of(Kind.SNAPSHOT, snapshot.id)], "{target}": [target]}
        self._make(made, self._words.clone, words)
        missing = next((place.path for place in places if not os.path.isdir(place.path or "")), None)
        if missing is not None:
            with suppress(PolarvaultError):
                self.destroy(made)
            raise SnapshotFailed(
                f'`{" ".join(self._words.clone)}` ended well, and "{missing}" is not there',
                hint="the command has to make a directory for each source, see docs/snapshots.md",
            )
        return made

    def things(self) -> list[Made]:
        """Call `list`; what it prints and has no file in `at` is somebody else's."""
        found = [self._read(name) for name in sorted(self._listed())]
        return [one for one in found if one is not None]

    def destroy(self, made: Made) -> None:
        """Call `destroy` for a thing that is listed and has its file."""
        name = name_of(made.kind, made.id)
        known = self._read(name)
        if name in self._listed():
            if known is None:
                raise NotOurs(f'{name} has no file in "{self._at}": it was not made here', hint=f"ls {self._at}")
            run(_replaced(self._words.destroy, {"{name}": [name]}), timeout_s=self._words.timeout_s)
            if name in self._listed():
                raise SnapshotFailed(
                    f"`{' '.join(self._words.destroy)}` ended well, and {name} is still listed",
                    hint="see what the command does; it is called again the next time",
                )
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def used_bytes(self, made: Made) -> int | None:
        """Return what `list` says."""
        return self._listed().get(name_of(made.kind, made.id))

    def _make(self, made: Made, words: Sequence[str], values: dict[str, list[str]]) -> None:
        name = name_of(made.kind, made.id)
        if os.path.lexists(self._path(name)) or name in self._listed():
            raise SnapshotRefused(f"{name} exists already", hint="nothing was changed")
        content = [[place.source, place.inside, place.path] for place in made.places]
        # First: what the command leaves when it is cut off must be known as ours.
        write_durably(self._path(name), json.dumps(content).encode("ascii"))
        try:
            run(_replaced(words, values), timeout_s=self._words.timeout_s)
            if name not in self._listed():
                raise SnapshotFailed(
                    f"`{' '.join(words)}` ended well, and {name} is not listed by `{' '.join(self._words.list)}`",
                    hint="both commands have to speak of the same name",
                )
        except BaseException:
            with suppress(PolarvaultError):
                self.destroy(made)
            raise

    def _listed(self) -> dict[str, int | None]:
        printed = run(self._words.list, timeout_s=self._words.timeout_s)
        found: dict[str, int | None] = {}
        for line in printed.splitlines():
            name, _, size = line.strip().partition(" ")
            if parse_name(name) is not None:
                found[name] = int(size) if size.strip().isdecimal() else None
        return found

    def _path(self, name: str) -> str:
        return os.path.join(self._at, f"{name}.json")

    def _read(self, name: str) -> Made | None:
        parsed = parse_name(name)
        try:
            with open_regular(self._path(name)) as stream:
                content = json.loads(stream.read(_MOST_BYTES))
            places = tuple(Place(str(source), name, str(inside), path) for source, inside, path in content)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return None if parsed is None else Made(parsed[0], parsed[1], self.name, places)


def _replaced(words: Sequence[str], values: dict[str, list[str]]) -> list[str]:
    found: list[str] = []
    for word in words:
        if word in values:
            found += values[word]
            continue
        for mark, replacement in values.items():
            word = word.replace(mark, " ".join(replacement))
        found.append(word)
    return found
