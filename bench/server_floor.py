"""How fast can the server send a base backup to a client that throws everything away?

usage: python bench/server_floor.py CONNINFO

No client can be faster than this; what a client needs beyond it is its own cost.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from dataclasses import dataclass

from psycopg import pq


@dataclass(frozen=True, slots=True)
class Floor:
    """Bytes received and seconds needed."""

    size_bytes: int
    seconds: float

    @property
    def mb_per_s(self) -> float:
        return self.size_bytes / 1e6 / self.seconds


def measure_floor(conninfo: str, *, options: str = "MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'") -> Floor:
    """Take one base backup without WAL over libpq's own socket, reading into one buffer; plain connections only."""
    connection = pq.PGconn.connect(f"{conninfo} replication=true sslmode=disable gssencmode=disable".encode())
    if connection.status != pq.ConnStatus.OK:
        raise SystemExit(connection.get_error_message())
    if connection.server_version >= 150000:
        command = f"BASE_BACKUP (LABEL 'floor', CHECKPOINT 'fast', WAIT 0, {options})"
    else:
        command = "BASE_BACKUP LABEL 'floor' FAST NOWAIT MANIFEST 'yes'"
    body = command.encode() + b"\0"
    with socket.socket(fileno=os.dup(connection.socket)) as server:
        server.setblocking(True)
        started = time.perf_counter()
        server.sendall(b"Q" + struct.pack(">I", len(body) + 4) + body)
        size = _discard_until_ready(server)
        seconds = time.perf_counter() - started
    connection.finish()
    return Floor(size, seconds)


def _discard_until_ready(server: socket.socket) -> int:
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    total, held, skip = 0, 0, 0
    while True:
        got = server.recv_into(view[held:])
        if not got:
            raise SystemExit("the server closed the connection")
        total += got
        end, at = held + got, skip
        while at + 5 <= end:
            kind, length = buffer[at], int.from_bytes(buffer[at + 1 : at + 5], "big")
            if kind == ord("E"):
                raise SystemExit(bytes(view[at : min(end, at + length + 1)]).decode(errors="replace"))
            if kind == ord("Z"):
                return total
            at += 1 + length
        # Keep the few bytes of a header that was cut; what is larger is payload of a message, to be skipped.
        held = max(0, end - at)
        view[:held] = bytes(view[at:end])
        skip = max(0, at - end)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    floor = measure_floor(sys.argv[1])
    print(f"{floor.size_bytes / 1e6:.0f} MB in {floor.seconds:.2f} s: {floor.mb_per_s:.0f} MB/s")
