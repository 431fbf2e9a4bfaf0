"""Two ways to read a COPY stream: straight from the socket (fast), or through libpq (TLS and GSS).

Both speak the same protocol towards `base_backup`: send a query, then take results in order; a COPY result is read as
blocks of pieces. The raw way never mixes with libpq: libpq has logged in and is idle (its own buffer is empty once
ReadyForQuery has been read), and from then on it only owns the socket.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import psycopg
from psycopg import pq

from polarvault.errors import RemoteProtocolError, ServerError
from polarvault.server.connection import (
    Connection,
    connection_lost,
    count_received,
    hear_notices,
    next_result,
    result_set,
    server_error,
)
from polarvault.server.raw_connection import BUFFER_BYTES, CopyBegins, RawConnection
from polarvault.server.readable import wait_readable
from polarvault.wire import messages
from polarvault.wire.copy_scanner import Control, CopyScanner, DataRun, Piece
from polarvault.wire.messages import ResultSet

# Enough to keep the socket drained while the disk stalls for a moment; bounds memory together with BUFFER_BYTES.
BUFFER_COUNT = 12
_LIBPQ_BLOCK_MESSAGES = 32


@dataclass(slots=True)
class Block:
    """Pieces of a COPY stream whose views stay valid until `release` is called, once."""

    pieces: list[Piece]
    release: Callable[[], None] = field(repr=False)


class Transport(Protocol):
    """What a base backup needs from a connection."""

    def send_query(self, sql: str) -> None:
        """Send one simple query."""

    def upload(self, sql: str, content: Iterator[bytes]) -> None:
        """Run a COPY IN command (UPLOAD_MANIFEST) with the content."""

    def wait_readable(self, timeout_s: float) -> bool:
        """Wait until the server has sent something, or the time is over."""

    def next_result(self) -> ResultSet | CopyBegins | None:
        """Return the next result, or None when the query is complete; raise ServerError."""

    def blocks(self, *, typed: bool) -> Iterator[Block]:
        """Yield the COPY stream's blocks until it ends; raise ServerError if the server aborts it."""

    def close(self) -> None:
        """Give back what the transport has of its own; the connection stays its owner's."""

    def interrupt(self) -> None:
        """Make a blocked read end with ConnectionLost; for another thread to call."""


def open_transport(connection: Connection, on_notice: Callable[[ServerError], None]) -> Transport:
    """Choose the fast way where the bytes on the socket are ours to read."""
    if connection.is_encrypted:
        return LibpqTransport(connection, on_notice)
    return RawTransport(connection, on_notice)


class RawTransport(RawConnection):
    """Hands out large reused buffers; one header parse per message, payload never copied."""

    def __init__(self, connection: Connection, on_notice: Callable[[ServerError], None]) -> None:
        super().__init__(connection, on_notice)
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._unallocated = BUFFER_COUNT - 1

    def upload(self, sql: str, content: Iterator[bytes]) -> None:
        """Run a COPY IN command with the content."""
        self.send_query(sql)
        kind, body = self._next_message()
        if kind == messages.ERROR:
            self._skip_to_ready()
            raise messages.parse_error(body)
        if kind != messages.COPY_IN:
            raise RemoteProtocolError(f"the server answered {kind!r} instead of asking for data")
        for part in content:
            self._send(b"d" + (len(part) + 4).to_bytes(4, "big") + part)
        self._send(b"c\0\0\0\4")
        while self.next_result() is not None:
            pass

    def blocks(self, *, typed: bool) -> Iterator[Block]:
        """Yield the COPY stream's blocks until it ends."""
        scanner = CopyScanner(typed=typed)
        while True:
            if self._end == self._start or not self._has_header():
                self._fill_block()
            pieces, self._start, ended = scanner.scan(self._view, self._start, self._end)
            last = pieces.pop() if ended else None
            pieces = [piece for piece in pieces if not self._took_asynchronous(piece)]
            yield self._detach(pieces)
            if isinstance(last, Control):
                if last.kind == messages.ERROR:
                    error = messages.parse_error(last.body)
                    self._skip_to_ready()
                    raise error
                return
            if not pieces and self._end > self._start:
                self._fill_block()

    def _took_asynchronous(self, piece: Piece) -> bool:
        if isinstance(piece, Control) and not piece.is_copy:
            self._asynchronous(piece.kind, piece.body)
            return True
        return False

    def _has_header(self) -> bool:
        return self._end - self._start >= messages.HEADER_BYTES

    def _detach(self, pieces: list[Piece]) -> Block:
        """Hand the current buffer to the consumer and go on with a fresh one that holds the unread rest."""
        rest = bytes(self._view[self._start : self._end])
        spent = self._buffer
        if not any(isinstance(piece, DataRun) for piece in pieces):
            # Nothing points into the buffer: keep it, move the rest to its front.
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
            return Block(pieces, lambda: None)
        self._buffer = self._take_buffer()
        self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
        return Block(pieces, lambda: self._free.put(spent))

    def _take_buffer(self) -> bytearray:
        if self._unallocated:
            # Allocated as needed, so that a small backup stays small.
            try:
                return self._free.get_nowait()
            except queue.Empty:
                self._unallocated -= 1
                return bytearray(BUFFER_BYTES)
        return self._free.get()

    def _fill_block(self) -> None:
        """Receive a full buffer, or what has come when the server pauses.

        Waiting for all of it keeps this thread in the kernel, instead of waking it, and Python, for every 32 kB.
        """
        if self._end == len(self._view):
            raise RemoteProtocolError("a message of the base backup does not fit into the receive buffer")
        self._receive(socket.MSG_WAITALL)


class LibpqTransport:
    """Reads through PQgetCopyData, because only libpq can decrypt the stream."""

    def __init__(self, connection: Connection, on_notice: Callable[[ServerError], None]) -> None:
        self._pgconn = connection.pgconn
        hear_notices(self._pgconn, on_notice)

    def send_query(self, sql: str) -> None:
        """Send one simple query."""
        try:
            self._pgconn.send_query(sql.encode())
        except psycopg.Error:
            raise connection_lost(self._pgconn) from None

    def upload(self, sql: str, content: Iterator[bytes]) -> None:
        """Run a COPY IN command with the content."""
        self.send_query(sql)
        result = next_result(self._pgconn)
        if result is None or result.status != pq.ExecStatus.COPY_IN:
            raise connection_lost(self._pgconn) if result is None else server_error(self._pgconn, result)
        try:
            for part in content:
                self._pgconn.put_copy_data(part)
            self._pgconn.put_copy_end()
        except psycopg.Error:
            raise connection_lost(self._pgconn) from None
        while self.next_result() is not None:
            pass

    def wait_readable(self, timeout_s: float) -> bool:
        """Wait until the server has sent a whole result, or the time is over."""
        try:
            if not self._pgconn.is_busy():
                return True
            if wait_readable(self._pgconn.socket, timeout_s):
                self._pgconn.consume_input()
            return not self._pgconn.is_busy()
        except (psycopg.Error, OSError, ValueError):
            raise connection_lost(self._pgconn) from None

    def next_result(self) -> ResultSet | CopyBegins | None:
        """Return the next result, or None when the query is complete."""
        result = next_result(self._pgconn)
        if result is None:
            return None
        if result.status == pq.ExecStatus.COPY_OUT:
            return CopyBegins()
        try:
            return result_set(self._pgconn, result)
        except ServerError:
            while next_result(self._pgconn) is not None:
                pass
            raise

    def blocks(self, *, typed: bool) -> Iterator[Block]:
        """Yield the COPY stream's blocks until it ends."""
        while True:
            pieces: list[Piece] = []
            run: list[memoryview] = []
            ended = False
            for _ in range(_LIBPQ_BLOCK_MESSAGES):
                length, message = self._copy_data(wait=not run and not pieces)
                if length <= 0:
                    ended = length < 0
                    break
                if not typed or bytes(message[:1]) == b"d":
                    run.append(message[1:] if typed else message)
                    continue
                if run:
                    pieces.append(DataRun(run))
                    run = []
                pieces.append(Control(bytes(message[:1]), bytes(message[1:]), True))
            if run:
                pieces.append(DataRun(run))
            yield Block(pieces, lambda: None)
            if ended:
                # libpq has no result of its own for the COPY: an error that ended it is the next result.
                return

    def _copy_data(self, *, wait: bool) -> tuple[int, memoryview]:
        """Return the next message; without `wait`, length 0 if there is none yet; length -1 at the end."""
        received = 0
        try:
            while True:
                length, message = self._pgconn.get_copy_data(1)
                if length:
                    return length, memoryview(message)
                if not wait and not wait_readable(self._pgconn.socket, 0):
                    return 0, memoryview(b"")
                # libpq's own wait would keep the GIL, and with it the thread that writes.
                wait_readable(self._pgconn.socket)
                received = count_received(self._pgconn, received)
                self._pgconn.consume_input()
        except (psycopg.Error, OSError, ValueError):
            raise connection_lost(self._pgconn) from None

    def close(self) -> None:
        """Everything is the connection's."""

    def interrupt(self) -> None:
        """Wake a blocked reader by shutting its socket down."""
        duplicate = socket.socket(fileno=os.dup(self._pgconn.socket))
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # Already closed by the peer, which wakes the reader just as well.
        finally:
            duplicate.close()
