"""One archive on its way from the server to its place: decode, parse, refuse, look at it in stages, hand it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import RemoteProtocolError, ServerRefused
from polarvault.model.limits import CONFIGURATION_FILE_BYTES, CONFIGURATION_FILES
from polarvault.model.names import name_problem, shown_name
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, TarEvent, TarReader, has_protocol
from polarvault.pipeline.byte_sinks import ByteSink
from polarvault.pipeline.contents import FileContent, TakesFiles
from polarvault.pipeline.decompress import decoder_for
from polarvault.pipeline.member_sinks import MemberSink
from polarvault.taking.facts import ArchiveNames
from polarvault.taking.target import Verbatim

# Without these two no server starts.
_NEEDED_CONFIGURATION = frozenset({"postgresql.conf", "pg_hba.conf"})


class Stage(Protocol):
    """Looks at what passes; views of a MemberData may be reused when it returns."""

    def accept(self, event: TarEvent) -> None:
        """Take the next event of the archive."""


class MemberLog:
    """A stage that remembers what the archives of a backup hold: names, how many, configuration files' contents."""

    def __init__(self) -> None:
        self.current = ""
        self.member_count = 0
        self.names = ArchiveNames()
        self.configuration: dict[str, bytearray] = {}
        self.lacks_configuration = False
        self._seen: set[str] = set()
        self._copy: bytearray | None = None

    def begin(self, names: ArchiveNames) -> None:
        """The next archive begins, whose names are wanted there."""
        self.names, self.member_count, self._copy = names, 0, None

    def accept(self, event: TarEvent) -> None:
        """Take the next event of the archive."""
        if isinstance(event, MemberBegins):
            self.current = name = event.member.name
            self.member_count += 1
            if event.member.kind is MemberKind.FILE:
                self.names.sent.append(name)
            self._copy = None
            if name.endswith(".conf"):
                if name in _NEEDED_CONFIGURATION:
                    self._seen.add(name)
                if len(self.configuration) < CONFIGURATION_FILES:
                    self._copy = self.configuration.setdefault(name, bytearray())
        elif self._copy is not None and isinstance(event, MemberData) and len(self._copy) < CONFIGURATION_FILE_BYTES:
            self._copy += b"".join(event.views)

    def local_half_ends(self) -> None:
        """The archive of the data directory is complete: what it lacks is not in the backup."""
        self.lacks_configuration = self._seen != _NEEDED_CONFIGURATION


class MemberInput:
    """Gives the members of one archive to the stages and to the sink, after a look at each.

    links are the symbolic links that the archive may hold, by name, and where each leads: those of the tablespaces.
    """

    def __init__(
        self, name: str, sink: MemberSink | None, *, stages: Sequence[Stage], links: Mapping[str, str]
    ) -> None:
        self._archive = name
        self._links = links
        self._sink = sink
        self.reads_files: TakesFiles | None = sink if isinstance(sink, TakesFiles) else None
        """The sink, if it is one that reads files itself."""
        self._stages = [stage.accept for stage in stages]
        self._takers = self._stages if sink is None else [*self._stages, sink.accept]

    def take(self, event: TarEvent) -> None:
        """Take the next event of the archive."""
        if isinstance(event, MemberBegins):
            self._check(event.member)
        for take in self._takers:
            take(event)

    def take_file(self, member: Member, content: FileContent) -> None:
        """Give a file to the sink that reads it; stages see that it is there."""
        self._check(member)
        for take in self._stages:
            take(MemberBegins(member))
        assert self.reads_files is not None
        self.reads_files.take_file(member, content)

    def finish(self) -> set[str]:
        """The archive is complete; return the names not stored."""
        if self._sink is None:
            return set()
        self._sink.finish()
        return self._sink.left_out.names

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


class ArchiveInput(MemberInput):
    """Members that come as a tar, compressed or not; what a target takes verbatim is only looked into."""

    def __init__(
        self, name: str, destination: MemberSink | Verbatim, *, stages: Sequence[Stage], links: Mapping[str, str]
    ) -> None:
        sink = None if isinstance(destination, Verbatim) else destination
        super().__init__(name, sink, stages=stages, links=links)
        self._verbatim: ByteSink | None = destination.sink if isinstance(destination, Verbatim) else None
        self._decoder = decoder_for(name)
        self._reader = TarReader(name)

    def write(self, views: list[memoryview]) -> None:
        """Take bytes of the archive; the views may be reused afterwards."""
        if self._verbatim is not None:
            self._verbatim.write(views)
        takers = self._takers
        for part in self._decoder.feed(views):
            for event in self._reader.feed(part):
                if isinstance(event, MemberBegins):
                    self._check(event.member)
                for take in takers:
                    take(event)

    def finish(self) -> set[str]:
        """The archive is complete; return the names not stored; raise RemoteProtocolError if it is not complete."""
        self._reader.finish()
        if self._verbatim is not None:
            self._verbatim.finish()
        return super().finish()
