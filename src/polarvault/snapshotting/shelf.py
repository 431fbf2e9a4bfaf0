"""The directory of snapshots, and what each in it says of itself.

AT/polarvault-snapshot-ID/record.json     what it is, written before anything is made and again at the end
AT/polarvault-snapshot-ID/wal/            the WAL from its start to its end, until it is in its pg_wal
AT/polarvault-snapshot-ID/polarvault-...  what the provider keeps in a directory, and the clone that is the backup
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from polarvault.errors import PolarvaultError
from polarvault.snapshots.choice import provider_again
from polarvault.snapshots.collection import Collection, Thing, Words
from polarvault.snapshots.commands import CommandWords
from polarvault.snapshots.errors import SnapshotRefused
from polarvault.snapshots.marks import remove_marked
from polarvault.snapshots.model import Kind, SnapshotProvider
from polarvault.snapshots.names import name_of
from polarvault.snapshotting.model import SnapshotRecord, SnapshotState, SnapshotStatus


@dataclass(frozen=True, slots=True)
class Slot(Thing[SnapshotRecord]):
    """One snapshot: its directory, and how it is worked on."""

    RECORD: ClassVar[type[SnapshotRecord]] = SnapshotRecord
    WORDS: ClassVar[Words] = Words("snapshot", "snapshots", SnapshotRefused, SnapshotRefused)

    @property
    def wal(self) -> str:
        """Where its WAL is received."""
        return os.path.join(self.directory, "wal")

    @property
    def clone(self) -> str:
        """The clone that is the backup, where the snapshot itself cannot be written."""
        return os.path.join(self.directory, name_of(Kind.CLONE, self.id))

    def make(self, record: SnapshotRecord) -> None:
        """Make the directory, unfinished."""
        self.make_directory(record.directories)
        self.write_record(record)

    def finish(self, record: SnapshotRecord) -> None:
        """Say that it is whole; on return that is durable."""
        self.write_record(record)
        self.complete(record.directories)

    def provider(self, record: SnapshotRecord) -> SnapshotProvider:
        """Return who made it, and can list and destroy it."""
        commands = None if record.commands is None else CommandWords.of_record(record.commands)
        return provider_again(record.provider, self.directory, record.datasets, commands)

    def status(self) -> SnapshotStatus:
        """Look whether what was made is still there, and how much room it takes."""
        record = self.record()
        if record is None or not self.is_whole:
            return SnapshotStatus(record, self.id, self.directory, SnapshotState.UNFINISHED, None)
        provider = self.provider(record)
        try:
            things = [one for one in provider.things() if one.id == self.id]
            is_there = any(one.kind is Kind.SNAPSHOT and one.is_whole for one in things)
            used = [provider.used_bytes(one) for one in things]
        except PolarvaultError:
            is_there, used = False, []
        if not is_there or not all(os.path.isdir(one) for one in (record.backup, record.shared) if one):
            return SnapshotStatus(record, self.id, self.directory, self._gone(), None)
        known = [one for one in used if one is not None]
        total = sum(known) if len(known) == len(used) else None
        return SnapshotStatus(record, self.id, self.directory, SnapshotState.WHOLE, total)

    def _gone(self) -> SnapshotState:
        """Tell whether somebody else has removed it, or we are just doing so."""
        try:
            with self.locked(wait=False):
                # It may have gone since it was looked at.
                return SnapshotState.GONE if self.is_whole else SnapshotState.UNFINISHED
        except PolarvaultError:
            return SnapshotState.UNFINISHED

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


class Shelf(Collection[Slot]):
    """One directory of snapshots."""

    KINDS = (Kind.SNAPSHOT,)
    THING = Slot

    def slots(self) -> list[Slot]:
        """Return every snapshot with our mark; none where there is no directory."""
        # A record of it is what tells it from what a provider keeps.
        return [slot for slot in self.places(Kind.SNAPSHOT) if slot.record() is not None]

    def _all(self) -> list[Slot]:
        return self.slots()

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
