"""Where the members of an archive go: a directory tree (plain format) or a new tar (tar format)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from polarvault.pgfiles.tar import (
    TERMINATOR,
    Member,
    MemberBegins,
    MemberData,
    MemberKind,
    TarEvent,
    encode_header,
    encode_member,
    is_safe_name,
)
from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.storage import files

_WRITEBACK_BYTES = 8 << 20
_PERMISSIONS = 0o777


@dataclass(slots=True)
class LeftOut:
    """Members that were received and not written, because a restore has no use for them."""

    count: int = 0
    size_bytes: int = 0
    names: set[str] = field(default_factory=set)


class MemberSink(Protocol):
    """Takes the events of one archive in order."""

    left_out: LeftOut

    def accept(self, event: TarEvent) -> None:
        """Take the next event; the views of a MemberData may be reused when it returns."""

    def finish(self) -> None:
        """The archive is complete."""


@dataclass(frozen=True, slots=True)
class TreeModes:
    """Modes for new files and directories; with `as_sent` a member's own wins, as where the server's key file has 0600.

    PolarDB's shared half has no modes worth keeping (PFS shows 0777 for all, facts 12).
    """

    file: int
    directory: int
    as_sent: bool = True


class DirectorySink:
    """Writes members below a root directory.

    keep decides which members are written; link_target maps where a tablespace's link points.
    """

    def __init__(
        self,
        root: str,
        *,
        modes: TreeModes,
        keep: Callable[[Member], bool],
        link_target: Callable[[str], str],
        writeback: bool,
    ) -> None:
        self.root = root
        self.left_out = LeftOut()
        self._modes = modes
        self._keep = keep
        self._link_target = link_target
        self._writeback = writeback
        self._descriptor = -1
        self._path = ""
        self._started = 0
        # Creating a member's parent each time would cost a system call per file.
        self._known_directories = {root}

    def accept(self, event: TarEvent) -> None:
        """Create, write or close."""
        try:
            if isinstance(event, MemberData):
                if self._descriptor >= 0:
                    self._write(event)
            elif isinstance(event, MemberBegins):
                self._begin(event.member)
            elif self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
        except OSError as problem:
            raise files.storage_failed(problem, "write to file", self._path) from problem

    def finish(self) -> None:
        """Everything is closed already."""

    def _begin(self, member: Member) -> None:
        if not is_safe_name(member.name):
            # The root itself, or PolarDB's status files with a protocol in their name (facts 1.6).
            if member.name not in ("", "."):
                self._leave_out(member)
            return
        if not self._keep(member):
            self._leave_out(member)
            return
        self._path = os.path.join(self.root, member.name)
        if member.kind is MemberKind.DIRECTORY:
            self._make_directory(self._path)
            if self._modes.as_sent and member.mode & _PERMISSIONS != self._modes.directory:
                os.chmod(self._path, member.mode & _PERMISSIONS)
        elif member.kind is MemberKind.SYMLINK:
            self._make_parent(self._path)
            os.symlink(self._link_target(member.link), self._path)
        else:
            self._make_parent(self._path)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self._modes.file)
            if self._modes.as_sent and member.mode & _PERMISSIONS != self._modes.file:
                os.fchmod(self._descriptor, member.mode & _PERMISSIONS)
            self._started = 0

    def _write(self, event: MemberData) -> None:
        files.write_all(self._descriptor, event.views)
        written = event.offset + event.size
        if self._writeback and written - self._started >= _WRITEBACK_BYTES:
            files.start_writeback(self._descriptor, self._started, written - self._started)
            self._started = written

    def _make_directory(self, path: str) -> None:
        # pg_wal may be there already: the WAL stream or --waldir made it first.
        if path not in self._known_directories and not os.path.isdir(path):
            self._make_parent(path)
            os.mkdir(path, self._modes.directory)
        self._known_directories.add(path)

    def _make_parent(self, path: str) -> None:
        parent = os.path.dirname(path)
        if parent not in self._known_directories:
            self._make_directory(parent)

    def _leave_out(self, member: Member) -> None:
        if member.kind is MemberKind.FILE:
            self.left_out.count += 1
            self.left_out.size_bytes += member.size
            self.left_out.names.add(member.name)


class TarSink:
    """Writes members into a tar again, with a terminator whether or not the server sent one.

    prefix goes in front of every name (PolarDB's shared half on standard output). appended is added to the end of the
    named files, which are made if the archive does not have them (-R).
    """

    def __init__(
        self, below: ByteSink, *, prefix: str = "", is_last: bool = True, appended: dict[str, bytes] | None = None
    ) -> None:
        self.below = below
        self.left_out = LeftOut()
        self._prefix = prefix
        self._is_last = is_last
        self._appended = dict(appended or {})
        self._skipping = False
        self._collected: bytearray | None = None

    def accept(self, event: TarEvent) -> None:
        """Append header, payload or padding."""
        if isinstance(event, MemberData):
            if self._collected is not None:
                self._collected += b"".join(event.views)
            elif not self._skipping:
                self.below.write(event.views)
        elif isinstance(event, MemberBegins):
            member = event.member
            self._skipping = not is_safe_name(member.name)
            if member.name in self._appended:
                # Its header holds the size, so the member can only be written when the new content is known.
                self._collected = bytearray()
                return
            if self._skipping:
                self.left_out.count += 1
                self.left_out.size_bytes += member.size
                self.left_out.names.add(member.name)
                return
            self.below.write([self._header(member)])
        elif self._collected is not None:
            content, self._collected = bytes(self._collected), None
            self.add(event.member.name, content + self._appended.pop(event.member.name))
        elif not self._skipping and event.member.padding:
            self.below.write([bytes(event.member.padding)])

    def add(self, name: str, content: bytes) -> None:
        """Append a file of our own, between members."""
        self.below.write([encode_member(self._prefix + name, content, mtime=int(time.time()))])

    def add_directory(self, name: str) -> None:
        """Append a directory of our own, between members."""
        self.below.write([encode_header(self._prefix + name, 0, mode=0o700, mtime=int(time.time()), directory=True)])

    def finish(self) -> None:
        """End the tar, unless more archives follow in the same file."""
        for name, content in self._appended.items():
            self.add(name, content)
        if self._is_last:
            self.below.write([TERMINATOR])
            self.below.finish()

    def _header(self, member: Member) -> bytes:
        if not self._prefix:
            return member.header
        return encode_header(
            self._prefix + member.name,
            member.size,
            mode=member.mode,
            mtime=member.mtime,
            directory=member.kind is MemberKind.DIRECTORY,
        )
