"""What every store of WAL has to promise to a receiver; and that a receiver needs no more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polarvault.config.model import RepositoryConfiguration
from polarvault.errors import PolarvaultError, ServerError, TimelineDiverged, UsageError
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.opening import make_repository
from polarvault.repository.catalogue.repository import Generation
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.server.connection import ConnectionSettings, Connector
from polarvault.wal.source import WalCopy, WalSource
from polarvault.wal.store import Cluster, StartPoint, WalStore, WalWriter
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.run import receive_wal
from polarvault.walarchive.receive.state import ReceiverState
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.store.directory import DirectoryStore
from polarvault.walarchive.streaming.places import Places
from polarvault.walarchive.streaming.spool import Spool
from polarvault.walarchive.streaming.store import RepositoryStore, StreamSettings
from polarvault.walarchive.streaming.uploader import Uploader
from polarvault.walfiles.choice import find
from polarvault.walfiles.directory import WalDirectory
from support.memory_store import MemoryStore
from support.memory_wal import MB
from support.small_recording import load_recording
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content
from support.wal_server import WalServer

FIRST = WalSegment(1, 7, MB)
CONTENT = b"".join(segment_content(WalSegment(1, number, MB)) for number in (7, 8, 9))
RECORDED = int(load_recording().identity[0])
CLUSTER = Cluster(str(SYSTEM_IDENTIFIER), MB)
HISTORY = b"1\t0/900000\tno recovery target specified\n"


@dataclass
class Kind:
    """A store, the source that shows what is in it, and the segments it has said to be whole."""

    store: WalStore
    source: WalSource
    finished: list[WalSegment] = field(default_factory=list)
    wakes: int = 0

    def open(self) -> WalWriter:
        return self.store.open(
            segment_size_bytes=MB, group_access=False, wake=self._woken, on_segment=self.finished.append
        )

    def _woken(self) -> None:
        self.wakes += 1


def in_directory(path: Path, compression: str, *, synchronous: bool) -> Kind:
    path.mkdir()
    store = DirectoryStore(str(path), compression=Compression.parse(compression), synchronous=synchronous)
    return Kind(store, WalDirectory(str(path)))


class Uploaded(RepositoryWalSource):
    """What a repository has when nothing waits in the spool any more, which is durable, too."""

    uploader: Uploader

    def copies(self, name: str) -> Sequence[WalCopy]:
        assert self.uploader.wait(self.uploader.is_empty, 60)
        return super().copies(name)


def in_repository(
    path: Path, *, spooled: bool = False, synchronous: bool = False, identifier: int = SYSTEM_IDENTIFIER
) -> Kind:
    for name in (path, path.with_name("state")):
        name.mkdir()
    repository = make_repository(RepositoryConfiguration("", str(path)), {}, now=datetime.now(UTC)).repository
    generation = Generation(identifier, 180000, False, MB, 1 << 30, True)
    repository.ensure_generation("shop", generation)
    made = RepositoryStore(
        Places("shop", lambda: [repository]), generation,
        spool=Spool(str(path.with_name("spool")), "shop", 64 * MB) if spooled else None,
        state_path=str(path.with_name("state")), settings=StreamSettings(slice_bytes=300_000, synchronous=synchronous),
        stop=StopRequest(), on_note=pytest.fail,
    )  # fmt: skip
    source = Uploaded(repository.wal_of("shop"), place="the repository")
    source.uploader = made.uploader
    return Kind(made, source)


def in_memory() -> Kind:
    store = MemoryStore()
    return Kind(store, store.kept)


KINDS: dict[str, Callable[..., Kind]] = {
    "directory": lambda path: in_directory(path, "none", synchronous=False),
    "synchronous directory": lambda path: in_directory(path, "none", synchronous=True),
    "compressed directory": lambda path: in_directory(path, "gzip:1", synchronous=False),
    "zstd directory": lambda path: in_directory(path, "zstd", synchronous=True),
    "memory": lambda path: in_memory(),
    "repository": in_repository,
    "repository with spool": partial(in_repository, spooled=True),
    "repository with synchronous spool": partial(in_repository, spooled=True, synchronous=True),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    made: Kind = request.param(tmp_path / "wal")
    yield made
    if isinstance(made.store, RepositoryStore):
        made.store.close()


def views(content: bytes, piece_bytes: int = 70_001) -> list[memoryview]:
    return [memoryview(content)[at : at + piece_bytes] for at in range(0, len(content), piece_bytes)]


def kept(source: WalSource, segment: WalSegment) -> bytes:
    """Return what there is of a segment, also when it is less than a page's header."""
    return b"".join(bytes(view) for copy in source.copies(segment.file_name)[:1] for view in copy.views())


@pytest.fixture
def writer(kind: Kind) -> Iterator[WalWriter]:
    opened = kind.open()
    assert (opened.timeline_id, opened.segment_size_bytes, opened.has_room) == (0, MB, True)
    assert not opened.can_go_on(0)
    opened.begin(FIRST.start, 1)
    yield opened
    opened.close()


def test_what_is_flushed_can_be_read_and_nothing_else_is_called_flushed(kind: Kind, writer: WalWriter) -> None:
    assert writer.flushed == writer.received == FIRST.start
    at = 0
    for size in (1, 100, 8192, 300_000, MB, 17, MB - 9):
        writer.write(views(CONTENT[at : at + size]))
        at += size
        assert writer.received == FIRST.start + at
        assert writer.flushed <= writer.received
        writer.sync()
        assert writer.wait(60)
        assert writer.flushed == writer.received
        in_last = at % MB
        segment = WalSegment.holding(writer.flushed, 1, MB)
        if in_last:
            assert kept(kind.source, segment)[:in_last] == CONTENT[at - in_last : at]
    writer.write([])
    assert writer.received == FIRST.start + at


def test_views_are_not_kept(kind: Kind, writer: WalWriter) -> None:
    """They are stretches of a receive buffer, which the next message overwrites."""
    buffer = bytearray(CONTENT[:100_000])
    writer.write([memoryview(buffer)[:50_000], memoryview(buffer)[50_000:]])
    buffer[:] = bytes(len(buffer))
    writer.end_segment()
    assert writer.wait(60)
    assert kept(kind.source, FIRST)[:100_000] == CONTENT[:100_000]


def test_segments_are_finished_by_a_batch_that_holds_several(kind: Kind, writer: WalWriter) -> None:
    writer.write(views(CONTENT[: 2 * MB + 100]))
    assert writer.can_go_on(1)
    assert not writer.can_go_on(2)
    assert kind.finished == [FIRST, FIRST.next()]
    writer.end_segment()
    assert writer.wait(60)
    assert writer.flushed == writer.received == FIRST.start + 2 * MB + 100
    for number in range(2):
        segment = WalSegment(1, 7 + number, MB)
        copy = find(kind.source, segment)
        assert copy is not None
        assert copy.is_final
        assert kept(kind.source, segment) == CONTENT[number * MB : (number + 1) * MB]
    last = find(kind.source, WalSegment(1, 9, MB))
    assert last is not None
    assert not last.is_final
    # In the middle of a segment that was closed nothing can be appended.
    assert not writer.can_go_on(1)


def test_receiving_goes_on_where_the_kept_wal_ends(kind: Kind, writer: WalWriter) -> None:
    def nothing_said(words: str) -> None:
        pytest.fail(words)

    assert kind.store.resume_point(CLUSTER, nothing_said) is None
    writer.write(views(CONTENT[: 2 * MB]))
    writer.end_segment()
    assert writer.wait(60)
    assert kind.store.resume_point(CLUSTER, nothing_said) == StartPoint(1, Lsn(FIRST.start + 2 * MB))
    writer.write(views(CONTENT[2 * MB : 2 * MB + 5000]))
    writer.end_segment()
    assert writer.wait(60)
    found = kind.store.resume_point(CLUSTER, nothing_said)
    # An unfinished segment may be asked for from its first byte.
    assert found is not None
    assert found.timeline_id == 1
    assert FIRST.start + 2 * MB <= found.lsn <= writer.flushed
    older = kind.store.resume_point(CLUSTER, nothing_said, counts=lambda segment: segment.number == 7)
    assert older == StartPoint(1, FIRST.end)
    with pytest.raises(UsageError, match="cluster"):
        kind.store.resume_point(Cluster("42", MB), nothing_said)


def test_a_timeline_begins_anew_and_leaves_the_older_one_alone(kind: Kind, writer: WalWriter) -> None:
    writer.write(views(CONTENT[: MB + 5000]))
    newer = WalSegment(2, 8, MB)
    content = segment_content(newer)
    writer.begin(newer.start, 2)
    assert (writer.timeline_id, writer.received, writer.flushed) == (2, newer.start, newer.start)
    writer.write(views(content))
    writer.end_segment()
    assert writer.wait(60)
    assert kept(kind.source, newer) == content
    assert kept(kind.source, WalSegment(1, 8, MB))[:5000] == CONTENT[MB : MB + 5000]
    assert list(kind.source.timelines()) == [1, 2]


def test_what_was_acknowledged_stays_when_the_segment_is_received_again(kind: Kind) -> None:
    first = kind.open()
    first.begin(FIRST.start, 1)
    first.write(views(CONTENT[:500_000]))
    first.close()
    first.close()
    again = kind.open()
    again.begin(FIRST.start, 1)
    for size in (1000, 500_001):
        again.write(views(CONTENT[again.received - FIRST.start : size]))
        again.sync()
        assert again.wait(60)
        assert kept(kind.source, FIRST)[:500_000] == CONTENT[:500_000]
    again.abandon()


def test_the_last_pages_in_front_of_the_next_byte_are_there(kind: Kind, writer: WalWriter) -> None:
    asked: list[int] = []

    def timeline_of(lsn: int) -> int:
        asked.append(lsn)
        return 1

    assert writer.before(8192, timeline_of) == b""
    writer.write(views(CONTENT[:MB]))
    assert writer.wait(60)
    writer.sync()
    assert writer.before(20_000, timeline_of) in (CONTENT[MB - 20_000 : MB], CONTENT[MB - 24_576 : MB])
    assert asked[-1] == FIRST.end - 1
    writer.write(views(CONTENT[MB : MB + 9000]))
    # A compressed stream cannot be read in the middle of a block.
    assert writer.before(20_000, timeline_of) in (CONTENT[MB : MB + 9000], b"")


def test_a_history_is_kept_once_and_never_another_one(kind: Kind, writer: WalWriter) -> None:
    assert kind.store.history(2) is None
    kind.store.add_history(2, HISTORY)
    kind.store.add_history(2, HISTORY)
    assert kind.store.history(2) == HISTORY
    assert kept_history(kind.source) == HISTORY
    with pytest.raises(TimelineDiverged):
        kind.store.add_history(2, HISTORY.replace(b"9", b"8"))
    assert kind.store.history(2) == HISTORY


def kept_history(source: WalSource) -> bytes:
    (copy,) = source.copies("00000002.history")
    return b"".join(map(bytes, copy.views()))


def test_one_receiver_at_a_time(kind: Kind) -> None:
    lock = kind.store.lock()
    with pytest.raises(UsageError, match="another receivewal"):
        kind.store.lock()
    lock.tell({"state": "streaming"})
    lock.release()
    again = kind.store.lock()
    again.forget_failure()
    again.release()
    kind.store.note_failed_start({"state": "stopped"})
    kind.store.lock().release()


def test_space_is_known(kind: Kind) -> None:
    assert kind.store.has_space(1)
    assert not kind.store.has_space(1 << 62)
    assert kind.store.space_warning(1 << 62) is not None


# A receiver

RECEIVING: dict[str, Callable[[Path], Kind]] = {
    name: (lambda path, made=made: made(path, identifier=RECORDED)) if "repository" in name else made
    for name, made in KINDS.items()
}


@pytest.fixture(params=RECEIVING.values(), ids=RECEIVING.keys())
def receiving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    """Return a store for the server that was recorded."""
    made: Kind = request.param(tmp_path / "wal")
    yield made
    if isinstance(made.store, RepositoryStore):
        made.store.close()


class Listening:
    """A reporter that keeps what matters."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.problems: list[PolarvaultError] = []
        self.state: ReceiverState | None = None

    def step(self, text: str, **facts: Any) -> None:
        self.steps.append(facts["event"])

    def note(self, text: str) -> None:
        pass

    def notice(self, notice: ServerError) -> None:
        pass

    def warning(self, text: str) -> None:
        pytest.fail(text)

    def problem(self, problem: PolarvaultError) -> None:
        self.problems.append(problem)

    def status(self, state: ReceiverState) -> None:
        self.state = state


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_receiver_fills_any_store_and_acknowledges_what_is_durable(receiving: Kind, synchronous: bool) -> None:
    recording, heard = load_recording(), Listening()
    end = Lsn(recording.wal_start + len(recording.wal))
    with WalServer(recording) as server:
        request = ReceiveRequest(slot="slot", end_lsn=end, loop=False, synchronous=synchronous)
        connector = Connector(ConnectionSettings(server.conninfo))
        receive_wal(request, receiving.store, connector, heard, StopRequest())
        assert server.acknowledged == end
    assert heard.problems == []
    assert heard.steps.count("segment") == len(recording.wal) // MB
    assert heard.state is not None
    assert heard.state.flushed == heard.state.received == end
    received = b"".join(
        kept(receiving.source, WalSegment.holding(lsn, recording.timeline, MB))
        for lsn in range(recording.wal_start, end, MB)
    )[: len(recording.wal)]
    assert hashlib.sha256(received).digest() == hashlib.sha256(recording.wal).digest()
    receiving.store.lock().release()


def test_a_receiver_goes_on_in_any_store_at_the_end_of_what_is_kept(receiving: Kind) -> None:
    recording = load_recording()
    ends = [Lsn(recording.wal_start + part) for part in (300_000, len(recording.wal))]
    for end in ends:
        with WalServer(recording) as server:
            request = ReceiveRequest(slot="slot", end_lsn=end, loop=False)
            receive_wal(
                request, receiving.store, Connector(ConnectionSettings(server.conninfo)), Listening(), StopRequest()
            )
            starts = [command for command in server.commands if command.startswith("START_REPLICATION")]
    begin = Lsn.parse(starts[-1].split()[-3])
    # A segment that was begun is fetched again, where ranges cannot begin anywhere.
    assert begin >= ends[0] if isinstance(receiving.store, RepositoryStore) else begin == recording.wal_start
    first = WalSegment.holding(recording.wal_start, recording.timeline, MB)
    assert kept(receiving.source, first)[: len(recording.wal)] == recording.wal[:MB]


def test_a_receiver_leaves_a_store_that_is_in_use_alone(receiving: Kind) -> None:
    recording = load_recording()
    lock = receiving.store.lock()
    with WalServer(recording) as server:
        request, connector = ReceiveRequest(slot="slot", loop=False), Connector(ConnectionSettings(server.conninfo))
        with pytest.raises(UsageError, match="another receivewal"):
            receive_wal(request, receiving.store, connector, Listening(), StopRequest())
    lock.release()
    assert list(receiving.source.timelines()) == []
