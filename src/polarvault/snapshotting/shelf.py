"""The directory of snapshots, and what each in it says of itself.

AT/polarvault-snapshot-ID/record.json     what it is, written before anything is made and again at the end
AT/polarvault-snapshot-ID/wal/            the WAL from its start to its end, until it is in its pg_wal
AT/polarvault-snapshot-ID/polarvault-...  what the provider keeps in a directory, and the clone that is the backup
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from polarvault.errors import PolarvaultError
from polarvault.snapshots.choice import provider_again
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.marks import Mark, make_marked, read_mark, remove_marked, write_mark
from polarvault.snapshots.model import Kind, SnapshotProvider
from polarvault.snapshots.names import ID_DIGITS, name_of, parse_name
from polarvault.snapshotting.model import SnapshotRecord, SnapshotState, SnapshotStatus
from polarvault.storage.files import make_directories, open_regular, storage_failed, write_durably

_RECORD, _LOCK = "record.json", "lock"
_MOST_RECORD_BYTES = 1 << 20
# Whoever may read one has all data of the server: its directories have their own modes, and the account passes.
_PASSING = 0o711


class Shelf:
    """One directory of snapshots."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def make(self) -> None:
        """Make it if it is missing; raise StorageFailed, and SnapshotRefused for one that others may write."""
        try:
            if not os.path.isdir(self.path):
                make_directories(self.path, 0o755)
            status = os.stat(self.path)
        except OSError as problem:
            raise storage_failed(problem, "make the directory of snapshots", self.path) from problem
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise SnapshotRefused(
                f'"{self.path}" belongs to user {status.st_uid}, or others may write into it',
                hint=f"name another directory: --at DIR; or: chown {os.geteuid()} {self.path} && chmod 755 {self.path}",
            )

    def new(self) -> Slot:
        """Return a place that nothing has yet."""
        return Slot(self.path, secrets.token_hex(ID_DIGITS // 2))

    def slots(self) -> list[Slot]:
        """Return every snapshot with our mark; none where there is no directory."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise storage_failed(problem, "list", self.path) from problem
        found = []
        for name in names:
            parsed = parse_name(name)
            if parsed is not None and parsed[0] is Kind.SNAPSHOT and parsed[2] is None:
                slot = Slot(self.path, parsed[1])
                # A record of it is what tells it from what a provider keeps.
                if slot.mark is not None and slot.record() is not None:
                    found.append(slot)
        return found

    def find(self, word: str) -> Slot:
        """Return the snapshot with a name, an id, or the beginning of one; raise SnapshotRefused."""
        known = [(slot, slot.record()) for slot in self.slots()]
        named = [slot for slot, record in known if record is not None and record.name == word]
        found = named or [slot for slot, _ in known if len(word) >= 4 and slot.id.startswith(word)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(record.name for _, record in known if record is not None) or "none"
        raise SnapshotRefused(
            f'there {"are several snapshots" if found else "is no snapshot"} "{word}" in "{self.path}"',
            hint=f"there are: {names}; another directory of snapshots: --at DIR",
        )

    def sweep(self) -> list[str]:
        """Remove what killed commands have left; return what was done, in words. What is at work is left alone."""
        done = []
        for slot in self.slots():
            mark = slot.mark
            if mark is None or mark.is_whole:
                continue
            with suppress(SnapshotRefused), slot.locked(wait=False):
                mark = slot.mark
                if mark is not None and not mark.is_whole:
                    slot.remove()
                    done.append(f"removed the snapshot {slot.id}: what made it was killed")
        return done


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """One snapshot: its directory, and how it is worked on."""

    at: str
    id: str

    @property
    def directory(self) -> str:
        """Where it is."""
        return os.path.join(self.at, name_of(Kind.SNAPSHOT, self.id))

    @property
    def wal(self) -> str:
        """Where its WAL is received."""
        return os.path.join(self.directory, "wal")

    @property
    def clone(self) -> str:
        """The clone that is the backup, where the snapshot itself cannot be written."""
        return os.path.join(self.directory, name_of(Kind.CLONE, self.id))

    @property
    def mark(self) -> Mark | None:
        """What tells it from somebody else's directory."""
        return read_mark(self.directory)

    def make(self, record: SnapshotRecord) -> None:
        """Make the directory, unfinished."""
        make_marked(self.directory, Mark(Kind.SNAPSHOT, self.id, False, record.directories))
        try:
            os.chmod(self.directory, _PASSING)
        except OSError as problem:
            raise storage_failed(problem, "create directory", self.directory) from problem
        self.write_record(record)

    def finish(self, record: SnapshotRecord) -> None:
        """Say that it is whole; on return that is durable."""
        self.write_record(record)
        write_mark(self.directory, Mark(Kind.SNAPSHOT, self.id, True, record.directories))

    def record(self) -> SnapshotRecord | None:
        """Return what is written down; None for what is no snapshot, or whose record is damaged."""
        try:
            with open_regular(os.path.join(self.directory, _RECORD)) as stream:
                content: dict[str, Any] = json.loads(stream.read(_MOST_RECORD_BYTES))
            content["made"] = datetime.fromisoformat(content["made"])
            content["directories"], content["datasets"] = tuple(content["directories"]), tuple(content["datasets"])
            return SnapshotRecord(**content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def write_record(self, record: SnapshotRecord) -> None:
        """Write it down; on return it is durable."""
        content = {one.name: getattr(record, one.name) for one in dataclasses.fields(record)}
        content["made"] = record.made.isoformat()
        write_durably(os.path.join(self.directory, _RECORD), json.dumps(content, indent=1).encode("ascii"))

    def provider(self, record: SnapshotRecord) -> SnapshotProvider:
        """Return who made it, and can list and destroy it."""
        return provider_again(record.provider, self.directory, record.datasets)

    def status(self) -> SnapshotStatus:
        """Look whether what was made is still there, and how much room it takes."""
        record, mark = self.record(), self.mark
        if record is None or mark is None or not mark.is_whole:
            return SnapshotStatus(record, self.id, self.directory, SnapshotState.UNFINISHED, None)
        provider = self.provider(record)
        try:
            things = [one for one in provider.things() if one.id == self.id]
            is_there = any(one.kind is Kind.SNAPSHOT and one.is_whole for one in things)
            used = [provider.used_bytes(one) for one in things]
        except PolarvaultError:
            is_there, used = False, []
        if not is_there or not all(os.path.isdir(one) for one in (record.backup, record.shared) if one):
            return SnapshotStatus(record, self.id, self.directory, SnapshotState.GONE, None)
        known = [one for one in used if one is not None]
        total = sum(known) if len(known) == len(used) else None
        return SnapshotStatus(record, self.id, self.directory, SnapshotState.WHOLE, total)

    def remove(self) -> None:
        """Destroy the clone, then the snapshot, then the directory; the caller has the lock.

        Raises StillNeeded for a snapshot that others are made of, NotOurs; then it can be removed later.
        """
        record = self.record()
        if record is not None:
            provider = self.provider(record)
            things = sorted(
                (one for one in provider.things() if one.id == self.id), key=lambda one: one.kind is Kind.SNAPSHOT
            )
            for one in things:
                provider.destroy(one)
        remove_marked(self.directory, Kind.SNAPSHOT, self.id)

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Keep everybody else from working on it; raise SnapshotRefused if somebody does and wait is not set."""
        try:
            descriptor = os.open(os.path.join(self.directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise storage_failed(problem, "lock", self.directory) from problem
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise SnapshotRefused(
                    f'"{self.directory}" is being worked on by another command', hint="wait for it, and try again"
                ) from None
            yield
        finally:
            with suppress(OSError):
                os.close(descriptor)
