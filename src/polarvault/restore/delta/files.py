"""The files of a target that is changed in place: found, read, written and removed below its roots, through no link.

A file that is no regular one, has a second name (a snapshot by hard links, or the cluster that pg_upgrade --link left),
or belongs to somebody else is never written to: another one takes its place.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from polarvault.backupset.model import CONTROL_NAME
from polarvault.pgfiles.tar import MemberKind
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.restore.delta.existing import root_of, targets
from polarvault.restore.delta.own_wal import KEPT_DIRECTORY
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.routing import Router, router_of
from polarvault.storage.below import Below
from polarvault.storage.occupants import CONTROL_ASIDE_NAME, RESTORE_MARK_NAME

# Descriptors that one worker holds for files that it goes back to.
_MOST_OPEN = 32
_KEPT = frozenset({CONTROL_ASIDE_NAME, RESTORE_MARK_NAME, KEPT_DIRECTORY, "lost+found"})


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a target: the root that it lies in, and the name below it."""

    root: str
    name: str


@dataclass(slots=True)
class Belonging:
    """The names that the backup has below one root."""

    files: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)

    def add_directory(self, name: str) -> None:
        """Add a directory and those above it."""
        while name and name not in self.directories:
            self.directories.add(name)
            name = name.rpartition("/")[0]


class Held:
    """A file of the target that is there. Implements `difference.Held`; `on_read` gets the number of bytes read."""

    def __init__(self, descriptor: int, on_read: Callable[[int], None]) -> None:
        self.descriptor = descriptor
        self._on_read = on_read

    def read(self, offset: int, into: memoryview) -> int:
        """Read until the buffer is full or the file ends."""
        length = 0
        while length < len(into):
            part = os.preadv(self.descriptor, [into[length:]], offset + length)
            if not part:
                break
            length += part
        self._on_read(length)
        return length


class TargetFiles:
    """Everything below the roots of a plan; used by several threads. file_mode and directory_mode: as restored.

    changes: False only looks.
    """

    def __init__(self, plan: RestorePlan, *, file_mode: int, directory_mode: int, changes: bool) -> None:
        self._plan = plan
        self._layout = plan.layout
        self._router = router_of(plan.layout, plan.inventory)
        self._file_mode, self._directory_mode = file_mode, directory_mode
        self.changes = changes
        existing = plan.facts.host.existing
        self._kept_wal = {f"pg_wal/{name}" for name in (existing.kept_wal if existing is not None else ())}
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._below: dict[str, Below] = {}

    def __enter__(self) -> TargetFiles:
        for root in self._layout.roots:
            if os.path.isdir(root):
                links = _is_wal_link if root == self._layout.data else _is_no_link
                self._below[root] = self._stack.enter_context(Below(root, links=links))
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    @property
    def router(self) -> Router:
        """What tells the place of a file."""
        return self._router

    def spot(self, path: str) -> Spot:
        """Return where a path lies."""
        root = root_of(path, self._layout)
        return Spot(root, path[len(root) :].strip("/"))

    # What belongs and what does not

    def belonging(self, source: BackupInRepository) -> Mapping[str, Belonging]:
        """Return the names that the backup has, by root."""
        found = {root: Belonging() for root in self._layout.roots}
        for entry, path in targets(source, self._layout, self._router, self._plan.facts.backup):
            spot = self.spot(path)
            own = found[spot.root]
            if entry.kind is MemberKind.DIRECTORY:
                own.add_directory(spot.name)
            else:
                own.files.add(spot.name)
                own.add_directory(spot.name.rpartition("/")[0])
        return found

    def remove_strangers(self, belonging: Mapping[str, Belonging]) -> tuple[int, int]:
        """Remove what does not belong, and make the directories that are missing; return files and bytes removed."""
        files = size = 0
        for root, below in self._below.items():
            own = belonging[root]
            inner = {self.spot_below(root, other) for other in self._layout.roots if other != root}
            for name, status in self._strangers(below, "", own, inner - {None}):
                if root == self._layout.data and name in self._kept_wal:
                    continue
                files += not stat.S_ISDIR(status.st_mode)
                size += status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
                if self.changes:
                    _remove(below, name, status)
            if root == self._layout.data and self.changes:
                self._keep_wal(below)
            if self.changes:
                for name in sorted(own.directories):
                    below.make_directories(name, self._directory_mode)
        return files, size

    def _keep_wal(self, below: Below) -> None:
        """Move the segments that only the target has to where they stay; the first one of a name is the right one."""
        for name in sorted(self._kept_wal):
            kept = f"{KEPT_DIRECTORY}/{name.rpartition('/')[2]}"
            below.make_directories(KEPT_DIRECTORY, self._directory_mode)
            if below.exists(name) and not below.exists(kept):
                below.rename(name, kept)
            below.unlink(name, missing_ok=True)

    def spot_below(self, root: str, path: str) -> str | None:
        """Return the name of a path below a root; None if it is elsewhere."""
        prefix = root.rstrip("/") + "/"
        return path[len(prefix) :] if path.startswith(prefix) else None

    def _strangers(
        self, below: Below, directory: str, own: Belonging, skipped: set[str | None]
    ) -> Iterator[tuple[str, os.stat_result]]:
        """Yield what is not as it belongs, whole directories by themselves after what is in them."""
        is_tablespace = below.root in self._layout.tablespaces.values()
        # It is set aside when changes are made, and not removed.
        skipped = skipped | ({CONTROL_NAME} if below.root == self._layout.data else set())
        for last in sorted(below.names(directory)):
            name = f"{directory}/{last}" if directory else last
            # Of a tablespace's directory only that of the server's version is the cluster's.
            if name in _KEPT or name in skipped or (is_tablespace and not directory and name not in own.directories):
                continue
            try:
                status = below.status(name)
            except FileNotFoundError:
                status = os.lstat(below.path(name))
            if stat.S_ISDIR(status.st_mode):
                yield from self._strangers(below, name, own, skipped)
                if name not in own.directories:
                    yield name, status
                elif self.changes and status.st_mode & 0o777 != self._directory_mode:
                    below.change_mode(name, self._directory_mode)
            elif not (name in own.files and _is_own(status)) and not self._is_right_link(below, name):
                yield name, status

    def _is_right_link(self, below: Below, name: str) -> bool:
        """Tell whether a name is the link to a tablespace of the plan, which a repeated restore asks for."""
        parent, _, oid = name.rpartition("/")
        if parent != "pg_tblspc" or not oid.isdecimal() or below.root != self._layout.local:
            return False
        location = self._layout.tablespaces.get(int(oid))
        return location is not None and below.link_target(name) == location

    # Files

    @contextmanager
    def opened(self, path: str, size: int, on_read: Callable[[int], None]) -> Iterator[Held | None]:
        """Open a file to be compared, None if there is none; where changes are made it has its size afterwards."""
        spot = self.spot(path)
        descriptor = self._open(spot)
        try:
            held = None if descriptor is None else Held(descriptor, on_read)
            if self.changes:
                if descriptor is None:
                    descriptor = self.create(spot)
                self._settle(descriptor, size)
            yield held
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, spot: Spot) -> int | None:
        below = self._below.get(spot.root)
        if below is None:
            return None
        try:
            if self.changes:
                return below.open_for_writing(spot.name)
            if not _is_own(below.status(spot.name)):
                return None
            return below.open_regular(spot.name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, spot: Spot) -> int:
        """Return a descriptor of a file that was missing; another worker may have made it since."""
        below = self._below[spot.root]
        with self._lock:
            try:
                return below.create(spot.name, self._file_mode)
            except FileExistsError:
                return below.open_for_writing(spot.name)

    def _settle(self, descriptor: int, size: int) -> None:
        status = os.fstat(descriptor)
        if status.st_mode & 0o777 != self._file_mode:
            os.fchmod(descriptor, self._file_mode)
        if status.st_size != size:
            os.ftruncate(descriptor, size)

    def writer(self) -> Writer:
        """Return what writes pages; one for each worker."""
        return Writer(self)

    def open_to_write(self, path: str) -> int:
        """Open a file that `opened` has settled."""
        spot = self.spot(path)
        return self._below[spot.root].open_for_writing(spot.name)

    def set_control_aside(self, name: str) -> None:
        """Take pg_control away, if it is there, before anything is changed; durable on return if the plan syncs."""
        below = self._below[self._layout.data]
        if below.exists(name):
            below.rename(name, CONTROL_ASIDE_NAME)
            if self._plan.request.sync:
                below.sync_parent(CONTROL_ASIDE_NAME)

    def forget_control_aside(self) -> None:
        """Remove what `set_control_aside` has kept: pg_control is in place again."""
        below = self._below[self._layout.data]
        below.unlink(CONTROL_ASIDE_NAME, missing_ok=True)
        if self._plan.request.sync:
            below.sync_parent(CONTROL_ASIDE_NAME)


class Writer:
    """Writes pages into files that are there, and keeps those open that were written to last."""

    def __init__(self, files: TargetFiles) -> None:
        self._files = files
        self._open: OrderedDict[str, int] = OrderedDict()

    def write(self, path: str, offset: int, view: memoryview) -> None:
        """Write at an offset."""
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._open[path] = self._files.open_to_write(path)
            if len(self._open) > _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def _is_wal_link(name: str) -> bool:
    """Tell whether a link is one that initdb --waldir has made."""
    return name == "pg_wal"


def _is_no_link(name: str) -> bool:
    return False


def _remove(below: Below, name: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        # Not empty: something in it is kept, or has appeared since.
        with suppress(OSError):
            below.remove_directory(name)
    else:
        below.unlink(name, missing_ok=True)
