"""Find the payload of CopyData messages in a large receive buffer, without copying it.

Theory of operation. The transport receives up to a megabyte at a time into a buffer and asks the scanner for the
payload slices in it. A message that is cut by the end of the buffer is continued in the next one; only a cut header
(at most 5 bytes) or a cut control message is left for the caller to carry over.

From PostgreSQL 15 on, one COPY carries everything and each message starts with a type byte (manual, BASE_BACKUP):
``n`` a new archive, ``d`` archive or manifest data, ``m`` the manifest begins, ``p`` progress. Before 15 each COPY is
one archive and the payload is all data (`typed=False`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from polarvault.errors import RemoteProtocolError
from polarvault.model.limits import COPY_MESSAGE_BYTES
from polarvault.wire.messages import HEADER_BYTES, MAX_CONTROL_BYTES

_COPY_DATA, _DATA = 0x64, 0x64
_HEADER = struct.Struct("!BI")
# A run of more payloads than this in one buffer is of tiny ones: a view takes more memory than they do.
_MOST_VIEWS = 4096
# The server sends relation files in messages of 32 kB of payload: the header of such a message is always the same.
_FULL_PAYLOAD = 32768
_FULL_HEADER = struct.pack("!BIB", _COPY_DATA, _FULL_PAYLOAD + 5, _DATA)
DATA_PREFIX_BYTES = len(_FULL_HEADER)
"""What lies in front of each payload in a receive buffer: type, length, subtype."""
_FULL_STRIDE = DATA_PREFIX_BYTES + _FULL_PAYLOAD


@dataclass(slots=True)
class DataRun:
    """Consecutive data payloads, in order."""

    views: list[memoryview]


@dataclass(slots=True)
class Control:
    """Any other message: for CopyData its subtype byte as kind and the rest as body, else the message itself."""

    kind: bytes
    body: bytes
    is_copy: bool


Piece = DataRun | Control


def _full_messages(view: memoryview, position: int, end: int) -> int:
    """Return how many whole 32 kB messages follow one another from this position on, or 0 if not all that fit do.

    Comparing each header byte of all messages with one strided slice is what keeps Python out of the hot path.
    """
    count = (end - position) // _FULL_STRIDE
    if count < 2:
        return 0
    stop = position + count * _FULL_STRIDE
    for offset, byte in enumerate(_FULL_HEADER):
        if bytes(view[position + offset : stop : _FULL_STRIDE]) != bytes([byte]) * count:
            return 0
    return count


class CopyScanner:
    """Cut buffers into pieces; the concatenated result does not depend on where buffers end."""

    def __init__(self, *, typed: bool) -> None:
        self._typed = typed
        self._prefix = HEADER_BYTES + 1 if typed else HEADER_BYTES
        self._left = 0

    def scan(self, view: memoryview, start: int, end: int) -> tuple[list[Piece], int, bool]:
        """Return the pieces in view[start:end], where the unread rest begins, and whether the copy has ended.

        When the copy has ended (CopyDone or an error) the rest belongs to the messages after it.
        """
        pieces: list[Piece] = []
        run: list[memoryview] = []
        position, prefix, typed, left = start, self._prefix, self._typed, self._left
        unpack = _HEADER.unpack_from
        while position < end:
            if left:
                take = min(left, end - position)
                run.append(view[position : position + take])
                left -= take
                position += take
                continue
            if end - position < HEADER_BYTES:
                break
            if typed and (count := _full_messages(view, position, end)):
                first = position + DATA_PREFIX_BYTES
                position += count * _FULL_STRIDE
                run += [view[at : at + _FULL_PAYLOAD] for at in range(first, position, _FULL_STRIDE)]
                continue
            kind, length = unpack(view, position)
            if kind == _COPY_DATA and (not typed or (end - position >= prefix and view[position + 5] == _DATA)):
                if not (4 + typed) <= length <= COPY_MESSAGE_BYTES:
                    raise RemoteProtocolError(f"a CopyData message claims {length} bytes")
                position += prefix
                left = length - 4 - typed
                if len(run) > _MOST_VIEWS:
                    pieces.append(_data_run(run))
                    run = []
                continue
            if length < 4 or length > MAX_CONTROL_BYTES:
                raise RemoteProtocolError(f"a message of type {chr(kind)!r} claims {length} bytes")
            if end - position < length + 1:
                break
            body = bytes(view[position + HEADER_BYTES : position + length + 1])
            position += length + 1
            if run:
                pieces.append(_data_run(run))
                run = []
            if kind == _COPY_DATA:
                if not body:
                    raise RemoteProtocolError("an empty CopyData message in a base backup")
                pieces.append(Control(body[:1], body[1:], True))
                continue
            pieces.append(Control(bytes([kind]), body, False))
            if kind in b"cE":
                self._left = 0
                return pieces, position, True
        if run:
            pieces.append(_data_run(run))
        self._left = left
        return pieces, position, False


def _data_run(views: list[memoryview]) -> DataRun:
    return DataRun(views if len(views) <= _MOST_VIEWS else [memoryview(b"".join(views))])
