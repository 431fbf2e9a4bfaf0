"""The files of a plain backup, or of a cold copy: listed and opened such that no link leads out of it.

Somebody else may own the directory, and change it while root reads. A link to a file inside of the backup is that file.
A link that leaves the backup is refused: its content would land in the restored copy, whoever may read it there. Two
kinds of links to directories are part of a cluster's layout and are followed: pg_wal, where only what has a WAL file's
name is taken, and pg_tblspc/OID, where only a server version's own directory (PG_15_202209061) is. Behind those two,
root opens only what the one who made the link may read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from polarvault.errors import BackupUnusable
from polarvault.pgfiles.tar import MemberKind
from polarvault.storage.below import Below, NameRefused
from polarvault.storage.files import storage_failed
from polarvault.storage.identity import can_read_as_root, reading_as_root, rights_to_read

_WAL_NAME = re.compile(
    r"(?:[0-9A-F]{24}(?:\.partial|\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history"
    r"|(?:archive_status|summaries)(?:/[0-9A-F]+[0-9A-Za-z._]*)?)\Z"
)
_VERSION_DIRECTORY = re.compile(r"PG_[0-9]+_[0-9]+(?:/|\Z)")
# A cluster cannot do without what lies in these, and a link there is a part of the database that is not in the copy.
_DATABASE_PARTS = re.compile(r"(?:base|global|pg_[^/]*|polar_[^/]*)(?:/|\Z)")


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """Something in a backup: its name there, what it is, and for a file where its bytes are (`PlainTree.open`).

    place: the name below the directory that holds it, which is another one behind a link of the layout. target: where
    the link of a tablespace leads.
    """

    name: str
    kind: MemberKind
    status: os.stat_result
    place: str = ""
    behind: str = ""
    target: str = ""
    leads_nowhere: bool = False


class PlainTree:
    """One directory of a backup; skip: names that are no part of it. Use it as a context manager."""

    def __init__(self, root: str, *, skip: frozenset[str] = frozenset(), tablespace: bool = False) -> None:
        self.root = root
        self._skip = skip
        self._tablespace = tablespace
        # One file could be opened by root alone: most likely all others, too.
        self._needs_root = False
        # By the name of the link, "" for the directory itself, with the user who made the link.
        self._directories: dict[str, tuple[Below, int | None]] = {}
        try:
            with rights_to_read():
                self._directories[""] = (Below(root), None)
            self._owner = self.status().st_uid
        except OSError as problem:
            raise storage_failed(problem, "read directory", root) from problem

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every directory."""
        for below, _ in self._directories.values():
            below.close()

    def walk(self) -> Iterator[TreeEntry]:
        """Yield everything, parents first; links in pg_tblspc, and those to directories that are left out, as links."""
        yield from self._walk("", "", "")

    def open(self, entry: TreeEntry) -> int:
        """Open a file that `walk` has yielded; return its descriptor, which the caller owns. Raises OSError.

        With the rights of the account that the process works as; root's where those do not do and that is safe.
        """
        below, link_owner = self._directories[entry.behind]
        if not self._needs_root:
            try:
                return below.open_regular(entry.place)
            except PermissionError:
                if not can_read_as_root():
                    raise
                self._needs_root = True
        with reading_as_root():
            descriptor = below.open_regular(entry.place)
        status = os.fstat(descriptor)
        maker = self._owner if link_owner is None else link_owner
        # A second name of somebody else's file is as good as a link to it.
        is_foreign = status.st_uid != maker and maker != 0 and (link_owner is not None or status.st_nlink > 1)
        if is_foreign:
            os.close(descriptor)
            try:
                # It may be read without root's rights, if the account can.
                return below.open_regular(entry.place)
            except PermissionError:
                why = "it belongs to somebody else than what leads to it"
                raise NameRefused(below.path(entry.place), why) from None
        return descriptor

    def read(self, entry: TreeEntry, most_bytes: int) -> bytes:
        """Return the content of a small file, at most that much of it; raise StorageFailed."""
        try:
            descriptor = self.open(entry)
        except OSError as problem:
            raise storage_failed(problem, "read", os.path.join(self.root, entry.name)) from problem
        with open(descriptor, "rb") as stream:
            return stream.read(most_bytes)

    def status(self) -> os.stat_result:
        """Return the status of the directory itself."""
        return self._directories[""][0].status("")

    def _walk(self, name: str, place: str, behind: str) -> Iterator[TreeEntry]:
        pending = [(name, place)]
        while pending:
            name, place = pending.pop()
            for entry in self._list(name, place, behind):
                yield entry
                if entry.kind is MemberKind.DIRECTORY and entry.name == "pg_wal" and "pg_wal" in self._directories:
                    yield from self._walk("pg_wal", "", "pg_wal")
                elif entry.kind is MemberKind.DIRECTORY:
                    pending.append((entry.name, entry.place))

    def _list(self, name: str, place: str, behind: str) -> list[TreeEntry]:
        """Return what is in one directory."""
        found: list[TreeEntry] = []
        try:
            with rights_to_read():
                descriptor = self._directories[behind][0].open_directory(place)
                try:
                    with os.scandir(descriptor) as scanned:
                        entries = sorted(scanned, key=lambda entry: entry.name)
                    for entry in entries:
                        inner = f"{name}/{entry.name}" if name else entry.name
                        inner_place = f"{place}/{entry.name}" if place else entry.name
                        if inner in self._skip or not self._belongs(inner, behind):
                            continue
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            found.append(TreeEntry(inner, MemberKind.DIRECTORY, status, inner_place, behind))
                        elif stat.S_ISREG(status.st_mode):
                            found.append(TreeEntry(inner, MemberKind.FILE, status, inner_place, behind))
                        elif stat.S_ISLNK(status.st_mode) and (link := self._link(inner, behind, status)):
                            found.append(link)
                finally:
                    os.close(descriptor)
        except OSError as problem:
            raise storage_failed(problem, "read directory", os.path.join(self.root, name)) from problem
        return found

    def _belongs(self, name: str, behind: str) -> bool:
        if behind == "pg_wal":
            return _WAL_NAME.match(name.removeprefix("pg_wal/")) is not None
        return not self._tablespace or _VERSION_DIRECTORY.match(name) is not None

    def _link(self, name: str, behind: str, status: os.stat_result) -> TreeEntry | None:
        path = os.path.join(self.root, name)
        real_root, target = os.path.realpath(self.root), os.path.realpath(path)
        if name.startswith("pg_tblspc/") and not self._tablespace and name[10:].isdecimal():
            return TreeEntry(name, MemberKind.SYMLINK, status, target=target, leads_nowhere=not os.path.isdir(target))
        if name == "pg_wal" and not self._tablespace:
            return self._wal_link(path, target, status)
        if os.path.isdir(target):
            if self._tablespace or behind or _DATABASE_PARTS.match(name):
                raise _leads_away(path, "a part of the database")
            # The DBA's own: its files are not the server's, and a base backup has no such links either.
            return TreeEntry(name, MemberKind.SYMLINK, status)
        if behind or not target.startswith(real_root + os.sep):
            raise _leads_away(path, "a file")
        place = os.path.relpath(target, real_root)
        found = self._directories[""][0].status(place)
        return TreeEntry(name, MemberKind.FILE, found, place, "") if stat.S_ISREG(found.st_mode) else None

    def _wal_link(self, path: str, target: str, status: os.stat_result) -> TreeEntry:
        try:
            self._directories["pg_wal"] = (Below(target), status.st_uid)
        except OSError as problem:
            raise BackupUnusable(
                f'"{path}" is a link to "{os.readlink(path)}", which cannot be read: {problem.strerror}',
                hint="put the WAL directory back there, or replace the link by a copy of it",
            ) from problem
        return TreeEntry("pg_wal", MemberKind.DIRECTORY, os.stat(path))


def _leads_away(path: str, what: str) -> BackupUnusable:
    target = os.readlink(path)
    return BackupUnusable(
        f'"{path}" is a link to "{target}", and so {what} that the backup does not hold; it is not followed',
        hint=f"if it belongs to the backup, put a copy of {target}, made when no server used it, into the place of the "
        "link; the link itself can go, what it leads to cannot",
    )
