"""Where the members of an archive go: a directory tree (plain format) or a new tar (tar format)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from polarvault.errors import RemoteProtocolError, StorageFailed
from polarvault.model import limits
from polarvault.pgfiles.tar import (
    BLOCK_BYTES,
    TERMINATOR,
    Member,
    MemberBegins,
    MemberData,
    MemberKind,
    TarEvent,
    encode_header,
    encode_member,
    has_protocol,
    is_safe_name,
)
from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.pipeline.contents import FileContent, read_for_its_sum
from polarvault.pipeline.parallel_copy import ParallelCopy
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.storage.copying import clone
from polarvault.storage.writeback import start_aside

_WRITEBACK_BYTES = 8 << 20
_PERMISSIONS = 0o777
_MODE_BITS = 0o7777


@dataclass(slots=True)
class LeftOut:
    """Members that were received and not written, because a restore has no use for them."""

    count: int = 0
    size_bytes: int = 0
    names: set[str] = field(default_factory=set)

    def add(self, member: Member) -> None:
        """Note a member."""
        self.count += 1
        self.size_bytes += member.size
        self.names.add(member.name)
        if len(self.names) > limits.LEFT_OUT_MEMBERS:
            raise RemoteProtocolError(
                f"the server sent more than {limits.LEFT_OUT_MEMBERS} files that have no place in a backup"
            )


class MemberSink(Protocol):
    """Takes the events of one archive in order."""

    left_out: LeftOut

    def accept(self, event: TarEvent) -> None:
        """Take the next event; the views of a MemberData may be reused when it returns."""

    def finish(self) -> None:
        """The archive is complete."""

    def abandon(self) -> None:
        """Close what is open after a failure; safe to call at any time, also after `finish`."""


@dataclass(frozen=True, slots=True)
class TreeModes:
    """Modes for new files and directories; with `as_sent` a member's own wins, as where the server's key file has 0600.

    PolarDB's shared half has no modes worth keeping (PFS shows 0777 for all, facts 12).
    """

    file: int
    directory: int
    as_sent: bool = True


class DirectorySink:
    """Writes members below a directory, which it opens at once and closes when it is finished or abandoned.

    keep decides which members are written; link_target maps where a tablespace's link points; links tells which names
    are links that this backup has made itself. No other link is followed, whoever made it.
    """

    def __init__(
        self,
        root: str,
        *,
        modes: TreeModes,
        keep: Callable[[Member], bool],
        link_target: Callable[[str], str],
        writeback: bool,
        links: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.root = root
        self.left_out = LeftOut()
        self._modes = modes
        self._keep = keep
        self._link_target = link_target
        self._writeback = writeback
        self._descriptor = -1
        self._name = ""
        self._started = 0
        self._copy: ParallelCopy | None = None
        # Until one could not be: a tablespace and what it is copied to lie on one file system each.
        self._may_clone = True
        try:
            self._below = Below(root, links=links)
        except OSError as problem:
            raise files.storage_failed(problem, "open directory", root) from problem

    def accept(self, event: TarEvent) -> None:
        """Create, write or close."""
        try:
            if isinstance(event, MemberData):
                if self._descriptor >= 0:
                    self._write(event)
            elif isinstance(event, MemberBegins):
                self._begin(event.member)
            elif self._descriptor >= 0:
                self._close()
        except OSError as problem:
            raise self._failed(problem) from problem

    def _failed(self, problem: OSError) -> StorageFailed:
        path = problem.filename if isinstance(problem.filename, str) and "/" in problem.filename else None
        return files.storage_failed(problem, "write to file", path or self._below.path(self._name))

    def take_file(self, member: Member, content: FileContent) -> None:
        """Create a file and have it filled by several threads."""
        try:
            self._begin(member)
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor < 0:
                read_for_its_sum(content)
                return
            if self._clone(descriptor, content):
                os.close(descriptor)
                return
            if self._copy is None:
                self._copy = ParallelCopy(writeback=self._writeback)
            self._copy.copy(descriptor, self._below.path(self._name), content)
        except OSError as problem:
            raise self._failed(problem) from problem

    def _clone(self, descriptor: int, content: FileContent) -> bool:
        """Have the file share the source's extents, where nobody has to see its bytes and both lie together."""
        source = content.clone_source() if self._may_clone and content.size else None
        if source is None:
            return False
        self._may_clone = clone(source, descriptor, content.size)
        if self._may_clone:
            content.cloned()
        return self._may_clone

    def drain(self) -> None:
        """Wait until every file that was taken is written."""
        if self._copy is not None:
            self._copy.drain()

    def finish(self) -> None:
        """Every file is closed then, and the directories are."""
        if self._copy is not None:
            self._copy.finish()
        self.abandon()

    def abandon(self) -> None:
        """Close what is open; safe to call twice."""
        if self._copy is not None:
            self._copy.abandon()
        if self._descriptor >= 0:
            # What could not be written has been said; this file goes or stays without a manifest.
            with contextlib.suppress(OSError):
                self._close()
        self._below.close()

    def _close(self) -> None:
        # Given up before it is closed: a close that fails has closed it all the same, and the number may be another
        # thread's by then (close(2)).
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _begin(self, member: Member) -> None:
        # The root itself, or PolarDB's status files with a protocol in their name (facts 1.6).
        if member.name in ("", "."):
            return
        if has_protocol(member.name) or not self._keep(member):
            self._leave_out(member)
            return
        self._name = name = member.name
        if self._descriptor >= 0:
            self._close()
        self._below.make_parents(name, self._modes.directory)
        if member.kind is MemberKind.DIRECTORY:
            # pg_wal may be there already: the WAL stream or --waldir made it first.
            self._below.make_directory(name, self._modes.directory)
            if self._modes.as_sent and member.mode & _PERMISSIONS != self._modes.directory:
                self._below.change_mode(name, member.mode & _PERMISSIONS)
        elif member.kind is MemberKind.SYMLINK:
            self._below.symlink(self._link_target(member.link), name)
        else:
            self._descriptor = self._create(name)
            if self._modes.as_sent and member.mode & _PERMISSIONS != self._modes.file:
                os.fchmod(self._descriptor, member.mode & _PERMISSIONS)
            self._started = 0

    def _create(self, name: str) -> int:
        try:
            return self._below.create(name, self._modes.file)
        except FileExistsError:
            # A file that was made anew while the server listed its directory may come twice; a link is never replaced.
            if self._below.link_target(name) is not None:
                raise OSError(errno.EEXIST, "the server sent a link of that name before", name) from None
            return self._below.create(name, self._modes.file, replace=True)

    def _write(self, event: MemberData) -> None:
        files.write_all(self._descriptor, event.views)
        written = event.offset + event.size
        if self._writeback and written - self._started >= _WRITEBACK_BYTES:
            start_aside(self._descriptor, self._started, written)
            self._started = written

    def _leave_out(self, member: Member) -> None:
        if member.kind is MemberKind.FILE:
            self.left_out.add(member)


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
                if member.size > limits.SMALL_FILE_BYTES:
                    raise RemoteProtocolError(f"the server sent {member.name} with {member.size} bytes")
                # Its header holds the size, so the member can only be written when the new content is known.
                self._collected = bytearray()
                return
            if self._skipping:
                self.left_out.add(member)
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

    def abandon(self) -> None:
        """Close what is below."""
        self.below.abandon()

    def _header(self, member: Member) -> bytes:
        # A header with others in front of it is written anew: other programs may read those in another way than we do.
        if not self._prefix and len(member.header) == BLOCK_BYTES:
            return member.header
        return encode_header(
            self._prefix + member.name,
            member.size,
            mode=member.mode & _MODE_BITS,
            mtime=max(0, member.mtime),
            directory=member.kind is MemberKind.DIRECTORY,
            link=member.link if member.kind is MemberKind.SYMLINK else None,
        )
