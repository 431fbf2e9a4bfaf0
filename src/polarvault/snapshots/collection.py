"""A directory of things of ours: each in a directory of its own, with a mark, a record, and a lock.

AT/polarvault-KIND-ID/        ours: a mark (`marks`), record.json, lock, and what it is
Clones, snapshots and images are kept so. Root believes what a record says, so nobody else may write in AT.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from polarvault.errors import PolarvaultError
from polarvault.snapshots.marks import Mark, make_marked, read_mark, write_mark
from polarvault.snapshots.model import Kind
from polarvault.snapshots.names import ID_DIGITS, name_of, parse_name
from polarvault.storage.files import make_directories, open_regular, storage_failed, write_durably

_RECORD, _LOCK = "record.json", "lock"
_MOST_RECORD_BYTES = 1 << 20
# The account of a server passes through; what it may not read has a mode of its own.
_PASSING = 0o711


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """What the things of a collection are called, and which errors are raised about them."""

    one: str
    several: str
    refused: type[PolarvaultError]
    unknown: type[PolarvaultError]


class Named(Protocol):
    """A record: a frozen dataclass that goes into JSON, with times and tuples of words on its first level only."""

    @property
    def name(self) -> str:
        """What people call it."""


Record = TypeVar("Record", bound=Named)


@dataclasses.dataclass(frozen=True, slots=True)
class Thing(Generic[Record]):
    """One thing: its directory, and what every kind of thing has in it."""

    directory: str
    kind: Kind
    id: str

    RECORD: ClassVar[type[Any]]
    WORDS: ClassVar[Words]

    @property
    def mark(self) -> Mark | None:
        """What tells it from somebody else's directory."""
        return read_mark(self.directory)

    @property
    def is_whole(self) -> bool:
        """Tell whether it was completed."""
        mark = self.mark
        return mark is not None and mark.is_whole

    def make_directory(self, sources: tuple[str, ...]) -> None:
        """Make the directory, unfinished."""
        make_marked(self.directory, Mark(self.kind, self.id, False, sources))
        try:
            os.chmod(self.directory, _PASSING)
        except OSError as problem:
            raise storage_failed(problem, "create directory", self.directory) from problem

    def complete(self, sources: tuple[str, ...]) -> None:
        """Say that it is whole; on return that is durable."""
        write_mark(self.directory, Mark(self.kind, self.id, True, sources))

    def record(self) -> Record | None:
        """Return what is written down about it; None for one that is unfinished, or whose record is damaged."""
        try:
            with open_regular(os.path.join(self.directory, _RECORD)) as stream:
                content: dict[str, Any] = json.loads(stream.read(_MOST_RECORD_BYTES))
            found: Record = self.RECORD(**{name: _value(name, value) for name, value in content.items()})
            return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write_record(self, record: Record) -> None:
        """Write it down; on return it is durable."""
        content = {one.name: getattr(record, one.name) for one in dataclasses.fields(self.RECORD)}
        words = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in content.items()}
        write_durably(os.path.join(self.directory, _RECORD), json.dumps(words, indent=1).encode("ascii"))

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Keep everybody else from working on it; raise the collection's refusal if somebody does and wait is not set.

        The lock goes with the process that holds it.
        """
        try:
            descriptor = os.open(os.path.join(self.directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise storage_failed(problem, "lock", self.directory) from problem
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise self.WORDS.refused(
                    f'"{self.directory}" is being worked on by another command', hint="wait for it, and try again"
                ) from None
            yield
        finally:
            with suppress(OSError):
                os.close(descriptor)


def _value(name: str, value: Any) -> Any:
    if name == "made":
        return datetime.fromisoformat(value)
    return tuple(value) if isinstance(value, list) else value


T = TypeVar("T", bound=Thing[Any])


class Collection(Generic[T]):
    """One directory of things."""

    # What is found by its name in it; the first is the kind of what is made anew.
    KINDS: ClassVar[tuple[Kind, ...]]
    THING: ClassVar[type[Thing[Any]]]

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def make(self) -> None:
        """Make it if it is missing; raise StorageFailed, and the refusal for one that others may write."""
        words = self.THING.WORDS
        try:
            if not os.path.isdir(self.path):
                make_directories(self.path, 0o755)
            status = os.stat(self.path)
        except OSError as problem:
            raise storage_failed(problem, f"make the directory of {words.several}", self.path) from problem
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise words.refused(
                f'"{self.path}" belongs to user {status.st_uid}, or others may write into it: what is written there '
                f"about {words.several} could not be believed",
                hint=f"name another directory: --at DIR; or: chown {os.geteuid()} {self.path} && chmod 755 {self.path}",
            )

    def new_id(self) -> str:
        """Return an id that nothing there has."""
        return secrets.token_hex(ID_DIGITS // 2)

    def place(self, kind: Kind, id_: str) -> T:
        """Return where a thing is, or would be."""
        made: T = self.THING(os.path.join(self.path, name_of(kind, id_)), kind, id_)  # type: ignore[assignment]
        return made

    def new(self) -> T:
        """Return a place that nothing has yet."""
        return self.place(self.KINDS[0], self.new_id())

    def places(self, kind: Kind) -> list[T]:
        """Return every thing of a kind that has our mark, in the order of names; none where there is no directory."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise storage_failed(problem, "list", self.path) from problem
        found = []
        for name in names:
            parsed = parse_name(name)
            if parsed is not None and parsed[0] is kind and parsed[2] is None:
                place = self.place(kind, parsed[1])
                if place.mark is not None:
                    found.append(place)
        return found

    def find(self, word: str) -> T:
        """Return the thing with a name, or an id, or the beginning of one; raise the error for one that is unknown."""
        found = self.with_name(word) or [one for one in self._all() if len(word) >= 4 and one.id.startswith(word)]
        if len(found) == 1:
            return found[0]
        words = self.THING.WORDS
        records: Mapping[str, Named | None] = {one.id: one.record() for one in self._all()}
        names = ", ".join(record.name if record else id_ for id_, record in records.items()) or "none"
        raise words.unknown(
            f'there {f"are several {words.several}" if found else f"is no {words.one}"} "{word}" in "{self.path}"',
            hint=f"there are: {names}; another directory of {words.several}: --at DIR",
        )

    def with_name(self, name: str) -> list[T]:
        """Return what people call so."""
        return [one for one in self._all() if (record := one.record()) is not None and record.name == name]

    def _all(self) -> list[T]:
        return [one for kind in self.KINDS for one in self.places(kind)]
