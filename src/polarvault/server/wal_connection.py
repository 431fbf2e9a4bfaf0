"""One replication stream: START_REPLICATION, then WAL in batches, until a side ends it or the timeline does.

Two ways, as for base backups: straight from the socket, or through libpq where the connection is encrypted. Both run in
one thread and never block longer than they are told to; a byte in the wake pipe ends a wait at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psycopg
from psycopg import pq

from polarvault.errors import ConnectionLost, RemoteProtocolError, ServerError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.names import shown_name
from polarvault.server.connection import (
    Connection,
    connection_lost,
    hear_notices,
    next_result,
    result_set,
    server_error,
)
from polarvault.server.raw_connection import CopyBegins, RawConnection
from polarvault.server.readable import wait_readable
from polarvault.wal.history import history_file_name
from polarvault.wire import messages
from polarvault.wire.messages import ResultSet
from polarvault.wire.replication import WalData, encode_status, parse_stream_message
from polarvault.wire.wal_messages import WalBatch, WalMessageScanner

_LIBPQ_BATCH_BYTES = 1 << 20
# Who is as much behind the server as this gets more at once.
_PLENTY_BYTES = 64 << 10
_GATHER_MS = 30
# How long a polite goodbye may take; the WAL that matters is here already.
_END_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class TimelineEnds:
    """The server has sent all of this timeline: the next one's id, and where it begins."""

    timeline_id: int
    start: Lsn


class StreamShutDown(ConnectionLost):
    """The server ended the stream in an orderly way: it is being shut down, or the WAL sender was."""

    id = "stream-ended"
    remedy = "nothing, if the server comes back: a receiver goes on by itself"


class WalConnection(Protocol):
    """A stream of WAL from one connection."""

    def start(self, command: str, position: Lsn) -> TimelineEnds | None:
        """Send START_REPLICATION; a timeline that ended at the position says so at once. Raise ServerError."""

    def receive(self, timeout_s: float, *, eager: bool) -> WalBatch | TimelineEnds:
        """Return what has come; an empty batch after the time, or when woken.

        eager returns the first bytes at once; otherwise a few milliseconds are spent on gathering more, which saves
        both sides work. Raise ServerError, StreamShutDown or ConnectionLost.
        """

    def send_status(self, *, written: Lsn, flushed: Lsn, reply_now: bool = False) -> None:
        """Tell the server how far we are."""

    def end(self) -> None:
        """Leave the stream; what the server still sends is thrown away."""

    def query(self, sql: str) -> ResultSet:
        """Run a replication command while no stream is open."""

    def close(self) -> None:
        """Give back what the stream has of its own; the connection is closed by whoever opened it."""


def open_wal_connection(connection: Connection, wake: int, on_notice: Callable[[ServerError], None]) -> WalConnection:
    """Choose the fast way where the bytes on the socket are ours to read; wake is the read end of a pipe."""
    if connection.is_encrypted:
        return LibpqWalConnection(connection, wake, on_notice)
    return RawWalConnection(connection, wake, on_notice)


def timeline_ends(result: ResultSet | None) -> TimelineEnds:
    """Read the row that follows the last WAL of a timeline; raise StreamShutDown if there is none."""
    if result is None or not result.rows:
        raise StreamShutDown(
            "the server ended the WAL stream", hint="it is being shut down, or somebody terminated its WAL sender"
        )
    return TimelineEnds(result.timeline(0, 0, "the next timeline"), result.lsn(0, 1, "the start of the next timeline"))


def fetch_history(connection: WalConnection | Connection, timeline_id: int) -> tuple[str, bytes]:
    """Ask for a timeline's history; return name and content of its file.

    The name becomes a file's: the server must give the one that belongs to the timeline, and no other.
    """
    found = connection.query(f"TIMELINE_HISTORY {timeline_id}")
    name, expected = found.value(0, 0), history_file_name(timeline_id)
    if name != expected:
        raise RemoteProtocolError(
            f"the server names the history file of timeline {timeline_id} {shown_name(name)} instead of {expected}"
        )
    content = found.value(0, 1).encode("utf-8", "surrogateescape")
    if len(content) > limits.HISTORY_BYTES:
        raise RemoteProtocolError(f"the history of timeline {timeline_id} has {len(content)} bytes")
    return name, content


class RawWalConnection(RawConnection):
    """Receives up to a megabyte at a time; payloads are views of the receive buffer."""

    def __init__(self, connection: Connection, wake: int, on_notice: Callable[[ServerError], None]) -> None:
        super().__init__(connection, on_notice)
        # Small status messages must not wait for an acknowledgement of earlier ones: commits wait for them.
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._scanner = WalMessageScanner(Lsn(0))
        self._arrival = _poll_for(self._socket.fileno(), wake)
        self._pause = _poll_for(wake)
        # The server had more to send when it was last heard.
        self._is_behind = False

    def start(self, command: str, position: Lsn) -> TimelineEnds | None:
        """Send START_REPLICATION."""
        self.send_query(command)
        answer = self.next_result()
        if isinstance(answer, CopyBegins):
            self._scanner = WalMessageScanner(position)
            return None
        # Without any WAL to send the server skips the copy and says at once which timeline follows.
        ends = timeline_ends(answer)
        self._to_ready()
        return ends

    def receive(self, timeout_s: float, *, eager: bool) -> WalBatch | TimelineEnds:
        """Return what has come."""
        unread = self._start
        batch, message = self._scan()
        if message is None and self._start == unread:
            self._make_room()
            if not self._wait(timeout_s):
                return batch
            if not eager and not self._is_behind:
                # Sleeping without looking at the socket: every small message would wake this thread, and a server under
                # load sends thousands of them a second.
                self._pause.poll(_GATHER_MS)
            # No waiting for a full buffer: the server would fill its socket, and then rest while this thread writes.
            self._receive(0)
            batch, message = self._scan()
        if message is None:
            return batch
        kind, body = message
        if kind in (messages.NOTICE, messages.PARAMETER_STATUS, messages.NOTIFICATION):
            self._asynchronous(kind, body)
            return batch
        if batch.size:
            # The WAL before it counts: hand it out first; the next call finds the message again.
            self._start -= messages.HEADER_BYTES + len(body)
            return batch
        return self._stream_ended(kind, body)

    def send_status(self, *, written: Lsn, flushed: Lsn, reply_now: bool = False) -> None:
        """Tell the server how far we are."""
        status = encode_status(written=written, flushed=flushed, now_unix_s=time.time(), reply_now=reply_now)
        self._send(b"d" + (len(status) + 4).to_bytes(4, "big") + status)

    def end(self) -> None:
        """Leave the stream."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        with contextlib.suppress(ConnectionLost, RemoteProtocolError, ServerError):
            self._send(b"c\0\0\0\4")
            while (left := deadline - time.monotonic()) > 0:
                self._make_room()
                if not self._wait(left):
                    continue
                self._receive(0)
                while True:
                    unread = self._start
                    _, message = self._scan()
                    if message is not None and message[0] == messages.READY:
                        return
                    if self._start == unread:
                        break

    def query(self, sql: str) -> ResultSet:
        """Run a replication command."""
        self.send_query(sql)
        answer = self.next_result()
        self._to_ready()
        if not isinstance(answer, ResultSet):
            raise RemoteProtocolError(f"the server did not answer {sql}")
        return answer

    def _stream_ended(self, kind: bytes, body: bytes) -> TimelineEnds:
        if kind == messages.ERROR:
            error = messages.parse_error(body)
            self._skip_to_ready()
            raise error
        if kind == messages.COPY_DONE:
            self._send(b"c\0\0\0\4")
            answer = self.next_result()
            ends = timeline_ends(answer if isinstance(answer, ResultSet) else None)
            self._to_ready()
            return ends
        return timeline_ends(None)

    def _to_ready(self) -> None:
        while self.next_result() is not None:
            pass

    def _make_room(self) -> None:
        """Move the unread rest, a cut header at most, to the front of the buffer."""
        rest = bytes(self._view[self._start : self._end])
        if len(rest) == len(self._view):
            raise RemoteProtocolError("a message of the WAL stream does not fit into the receive buffer")
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _scan(self) -> tuple[WalBatch, tuple[bytes, bytes] | None]:
        batch, self._start, message = self._scanner.scan(self._view, self._start, self._end)
        if batch.server_end:
            self._is_behind = batch.server_end - self._scanner.position >= _PLENTY_BYTES
        return batch, message

    def _wait(self, timeout_s: float) -> bool:
        """Tell whether there is something to read; False after the time, or when woken."""
        # poll takes a negative time for "as long as it takes".
        descriptor = self._socket.fileno()
        return any(ready == descriptor for ready, _ in self._arrival.poll(max(0.0, timeout_s) * 1000))


class LibpqWalConnection:
    """Reads through PQgetCopyData, because only libpq can decrypt the stream."""

    def __init__(self, connection: Connection, wake: int, on_notice: Callable[[ServerError], None]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        hear_notices(self._pgconn, on_notice)
        self._wake = wake
        self._pause = _poll_for(wake)
        self._position = Lsn(0)
        self._is_behind = False

    def start(self, command: str, position: Lsn) -> TimelineEnds | None:
        """Send START_REPLICATION."""
        result = self._connection.run(command)
        if result.status == pq.ExecStatus.COPY_BOTH:
            self._position = position
            return None
        ends = timeline_ends(result_set(self._pgconn, result))
        self._to_ready()
        return ends

    def receive(self, timeout_s: float, *, eager: bool) -> WalBatch | TimelineEnds:
        """Return what has come."""
        batch = WalBatch(self._position)
        try:
            length, content = self._pgconn.get_copy_data(1)
            if length == 0 and self._wait(timeout_s):
                if not eager and not self._is_behind:
                    # As the raw way does: small messages gather while nobody looks.
                    self._pause.poll(_GATHER_MS)
                self._pgconn.consume_input()
                length, content = self._pgconn.get_copy_data(1)
            while length > 0:
                self._take(batch, memoryview(content))
                if eager or batch.size >= _LIBPQ_BATCH_BYTES:
                    break
                length, content = self._pgconn.get_copy_data(1)
        except psycopg.Error:
            raise connection_lost(self._pgconn) from None
        if batch.server_end:
            self._is_behind = batch.server_end - self._position >= _PLENTY_BYTES
        if length < 0 and not batch.size:
            return self._stream_ended()
        # An end that comes with WAL before it is seen again by the next call.
        return batch

    def send_status(self, *, written: Lsn, flushed: Lsn, reply_now: bool = False) -> None:
        """Tell the server how far we are."""
        try:
            self._pgconn.put_copy_data(
                encode_status(written=written, flushed=flushed, now_unix_s=time.time(), reply_now=reply_now)
            )
            self._pgconn.flush()
        except psycopg.Error:
            raise connection_lost(self._pgconn) from None

    def end(self) -> None:
        """Leave the stream."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        with contextlib.suppress(psycopg.Error, OSError, ValueError):
            self._pgconn.put_copy_end()
            self._pgconn.flush()
            while (left := deadline - time.monotonic()) > 0:
                length, _ = self._pgconn.get_copy_data(1)
                if length < 0:
                    return
                if length == 0 and wait_readable(self._pgconn.socket, left):
                    self._pgconn.consume_input()

    def query(self, sql: str) -> ResultSet:
        """Run a replication command."""
        return self._connection.query(sql)

    def _wait(self, timeout_s: float) -> bool:
        descriptor = self._pgconn.socket
        poll = _poll_for(descriptor, self._wake)
        return any(ready == descriptor for ready, _ in poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        """There is nothing but the connection."""

    def _take(self, batch: WalBatch, content: memoryview) -> None:
        message = parse_stream_message(content)
        batch.server_end = Lsn(max(batch.server_end, message.server_end))
        if not isinstance(message, WalData):
            batch.reply_now |= message.reply_now
            return
        if message.start != self._position:
            raise RemoteProtocolError(f"the WAL stream jumps from {self._position} to {message.start}")
        if message.payload:
            batch.views.append(message.payload)
        batch.size += len(message.payload)
        self._position = Lsn(self._position + len(message.payload))

    def _stream_ended(self) -> TimelineEnds:
        result = next_result(self._pgconn)
        if result is not None and result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH):
            # The server's side of the copy is over; it answers after ours is.
            try:
                self._pgconn.put_copy_end()
                self._pgconn.flush()
            except psycopg.Error:
                raise connection_lost(self._pgconn) from None
            result = next_result(self._pgconn)
        if result is None:
            raise connection_lost(self._pgconn)
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise server_error(self._pgconn, result)
        ends = timeline_ends(result_set(self._pgconn, result))
        self._to_ready()
        return ends

    def _to_ready(self) -> None:
        while next_result(self._pgconn) is not None:
            pass


def _poll_for(*descriptors: int) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll
