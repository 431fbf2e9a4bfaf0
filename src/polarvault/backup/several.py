"""One backup into several repositories at once, from one stream. Where one fails the others go on without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from polarvault.backup.members import ArchiveSink
from polarvault.backup.target import RepositoryTarget
from polarvault.errors import PolarvaultError
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import Member, TarEvent
from polarvault.pipeline.contents import FileContent
from polarvault.pipeline.member_sinks import LeftOut
from polarvault.repository.wal.sink import RepositoryWalSink
from polarvault.server.base_backup import ArchiveBegins
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.reporter import BackupReporter

Result = TypeVar("Result")


class SeveralTargets:
    """Implements `taking.target.BackupTarget`. failed: what ended the backup in some of the places."""

    spool_directory: str | None = None

    def __init__(self, targets: Sequence[RepositoryTarget], reporter: BackupReporter) -> None:
        self.targets = tuple(targets)
        self.failed: dict[RepositoryTarget, PolarvaultError] = {}
        self.has_begun = False
        self._reporter = reporter

    def each(self, do: Callable[[RepositoryTarget], Result]) -> list[tuple[RepositoryTarget, Result]]:
        """Do something with every target that has not failed; raise the first failure once all have."""
        done = []
        for target in self.targets:
            if target in self.failed:
                continue
            try:
                done.append((target, do(target)))
            except PolarvaultError as problem:
                self._fail(target, problem)
        if len(self.failed) == len(self.targets):
            raise next(iter(self.failed.values()))
        return done

    def _fail(self, target: RepositoryTarget, problem: PolarvaultError) -> None:
        self.failed[target] = problem
        if len(self.targets) > 1:
            self._reporter.warning(f"the backup into {target.address} is given up: {problem.message}")
        target.abort()

    def claim(self) -> None:
        """Ask each."""
        self.each(RepositoryTarget.claim)

    def offer_parent(self) -> bytes | None:
        """Return the manifest of the backup that is the parent everywhere, and build on it; None if there is none."""
        found = self.each(RepositoryTarget.parent_with_manifest)
        labels = {offer[0] if offer is not None else None for _, offer in found}
        first = found[0][1]
        if len(labels) > 1 or first is None:
            return None
        for target, _ in found:
            target.given_parent = first[0]
        return first[1]

    def begin(self, facts: BackupFacts) -> None:
        """Begin in each; each chooses a parent of its own, because one may lack what another has."""
        self.has_begun = True
        self.each(lambda target: target.begin(facts))

    def wal(self) -> _Wal | None:
        """Return what writes WAL to all of them."""
        sinks = [(target, sink) for target, sink in self.each(RepositoryTarget.wal) if sink is not None]
        return _Wal(self, dict(sinks)) if sinks else None

    def archive(self, begins: ArchiveBegins) -> _Archive:
        """Return what gives an archive to all of them."""
        sinks = dict(self.each(lambda target: target.archive(begins)))
        # A file can be read into one place's buffers only.
        return _Archive(self, sinks) if len(sinks) > 1 else _OnlyArchive(self, sinks)

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Commit each; what is recorded in one place is not taken back because another one fails."""
        return self.each(lambda target: target.commit(received))[0][1]

    def abort(self) -> None:
        """Abort all."""
        for target in self.targets:
            target.abort()


class _Archive:
    """A `pipeline.member_sinks.MemberSink` for several."""

    def __init__(self, several: SeveralTargets, sinks: dict[RepositoryTarget, ArchiveSink]) -> None:
        self._several, self._sinks = several, sinks
        # All of them go by the same rules.
        self.left_out: LeftOut = next(iter(sinks.values())).left_out

    def accept(self, event: TarEvent) -> None:
        self._several.each(lambda target: self._sinks[target].accept(event))

    def finish(self) -> None:
        self._several.each(lambda target: self._sinks[target].finish())

    def abandon(self) -> None:
        for sink in self._sinks.values():
            sink.abandon()


class _OnlyArchive(_Archive):
    """Implements `pipeline.contents.TakesFiles` as well."""

    def take_file(self, member: Member, content: FileContent) -> None:
        self._several.each(lambda target: self._sinks[target].take_file(member, content))

    def drain(self) -> None:
        self._several.each(lambda target: self._sinks[target].drain())


class _Wal:
    """A `server.wal_stream.WalSink` for several; called in the thread of the WAL stream."""

    def __init__(self, several: SeveralTargets, sinks: dict[RepositoryTarget, RepositoryWalSink]) -> None:
        self._several, self._sinks = several, sinks
        # Failures of the WAL are acted upon in the thread of the backup, which sees them when it commits.
        self._failed: dict[RepositoryTarget, PolarvaultError] = {}

    def _each(self, do: Callable[[RepositoryWalSink], object]) -> None:
        for target, sink in self._sinks.items():
            if target in self._failed:
                continue
            try:
                do(sink)
            except PolarvaultError as problem:
                self._failed[target] = problem
                target.wal_failure = problem
        if len(self._failed) == len(self._sinks):
            raise next(iter(self._failed.values()))

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        self._each(lambda sink: sink.write(segment, offset, payload))

    def segment_done(self, segment: WalSegment) -> None:
        self._each(lambda sink: sink.segment_done(segment))

    def add_history(self, file_name: str, content: bytes) -> None:
        self._each(lambda sink: sink.add_history(file_name, content))

    def finish(self) -> None:
        self._each(lambda sink: sink.finish())

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        for target, sink in self._sinks.items():
            if target not in self._failed:
                return sink.read(segment, offset, length)
        return b""
