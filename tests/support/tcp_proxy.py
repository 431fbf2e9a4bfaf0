"""A bad network in front of a server: a TCP relay on the loopback that cuts, stalls, drips and refuses on command.

One thread accepts; one more relays each connection. What is to go wrong may be changed at any time
and holds for existing and for new connections. Byte counts are of what the server sent on one connection.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from typing import Self

from support.ports import hold_port

_RELAY_BYTES = 65536


class TcpProxy:
    """Relay 127.0.0.1:`port` to a server's TCP port; use it with `with`."""

    def __init__(self, server_port: int, *, server_host: str = "127.0.0.1") -> None:
        self._server = (server_host, server_port)
        self.port = hold_port(self)
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.connections_seen = 0
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._refusing = False
        self.cut_at: int | None = None
        self.cut_abruptly = True
        self.stall_at: int | None = None
        self.piece_bytes = _RELAY_BYTES
        self.said_instead: tuple[bytes, bytes] | None = None
        """What the server says, and what the client hears instead; of one length, and it must come in one piece."""
        self._accepting = threading.Thread(target=self._accept, name="proxy accept", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut_after(self, size_bytes: int, *, abruptly: bool = True) -> None:
        """Cut each connection once the server has sent so much; abruptly means a reset, else an orderly end."""
        self.cut_abruptly, self.cut_at = abruptly, size_bytes
        self._wake_all()

    def cut_now(self, *, abruptly: bool = True) -> None:
        """Cut every connection; new ones are served."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut(abruptly=abruptly)

    def stall_after(self, size_bytes: int) -> None:
        """Stop relaying each connection, silently, once the server has sent so much; `resume` ends it."""
        self.stall_at = size_bytes

    def resume(self) -> None:
        """Let stalled connections go on."""
        self.stall_at = None
        self._wake_all()

    def drip(self, piece_bytes: int = 1) -> None:
        """Hand on what the server sends in tiny pieces, each in a packet of its own."""
        self.piece_bytes = piece_bytes

    def refuse(self) -> None:
        """Cut every connection and close the port: connecting fails until `restart`."""
        self._refusing = True
        # A thread blocked in accept would keep the port open after close alone.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut_now()

    def restart(self) -> None:
        """Behave well again, on the same port."""
        if not self._refusing:
            self.refuse()
        self.cut_at = None
        self.piece_bytes = _RELAY_BYTES
        self.resume()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._refusing = False
        self._accepting = threading.Thread(target=self._accept, name="proxy accept", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Close the port and every connection; wait for the threads."""
        with self._lock:
            pairs = list(self._pairs)
        if not self._refusing:
            self.refuse()
        for pair in pairs:
            pair.join()

    def _wake_all(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.wake()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections_seen += 1
            pair = _Pair(self, client, server)
            with self._lock:
                self._pairs.append(pair)
            pair.start()


class _Pair:
    """One relayed connection, owned by one thread: only that thread touches its sockets.

    Closing a socket while another thread sleeps in recv neither wakes that thread nor sends anything, so everybody
    else only leaves a wish and wakes the owner.
    """

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._to_client = b""
        self._to_server = b""
        self._sent_by_server = 0
        self._wish: bool | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(10)
        self._wake_write.close()

    def wake(self) -> None:
        with suppress(OSError):
            self._wake_write.send(b"!")

    def cut(self, *, abruptly: bool) -> None:
        self._wish = abruptly
        self.wake()
        self.join()

    def _run(self) -> None:
        with self._client, self._server, self._wake_read:
            self._client.setblocking(False)
            self._server.setblocking(False)
            # An error on either side ends the relay; leaving the block closes both.
            with suppress(OSError):
                while self._wish is None and self._relay_once():
                    pass
            if self._wish:
                for connection in (self._client, self._server):
                    # Linger of zero seconds makes close send a reset.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _relay_once(self) -> bool:
        """Wait for something to do and do it; return False when the connection is over."""
        stalled = self._proxy.stall_at is not None and self._sent_by_server >= self._proxy.stall_at
        reading: list[socket.socket] = [self._wake_read]
        if not self._to_server:
            reading.append(self._client)
        if not self._to_client and not stalled:
            reading.append(self._server)
        writing = [s for s, waiting in ((self._client, self._to_client), (self._server, self._to_server)) if waiting]
        readable, writable = _wait(reading, writing)
        if self._wake_read in readable:
            self._wake_read.recv(100)
        if self._client in readable:
            self._to_server = self._client.recv(_RELAY_BYTES)
            if not self._to_server:
                return False
        if self._server in readable and not self._read_answer():
            return False
        if self._server in writable:
            self._to_server = self._to_server[self._server.send(self._to_server) :]
        if self._client in writable:
            self._to_client = self._to_client[self._client.send(self._to_client) :]
        limit = self._proxy.cut_at
        if limit is not None and self._sent_by_server >= limit and not self._to_client:
            self._wish = self._proxy.cut_abruptly
        return True

    def _read_answer(self) -> bool:
        size = min(self._proxy.piece_bytes, _RELAY_BYTES)
        # Never read past the byte at which something is to happen.
        for at in (self._proxy.cut_at, self._proxy.stall_at):
            if at is not None and self._sent_by_server < at:
                size = min(size, at - self._sent_by_server)
        self._to_client = self._server.recv(size)
        if self._proxy.said_instead is not None:
            self._to_client = self._to_client.replace(*self._proxy.said_instead)
        self._sent_by_server += len(self._to_client)
        return bool(self._to_client)


def _wait(reading: list[socket.socket], writing: list[socket.socket]) -> tuple[set[object], set[object]]:
    """Do what select(2) does, for descriptors of any number: a long run of tests may have many open."""
    with selectors.DefaultSelector() as selector:
        for one in {*reading, *writing}:
            wanted = (selectors.EVENT_READ if one in reading else 0) | (selectors.EVENT_WRITE if one in writing else 0)
            selector.register(one, wanted)
        found = selector.select()
    readable = {key.fileobj for key, events in found if events & selectors.EVENT_READ}
    return readable, {key.fileobj for key, events in found if events & selectors.EVENT_WRITE}
