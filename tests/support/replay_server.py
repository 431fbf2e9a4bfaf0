"""A server that gives the recorded answers of a real PolarDB 15.

The recordings lie beside the checkout (shared/fixtures/polardb15) or where POLARVAULT_FIXTURES points; without them
the tests that need this server are skipped. A recording is what one command was answered, byte for byte; BASE_BACKUP is
chosen by its options, WAL is cut to the position that was asked for, slots are kept in memory.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import zstandard

from polarvault.model.lsn import Lsn
from support import backend_messages as wire

FIXTURES_VARIABLE = "POLARVAULT_FIXTURES"
_PIECE_BYTES = 1 << 20
# Settings that clients ask for and the recording lacks; the server had these values.
_SETTINGS = {
    "polar_version": "2.0.15.2.0",
    "full_page_writes": "off",
    "data_checksums": "on",
    "block_size": "8192",
    "segment_size": "128GB",
    "log_directory": "log",
    "summarize_wal": None,
}
_SLOT_COLUMNS = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"]


def recordings() -> Path | None:
    """Return the directory of the recordings, None when this machine has none."""
    named = os.environ.get(FIXTURES_VARIABLE)
    directory = Path(named) if named else Path(__file__).parents[3] / "shared" / "fixtures"
    directory = directory / "polardb15" if (directory / "polardb15").is_dir() else directory
    return directory if (directory / "index.json").exists() else None


MISSING = f"the recorded PolarDB answers are not here: name their directory in {FIXTURES_VARIABLE}"


class ReplayServer:
    """Listens on 127.0.0.1:`port`; use it with `with`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index: dict[str, Any] = json.loads((directory / "index.json").read_text())
        self.commands: list[str] = []
        self.slots: set[str] = set()
        # Regular expressions of simple queries on ordinary connections, and their whole answers.
        self.answers: dict[str, bytes] = {
            "pg_logical_emit_message": wire.text_result([[self.index["wal_stop"]]], ["pg_logical_emit_message"]),
            "pg_is_in_recovery": wire.text_result([["f"]], ["pg_is_in_recovery"]),
            "pg_replication_slots": wire.text_result([], ["slot_name"]),
            r"\bset\b|\bbegin\b|\bcommit\b": wire.message(b"C", b"SET\0") + wire.READY,
        }
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._clients: list[tuple[socket.socket, threading.Thread]] = []
        self._accepting = threading.Thread(target=self._accept, name="replay accept", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the port and every connection."""
        # A thread blocked in accept or recv is woken by shutdown only.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for client, thread in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    def recorded(self, command: str) -> Iterator[bytes]:
        """Yield the recorded answer to a command of exactly this text, in pieces; it may be hundreds of megabytes."""
        name = next(e["file"] for e in self.index["exchanges"] if e["command"] == command)
        with open(self.directory / name, "rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
            while piece := plain.read(_PIECE_BYTES):
                yield piece

    def has_recorded(self, command: str) -> bool:
        """Tell whether the answer to exactly this text was recorded."""
        return any(exchange["command"] == command for exchange in self.index["exchanges"])

    def base_backup_command(self, asked: str) -> str:
        """Return the recorded BASE_BACKUP that has what was asked for: server compression, WAL, or neither."""
        commands = [e["command"] for e in self.index["exchanges"] if e["command"].startswith("BASE_BACKUP (LABEL")]
        words = set(re.findall(r"\b[A-Z_]+\b", re.sub(r"'[^']*'", "", asked)))
        wanted = "COMPRESSION" in words, "WAL" in words
        return next(c for c in commands if (", COMPRESSION " in c, ", WAL," in c) == wanted)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=_serve, args=[self, client], name="replay client", daemon=True)
            self._clients.append((client, thread))
            thread.start()


def _serve(server: ReplayServer, client: socket.socket) -> None:
    with client, client.makefile("rb") as requests, suppress(wire.Gone, OSError):
        startup = wire.read_startup(requests)
        while startup.code in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
            client.sendall(b"N")
            startup = wire.read_startup(requests)
        if startup.code == wire.CANCEL_REQUEST:
            return
        parameters = server.index["parameters"].items()
        client.sendall(
            wire.AUTHENTICATION_OK
            + b"".join(wire.parameter_status(name, value) for name, value in parameters)
            + wire.backend_key_data()
            + wire.READY
        )
        while True:
            kind, body = wire.read_message(requests)
            if kind == b"X":
                return
            if kind != b"Q":
                client.sendall(wire.error("0A000", f"the replay server does not serve message {kind!r}") + wire.READY)
                continue
            command = body.rstrip(b"\0").decode()
            server.commands.append(command)
            if startup.replication and command.startswith("START_REPLICATION"):
                _stream_wal(server, command, client, requests)
                continue
            for piece in _replication_answer(server, command) if startup.replication else _sql_answer(server, command):
                client.sendall(piece)


def _sql_answer(server: ReplayServer, command: str) -> Iterator[bytes]:
    for pattern, answer in server.answers.items():
        if re.search(pattern, command, re.IGNORECASE):
            yield answer
            return
    yield wire.error("0A000", f"the replay server knows no answer to {command!r}") + wire.READY


def _replication_answer(server: ReplayServer, command: str) -> Iterator[bytes]:
    verb, *words = re.findall(r'"[^"]*"|\S+', command)
    argument = words[0].strip('";') if words else ""
    if verb == "BASE_BACKUP":
        yield from server.recorded(command if server.has_recorded(command) else server.base_backup_command(command))
    elif verb == "CREATE_REPLICATION_SLOT":
        if argument in server.slots:
            yield wire.error("42710", f'replication slot "{argument}" already exists') + wire.READY
        else:
            server.slots.add(argument)
            yield wire.text_result([[argument, "0/0", None, None]], _SLOT_COLUMNS)
    elif verb == "READ_REPLICATION_SLOT":
        row = ["physical", "0/1000000", "1"] if argument in server.slots else [None, None, None]
        yield wire.text_result([row], ["slot_type", "restart_lsn", "restart_tli"])
    elif verb == "DROP_REPLICATION_SLOT" and argument in server.slots:
        server.slots.discard(argument)
        yield wire.message(b"C", b"DROP_REPLICATION_SLOT\0") + wire.READY
    elif server.has_recorded(command):
        yield from server.recorded(command)
    elif verb == "SHOW" and _SETTINGS.get(argument) is not None:
        yield wire.text_result([[_SETTINGS[argument]]], [argument])
    elif verb == "SHOW":
        yield wire.error("42704", f'unrecognized configuration parameter "{argument}"') + wire.READY
    else:
        yield wire.error("42601", f"the replay server knows no answer to {command!r}") + wire.READY


def _stream_wal(server: ReplayServer, command: str, client: socket.socket, requests: BinaryIO) -> None:
    found = re.search(r"([0-9A-F]+/[0-9A-F]+)", command)
    assert found is not None
    start, stop = Lsn.parse(found[1]), Lsn.parse(server.index["wal_stop"])
    (recorded,) = (e["command"] for e in server.index["exchanges"] if e["command"].startswith("START_REPLICATION"))
    # The recording is small enough to be held whole.
    raw = b"".join(server.recorded(recorded))
    at = 0
    while at < len(raw):
        kind, length = raw[at : at + 1], int.from_bytes(raw[at + 1 : at + 5], "big")
        body = raw[at + 5 : at + 1 + length]
        at += 1 + length
        if kind == b"d" and body[:1] == b"w":
            (begin,) = struct.unpack_from(">Q", body, 1)
            if begin + len(body) - 25 <= start:
                continue
            skip = max(0, start - begin)
            body = b"w" + struct.pack(">Q", begin + skip) + body[9:25] + body[25 + skip :]
        client.sendall(wire.message(kind, body))
    while True:
        kind, body = wire.read_message(requests)
        if kind == b"d" and body[:1] == b"r" and body[-1]:
            client.sendall(wire.copy_data(b"k" + struct.pack(">QQB", stop, 0, 0)))
        elif kind == b"c":
            done = wire.message(b"C", b"START_STREAMING\0") + wire.message(b"C", b"START_REPLICATION\0")
            client.sendall(wire.message(b"c") + done + wire.READY)
            return
        elif kind == b"X":
            raise wire.Gone
