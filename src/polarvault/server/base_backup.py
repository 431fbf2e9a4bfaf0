"""BASE_BACKUP on one connection, as a stream of typed events, the same for servers 13 to 18 and PolarDB.

Theory of operation. `start` sends the command and returns the first two results: where the backup starts, and the list
of tablespaces. `batches` then yields what the COPY streams carry. Before PostgreSQL 15 there is one COPY per tablespace
and one for the manifest; after, one COPY with typed messages carries everything (manual, BASE_BACKUP). The last batch
holds `StreamEnds`; an error after it (a checksum failure) is raised while the stream is read to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polarvault.errors import RemoteProtocolError
from polarvault.model.lsn import Lsn
from polarvault.server.raw_connection import CopyBegins
from polarvault.server.transport import Block, Transport
from polarvault.wire.commands import BaseBackupOptions, base_backup_command
from polarvault.wire.copy_scanner import Control, DataRun
from polarvault.wire.messages import ResultSet


@dataclass(frozen=True, slots=True)
class Tablespace:
    """One row of the tablespace list. The data directory itself has no oid and no location.

    shared marks the row of PolarDB's shared half: no oid *and* the mark, because user tablespaces carry the mark
    as well (facts 1.2). size_kb is None unless progress was asked for.
    """

    oid: str | None
    location: str | None
    size_kb: int | None
    shared: bool

    @property
    def archive_name(self) -> str:
        """The archive's name on servers that do not send one (before 15)."""
        return f"{self.oid}.tar" if self.oid else "base.tar"


@dataclass(frozen=True, slots=True)
class BackupStart:
    """Where the backup starts, and what it will send."""

    start_lsn: Lsn
    timeline_id: int
    tablespaces: list[Tablespace]

    @property
    def total_kb(self) -> int:
        """The estimated size of everything, 0 where unknown."""
        return sum(tablespace.size_kb or 0 for tablespace in self.tablespaces)


@dataclass(frozen=True, slots=True)
class ArchiveBegins:
    """A tar begins: its name, and the tablespace it holds."""

    name: str
    tablespace: Tablespace


@dataclass(frozen=True, slots=True)
class ArchiveData:
    """Bytes of the current tar."""

    views: list[memoryview]


@dataclass(frozen=True, slots=True)
class ArchiveEnds:
    """The current tar is complete."""


@dataclass(frozen=True, slots=True)
class ManifestData:
    """Bytes of the backup manifest."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """The server's own count of bytes read so far; it matters when nothing is sent to us (targets)."""

    done_bytes: int


@dataclass(frozen=True, slots=True)
class StreamEnds:
    """The backup is complete up to the stop LSN."""

    stop_lsn: Lsn
    timeline_id: int


BackupEvent = ArchiveBegins | ArchiveData | ArchiveEnds | ManifestData | Progress | StreamEnds


@dataclass(slots=True)
class Batch:
    """Events that share a receive buffer; views die with `release`."""

    events: list[BackupEvent]
    release: Callable[[], None]


class BaseBackup:
    """One BASE_BACKUP command on one transport."""

    def __init__(self, transport: Transport, options: BaseBackupOptions, server_version_num: int) -> None:
        self._transport = transport
        self._options = options
        self._version = server_version_num
        self._start: BackupStart | None = None
        self._in_manifest = False
        self._in_archive = False
        self._next_tablespace = 0

    def start(self, while_waiting: Callable[[], None]) -> BackupStart:
        """Send the command and return the start; `while_waiting` runs about once a second during the checkpoint."""
        self._transport.send_query(base_backup_command(self._options, self._version))
        while not self._transport.wait_readable(1.0):
            while_waiting()
        first = self._expect_rows("the start position")
        tablespaces = [_tablespace(row) for row in self._expect_rows("the tablespace list").rows]
        if not tablespaces:
            raise RemoteProtocolError("the server listed no tablespace, not even the data directory")
        self._start = BackupStart(Lsn.parse(first.value(0, 0)), int(first.value(0, 1)), tablespaces)
        return self._start

    def batches(self) -> Iterator[Batch]:
        """Yield the backup's events; runs in the reader thread."""
        if self._version >= 150000:
            yield from self._one_copy()
        else:
            yield from self._copy_per_tablespace()
        stop = self._expect_rows("the end position")
        yield _batch(StreamEnds(Lsn.parse(stop.value(0, 0)), int(stop.value(0, 1))))
        # Reading on to the end is what brings the server's verdict on page checksums.
        while self._transport.next_result() is not None:
            pass

    def _one_copy(self) -> Iterator[Batch]:
        self._expect_copy()
        for block in self._transport.blocks(typed=True):
            yield Batch([event for piece in block.pieces for event in self._translate(piece)], block.release)
        if self._in_archive:
            yield _batch(ArchiveEnds())

    def _copy_per_tablespace(self) -> Iterator[Batch]:
        assert self._start is not None
        for tablespace in self._start.tablespaces:
            self._expect_copy()
            yield _batch(ArchiveBegins(tablespace.archive_name, tablespace))
            for block in self._transport.blocks(typed=False):
                yield Batch([ArchiveData(run.views) for run in _data_runs(block)], block.release)
            yield _batch(ArchiveEnds())
        if self._options.manifest:
            self._expect_copy()
            for block in self._transport.blocks(typed=False):
                content = b"".join(view for run in _data_runs(block) for view in run.views)
                yield Batch([ManifestData(content)], block.release)

    def _translate(self, piece: DataRun | Control) -> Iterator[BackupEvent]:
        """Turn one piece of a PostgreSQL 15 stream into events."""
        if isinstance(piece, DataRun):
            yield ManifestData(b"".join(piece.views)) if self._in_manifest else ArchiveData(piece.views)
        elif piece.kind == b"p":
            yield Progress(int.from_bytes(piece.body[:8], "big"))
        elif piece.kind in (b"n", b"m"):
            if self._in_archive:
                yield ArchiveEnds()
            self._in_archive, self._in_manifest = piece.kind == b"n", piece.kind == b"m"
            if self._in_archive:
                yield self._archive_begins(piece.body)
        else:
            raise RemoteProtocolError(f"unknown message {piece.kind!r} in the base backup stream")

    def _archive_begins(self, body: bytes) -> ArchiveBegins:
        assert self._start is not None
        name = body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        # Archives come in the order of the tablespace list; the name alone does not say which half it is.
        if self._next_tablespace >= len(self._start.tablespaces):
            raise RemoteProtocolError(f"the server sent archive {name!r}, which its tablespace list does not have")
        tablespace = self._start.tablespaces[self._next_tablespace]
        self._next_tablespace += 1
        return ArchiveBegins(name, tablespace)

    def _expect_rows(self, what: str) -> ResultSet:
        result = self._transport.next_result()
        if not isinstance(result, ResultSet) or not result.columns:
            raise RemoteProtocolError(f"the server did not send {what} of the backup")
        return result

    def _expect_copy(self) -> None:
        if not isinstance(self._transport.next_result(), CopyBegins):
            raise RemoteProtocolError("the server did not start the copy of the backup")


def _tablespace(row: tuple[str | None, ...]) -> Tablespace:
    oid, location, size = row[0], row[1], row[2]
    # PolarDB's fourth column is '1' or NULL; PostgreSQL has three columns.
    marked = len(row) > 3 and row[3] == "1"
    return Tablespace(oid, location, int(size) if size is not None else None, marked and oid is None)


def _data_runs(block: Block) -> Iterator[DataRun]:
    return (piece for piece in block.pieces if isinstance(piece, DataRun))


def _batch(event: BackupEvent) -> Batch:
    return Batch([event], lambda: None)
