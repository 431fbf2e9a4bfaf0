"""Messages inside a WAL stream (manual, "Streaming Replication Protocol", START_REPLICATION)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from polarvault.errors import RemoteProtocolError
from polarvault.model.limits import WAL_MESSAGE_BYTES
from polarvault.model.lsn import Lsn

# Server clocks count microseconds since 2000-01-01 UTC; Unix time counts from 1970.
POSTGRES_EPOCH_S = 946_684_800
_WAL_HEADER = struct.Struct("!cQQq")
_KEEPALIVE = struct.Struct("!cQq?")
_STATUS = struct.Struct("!cQQQq?")


@dataclass(frozen=True, slots=True)
class WalData:
    """WAL bytes and the LSN of the first one."""

    start: Lsn
    server_end: Lsn
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server's position; it asks for a status update when reply_now is set."""

    server_end: Lsn
    reply_now: bool


def parse_stream_message(message: memoryview) -> WalData | Keepalive:
    """Parse one CopyData payload of a WAL stream."""
    kind = bytes(message[:1])
    if kind == b"w" and len(message) >= _WAL_HEADER.size:
        _, start, end, _ = _WAL_HEADER.unpack_from(message)
        payload = message[_WAL_HEADER.size :]
        if len(payload) > WAL_MESSAGE_BYTES or start + len(payload) >= 1 << 64:
            raise RemoteProtocolError(f"a WAL message at {Lsn(start)} claims {len(payload)} bytes")
        return WalData(Lsn(start), Lsn(end), payload)
    if kind == b"k" and len(message) >= _KEEPALIVE.size:
        _, end, _, reply = _KEEPALIVE.unpack_from(message)
        return Keepalive(Lsn(end), reply)
    raise RemoteProtocolError(f"message of type {kind!r} and {len(message)} bytes in the WAL stream")


def encode_status(*, written: int, flushed: int, now_unix_s: float, reply_now: bool = False) -> bytes:
    """Encode a standby status update; nothing is applied, so that position stays zero (as pg_receivewal sends)."""
    micros = int((now_unix_s - POSTGRES_EPOCH_S) * 1_000_000)
    return _STATUS.pack(b"r", written, flushed, 0, micros, reply_now)
