"""What the manifests say that a backup holds, and whether it does: names, sizes, and checksums as the bytes go by.

A backup has one manifest, or one for each half (ours, of PolarDB), or one that lists both halves without saying which
file is in which, and some paths twice (the official polar_basebackup, facts 1.7). Then a file has to agree with one of
the entries of its path, and each entry needs a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from polarvault.backupset.model import CONTROL_NAME, FULL_PAGE_DIRECTORY, Area, BackupSource, Form
from polarvault.backupset.reading.opening import open_file
from polarvault.model import limits
from polarvault.pgfiles.manifest import ManifestFile, read_damaged_manifest

MANIFEST = "backup_manifest"
SHARED_MANIFEST = "backup_manifest.shared"
# What changes in, or is added to, a good backup: the manual of pg_verifybackup names them. WAL is checked by itself.
_NOT_COMPARED = frozenset({MANIFEST, "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal"})

# Where a file is: the shared half or all the rest, and its path there as a manifest spells it.
Key = tuple[Area, str]


class Fault(Enum):
    """How a file disagrees with the manifest."""

    MISSING = "is missing"
    SIZE = "has another size"
    EXTRA = "is not in the manifest"
    CHECKSUM = "has another checksum"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One file that is not as the manifest says; expected and found are words with their units."""

    area: Area
    path: str
    fault: Fault
    expected: str = ""
    found: str = ""

    @property
    def is_setting(self) -> bool:
        """Tell whether it is a configuration file, which people edit in a backup before they restore it."""
        return self.fault in (Fault.SIZE, Fault.CHECKSUM) and self.path.endswith(".conf") and "/" not in self.path

    def __str__(self) -> str:
        half = "shared half: " if self.area is Area.SHARED else ""
        if self.fault is Fault.EXTRA:
            return f"{half}{self.path}: {self.found}, {self.fault.value}"
        if self.fault is Fault.MISSING:
            return f"{half}{self.path}: {self.fault.value}, {self.expected} expected"
        return f"{half}{self.path}: {self.expected} expected, {self.found} found"


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of the manifests by file; of_both: one manifest lists both halves, under Area.LOCAL.

    damage: why a manifest that is there cannot be relied on. missing_halves: which halves have none.
    """

    entries: Mapping[Key, tuple[ManifestFile, ...]] = field(default_factory=dict)
    of_both: bool = False
    damage: str | None = None
    missing_halves: tuple[Area, ...] = ()
    system_identifier: int | None = None

    @property
    def is_known(self) -> bool:
        """Tell whether anything can be compared."""
        return bool(self.entries) and self.damage is None

    @property
    def has_checksums(self) -> bool:
        """Tell whether contents can be compared."""
        return any(entry.algorithm for entries in self.entries.values() for entry in entries)

    def of(self, key: Key) -> tuple[ManifestFile, ...]:
        """Return the entries that a file may agree with; none for one that is not compared."""
        area, path = key
        return self.entries.get((Area.LOCAL if self.of_both else area, path), ())

    def compare(self, sizes: Mapping[Key, int], *, halves: frozenset[Area]) -> Iterator[Disagreement]:
        """Yield what disagrees in names and sizes; halves: those that are there and have to be whole."""
        for key, size in sizes.items():
            yield from self._judge_size(key, size, halves)
        count = len(halves) if self.of_both else 1
        for (area, path), entries in self.entries.items():
            if not self.of_both and area not in halves:
                continue
            places = halves if self.of_both else (area,)
            there = sum((place, path) in sizes for place in places)
            if there < min(len(entries), count):
                yield Disagreement(area, path, Fault.MISSING, _bytes(entries[-1].size))

    def _judge_size(self, key: Key, size: int, halves: frozenset[Area]) -> Iterator[Disagreement]:
        area, path = key
        if not is_compared(path) or area not in halves or (area in self.missing_halves and not self.of_both):
            return
        entries = self.of(key)
        if not entries:
            yield Disagreement(area, path, Fault.EXTRA, found=_bytes(size))
        elif all(entry.size != size for entry in entries):
            yield Disagreement(area, path, Fault.SIZE, _bytes(entries[0].size), _bytes(size))

    def judge_content(self, key: Key, size: int, checksum: str) -> Disagreement | None:
        """Return what is wrong with the content of a file that was read."""
        entries = self.of(key)
        if not entries or any(entry.size == size and entry.checksum in (None, checksum) for entry in entries):
            return None
        entry = next((one for one in entries if one.size == size), entries[0])
        if entry.size != size:
            return Disagreement(*key, Fault.SIZE, _bytes(entry.size), _bytes(size))
        name = entry.algorithm
        return Disagreement(*key, Fault.CHECKSUM, f"{name} {entry.checksum}", f"{name} {checksum}")


def is_compared(path: str) -> bool:
    """Tell whether a manifest's entry, or a file, has to agree."""
    top = path.partition("/")[0]
    # polar_fullpage is not restored, because its index is not copied atomically; "file-dio://..." is no file at all.
    return top not in _NOT_COMPARED and top != FULL_PAGE_DIRECTORY and "://" not in path


def key_of(area: Area, name: str, oid: int = 0) -> Key:
    """Return a file's key from where it was found."""
    if area is Area.TABLESPACE:
        return Area.LOCAL, f"pg_tblspc/{oid}/{name}"
    return Area.SHARED if area is Area.SHARED else Area.LOCAL, name


def load_listing(source: BackupSource) -> Listing:
    """Read the manifests that lie beside or in the parts of a backup; one tar holds its own, see `parse_listing`."""
    contents: dict[Area, bytes] = {}
    for area, path in _manifest_paths(source):
        try:
            with open_file(path) as stream:
                content = stream.read(limits.MANIFEST_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as problem:
            return Listing(damage=f'could not read "{path}": {problem.strerror}')
        contents.setdefault(area, content)
    return parse_listing(contents, _halves(source))


def parse_listing(contents: Mapping[Area, bytes], halves: frozenset[Area]) -> Listing:
    """Return what the manifests of the halves list; never raises for what is wrong with them."""
    entries: dict[Key, tuple[ManifestFile, ...]] = {}
    identifier = None
    of_both = False
    for area, content in contents.items():
        if len(content) > limits.MANIFEST_BYTES:
            return Listing(damage=f"the manifest is longer than {limits.MANIFEST_BYTES} bytes")
        manifest, damage = read_damaged_manifest(content)
        if damage is not None or manifest is None:
            return Listing(damage=damage.message if damage else "it cannot be parsed")
        identifier = identifier or manifest.system_identifier
        real = [entry for entry in manifest.files if is_compared(entry.path)]
        lists_control = any(entry.path == CONTROL_NAME for entry in real)
        of_both = of_both or (area is Area.LOCAL and Area.SHARED in halves and lists_control)
        for entry in real:
            entries[area, entry.path] = (*entries.get((area, entry.path), ()), entry)
    missing = tuple(area for area in (Area.LOCAL, Area.SHARED) if area in halves and area not in contents)
    return Listing(entries, of_both, None, () if of_both else missing, identifier)


def listed_sizes(listing: Listing) -> list[tuple[str, int]]:
    """Return path and size of everything listed, in order."""
    return [(entry.path, entry.size) for entries in listing.entries.values() for entry in entries]


def _halves(source: BackupSource) -> frozenset[Area]:
    shared = {Area.SHARED} if source.parts_of(Area.SHARED) else set()
    return frozenset({Area.LOCAL, *shared})


def _manifest_paths(source: BackupSource) -> Iterator[tuple[Area, str]]:
    if source.form is Form.TAR_FILE:
        return
    directory_of: Callable[[str], str] = os.path.dirname if source.form is Form.TAR_DIRECTORY else str
    local = next((directory_of(part.path) for part in source.parts_of(Area.LOCAL)), source.path)
    yield Area.LOCAL, os.path.join(local, MANIFEST)
    for part in source.parts_of(Area.SHARED):
        shared = directory_of(part.path)
        yield Area.SHARED, os.path.join(shared, SHARED_MANIFEST if shared == local else MANIFEST)
        yield Area.SHARED, os.path.join(shared, SHARED_MANIFEST)


def _bytes(size: int) -> str:
    return f"{size} bytes"
