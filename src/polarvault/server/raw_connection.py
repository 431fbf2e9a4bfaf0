"""Protocol messages straight from the socket, once libpq has logged in.

libpq is idle from then on (its own buffer is empty once ReadyForQuery has been read) and only owns the socket; the raw
way never mixes with it. `transport.RawTransport` and `wal_connection.RawWalConnection` build on this.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

import psycopg

from polarvault.errors import ConnectionLost, RemoteProtocolError, ServerError
from polarvault.model import limits
from polarvault.server.connection import Connection, connection_lost
from polarvault.server.readable import wait_readable
from polarvault.wire import messages
from polarvault.wire.messages import ResultSet

# Large, because every buffer is one hand-over between threads, and one pass through Python.
BUFFER_BYTES = 1 << 20
# How long a read waits for a buffer to fill up before it passes on what has come.
_FILL_TIMEOUT = struct.pack("ll", 0, 10_000)


class CopyBegins:
    """A COPY result: what follows is read as a stream."""


class RawConnection:
    """Reads the socket into one large buffer; view[start:end] is what has not been read yet."""

    def __init__(self, connection: Connection, on_notice: Callable[[ServerError], None]) -> None:
        try:
            self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
            self._socket.setblocking(True)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FILL_TIMEOUT)
        except (psycopg.Error, OSError):
            # libpq has closed it: what came before was not the protocol, or the server has gone.
            raise connection_lost(connection.pgconn) from None
        self._on_notice = on_notice
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._notices = 0

    def close(self) -> None:
        """Close our copy of the socket; the connection itself stays its owner's."""
        self._socket.close()

    def send_query(self, sql: str) -> None:
        """Send one simple query."""
        self._send(messages.encode_query(sql))

    def wait_readable(self, timeout_s: float) -> bool:
        """Wait until the server has sent something, or the time is over."""
        if self._end > self._start:
            return True
        return wait_readable(self._socket.fileno(), timeout_s)

    def next_result(self) -> ResultSet | CopyBegins | None:
        """Return the next result, or None at ReadyForQuery."""
        found, size = ResultSet(), 0
        while True:
            kind, body = self._next_message()
            size += len(body) + messages.HEADER_BYTES
            if size > limits.RESULT_BYTES or len(found.rows) > limits.RESULT_ROWS:
                raise RemoteProtocolError(
                    f"the server's answer does not end: {len(found.rows)} rows and {size} bytes so far"
                )
            if kind == messages.ROW_DESCRIPTION:
                found.columns = messages.parse_row_description(body)
            elif kind == messages.DATA_ROW:
                found.rows.append(messages.parse_data_row(body))
            elif kind == messages.COMMAND_COMPLETE:
                return found
            elif kind in (messages.COPY_OUT, messages.COPY_BOTH):
                return CopyBegins()
            elif kind == messages.READY:
                return None
            elif kind == messages.ERROR:
                error = messages.parse_error(body)
                self._skip_to_ready()
                raise error
            elif kind in (messages.COPY_DONE, messages.EMPTY_QUERY):
                continue
            else:
                raise RemoteProtocolError(f"unexpected message of type {kind!r} from the server")

    def interrupt(self) -> None:
        """Wake a blocked reader: its read returns end of file."""
        # Already closed by the peer, the reader wakes just as well.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _asynchronous(self, kind: bytes, body: bytes) -> None:
        if kind == messages.NOTICE:
            self._notices += 1
            if self._notices > limits.NOTICES:
                raise RemoteProtocolError(f"the server has sent more than {limits.NOTICES} notices")
            self._on_notice(messages.parse_error(body))

    def _receive(self, flags: int) -> None:
        """Receive at least one byte; what has come is returned before the news that the connection has ended."""
        try:
            while True:
                try:
                    count = self._socket.recv_into(self._view[self._end :], 0, flags)
                    break
                except BlockingIOError:
                    # SO_RCVTIMEO is over and nothing has come: sleep until something does.
                    wait_readable(self._socket.fileno())
        except OSError as problem:
            raise lost(problem.strerror or str(problem)) from problem
        if count == 0:
            raise lost("the server closed the connection")
        self._end += count

    def _next_message(self) -> tuple[bytes, bytes]:
        """Return the next message that is not asynchronous."""
        while True:
            self._need(messages.HEADER_BYTES)
            start = self._start
            kind = bytes(self._view[start : start + 1])
            length = int.from_bytes(self._view[start + 1 : start + 5], "big")
            if not 4 <= length <= messages.MAX_CONTROL_BYTES:
                raise RemoteProtocolError(f"a message of type {kind!r} claims {length} bytes")
            self._need(length + 1)
            start = self._start
            body = bytes(self._view[start + 5 : start + length + 1])
            self._start += length + 1
            if kind in (messages.NOTICE, messages.PARAMETER_STATUS, messages.NOTIFICATION):
                self._asynchronous(kind, body)
                continue
            return kind, body

    def _need(self, count: int) -> None:
        """Make `count` bytes available in one piece, at the front of the buffer if they do not fit behind."""
        if self._start + count > len(self._view):
            rest = bytes(self._view[self._start : self._end])
            if count > len(self._view):
                self._buffer = bytearray(count)
                self._view = memoryview(self._buffer)
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        while self._end - self._start < count:
            self._receive(0)

    def _skip_to_ready(self) -> None:
        """Read what follows an error up to ReadyForQuery, so that the next query gets its own answer."""
        try:
            # It follows at once; a server that goes on sending rows is not asked again.
            for _ in range(limits.RESULT_ROWS):
                if self._next_message()[0] == messages.READY:
                    return
            raise RemoteProtocolError("the server goes on sending after an error")
        except ConnectionLost:
            pass  # FATAL errors close the connection; the error itself is what matters to the user.

    def _send(self, content: bytes) -> None:
        try:
            self._socket.sendall(content)
        except OSError as problem:
            raise lost(problem.strerror or str(problem)) from problem


def lost(words: str) -> ConnectionLost:
    """Name what broke the connection, and what to do."""
    return ConnectionLost(
        f"lost the connection to the server: {words}",
        hint="look into the server's log for the time of the loss, then run the command again",
    )
