"""One archive of the stream as members of a backup in a repository. A `pipeline.member_sinks.MemberSink`."""

from __future__ import annotations

from collections.abc import Callable

from polarvault.backup.checksums import ReceivedFiles
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, TarEvent, has_protocol
from polarvault.pipeline.member_sinks import LeftOut
from polarvault.repository.index.files import FileKind
from polarvault.repository.writing import backup_writer
from polarvault.repository.writing.backup_writer import BackupWriter

_MODE_BITS = 0o7777
_KINDS = {
    MemberKind.FILE: FileKind.FILE,
    MemberKind.DIRECTORY: FileKind.DIRECTORY,
    MemberKind.SYMLINK: FileKind.SYMLINK,
}


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
    ) -> None:
        self.left_out = LeftOut()
        self._writer, self._part = writer, part
        self._received, self._prefix, self._keep = received, prefix, keep
        self._is_file = self._is_kept = False

    def accept(self, event: TarEvent) -> None:
        """Take the next event of the archive."""
        if isinstance(event, MemberData):
            self._received.data(event.views)
            if self._is_kept:
                self._writer.data(event.views)
        elif isinstance(event, MemberBegins):
            self._begin(event.member)
        else:
            if self._is_file:
                self._received.end()
            if self._is_kept:
                self._writer.end()
            self._is_file = self._is_kept = False

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
        self._is_kept = True
        self._writer.begin(
            backup_writer.Member(
                self._part,
                path,
                _KINDS[member.kind],
                member.size if self._is_file else 0,
                member.mode & _MODE_BITS,
                member.mtime,
                member.link.encode("utf-8", "surrogateescape") if member.kind is MemberKind.SYMLINK else b"",
            )
        )
