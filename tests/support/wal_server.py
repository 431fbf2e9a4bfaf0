"""A server that sends WAL bit by bit, asks after each bit what of it is durable, and remembers the answers."""

from __future__ import annotations

import re
import socket
import struct
from typing import BinaryIO

from polarvault.model.lsn import Lsn
from support import backend_messages as wire
from support.hostile_server import Answer, HostileServer
from support.small_recording import Recording

# No whole part of a segment or page; the piece before a segment's end is a shorter one.
_PIECE_BYTES = 200_000
_ASK_AT_ONCE = b"\1"


class WalServer(HostileServer):
    """`acknowledged` is the highest flush position that a client has reported on a WAL stream."""

    segment_bytes = 1 << 20

    def __init__(
        self, recording: Recording | None = None, *, version: str = "18.0", answers: dict[str, Answer] | None = None
    ) -> None:
        super().__init__(recording, version=version, answers=answers)
        self.acknowledged = 0

    def _answer(self, client: socket.socket, requests: BinaryIO, command: str) -> bool:
        if not command.startswith("START_REPLICATION"):
            return super()._answer(client, requests, command)
        found = re.search(r"([0-9A-F]+/[0-9A-F]+)", command)
        assert found is not None
        client.sendall(wire.message(b"W", b"\0\0\0"))
        wal, first = self.recording.wal, self.recording.wal_start
        at, last = int(Lsn.parse(found[1])), first + len(wal)
        while at < last:
            end = min(at + _PIECE_BYTES, at // self.segment_bytes * self.segment_bytes + self.segment_bytes, last)
            head = at.to_bytes(8, "big") + last.to_bytes(8, "big") + bytes(8)
            client.sendall(wire.copy_data(b"w" + head + wal[at - first : end - first]))
            # What comes last is not asked for: a client makes that durable by itself before it leaves.
            if end < last:
                client.sendall(wire.copy_data(b"k" + end.to_bytes(8, "big") + bytes(8) + _ASK_AT_ONCE))
            if not self._hear(requests, end):
                return self._say_goodbye(client)
            at = end
        while self._hear(requests, 1 << 63):
            pass
        return self._say_goodbye(client)

    def _hear(self, requests: BinaryIO, end: int) -> bool:
        """Take what the client says until it has received so much; False when it ends the stream."""
        while True:
            kind, body = wire.read_message(requests)
            if kind == b"c":
                return False
            if kind == b"X":
                raise wire.Gone
            if kind == b"d" and body[:1] == b"r":
                written, flushed = struct.unpack_from(">QQ", body, 1)
                self.acknowledged = max(self.acknowledged, flushed)
                if written >= end:
                    return True

    def _say_goodbye(self, client: socket.socket) -> bool:
        done = wire.message(b"C", b"START_STREAMING\0") + wire.message(b"C", b"START_REPLICATION\0")
        client.sendall(wire.message(b"c") + done + wire.READY)
        return True
