"""One archive of the stream as members of a backup in a repository. A `pipeline.member_sinks.MemberSink`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from polarvault.backup.checksums import ALGORITHM, ReceivedFiles
from polarvault.backup.increments import (
    LABEL_NAME,
    MOST_LABEL_BYTES,
    ChangedFile,
    WholeFile,
    label_without_parent,
    whole_label,
)
from polarvault.pgfiles.incremental_file import full_name
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, TarEvent, has_protocol
from polarvault.pipeline.contents import FileContent, read_for_its_sum
from polarvault.pipeline.member_sinks import LeftOut
from polarvault.repository.index.files import FileKind
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.repository.writing import backup_writer
from polarvault.repository.writing.backup_writer import BackupWriter

_MODE_BITS = 0o7777
_KINDS = {
    MemberKind.FILE: FileKind.FILE,
    MemberKind.DIRECTORY: FileKind.DIRECTORY,
    MemberKind.SYMLINK: FileKind.SYMLINK,
}


@dataclass(slots=True)
class Increments:
    """Of a backup of which the server sends what changed: the parent, and what became of files, by their sent paths."""

    reader: BackupReader
    segment_blocks: int
    whole: dict[str, WholeFile] = field(default_factory=dict)


class ArchiveSink:
    """Feeds the writer with the members of one archive, one part of the backup.

    prefix: what the manifest puts in front of the archive's names. What is not kept is compared with the manifest all
    the same.
    """

    def __init__(
        self,
        writer: BackupWriter,
        part: int,
        *,
        received: ReceivedFiles,
        prefix: bytes = b"",
        keep: Callable[[Member], bool],
        increments: Increments | None = None,
    ) -> None:
        self.left_out = LeftOut()
        self._increments = increments
        self._changed: ChangedFile | None = None
        self._label: bytearray | None = None
        self._member: Member | None = None
        self._stored: backup_writer.Member | None = None
        self._writer, self._part = writer, part
        self._received, self._prefix, self._keep = received, prefix, keep
        self._is_file = self._is_kept = False

    def accept(self, event: TarEvent) -> None:
        """Take the next event of the archive."""
        if isinstance(event, MemberData):
            self._received.data(event.views)
            if self._changed is not None:
                self._changed.data(event.views)
            elif self._label is not None:
                for view in event.views:
                    self._label += view
            elif self._is_kept:
                self._writer.data(event.views)
        elif isinstance(event, MemberBegins):
            self._begin(event.member)
        else:
            if self._is_file:
                self._received.end()
            if self._changed is not None or self._label is not None:
                self._end_increment()
            elif self._is_kept:
                self._writer.end()
            self._is_file = self._is_kept = False
            self._changed = self._label = None

    def take_file(self, member: Member, content: FileContent) -> None:
        """Take a file that the writer's threads read."""
        path = self._prefix + member.name.encode("utf-8", "surrogateescape")
        content.when_read(lambda checksum: self._received.add(path, member.size, checksum or ""))
        if has_protocol(member.name) or not self._keep(member):
            self.left_out.add(member)
            read_for_its_sum(content)
            return
        self._writer.begin(self._stored_member(member))
        self._writer.fill(content)
        self._writer.end()

    def drain(self) -> None:
        """Wait until everything that was taken has been read."""
        self._writer.drain()

    def finish(self) -> None:
        """The archive is complete; the writer goes on."""

    def abandon(self) -> None:
        """Nothing is open but the writer, which its owner abandons."""

    def _begin(self, member: Member) -> None:
        path = member.name.encode("utf-8", "surrogateescape")
        self._is_file = member.kind is MemberKind.FILE
        if self._is_file:
            self._received.begin(self._prefix + path)
        # The root itself, or PolarDB's status files with a protocol in their name (facts 1.6).
        if path in (b"", b"."):
            return
        if has_protocol(member.name) or not self._keep(member):
            if self._is_file:
                self.left_out.add(member)
            return
        stored = self._stored_member(member)
        if self._increments is not None and self._is_file and self._begin_increment(member, stored):
            return
        self._is_kept = True
        self._writer.begin(stored)

    def _stored_member(self, member: Member) -> backup_writer.Member:
        return backup_writer.Member(
            self._part,
            member.name.encode("utf-8", "surrogateescape"),
            _KINDS[member.kind],
            member.size if member.kind is MemberKind.FILE else 0,
            member.mode & _MODE_BITS,
            member.mtime,
            member.link.encode("utf-8", "surrogateescape") if member.kind is MemberKind.SYMLINK else b"",
        )

    def _begin_increment(self, member: Member, stored: backup_writer.Member) -> bool:
        """Begin a file that is not stored as it comes; tell whether it is one."""
        increments = self._increments
        assert increments is not None
        whole = full_name(member.name)
        if whole is not None:
            path = whole.encode("utf-8", "surrogateescape")
            full_path = self._prefix.decode() + whole
            self._changed = ChangedFile(
                self._writer, increments.reader, replace(stored, path=path), member.size, full_path=full_path,
                segment_blocks=increments.segment_blocks,
            )  # fmt: skip
        elif member.name == LABEL_NAME and member.size <= MOST_LABEL_BYTES:
            self._label = bytearray()
        self._member = member
        self._stored = stored
        return self._changed is not None or self._label is not None

    def _end_increment(self) -> None:
        increments, member = self._increments, self._member
        assert increments is not None
        assert member is not None
        assert self._stored is not None
        prefix = self._prefix.decode()
        if self._changed is not None:
            self._changed.end()
            path = prefix + (full_name(member.name) or "")
            increments.whole[prefix + member.name] = WholeFile(
                path, self._changed.size, is_parents=self._changed.is_parents
            )
            return
        assert self._label is not None
        content = label_without_parent(bytes(self._label))
        self._writer.begin(replace(self._stored, size=len(content)))
        self._writer.data([content])
        self._writer.end()
        increments.whole[prefix + member.name] = whole_label(prefix + member.name, content, ALGORITHM)
