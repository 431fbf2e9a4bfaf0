"""Targets of base backups that keep everything in memory, or hand everything to several others."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import MemberBegins, MemberData, MemberKind, TarEvent
from polarvault.pipeline.member_sinks import LeftOut, MemberSink
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.wal_stream import WalSink
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.target import BackupTarget


class MemoryTarget:
    """Keeps the regular files of each archive, the WAL, and, once it is committed, the manifest."""

    spool_directory: str | None = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.archives: dict[str, dict[str, bytes]] = {}
        self.segments = MemoryWal()
        self.manifest: bytes | None = None
        self.facts: BackupFacts | None = None

    def claim(self) -> None:
        self.calls.append("claim")

    def begin(self, facts: BackupFacts) -> None:
        self.calls.append("begin")
        self.facts = facts

    def wal(self) -> WalSink:
        self.calls.append("wal")
        return self.segments

    def archive(self, begins: ArchiveBegins) -> MemberSink:
        self.calls.append(f"archive {begins.name}")
        return _Members(self.archives.setdefault(begins.name, {}))

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        self.calls.append("commit")
        assert received.manifest is not None
        self.manifest = b"".join(received.manifest.parts())
        return StoredBackup()

    def abort(self) -> None:
        self.calls.append("abort")


class MemoryWal:
    """Segments by file name, as long as what was written of them."""

    def __init__(self) -> None:
        self.content: dict[str, bytearray] = {}
        self.done: list[str] = []

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        content = self.content.setdefault(segment.file_name, bytearray())
        assert len(content) == offset
        content += payload

    def segment_done(self, segment: WalSegment) -> None:
        self.done.append(segment.file_name)

    def add_history(self, file_name: str, content: bytes) -> None:
        self.content[file_name] = bytearray(content)

    def finish(self) -> None:
        """Nothing is open."""

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        return bytes(self.content.get(segment.file_name, b"")[offset : offset + length])


class _Members:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.left_out = LeftOut()
        self._files = files
        self._name: str | None = None

    def accept(self, event: TarEvent) -> None:
        if isinstance(event, MemberBegins):
            self._name = event.member.name if event.member.kind is MemberKind.FILE else None
            if self._name is not None:
                self._files[self._name] = b""
        elif isinstance(event, MemberData):
            assert self._name is not None
            assert len(self._files[self._name]) == event.offset
            # The views are used again when this returns.
            self._files[self._name] += b"".join(event.views)

    def finish(self) -> None:
        """Nothing is open."""

    def abandon(self) -> None:
        """Nothing is open."""


class TeeTarget:
    """Hands one backup to several targets, each step in their order; none of them may take archives verbatim."""

    def __init__(self, targets: Sequence[BackupTarget]) -> None:
        self._targets = targets
        self.spool_directory = targets[0].spool_directory

    def claim(self) -> None:
        for target in self._targets:
            target.claim()

    def begin(self, facts: BackupFacts) -> None:
        for target in self._targets:
            target.begin(facts)

    def wal(self) -> WalSink:
        return _TeeWal([sink for target in self._targets if (sink := target.wal()) is not None])

    def archive(self, begins: ArchiveBegins) -> MemberSink:
        sinks: list[MemberSink] = []
        for target in self._targets:
            destination = target.archive(begins)
            assert destination is not None
            assert hasattr(destination, "accept"), "an archive that is taken verbatim"
            sinks.append(destination)
        return _TeeMembers(sinks)

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        stored = [target.commit(received) for target in self._targets]
        return stored[0]

    def abort(self) -> None:
        for target in self._targets:
            target.abort()


class _TeeMembers:
    def __init__(self, sinks: Sequence[MemberSink]) -> None:
        self.left_out = LeftOut()
        self._sinks = sinks

    def accept(self, event: TarEvent) -> None:
        for sink in self._sinks:
            sink.accept(event)

    def finish(self) -> None:
        for sink in self._sinks:
            sink.finish()

    def abandon(self) -> None:
        for sink in self._sinks:
            sink.abandon()


class _TeeWal:
    def __init__(self, sinks: Sequence[WalSink]) -> None:
        self._sinks = sinks

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        for sink in self._sinks:
            sink.write(segment, offset, payload)

    def segment_done(self, segment: WalSegment) -> None:
        for sink in self._sinks:
            sink.segment_done(segment)

    def add_history(self, file_name: str, content: bytes) -> None:
        for sink in self._sinks:
            sink.add_history(file_name, content)

    def finish(self) -> None:
        for sink in self._sinks:
            sink.finish()

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        return self._sinks[0].read(segment, offset, length)
