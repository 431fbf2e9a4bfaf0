"""Find the WAL in a receive buffer that holds a replication stream's messages, without copying it.

Theory of operation. WAL arrives as CopyData messages of type ``w``: a header of 25 bytes and up to 128 kB of WAL
(manual, "Streaming Replication Protocol", START_REPLICATION). The scanner returns the payloads of everything in the
buffer as views of one contiguous run. A message whose payload is cut by the end of the buffer is continued in the next
scan; only a cut header (at most 30 bytes) or a cut control message is left for the caller to carry over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from polarvault.errors import RemoteProtocolError
from polarvault.model.limits import WAL_MESSAGE_BYTES
from polarvault.model.lsn import Lsn
from polarvault.wire.messages import HEADER_BYTES, MAX_CONTROL_BYTES

_COPY_DATA, _WAL, _KEEPALIVE = 0x64, 0x77, 0x6B
_HEADER = struct.Struct("!BI")
# Message type, length, subtype, first LSN, server's end of WAL, server's clock.
_WAL_HEADER = struct.Struct("!BIBQQQ")
_WAL_OVERHEAD = _WAL_HEADER.size - 1
_KEEPALIVE_BODY = struct.Struct("!BIBQQ?")
_LAST_LSN = (1 << 64) - 1
_UNKNOWN = Lsn(0)


@dataclass(slots=True)
class WalBatch:
    """Contiguous WAL and what the server said along with it; views are valid until the next one is asked for."""

    start: Lsn
    views: list[memoryview] = field(default_factory=list)
    size: int = 0
    # The end of the server's WAL as it last said; 0 if it said nothing in this batch.
    server_end: Lsn = _UNKNOWN
    reply_now: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing came at all: the wait was over, or was interrupted."""
        return not self.size and not self.server_end

    @property
    def end(self) -> Lsn:
        """The LSN after the last byte."""
        return Lsn(self.start + self.size)


class WalMessageScanner:
    """Cut buffers into batches; the concatenated result does not depend on where buffers end."""

    def __init__(self, position: Lsn) -> None:
        self._left = 0
        self.position = int(position)

    def scan(self, view: memoryview, start: int, end: int) -> tuple[WalBatch, int, tuple[bytes, bytes] | None]:
        """Return the WAL in view[start:end], where the unread rest begins, and the message that interrupts it, if any.

        Such a message (kind, body) is any that is not CopyData: an error, a notice, the end of the copy.
        """
        batch = WalBatch(Lsn(self.position))
        at, left = start, self._left
        while at < end:
            if left:
                take = min(left, end - at)
                batch.views.append(view[at : at + take])
                self.position += take
                left -= take
                at += take
                continue
            if end - at < HEADER_BYTES:
                break
            kind, length = _HEADER.unpack_from(view, at)
            if kind == _COPY_DATA and end - at == HEADER_BYTES:
                break
            if kind == _COPY_DATA and view[at + HEADER_BYTES] == _WAL:
                if end - at < _WAL_HEADER.size:
                    break
                _, length, _, first, server_end, _ = _WAL_HEADER.unpack_from(view, at)
                left = self._payload(length, first)
                batch.server_end = Lsn(max(batch.server_end, server_end))
                at += _WAL_HEADER.size
                continue
            if not 4 <= length <= MAX_CONTROL_BYTES:
                raise RemoteProtocolError(f"a message of type {chr(kind)!r} claims {length} bytes")
            if end - at < length + 1:
                break
            if kind != _COPY_DATA:
                body = bytes(view[at + HEADER_BYTES : at + length + 1])
                at += length + 1
                self._left, batch.size = 0, self.position - batch.start
                return batch, at, (bytes([kind]), body)
            self._keepalive(view, at, length, batch)
            at += length + 1
        self._left, batch.size = left, self.position - batch.start
        return batch, at, None

    def _payload(self, length: int, first: int) -> int:
        size = length - _WAL_OVERHEAD
        if not 0 <= size <= WAL_MESSAGE_BYTES or first + size > _LAST_LSN:
            raise RemoteProtocolError(f"a WAL message claims {length} bytes")
        if first != self.position:
            raise RemoteProtocolError(f"the WAL stream jumps from {Lsn(self.position)} to {Lsn(first)}")
        return size

    @staticmethod
    def _keepalive(view: memoryview, at: int, length: int, batch: WalBatch) -> None:
        if length + 1 < _KEEPALIVE_BODY.size or view[at + HEADER_BYTES] != _KEEPALIVE:
            subtype = bytes(view[at + HEADER_BYTES : at + HEADER_BYTES + 1])
            raise RemoteProtocolError(f"message of type {subtype!r} and {length - 4} bytes in the WAL stream")
        _, _, _, server_end, _, reply = _KEEPALIVE_BODY.unpack_from(view, at)
        batch.server_end = Lsn(max(batch.server_end, server_end))
        batch.reply_now |= reply
