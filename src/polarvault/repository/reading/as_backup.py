"""A backup in a repository as a `backupset.backup.Backup`: what restore, verify and drill ask of one.

Files come in the order of the packs, every byte once, straight to their places. The WAL up to the end of the backup
lies beside all other WAL of the cluster, and comes with it, so that it is complete by itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from polarvault.backupset.backup import DeliveryStopped, Entry, FileSink
from polarvault.backupset.backup import Share as BackupShare
from polarvault.backupset.inventory import is_wanted, parse_major_version
from polarvault.backupset.model import CONTROL_NAME, DESCRIPTION_NAME, Area, Form, Inventory, ManifestSpan, Tablespace
from polarvault.backupset.model import Part as SourcePart
from polarvault.backupset.saved_configuration import INDEX_NAME, SavedConfiguration, parse_configuration
from polarvault.errors import BackupUnusable, IntegrityError, ObjectDamaged, ObjectMissing
from polarvault.model import limits, versions
from polarvault.pgfiles.control import parse_known_control
from polarvault.pgfiles.tar import MemberKind
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.index.root import Part, PartArea
from polarvault.repository.reading.backup_reader import BackupReader, Share
from polarvault.repository.wal.of_backup import BackupWal
from polarvault.repository.wal.several import RepositoriesWal

if TYPE_CHECKING:
    from polarvault.repository.reading.rescue import Rescue
    from polarvault.repository.wal.source import RepositoryWalSource
    from polarvault.wal.source import WalSource

ATTACHED_CONFIGURATION = "configuration"
"""What the names of attached configuration files begin with."""
_AREAS = {
    PartArea.LOCAL: Area.LOCAL,
    PartArea.SHARED: Area.SHARED,
    PartArea.TABLESPACE: Area.TABLESPACE,
    PartArea.WAL: Area.WAL,
}
_KINDS = {
    FileKind.FILE: MemberKind.FILE,
    FileKind.DIRECTORY: MemberKind.DIRECTORY,
    FileKind.SYMLINK: MemberKind.SYMLINK,
}


class SpeedLog(Protocol):
    """Knows how fast restores were; bytes a second."""

    def note(self, size_bytes: int, seconds: float) -> None:
        """Remember a restore."""

    def last(self) -> Sequence[float]:
        """Return the speeds of the last ones."""


class BackupInRepository:
    """One backup of a repository. name: what messages call it; archive: all WAL of its cluster.

    page_key: the repository's, which tells whether files at hand are those of the backup. other_archives: WAL of the
    cluster in other repositories, for what this one lacks.
    """

    def __init__(
        self, reader: BackupReader, archive: RepositoryWalSource, *, name: str, page_key: bytes,
        speed_log: SpeedLog | None = None, rescue: Rescue | None = None, other_archives: Sequence[WalSource] = (),
    ) -> None:  # fmt: skip
        self._rescue = reader.rescue = rescue
        self.path = name
        self._speed_log = speed_log
        self.page_key = page_key
        self.form = Form.REPOSITORY
        self.parts: tuple[SourcePart, ...] = ()
        self.reader = reader
        self._archive, self._other_archives = archive, tuple(other_archives)
        self._places = [_place_of(part) for part in reader.root.parts]

    @cached_property
    def description(self) -> Mapping[str, object]:
        """What the backup's command wrote of it; empty for what is no JSON object."""
        content = self.reader.attachment(DESCRIPTION_NAME) or b"{}"
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}

    def saved_configuration(self) -> SavedConfiguration | None:
        """Return what the backup's command has attached."""
        attached = self.reader.attachments()
        prefix = f"{ATTACHED_CONFIGURATION}/"
        if prefix + INDEX_NAME not in attached:
            return None

        def read(name: str) -> bytes:
            content = attached.get(prefix + name)
            if content is None:
                raise BackupUnusable(
                    f"{self.path} lacks the configuration file {name}", hint="leave --configuration out"
                )
            return content

        return parse_configuration(read, f"the configuration of {self.path}")

    @cached_property
    def fetched_bytes(self) -> int | None:
        """The stored bytes of all chunks that it uses, those of its index among them; None if its refs are damaged."""
        try:
            return sum(one.live_bytes for one in self.reader.packs())
        except (IntegrityError, ObjectMissing):
            # A restore does not need them.
            return None

    def remarks(self) -> Sequence[str]:
        """Say which damaged pages were taken from other backups."""
        return self._rescue.notes() if self._rescue is not None else ()

    def speeds(self) -> Sequence[float]:
        """Return those of the last restores out of this repository."""
        return self._speed_log.last() if self._speed_log is not None else ()

    def note_speed(self, size_bytes: int, seconds: float) -> None:
        """Remember one, in the repository."""
        if self._speed_log is not None:
            self._speed_log.note(size_bytes, seconds)

    @property
    def archives(self) -> tuple[WalSource, ...]:
        """The WAL of the cluster, in the same repository and in others."""
        return (RepositoriesWal(self._archive, self._other_archives) if self._other_archives else self._archive,)

    def parts_of(self, area: Area) -> list[SourcePart]:
        """Return nothing: it lies in no directory."""
        return []

    @cached_property
    def _wal(self) -> BackupWal:
        facts = self.reader.record.facts
        return BackupWal(self._archive, start=facts.start_lsn, stop=facts.stop_lsn, timeline_id=facts.stop_timeline_id)

    @cached_property
    def _inventory(self) -> Inventory:
        return _look_through(self.reader, self.entry, self._wal, name=self.path)

    def look_through(self) -> Inventory:
        """Read the table of files, and the small files that decide; nothing of it changes, so that once is enough."""
        return self._inventory

    def wal(self, inventory: Inventory) -> BackupWal:
        """Return the WAL from the start of the backup to its end."""
        return self._wal

    def entry(self, row: FileRow) -> Entry:
        """Return what a file of the backup is, and where it was."""
        area, oid, prefix = self._places[row.part]
        return Entry(area, prefix + row.name, _KINDS[row.kind], row.size, oid)

    @contextmanager
    def shares(
        self, inventory: Inventory, wanted: Callable[[Entry], bool], *, tablespaces: Container[int]
    ) -> Iterator[Iterator[BackupShare]]:
        """Give the runs of packs that hold the wanted files, empty files, and the WAL."""
        yield self._shares(wanted, tablespaces)

    def _shares(self, wanted: Callable[[Entry], bool], tablespaces: Container[int]) -> Iterator[BackupShare]:
        empty: list[Entry] = []

        def is_wanted_row(row: FileRow) -> bool:
            if row.kind is FileKind.SYMLINK:
                return False
            entry = self.entry(row)
            if entry.area is Area.TABLESPACE and entry.tablespace_oid not in tablespaces:
                return False
            if not wanted(entry) or row.kind is not FileKind.FILE:
                return False
            if not row.size:
                empty.append(entry)
            return bool(row.size)

        for share in self.reader.shares(is_wanted_row):
            yield _PackShare(share, self.entry)
        yield from self.wal_shares(wanted)
        for entry in empty:
            yield _StreamedShare(entry, lambda: iter(()))

    def wal_shares(self, wanted: Callable[[Entry], bool]) -> Iterator[BackupShare]:
        """Give the WAL alone."""
        wanted(Entry(Area.WAL, "archive_status", MemberKind.DIRECTORY))
        for entry, content in self._wal.files():
            if wanted(entry):
                yield _StreamedShare(entry, content)


def _place_of(part: Part) -> tuple[Area, int, str]:
    """Return area, oid, and what comes in front of the names of a part's files."""
    in_place = f"pg_tblspc/{part.oid}"
    if part.area is PartArea.TABLESPACE and part.location == in_place:
        # A directory inside of the data directory (allow_in_place_tablespaces).
        return Area.LOCAL, 0, f"{in_place}/"
    return _AREAS[part.area], part.oid, ""


class _PackShare:
    """Pieces of files as they lie in packs. Implements `backupset.backup.Share`."""

    def __init__(self, share: Share, entry_of: Callable[[FileRow], Entry]) -> None:
        self._share, self._entry_of = share, entry_of

    def deliver(self, sink: FileSink, stop: threading.Event) -> None:
        entries: dict[int, Entry] = {}

        def place(row: FileRow, offset: int, view: memoryview) -> None:
            if stop.is_set():
                raise DeliveryStopped
            entry = entries.get(id(row))
            if entry is None:
                # The share keeps its rows, so that an id stays one row's.
                entry = entries[id(row)] = self._entry_of(row)
            sink.place(entry, offset, view)

        try:
            self._share.deliver(place, stop.is_set)
            if stop.is_set():
                raise DeliveryStopped
        finally:
            sink.close()


class _StreamedShare:
    """One file from its beginning to its end. Implements `backupset.backup.Share`."""

    def __init__(self, entry: Entry, content: Callable[[], Iterator[memoryview]]) -> None:
        self._entry, self._content = entry, content

    def deliver(self, sink: FileSink, stop: threading.Event) -> None:
        try:
            if stop.is_set():
                raise DeliveryStopped
            if sink.begin(self._entry, None):
                for view in self._content():
                    if stop.is_set():
                        raise DeliveryStopped
                    sink.data([view])
                sink.end()
        finally:
            sink.close()


def _look_through(
    reader: BackupReader, entry_of: Callable[[FileRow], Entry], wal: BackupWal, *, name: str
) -> Inventory:
    files: dict[tuple[Area, str], bytes] = {}
    names: set[tuple[Area, str]] = set()
    sizes = {_AREAS[part.area]: 0 for part in reader.root.parts if part.area is not PartArea.TABLESPACE}
    spaces = {
        part.oid: part for part in reader.root.parts if part.area is PartArea.TABLESPACE and part.location[:1] == "/"
    }
    tablespace_sizes = dict.fromkeys(spaces, 0)
    unlisted: dict[int, str] = {}
    modes: list[int] = []
    count = 0
    for row in reader.rows():
        entry = entry_of(row)
        count += row.kind is FileKind.FILE
        if entry.area is Area.TABLESPACE:
            tablespace_sizes[entry.tablespace_oid] += row.size
            continue
        sizes[entry.area] = sizes.get(entry.area, 0) + row.size
        names.add((entry.area, entry.name))
        if row.kind is FileKind.DIRECTORY and entry.name == "base":
            modes.append(row.mode)
        if row.kind is FileKind.SYMLINK and entry.name.startswith("pg_tblspc/") and entry.name[10:].isdecimal():
            oid = int(entry.name[10:])
            if oid not in spaces:
                unlisted[oid] = row.link.decode("utf-8", "surrogateescape")
        if row.kind is FileKind.FILE and is_wanted(entry.area, entry.name, row.size):
            if row.size > limits.SMALL_FILE_BYTES:
                raise ObjectDamaged(f"{entry.name!r} of {name} has {row.size} bytes, more than such a file can have")
            files[entry.area, entry.name] = reader.read(row, 0, row.size)
    held = wal.sizes()
    files |= wal.histories()
    sizes[Area.WAL] = sum(held.values())
    control = files.get((Area.SHARED, CONTROL_NAME), files.get((Area.LOCAL, CONTROL_NAME)))
    major = parse_major_version(files.get((Area.LOCAL, "PG_VERSION")))
    known = parse_known_control(control, major) if control is not None else None
    facts = reader.record.facts
    return Inventory(
        files=files,
        sizes=sizes,
        tablespace_sizes=tablespace_sizes,
        wal=held,
        names=frozenset(names),
        tablespaces=tuple(Tablespace(oid, part.location, None) for oid, part in sorted(spaces.items())),
        has_control=control is not None,
        control=known,
        is_newer=(major is not None and versions.is_newer(major)) or (control is not None and known is None),
        group_readable=bool(modes) and all(mode & 0o777 == 0o750 for mode in modes),
        file_count=count,
        spans=(ManifestSpan(name, facts.start_lsn, facts.stop_lsn, facts.stop_timeline_id),),
        unlisted_tablespaces=unlisted,
    )
