"""One archive on its way from the server to its place: decode, parse, check pages, write."""

from __future__ import annotations

from collections.abc import Callable

from polarvault.basebackup.halves import ArchiveNames
from polarvault.pgfiles.tar import MemberBegins, MemberKind, TarEvent, TarReader
from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.pipeline.decompress import decoder_for
from polarvault.pipeline.member_sinks import MemberSink
from polarvault.pipeline.page_check import PageCheck


class ArchiveWriter:
    """Feeds one archive's members to a sink; or, with `verbatim`, writes the server's bytes as they are.

    Verbatim is for archives that the server has compressed: they are decoded as well, but only to look inside.
    """

    def __init__(
        self,
        name: str,
        sink: MemberSink,
        *,
        page_check: PageCheck | None,
        names: ArchiveNames,
        on_member: Callable[[str], None],
        verbatim: ByteSink | None = None,
    ) -> None:
        self.names = names
        self._sink = sink
        self._verbatim = verbatim
        self._decoder = decoder_for(name)
        self._reader = TarReader(name)
        self._page_check = page_check
        self._on_member = on_member
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
            self._on_member(event.member.name)
            self.member_count += 1
            if event.member.kind is MemberKind.FILE:
                self.names.sent.append(event.member.name)
        if self._page_check is not None:
            self._page_check.accept(event)
        if self._verbatim is None:
            self._sink.accept(event)
