"""Send the members of one archive: open, note in the manifest, hand on."""

from __future__ import annotations

import time

from polarvault.errors import ServerRefused
from polarvault.model.limits import CONFIGURATION_FILE_BYTES
from polarvault.pgfiles.control import ControlFile
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind
from polarvault.storage.trees.model import Entry, EntryKind, Tree
from polarvault.taking.local.content import Reading, SourceFile
from polarvault.taking.local.feeding import Feeder
from polarvault.taking.local.layout import ArchiveWalk
from polarvault.taking.local.manifest import ManifestLog
from polarvault.taking.local.place import NotHere, read_control
from polarvault.taking.local.rules import CONTROL_FILE
from polarvault.taking.local.walk import Found

# Small files are read at once by the thread that walks: handing them over would take longer, and hold descriptors open.
_AT_ONCE_BYTES = 32 << 10


class ArchiveSender:
    """Sends what a walk finds."""

    def __init__(self, archive: ArchiveWalk, feeder: Feeder, reading: Reading, manifest: ManifestLog) -> None:
        self._archive, self._feeder = archive, feeder
        self._reading, self._manifest = reading, manifest

    def send(self, found: Found) -> None:
        """Send a member; a file that has gone meanwhile is left out, as the server does. OSError."""
        if found.kind is not MemberKind.FILE:
            self._send_bare(found)
            return
        assert self._archive.walk is not None
        tree = self._archive.walk.tree
        try:
            file = tree.open(found.place)
        except FileNotFoundError:
            return
        size = file.size()
        path = self._archive.prefix + found.name
        ended = self._manifest.add(path, size, found.entry.modified, section=self._archive.section)
        content = SourceFile(file, self._reading, path=path, shown=tree.path(found.place), size=size, ended=ended)
        member = _member(found.name, MemberKind.FILE, size, found.entry)
        is_configuration = found.name.endswith(".conf") and size <= CONFIGURATION_FILE_BYTES
        if size > _AT_ONCE_BYTES and not is_configuration:
            self._feeder.take_file(member, content)
            return
        view = memoryview(bytearray(size))
        if size:
            content.part(0, size).read_into(view)
        self._send_read(member, view)

    def send_content(self, name: str, content: bytes, entry: Entry) -> None:
        """Send a file that was read as a whole."""
        ended = self._manifest.add(
            self._archive.prefix + name, len(content), entry.modified, section=self._archive.section
        )
        ended(self._reading.checksum_of(content))
        self._reading.taken(len(content))
        self._send_read(_member(name, MemberKind.FILE, len(content), entry), memoryview(content))

    def send_own(self, name: str, content: bytes, mode: int) -> None:
        """Send a file that is in no directory."""
        entry = Entry(name, EntryKind.FILE, len(content), time.time(), mode)
        self.send_content(name, content, entry)

    def send_control(self, content: bytes) -> None:
        """Send pg_control, which was read as a whole; OSError."""
        assert self._archive.walk is not None
        self.send_content(CONTROL_FILE, content, self._archive.walk.tree.status(CONTROL_FILE))

    def _send_bare(self, found: Found) -> None:
        member = _member(found.name, found.kind, 0, found.entry, found.link)
        self._feeder.take(MemberBegins(member))
        self._feeder.take(MemberEnds(member))

    def _send_read(self, member: Member, view: memoryview) -> None:
        self._feeder.take(MemberBegins(member))
        if view:
            self._feeder.take(MemberData([view], len(view), 0))
        self._feeder.take(MemberEnds(member))


def control_of(tree: Tree) -> tuple[bytes, ControlFile]:
    """Return pg_control as it is now, and what it says; raise ServerRefused."""
    try:
        return read_control(tree)
    except NotHere as problem:
        raise ServerRefused(problem.why, hint=problem.what_to_do) from None


def _member(name: str, kind: MemberKind, size: int, entry: Entry, link: str = "") -> Member:
    return Member(name, kind, size, entry.mode, link, int(entry.modified), b"")
