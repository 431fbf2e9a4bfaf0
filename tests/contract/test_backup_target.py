"""What every target of a base backup promises, tried on a recorded backup without a server: files, tars, memory."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from polarvault.backup.request import BackupJob
from polarvault.backup.several import SeveralTargets
from polarvault.backup.target import RepositoryTarget
from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.basebackup.destination import Destination
from polarvault.basebackup.plain_output import PlainOutput
from polarvault.basebackup.request import BackupRequest
from polarvault.basebackup.stdout_output import StdoutOutput
from polarvault.basebackup.tar_output import TarOutput
from polarvault.errors import BackupIncomplete, ChecksumFailure, PolarvaultError
from polarvault.pgfiles.pages import PAGE_BYTES, relation_segment
from polarvault.repository.index.files import FileKind
from polarvault.server.base_backup import ArchiveBegins
from polarvault.server.connection import Connection, ConnectionSettings, Connector
from polarvault.server.identity import ServerIdentity
from polarvault.server.wal_stream import WalSink
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.taking.facts import BackupFacts, ReceivedBackup, StoredBackup
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.take import TakenBackup, Taking
from polarvault.taking.target import BackupTarget
from support.faulty_store import Failure, Fault, FaultyStore
from support.hostile_server import HostileServer
from support.repositories import NOW, new_repository
from support.small_recording import LOCATION, Recording, base_backup_answer, encode, load_recording
from support.targets import MemoryTarget, TeeTarget

OWN_FILES = {"backup_manifest", "polarvault_backup_in_progress"}


class Quiet:
    """A reporter that keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def notice(self, notice: object) -> None: ...

    def progress(self, progress: object, *, final: bool = False) -> None: ...


class Kind:
    """One kind of target: how to make it, what it holds, whether what it holds counts as a backup."""

    format = "plain"
    wal_method = "stream"

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    @property
    def request(self) -> BackupRequest:
        return BackupRequest(
            directory=str(self.scratch / "backup"), format=self.format, wal_method=self.wal_method,
            tablespace_mapping={LOCATION: str(self.scratch / "space")}, no_slot=True,
        )  # fmt: skip

    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        raise NotImplementedError

    def files(self) -> dict[str, dict[str, bytes]]:
        raise NotImplementedError

    def segments(self) -> dict[str, bytes]:
        raise NotImplementedError

    def is_valid(self) -> bool:
        raise NotImplementedError

    def destination(self, identity: ServerIdentity, reporter: BackupReporter) -> Destination:
        return Destination(self.request, identity, reporter, CreatedPaths(0o700, sync=False))


class Plain(Kind):
    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        return PlainOutput(self.destination(identity, reporter))

    def files(self) -> dict[str, dict[str, bytes]]:
        base = _tree(self.scratch / "backup")
        return {
            "base.tar": {name: content for name, content in base.items() if not name.startswith("pg_wal/")},
            "16384.tar": _tree(self.scratch / "space"),
        }

    def segments(self) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes() for path in (self.scratch / "backup" / "pg_wal").iterdir() if path.is_file()
        }

    def is_valid(self) -> bool:
        return (self.scratch / "backup" / "backup_manifest").exists()


class Tar(Kind):
    format = "tar"

    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        return TarOutput(self.destination(identity, reporter))

    def files(self) -> dict[str, dict[str, bytes]]:
        return {name: _members((self.scratch / "backup" / name).read_bytes()) for name in ("base.tar", "16384.tar")}

    def segments(self) -> dict[str, bytes]:
        content = _members((self.scratch / "backup" / "pg_wal.tar").read_bytes())
        return {name: content for name, content in content.items() if "/" not in name}

    def is_valid(self) -> bool:
        return (self.scratch / "backup" / "backup_manifest").exists()


class Stdout(Kind):
    format = "tar"
    wal_method = "none"

    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        descriptor = os.open(self.scratch / "one.tar", os.O_CREAT | os.O_RDWR, 0o600)
        return StdoutOutput(self.destination(identity, reporter), descriptor)

    def files(self) -> dict[str, dict[str, bytes]]:
        return {"base.tar": _members((self.scratch / "one.tar").read_bytes())}

    def segments(self) -> dict[str, bytes]:
        return {}

    def is_valid(self) -> bool:
        with suppress(tarfile.TarError):
            return "backup_manifest" in _members((self.scratch / "one.tar").read_bytes())
        return False


class Memory(Kind):
    target = MemoryTarget()

    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        self.target = MemoryTarget()
        return self.target

    def files(self) -> dict[str, dict[str, bytes]]:
        return self.target.archives

    def segments(self) -> dict[str, bytes]:
        return {name: bytes(content) for name, content in self.target.segments.content.items()}

    def is_valid(self) -> bool:
        return self.target.manifest is not None


class InRepository(Kind):
    """A repository in memory."""

    repository = new_repository()
    identity: ServerIdentity

    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        self.repository, self.identity = new_repository(), identity
        return RepositoryTarget(self.repository, BackupJob(cluster="shop"), identity, reporter)

    def files(self) -> dict[str, dict[str, bytes]]:
        reader = self.repository.open_backup("shop", self.repository.find_label("shop", "latest"))
        found: dict[str, dict[str, bytes]] = {}
        for row in reader.rows():
            if row.kind is FileKind.FILE:
                oid = reader.root.parts[row.part].oid
                archive = found.setdefault(f"{oid}.tar" if oid else "base.tar", {})
                archive[row.path.decode()] = reader.read(row, 0, row.size)
        return found

    def segments(self) -> dict[str, bytes]:
        wal = self.repository.wal("shop", int(self.identity.system_identifier), self.identity.segment_size_bytes)
        segments = {one.segment for timeline in wal.timelines() for one in wal.ranges(timeline)}
        return {segment.file_name: wal.read_segment(segment)[0] for segment in segments}

    def is_valid(self) -> bool:
        return bool(self.repository.labels("shop"))


class Both(Plain):
    """Memory and a directory, from one stream."""

    def open(self, identity: ServerIdentity, reporter: BackupReporter) -> BackupTarget:
        self.memory = MemoryTarget()
        return TeeTarget([super().open(identity, reporter), self.memory])

    def files(self) -> dict[str, dict[str, bytes]]:
        found = super().files()
        assert {name: _without_own(files) for name, files in found.items()} == self.memory.archives
        return found


@pytest.fixture(params=[Plain, Tar, Stdout, Memory, InRepository, Both])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    made = request.param(tmp_path)
    assert isinstance(made, Kind)
    return made


@pytest.fixture
def recording(kind: Kind) -> Recording:
    return _recorded_for(kind)


@pytest.fixture
def server(recording: Recording) -> Iterator[HostileServer]:
    with HostileServer(recording) as running:
        yield running


def _recorded_for(kind: Kind) -> Recording:
    recording = load_recording()
    if isinstance(kind, Stdout):
        # One tar holds no tablespaces.
        archives = {"base.tar": _without_links(recording.archives["base.tar"])}
        return replace(recording, archives=archives, tablespaces=[recording.tablespaces[-1]])
    return recording


class Watched:
    """Writes down what is asked of a target, and looks at it just before it is committed."""

    def __init__(self, target: BackupTarget, before_commit: Callable[[], None] = lambda: None) -> None:
        self._target = target
        self._before_commit = before_commit
        self.calls: list[str] = []
        self.received: ReceivedBackup | None = None
        self.spool_directory = target.spool_directory

    def claim(self) -> None:
        self.calls.append("claim")
        self._target.claim()

    def begin(self, facts: BackupFacts) -> None:
        self.calls.append("begin")
        self._target.begin(facts)

    def wal(self) -> WalSink | None:
        self.calls.append("wal")
        return self._target.wal()

    def archive(self, begins: ArchiveBegins) -> object:
        self.calls.append(begins.name)
        return self._target.archive(begins)

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        self.calls.append("commit")
        self.received = received
        self._before_commit()
        return self._target.commit(received)

    def abort(self) -> None:
        self.calls.append("abort")
        self._target.abort()


def take(
    kind: Kind, server: HostileServer, reporter: Quiet, watched: list[Watched], before_commit: Callable[[], None] = int
) -> TakenBackup:
    def open_target(identity: ServerIdentity, connection: Connection) -> BackupTarget:
        watched.append(Watched(kind.open(identity, reporter), before_commit))
        return watched[0]  # type: ignore[return-value]  # its archive() hands on what it is given

    return Taking(kind.request, Connector(ConnectionSettings(server.conninfo)), reporter).into(open_target)


def test_every_byte_arrives(kind: Kind, server: HostileServer, recording: Recording) -> None:
    watched: list[Watched] = []
    taken = take(kind, server, Quiet(), watched)
    for name, files in kind.files().items():
        assert _without_own(files) == _members(recording.archives[name]), name
    assert set(kind.files()) == set(recording.archives)
    for name, content in kind.segments().items():
        if name.endswith(".history"):
            assert content == recording.history
        else:
            assert content.startswith(recording.wal[: len(content)]) or recording.wal.startswith(content.rstrip(b"\0"))
    assert kind.is_valid()
    assert taken.received is watched[0].received


@pytest.mark.parametrize("names", ["clusters/shop/packs/*", "clusters/shop/wal/*", "*/record", "intents/*"])
def test_of_several_repositories_one_that_fails_keeps_the_backup_from_no_other(tmp_path: Path, names: str) -> None:
    good = new_repository()
    faulty = FaultyStore(WriteOnce(MemoryStore()), [Fault("put_new", Failure.FULL, times=-1, names=names)])
    bad = new_repository(faulty)
    made: list[SeveralTargets] = []
    reporter = Quiet()
    with HostileServer(load_recording()) as server:

        def open_target(identity: ServerIdentity, connection: Connection) -> BackupTarget:
            label = good.new_label(NOW)
            job = BackupJob(cluster="shop")
            targets = [RepositoryTarget(one, job, identity, reporter, label=label) for one in (bad, good)]
            made.append(SeveralTargets(targets, reporter))
            return made[0]

        Taking(Memory(tmp_path).request, Connector(ConnectionSettings(server.conninfo)), reporter).into(open_target)
    [several] = made
    assert [target.address for target in several.failed] == [bad.store.address]
    assert "is given up" in reporter.warnings[0]
    assert bad.labels("shop") == []
    [label] = good.labels("shop")
    assert good.open_backup("shop", label).record.counts["read_bytes"] > 0
    assert good.intents.listed() == []


def test_a_target_is_asked_in_order_and_nothing_is_valid_before_commit(
    kind: Kind, server: HostileServer, recording: Recording
) -> None:
    watched: list[Watched] = []
    seen: list[bool] = []
    take(kind, server, Quiet(), watched, lambda: seen.append(kind.is_valid()))
    assert watched[0].calls == ["claim", "begin", "wal", *recording.archives, "commit"]
    assert seen == [False]


def test_a_stream_that_is_cut_off_ends_in_an_abort(kind: Kind, recording: Recording) -> None:
    answer = encode(base_backup_answer(recording))
    with HostileServer(recording, answers={"BASE_BACKUP": answer[: len(answer) // 2]}) as server:
        watched: list[Watched] = []
        with pytest.raises(PolarvaultError):
            take(kind, server, Quiet(), watched)
    assert watched[0].calls[-1] == "abort"
    assert "commit" not in watched[0].calls
    assert not kind.is_valid()
    watched[0].abort()


def test_a_damaged_page_is_named_and_nothing_is_committed(kind: Kind, recording: Recording) -> None:
    damaged, name, block = _with_a_damaged_page(recording)
    with HostileServer(damaged) as server:
        watched: list[Watched] = []
        reporter = Quiet()
        with pytest.raises(ChecksumFailure, match="1 bad pages in 1 files"):
            take(kind, server, reporter, watched)
    assert f'checksum verification failed in file "{name}", block {block}' in reporter.warnings[0]
    assert "commit" not in watched[0].calls
    assert not kind.is_valid()


def test_what_was_received_is_described(kind: Kind, server: HostileServer, recording: Recording) -> None:
    watched: list[Watched] = []
    taken = take(kind, server, Quiet(), watched)
    received = taken.received
    members = _members(recording.archives["base.tar"])
    assert received.configuration == {name: content for name, content in members.items() if name.endswith(".conf")}
    assert received.lacks_configuration == (not {"postgresql.conf", "pg_hba.conf"} <= set(members))
    assert received.pages is not None
    assert received.pages.bad_files == []
    assert received.pages.checked_pages == sum(
        len(content) // PAGE_BYTES
        for archive in recording.archives.values()
        for name, content in _members(archive).items()
        if relation_segment(name) is not None and len(content) % PAGE_BYTES == 0
    )
    assert received.received_bytes == sum(map(len, recording.archives.values()))


def test_an_empty_tablespace_is_no_backup(tmp_path: Path) -> None:
    kind = Memory(tmp_path)
    recording = load_recording()
    empty = replace(recording, archives=recording.archives | {"16384.tar": bytes(1024)})
    with HostileServer(empty) as server:
        watched: list[Watched] = []
        with pytest.raises(BackupIncomplete, match="the server sent nothing of tablespace 16384"):
            take(kind, server, Quiet(), watched)
    assert not kind.is_valid()


def _with_a_damaged_page(recording: Recording) -> tuple[Recording, str, int]:
    archive = bytearray(recording.archives["base.tar"])
    with tarfile.open(fileobj=io.BytesIO(bytes(archive))) as opened:
        for member in opened.getmembers():
            if relation_segment(member.name) is not None and member.size >= PAGE_BYTES:
                page = (member.size // PAGE_BYTES) - 1
                at = member.offset_data + page * PAGE_BYTES
                if any(archive[at : at + 24]):
                    archive[at + PAGE_BYTES - 1] ^= 1
                    # Older than the backup, so that no WAL is expected to mend it.
                    archives = {
                        name: bytes(archive) if name == "base.tar" else content
                        for name, content in recording.archives.items()
                    }
                    return replace(recording, archives=archives), member.name, page
    raise AssertionError("the recording has no page to damage")


def _without_links(archive: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as source, tarfile.open(fileobj=made, mode="w") as target:
        for member in source.getmembers():
            if not member.issym():
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return made.getvalue()


def _members(archive: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened.getmembers():
            content = opened.extractfile(member) if member.isfile() else None
            if content is not None:
                found[member.name.removeprefix("./")] = content.read()
    return found


def _without_own(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in OWN_FILES}


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
