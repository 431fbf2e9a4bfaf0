"""What is in one half of a backup: names and sizes, the small files that decide, and how to read the rest.

Plain directories and uncompressed tars are listed first and read later, in parallel. A compressed tar has to be read
from its beginning to be listed at all, so everything about it is found out in that one pass (`compressed`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polarvault.backupset.model import SHARED_PREFIX, Area, Part
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.finding import Finding, Severity
from polarvault.storage.below import Below
from polarvault.storage.files import open_regular, storage_failed
from polarvault.verify.files.reading import FileReading
from polarvault.verify.files.trees import IgnoreRules, is_layout_link, list_tree, unreadable
from polarvault.verify.layout import MANIFEST, SHARED_MANIFEST, BackupLayout, Half

if TYPE_CHECKING:
    from polarvault.pgfiles.tar import Member

Report = Callable[[Finding], None]

# Files whose content the checks beyond the manifest look at; all of them are small.
SETTINGS = "postgresql.auto.conf"
SMALL_FILES = ("global/pg_control", "backup_label", "tablespace_map", "PG_VERSION", SETTINGS)
_SMALL_BYTES = 1 << 20
# And those that tell which databases there are: pg_database is one of the files directly in global.
_TELLS_DATABASES = re.compile(r"global/(?:[0-9]+|pg_filenode\.map)\Z|pg_xact/[0-9A-F]+\Z")


def is_kept(path: str, size: int) -> bool:
    """Tell whether the content of a file in a compressed tar, which is read once, has to be kept."""
    return size <= _SMALL_BYTES and (path in SMALL_FILES or _TELLS_DATABASES.match(path) is not None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file's content is: a path and a length, and in a tar the offset there.

    tree, name: what is to be opened of a plain backup; path is what to call it. is_outside: a link leads out of it.
    """

    path: str
    size: int
    offset: int | None = None
    tree: Below | None = None
    name: str = ""
    is_outside: bool = False

    def open(self) -> int:
        """Open it for reading and return the descriptor; raise OSError, also for what is no regular file (any more)."""
        if self.tree is not None:
            return self.tree.open_regular(self.name)
        with open_regular(self.path) as stream:
            return os.dup(stream.fileno())


@dataclass(slots=True)
class Contents:
    """What was found in a half, by path relative to it.

    sizes: of the files that are compared with the manifest. places: how to read each file, names: what to open in tree
    instead of its path, where it is another one; `place_of` knows both. readings: what was read
    already instead (compressed tars). small: contents from there. links: where the links in pg_tblspc lead, and whether
    that is a directory, by oid. wal_in_data: pg_wal is there and not in a tar of its own. cut_tars: those that could
    not be read to their end, and the last member that was seen in each. outside, refused: as in `trees.Listing`, and
    small files that could not be read.
    """

    half: Half
    sizes: dict[str, int] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    readings: dict[str, FileReading] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    links: dict[int, tuple[str, bool]] = field(default_factory=dict)
    wal_in_data: bool = False
    cut_tars: dict[Part, str] = field(default_factory=dict)
    tree: Below | None = None
    outside: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def close(self) -> None:
        """Close the directories that are open."""
        if self.tree is not None:
            self.tree.close()

    def is_refused(self, path: str) -> bool:
        """Tell whether it was reported that a path, or what it lies in, cannot be looked at."""
        while path and self.refused:
            if path in self.refused:
                return True
            path = path.rpartition("/")[0]
        return False

    def place_of(self, path: str) -> Place | None:
        """Return where a file's content is; None for one that is not there."""
        place = self.places.get(path)
        if place is None and self.tree is not None and path in self.sizes:
            # Made when it is asked for: a million of them take memory and time.
            name = self.names.get(path, path)
            return Place(self.tree.path(path), self.sizes[path], tree=self.tree, name=name)
        return place

    def read_small(self, path: str, report: Report) -> bytes | None:
        """Return the content of a small file; None when it is not there or cannot be read."""
        if path in self.small:
            return self.small[path]
        place = self.place_of(path)
        if place is None:
            return None
        try:
            descriptor = place.open()
            try:
                return os.pread(descriptor, min(place.size, _SMALL_BYTES), place.offset or 0)
            finally:
                os.close(descriptor)
        except OSError as problem:
            self.refused.add(path)
            report(unreadable("read file", self.half.name(path), problem))
            return None


def list_plain(half: Half, ignored: IgnoreRules, report: Report) -> Contents:
    """List a directory."""
    try:
        tree = Below(half.directory, links=is_layout_link)
    except OSError as problem:
        raise storage_failed(problem, "open directory", half.directory) from problem
    listing = list_tree(tree, ignored, half.name, report)
    found = Contents(
        half, listing.sizes, names=listing.names, tree=tree, outside=listing.outside, refused=listing.refused
    )
    for path, target in listing.outside.items():
        found.places[path] = Place(target, found.sizes[path], is_outside=True)
    with contextlib.suppress(OSError):
        status = tree.status(SETTINGS)
        if stat.S_ISREG(status.st_mode):
            found.places[SETTINGS] = Place(tree.path(SETTINGS), status.st_size, tree=tree, name=SETTINGS)
    spaces = os.path.join(half.directory, "pg_tblspc")
    for name in os.listdir(spaces) if os.path.isdir(spaces) else ():
        path = os.path.join(spaces, name)
        if name.isdecimal() and os.path.islink(path):
            found.links[int(name)] = (os.readlink(path), os.path.isdir(path))
    found.wal_in_data = os.path.isdir(os.path.join(half.directory, "pg_wal"))
    return found


def list_tars(half: Half, ignored: IgnoreRules, report: Report) -> Contents:
    """List the uncompressed tars of a half, and the files that lie beside them."""
    from polarvault.backupset.reading.tarstream import find_members

    found = Contents(half)
    for part in half.tars:
        if part.compression is not None or not is_readable_tar(part, report):
            continue
        last = ""
        try:
            for member, offset in find_members(part):
                last = member.name
                note_member(found, part, member, ignored, Place(part.path, member.size, offset))
        except (IntegrityError, StorageFailed) as problem:
            found.cut_tars[part] = last
            report(damaged_tar(part, problem.message))
        else:
            if not last:
                found.cut_tars[part] = last  # An empty file is a right tar, too, and no tar of a backup.
    return found


def list_beside_tars(
    found: Contents, listed: Mapping[str, object], tars: Container[str], ignored: IgnoreRules, report: Report
) -> None:
    """Add the files beside the tars: those that the manifest lists are part of the backup, others do not belong.

    tars: the paths of all tar files of the backup.
    """
    try:
        entries = sorted(os.scandir(found.half.directory), key=lambda entry: entry.name)
    except OSError as problem:
        report(unreadable("open directory", found.half.directory, problem))
        return
    for entry in entries:
        name = entry.name
        if entry.path in tars or name in (MANIFEST, SHARED_MANIFEST) or ignored.covers(name):
            continue
        if name in listed and entry.is_file():
            found.sizes[name] = entry.stat().st_size
            found.places[name] = Place(entry.path, found.sizes[name])
        elif name != SHARED_PREFIX or not entry.is_dir():
            report(_unexpected(name))


def note_member(found: Contents, part: Part, member: Member, ignored: IgnoreRules, place: Place | None) -> str | None:
    """Take a member of a tar into account; return its path in the half when it is a file that counts."""
    from polarvault.pgfiles.tar import MemberKind

    path = member.name if part.area is not Area.TABLESPACE else f"pg_tblspc/{part.tablespace_oid}/{member.name}"
    if path == "pg_wal" or path.startswith("pg_wal/"):
        found.wal_in_data = found.wal_in_data or (member.kind is MemberKind.FILE and path.count("/") == 1)
        return None
    if member.kind is not MemberKind.FILE or "://" in path:
        return None
    if not ignored.covers(path):
        found.sizes[path] = member.size
    elif path != SETTINGS:
        return None
    if place is not None:
        found.places[path] = place
    return path


def judge_tars(layout: BackupLayout) -> Iterator[Finding]:
    """Yield a finding for each tar that is there twice, as base.tar and base.tar.gz: a restore refuses to choose."""
    by_stem: dict[tuple[str, str], list[str]] = {}
    for part in layout.tars:
        directory, name = os.path.split(part.path)
        by_stem.setdefault((directory, name.partition(".")[0]), []).append(name)
    for names in by_stem.values():
        if len(names) > 1:
            yield Finding(
                severity=Severity.PROBLEM,
                check="tar-twice",
                subject=names[0],
                message=f"the same tar is there {len(names)} times: {', '.join(names)}",
                meaning="only one of them can be restored, and nothing says which",
                advice="keep one of them, and move the others out of the directory",
            )


def is_readable_tar(part: Part, report: Report) -> bool:
    """Tell whether a tar is a file, and report it otherwise: to open a fifo would wait for ever."""
    if os.path.isfile(part.path):
        return True
    report(damaged_tar(part, f'"{os.path.basename(part.path)}" is not a regular file'))
    return False


def damaged_tar(part: Part, message: str) -> Finding:
    """Return the finding for a tar that cannot be read to its end."""
    return Finding(
        severity=Severity.PROBLEM,
        check="tar-damaged",
        subject=os.path.basename(part.path),
        message=message,
        meaning="what comes after the damage cannot be restored",
        advice="compare the file's size with the original's and copy it again, or use another backup",
    )


def _unexpected(name: str) -> Finding:
    return Finding(
        severity=Severity.PROBLEM,
        check="extra-file",
        subject=name,
        message=f'file "{name}" is not expected in a tar format backup',
        meaning="it does not belong to the backup: somebody has put it there, or the directory holds two backups",
        advice=f"move it to where it belongs, or leave it out: -i {shlex.quote(name)}",
    )
