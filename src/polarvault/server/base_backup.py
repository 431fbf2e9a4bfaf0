"""BASE_BACKUP on one connection, as a stream of typed events, the same for servers of every version.

Theory of operation. `start` sends the command and returns the first two results: where the backup starts, and the list
of tablespaces. `batches` then yields what the COPY streams carry. Before PostgreSQL 15 there is one COPY per tablespace
and one for the manifest; after, one COPY with typed messages carries everything (manual, BASE_BACKUP). The last batch
holds `StreamEnds`; an error after it (a checksum failure) is raised while the stream is read to its end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polarvault.errors import RemoteProtocolError
from polarvault.model import limits, versions
from polarvault.model.compression import SUFFIXES
from polarvault.model.lsn import Lsn
from polarvault.model.names import shown_name
from polarvault.server.raw_connection import CopyBegins
from polarvault.server.transport import Block, Transport
from polarvault.wire.commands import BaseBackupOptions, base_backup_command
from polarvault.wire.copy_scanner import Control, DataRun
from polarvault.wire.messages import ResultSet, parse_number

_OID = re.compile(r"[1-9][0-9]{0,9}\Z")
_MOST_OID = 0xFFFF_FFFF
_PROGRESS_BYTES = 8


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
        """The archive's name, without what compression on the server appends; servers before 15 do not send one."""
        if self.oid:
            return f"{self.oid}.tar"
        return "data.tar" if self.shared else "base.tar"

    @property
    def is_in_place(self) -> bool:
        """Tell whether the tablespace is a directory inside of the data directory (allow_in_place_tablespaces)."""
        return self.location == f"pg_tblspc/{self.oid}"


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

    def __init__(
        self, transport: Transport, options: BaseBackupOptions, server_version_num: int, *, shared_storage: bool = False
    ) -> None:
        self._transport = transport
        self._options = options
        self._version = server_version_num
        self._shared_storage = shared_storage
        self._start: BackupStart | None = None
        self._in_manifest = False
        self._manifest_bytes = 0
        self._in_archive = False
        self._next_tablespace = 0

    def start(self, while_waiting: Callable[[], None]) -> BackupStart:
        """Send the command and return the start; `while_waiting` runs about once a second during the checkpoint."""
        self._transport.send_query(base_backup_command(self._options, self._version))
        while not self._transport.wait_readable(1.0):
            while_waiting()
        first = self._expect_rows("the start position")
        tablespaces = [_tablespace(row) for row in self._expect_rows("the tablespace list").rows]
        _check_list(tablespaces, shared_storage=self._shared_storage)
        self._start = BackupStart(
            first.lsn(0, 0, "the start of the backup"),
            first.timeline(0, 1, "the timeline of the backup's start"),
            tablespaces,
        )
        return self._start

    def batches(self) -> Iterator[Batch]:
        """Yield the backup's events; runs in the reader thread."""
        if versions.of_server(self._version).takes_option_lists:
            yield from self._one_copy()
        else:
            yield from self._copy_per_tablespace()
        if self._options.manifest and not self._manifest_bytes and self._options.target in (None, "client"):
            raise RemoteProtocolError("the server sent no manifest of the backup, which it was asked for")
        stop = self._expect_rows("the end position")
        yield _batch(self._stream_ends(stop))
        # Reading on to the end is what brings the server's verdict on page checksums.
        while self._transport.next_result() is not None:
            pass

    def _one_copy(self) -> Iterator[Batch]:
        self._expect_copy()
        for block in self._transport.blocks(typed=True):
            events: list[BackupEvent] = []
            for event in (event for piece in block.pieces for event in self._translate(piece)):
                if isinstance(event, Progress) and events and isinstance(events[-1], Progress):
                    events.pop()  # Only the latest counts, and a buffer can hold a hundred thousand.
                events.append(event)
            yield Batch(events, block.release)
        if self._in_archive:
            yield _batch(ArchiveEnds())
        assert self._start is not None
        if self._next_tablespace < len(self._start.tablespaces):
            missing = self._start.tablespaces[self._next_tablespace].archive_name
            raise RemoteProtocolError(f"the server ended the backup without {missing}, which its tablespace list has")

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
                yield Batch([self._manifest_data(run) for run in _data_runs(block)], block.release)

    def _translate(self, piece: DataRun | Control) -> Iterator[BackupEvent]:
        """Turn one piece of a PostgreSQL 15 stream into events."""
        if isinstance(piece, DataRun):
            yield self._manifest_data(piece) if self._in_manifest else ArchiveData(piece.views)
        elif piece.kind == b"p" and len(piece.body) == _PROGRESS_BYTES:
            yield Progress(int.from_bytes(piece.body, "big"))
        elif piece.kind in (b"n", b"m"):
            if self._in_manifest:
                raise RemoteProtocolError("the server sent more after the manifest of the backup")
            if self._in_archive:
                yield ArchiveEnds()
            self._in_archive, self._in_manifest = piece.kind == b"n", piece.kind == b"m"
            if self._in_archive:
                yield self._archive_begins(piece.body)
        else:
            raise RemoteProtocolError(f"unknown message {piece.kind!r} in the base backup stream")

    def _manifest_data(self, run: DataRun) -> ManifestData:
        content = b"".join(run.views)
        self._manifest_bytes += len(content)
        if self._manifest_bytes > limits.MANIFEST_BYTES:
            raise RemoteProtocolError(f"the manifest of the backup is longer than {limits.MANIFEST_BYTES} bytes")
        return ManifestData(content)

    def _archive_begins(self, body: bytes) -> ArchiveBegins:
        assert self._start is not None
        name = body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        # Archives come in the order of the tablespace list; the name alone does not say which half it is.
        if self._next_tablespace >= len(self._start.tablespaces):
            raise RemoteProtocolError(
                f"the server sent archive {shown_name(name)}, which its tablespace list does not have"
            )
        tablespace = self._start.tablespaces[self._next_tablespace]
        self._next_tablespace += 1
        # The name becomes a file's: nothing but what was to come next.
        expected = tablespace.archive_name + SUFFIXES.get(self._options.compression or "none", "")
        if name != expected:
            raise RemoteProtocolError(f'the server sent archive {shown_name(name)} instead of "{expected}"')
        return ArchiveBegins(name, tablespace)

    def _stream_ends(self, stop: ResultSet) -> StreamEnds:
        assert self._start is not None
        ends = StreamEnds(
            stop.lsn(0, 0, "the end of the backup"), stop.timeline(0, 1, "the timeline of the backup's end")
        )
        started = self._start.timeline_id, self._start.start_lsn
        if (ends.timeline_id, ends.stop_lsn) < started:
            raise RemoteProtocolError(
                f"the server says that the backup ends at {ends.stop_lsn} on timeline {ends.timeline_id}, before its "
                f"start at {started[1]} on timeline {started[0]}"
            )
        return ends

    def _expect_rows(self, what: str) -> ResultSet:
        result = self._transport.next_result()
        if not isinstance(result, ResultSet) or not result.columns:
            raise RemoteProtocolError(f"the server did not send {what} of the backup")
        return result

    def _expect_copy(self) -> None:
        if not isinstance(self._transport.next_result(), CopyBegins):
            raise RemoteProtocolError("the server did not start the copy of the backup")


def _tablespace(row: tuple[str | None, ...]) -> Tablespace:
    if len(row) < 3:
        raise RemoteProtocolError(f"the server's tablespace list has {len(row)} columns instead of three")
    oid, location, size = row[0], row[1], row[2]
    if oid is not None and (_OID.match(oid) is None or int(oid) > _MOST_OID):
        raise RemoteProtocolError(f"the server's tablespace list has {shown_name(oid)} as an oid")
    if oid is not None and not location:
        raise RemoteProtocolError(f"the server's tablespace list has no location of tablespace {oid}")
    size_kb = parse_number(size, "the size of a tablespace") if size is not None else None
    # PolarDB's fourth column is '1' or NULL; PostgreSQL has three columns.
    marked = len(row) > 3 and row[3] == "1"
    return Tablespace(oid, location, size_kb, marked and oid is None)


def _check_list(tablespaces: list[Tablespace], *, shared_storage: bool) -> None:
    """Refuse a list that two archives of one name would come from, or none with the data directory."""
    if len(tablespaces) > limits.TABLESPACES:
        raise RemoteProtocolError(f"the server lists more than {limits.TABLESPACES} tablespaces")
    names = Counter(tablespace.archive_name for tablespace in tablespaces)
    if not names["base.tar"]:
        raise RemoteProtocolError("the server's tablespace list lacks the data directory")
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise RemoteProtocolError(f"the server's tablespace list has {twice} twice")
    if names["data.tar"] and not shared_storage:
        raise RemoteProtocolError("the server's tablespace list has a shared half, but no shared storage is in use")


def _data_runs(block: Block) -> Iterator[DataRun]:
    return (piece for piece in block.pieces if isinstance(piece, DataRun))


def _batch(event: BackupEvent) -> Batch:
    return Batch([event], lambda: None)
