"""One archive on its way from the server to its place: decode, parse, check pages, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.basebackup.halves import ArchiveNames
from polarvault.errors import RemoteProtocolError, ServerRefused
from polarvault.model.limits import CONFIGURATION_FILE_BYTES
from polarvault.model.names import name_problem, shown_name
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, TarEvent, TarReader, has_protocol
from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.pipeline.decompress import decoder_for
from polarvault.pipeline.member_sinks import MemberSink
from polarvault.pipeline.page_check import PageCheck


class ArchiveWriter:
    """Feeds one archive's members to a sink; or, with `verbatim`, writes the server's bytes as they are.

    Verbatim is for archives that the server has compressed: they are decoded as well, but only to look inside. links
    are the symbolic links that the archive may hold, by name, and where each leads: those of the tablespaces. on_member
    hears of every member, and may return a place for a copy of its content, as far as a configuration file may go.
    """

    def __init__(
        self,
        name: str,
        sink: MemberSink,
        *,
        page_check: PageCheck | None,
        names: ArchiveNames,
        on_member: Callable[[str], bytearray | None],
        links: Mapping[str, str],
        verbatim: ByteSink | None = None,
    ) -> None:
        self.names = names
        self._archive = name
        self._links = links
        self._sink = sink
        self._verbatim = verbatim
        self._decoder = decoder_for(name)
        self._reader = TarReader(name)
        self._page_check = page_check
        self._on_member = on_member
        self._copy: bytearray | None = None
        self.member_count = 0

    def write(self, views: list[memoryview]) -> None:
        """Take bytes of the archive; the views may be reused afterwards."""
        if self._verbatim is not None:
            self._verbatim.write(views)
        for part in self._decoder.feed(views):
            for event in self._reader.feed(part):
                self._take(event)

    def finish(self) -> None:
        """The archive is complete; raise RemoteProtocolError if it is not."""
        self._reader.finish()
        if self._verbatim is not None:
            self._verbatim.finish()
        else:
            self._sink.finish()
        self.names.left_out |= self._sink.left_out.names

    def _take(self, event: TarEvent) -> None:
        if isinstance(event, MemberBegins):
            self._check(event.member)
            self._copy = self._on_member(event.member.name)
            self.member_count += 1
            if event.member.kind is MemberKind.FILE:
                self.names.sent.append(event.member.name)
        elif self._copy is not None and isinstance(event, MemberData) and len(self._copy) < CONFIGURATION_FILE_BYTES:
            self._copy += b"".join(event.views)
        if self._page_check is not None:
            self._page_check.accept(event)
        if self._verbatim is None:
            self._sink.accept(event)

    def _check(self, member: Member) -> None:
        """Refuse what no server's data directory holds, in every format: other programs unpack what we store."""
        name = member.name
        if name in ("", ".") or has_protocol(name):
            return
        if (why := name_problem(name)) is not None:
            raise RemoteProtocolError(f"the server sent member {shown_name(name)} in {self._archive}: {why}")
        if name == MARKER_NAME:
            raise ServerRefused(
                f"the server's data directory holds {MARKER_NAME}: it was started from a base backup that was cut off, "
                "so parts of its data may be missing",
                hint="restore the server from a whole backup; or, if you are sure that its data is complete, remove "
                "that file from its data directory and take the backup again",
            )
        if member.kind is MemberKind.SYMLINK and self._links.get(name) != member.link.rstrip("/"):
            raise RemoteProtocolError(
                f"the server sent a symbolic link {shown_name(name)} to {shown_name(member.link)} in {self._archive}, "
                "which is no tablespace of its list"
            )
