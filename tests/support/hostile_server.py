"""A server that says whatever a test wants it to say, and otherwise what a real one was recorded to say.

It speaks start-up, IDENTIFY_SYSTEM, SHOW, slots, BASE_BACKUP, TIMELINE_HISTORY and START_REPLICATION. `answers` are
looked at first: regular expressions of commands, and the bytes to send or a function that yields them. After an answer
of the test's own that does not end as the protocol wants, the server closes its side: it never keeps a client waiting.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import BinaryIO, Self

from polarvault.model.lsn import Lsn
from polarvault.server.readable import wait_readable
from support import backend_messages as wire
from support.small_recording import Recording, base_backup_answer, encode, load_recording, wal_answer

Answer = bytes | Callable[[str], Iterable[bytes]]
# How long a stream stays open after its last byte, for the client to end it.
_LINGER_S = 1.0


class HostileServer:
    """Listens on 127.0.0.1:`port`; use it with `with`."""

    def __init__(
        self, recording: Recording | None = None, *, version: str = "18.0", answers: dict[str, Answer] | None = None
    ) -> None:
        self.recording = recording or load_recording()
        self.version = version
        self.answers: dict[str, Answer] = answers or {}
        self.commands: list[str] = []
        # How long a WAL stream stays open without a word from the client.
        self.linger_s = _LINGER_S
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=32)
        self.port: int = self._listener.getsockname()[1]
        self._clients: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, name="hostile accept", daemon=True)
        self._accepting.start()

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres sslmode=disable gssencmode=disable"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.drop_clients()

    def drop_clients(self) -> None:
        """Close every connection; whoever still sends is woken by it."""
        clients, self._clients = self._clients, []
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            client.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            threading.Thread(target=self._serve, args=[client], name="hostile client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(wire.Gone, OSError, ValueError):
            with client.makefile("rb") as requests:
                self._talk(client, requests)
            client.shutdown(socket.SHUT_RDWR)

    def _talk(self, client: socket.socket, requests: BinaryIO) -> None:
        startup = wire.read_startup(requests)
        while startup.code in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
            client.sendall(b"N")
            startup = wire.read_startup(requests)
        if startup.code == wire.CANCEL_REQUEST:
            return
        parameters = self.recording.parameters | {"server_version": self.version}
        client.sendall(
            wire.AUTHENTICATION_OK
            + b"".join(wire.parameter_status(name, value) for name, value in parameters.items())
            + wire.backend_key_data()
            + wire.READY
        )
        while True:
            kind, body = wire.read_message(requests)
            if kind == b"X":
                return
            if kind != b"Q":
                continue
            command = body.rstrip(b"\0").decode("utf-8", "replace")
            self.commands.append(command)
            if not self._answer(client, requests, command):
                # Not a reset: what was sent last has to arrive.
                client.shutdown(socket.SHUT_WR)
                while requests.read(1 << 16):
                    pass
                return

    def _answer(self, client: socket.socket, requests: BinaryIO, command: str) -> bool:
        """Answer a command; False when the client would wait for more without end."""
        for pattern, answer in self.answers.items():
            if re.search(pattern, command):
                for piece in [answer] if isinstance(answer, bytes) else answer(command):
                    client.sendall(piece)
                last = answer[-len(wire.READY) :] if isinstance(answer, bytes) else b""
                if command.startswith("START_REPLICATION"):
                    return self._end_stream(client, requests)
                # A client that has taken it for a whole answer goes on at once; one that waits for more is let go.
                return last == wire.READY and wait_readable(client.fileno(), _LINGER_S)
        if command.startswith("START_REPLICATION"):
            found = re.search(r"([0-9A-F]+/[0-9A-F]+)", command)
            assert found is not None
            client.sendall(encode(wal_answer(self.recording, Lsn.parse(found[1]))))
            return self._end_stream(client, requests)
        client.sendall(self.usual_answer(command))
        return True

    def usual_answer(self, command: str) -> bytes:
        """Return what a real server answers."""
        recording = self.recording
        verb, _, rest = command.partition(" ")
        if verb == "IDENTIFY_SYSTEM":
            system, timeline, *_ = recording.identity
            end = str(Lsn(recording.wal_start + len(recording.wal)))
            return wire.text_result([[system, timeline, end, None]], ["systemid", "timeline", "xlogpos", "dbname"])
        if verb == "SHOW" and rest in recording.settings:
            return wire.text_result([[recording.settings[rest]]], [rest])
        if verb == "SHOW":
            return wire.error("42704", f'unrecognized configuration parameter "{rest}"') + wire.READY
        if verb == "BASE_BACKUP":
            return encode(base_backup_answer(recording, before_15=int(self.version.split(".")[0]) < 15))
        if verb == "TIMELINE_HISTORY" and rest == "2":
            return wire.text_result([["00000002.history", recording.history.decode()]], ["filename", "content"])
        if verb == "CREATE_REPLICATION_SLOT":
            columns = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"]
            return wire.text_result([["slot", "0/0", None, None]], columns)
        if verb == "READ_REPLICATION_SLOT":
            row = ["physical", str(Lsn(recording.wal_start)), str(recording.timeline)]
            return wire.text_result([row], ["slot_type", "restart_lsn", "restart_tli"])
        if re.match(r"(?i)set|begin|commit|rollback|drop", verb):
            return wire.message(b"C", b"SET\0") + wire.READY
        return wire.error("0A000", f"nothing is known about {command[:40]!r}") + wire.READY

    def _end_stream(self, client: socket.socket, requests: BinaryIO) -> bool:
        """Answer the client's status messages until it ends the stream; close if it does not."""
        while wait_readable(client.fileno(), self.linger_s):
            kind, _ = wire.read_message(requests)
            if kind == b"c":
                done = wire.message(b"C", b"START_STREAMING\0") + wire.message(b"C", b"START_REPLICATION\0")
                client.sendall(wire.message(b"c") + done + wire.READY)
                return True
        return False
