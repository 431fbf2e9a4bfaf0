"""The directory of clones: who is in it, what each says of itself, and who may work on one at a moment.

AREA/polarvault-clone-ID/          ours: a mark (`snapshots.marks`), record.json, a lock; the account may pass
AREA/polarvault-clone-ID/run/      the account's: data, tablespaces, socket, pg_hba.conf
AREA/polarvault-base-ID/...        the same for a base copy, whose `run` is never started

Root believes what a record says, so it lies where the server's account cannot write.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from polarvault.clones.errors import CloneNotFound, CloneRefused
from polarvault.clones.model import CloneRecord
from polarvault.drill.place.isolation import fits_socket
from polarvault.errors import UsageError
from polarvault.instance.model import Account
from polarvault.snapshots.marks import Mark, make_marked, read_mark, write_mark
from polarvault.snapshots.model import Kind
from polarvault.snapshots.names import ID_DIGITS, name_of, parse_name
from polarvault.storage.files import make_directories, open_regular, storage_failed, write_durably

_RECORD = "record.json"
_LOCK = "lock"
_MOST_RECORD_BYTES = 1 << 20
_PASSING = 0o711


class Area:
    """One directory of clones."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def make(self) -> None:
        """Make it if it is missing; raise StorageFailed, and CloneRefused for one that others may write."""
        try:
            if not os.path.isdir(self.path):
                make_directories(self.path, 0o755)
            status = os.stat(self.path)
        except OSError as problem:
            raise storage_failed(problem, "make the directory of clones", self.path) from problem
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise CloneRefused(
                f'"{self.path}" belongs to user {status.st_uid}, or others may write into it: what is written there '
                "about clones could not be believed",
                hint=f"name another directory: --at DIR; or: chown {os.geteuid()} {self.path} && chmod 755 {self.path}",
            )

    def new_id(self) -> str:
        """Return an id that nothing there has."""
        return secrets.token_hex(ID_DIGITS // 2)

    def place(self, kind: Kind, id_: str) -> Place:
        """Return where a thing is, or would be."""
        return Place(os.path.join(self.path, name_of(kind, id_)), kind, id_)

    def places(self, kind: Kind) -> list[Place]:
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

    def find(self, word: str) -> Place:
        """Return the clone with a name, or an id, or the beginning of one; raise CloneNotFound."""
        records = [(place, place.record()) for kind in (Kind.CLONE, Kind.BASE) for place in self.places(kind)]
        named = [place for place, record in records if record is not None and record.name == word]
        found = named or [place for place, _ in records if len(word) >= 4 and place.id.startswith(word)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(record.name if record else place.id for place, record in records) or "none"
        raise CloneNotFound(
            f'there {"are several clones" if found else "is no clone"} "{word}" in "{self.path}"',
            hint=f"there are: {names}; another directory of clones: --at DIR",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """One clone or base copy: its directory, and what is where in it."""

    directory: str
    kind: Kind
    id: str

    @property
    def run(self) -> str:
        """What belongs to the account."""
        return os.path.join(self.directory, "run")

    @property
    def data(self) -> str:
        """The data directory."""
        return os.path.join(self.run, "data")

    @property
    def hba_file(self) -> str:
        """The drill's own kind of pg_hba.conf, or the source's with a line in front."""
        return os.path.join(self.run, "pg_hba.conf")

    @property
    def ident_file(self) -> str:
        """An empty pg_ident.conf."""
        return os.path.join(self.run, "pg_ident.conf")

    @property
    def socket_directory(self) -> str:
        """Where its socket is; elsewhere if the path would be too long for the kernel."""
        inside = os.path.join(self.run, "socket")
        if fits_socket(inside):
            return inside
        outside = os.path.join(tempfile.gettempdir(), os.path.basename(self.directory))
        if not fits_socket(outside):
            raise UsageError(
                f'neither "{self.directory}" nor "{tempfile.gettempdir()}" is short enough for the path of a socket',
                hint="name a directory with a shorter path: --at DIR",
            )
        return outside

    @property
    def mark(self) -> Mark | None:
        """What tells it from somebody else's directory."""
        return read_mark(self.directory)

    def make(self, account: Account, source: str) -> None:
        """Make the directory, unfinished, with `run` for the account."""
        make_marked(self.directory, Mark(self.kind, self.id, False, (source,)))
        try:
            os.chmod(self.directory, _PASSING)
            os.mkdir(self.run, 0o700)
            if os.geteuid() == 0:
                os.chown(self.run, account.uid, account.gid)
        except OSError as problem:
            raise storage_failed(problem, "create directory", self.run) from problem

    def finish(self, source: str) -> None:
        """Say that it is whole; on return that is durable."""
        write_mark(self.directory, Mark(self.kind, self.id, True, (source,)))

    def record(self) -> CloneRecord | None:
        """Return what is written down about a clone; None for one that is unfinished, or whose record is damaged."""
        try:
            with open_regular(os.path.join(self.directory, _RECORD)) as stream:
                content: dict[str, Any] = json.loads(stream.read(_MOST_RECORD_BYTES))
            content["made"] = datetime.fromisoformat(content["made"])
            content["origin"] = tuple(content["origin"])
            return CloneRecord(**content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def write_record(self, record: CloneRecord) -> None:
        """Write it down; on return it is durable."""
        content = {one.name: getattr(record, one.name) for one in dataclasses.fields(record)}
        content["made"] = record.made.isoformat()
        write_durably(os.path.join(self.directory, _RECORD), json.dumps(content, indent=1).encode("ascii"))

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Keep everybody else from working on it; raise CloneRefused if somebody does and wait is not set.

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
                raise CloneRefused(
                    f'"{self.directory}" is being worked on by another command', hint="wait for it, and try again"
                ) from None
            yield
        finally:
            with suppress(OSError):
                os.close(descriptor)
