"""What goes over a channel between this process and the helper: fixed headers, names, and bytes in shared memory.

A request is a header, then names; bytes to write lie in the channel's block of shared memory already. A reply is a
header, then what was asked for, such as a listing; bytes that were read lie in the block.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from polarvault.storage.trees.pfs.library import MOST_CALL_BYTES

# One call of the library moves no more, and PFS allocates as much at a time.
BLOCK_BYTES = MOST_CALL_BYTES
_REQUEST = struct.Struct("=IBiqqI")
_REPLY = struct.Struct("=IiqI")
_STATUS = struct.Struct("=Bqdq")
# A listing of a directory with all files that a disk of 100 TB can have stays below.
_MOST_REPLY_BYTES = 1 << 30


class Call(IntEnum):
    """What is asked of the helper."""

    MOUNT = 1
    LIST = 2
    STATUS = 3
    OPEN = 4
    CREATE = 5
    FILE_STATUS = 6
    READ = 7
    WRITE = 8
    TRUNCATE = 9
    CLOSE = 10
    MAKE_DIRECTORY = 11
    REMOVE_DIRECTORY = 12
    REMOVE = 13
    RENAME = 14
    ROOM = 15
    MAKE_ROOT = 16
    REMOVE_ROOT = 17
    SET_LENGTH = 18
    NOTHING = 19


WRITING = frozenset({
    Call.CREATE, Call.WRITE, Call.TRUNCATE, Call.MAKE_DIRECTORY, Call.REMOVE_DIRECTORY, Call.REMOVE, Call.RENAME,
    Call.MAKE_ROOT, Call.REMOVE_ROOT, Call.SET_LENGTH,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """descriptor, offset, size: what the call needs of them. payload: a name, or two with a zero byte between.

    number: which request of its channel this is; the reply has it as well.
    """

    call: Call
    descriptor: int = -1
    offset: int = 0
    size: int = 0
    payload: bytes = b""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """number: an errno, 0 for success; value: what the call returns; answers: the number of the request."""

    number: int = 0
    value: int = 0
    payload: bytes = b""
    answers: int = 0


class ChannelClosed(Exception):
    """The other side has gone."""


def send_request(channel: socket.socket, request: Request, number: int) -> None:
    """Send a request under a number; raise OSError."""
    length = len(request.payload)
    header = _REQUEST.pack(number, request.call, request.descriptor, request.offset, request.size, length)
    channel.sendall(header + request.payload)


def receive_request(channel: socket.socket) -> Request:
    """Wait for the next request; raise ChannelClosed at the end."""
    number, call, descriptor, offset, size, length = _REQUEST.unpack(receive(channel, _REQUEST.size))
    return Request(Call(call), descriptor, offset, size, receive(channel, length), number)


def send_reply(channel: socket.socket, reply: Reply, answers: int) -> None:
    """Send the reply to the request of that number; raise OSError."""
    channel.sendall(_REPLY.pack(answers, reply.number, reply.value, len(reply.payload)) + reply.payload)


def receive_reply(channel: socket.socket) -> Reply:
    """Wait for the reply; raise ChannelClosed, and OSError after the socket's time-out."""
    answers, number, value, length = _REPLY.unpack(receive(channel, _REPLY.size))
    if length > _MOST_REPLY_BYTES:
        raise ChannelClosed
    return Reply(number, value, receive(channel, length), answers)


def receive(channel: socket.socket, size: int) -> bytes:
    """Return so many bytes; raise ChannelClosed if there are fewer."""
    if not size:
        return b""
    found = channel.recv(size)
    if len(found) == size:
        return found
    parts = bytearray(found)
    while len(parts) < size:
        if not found:
            raise ChannelClosed
        found = channel.recv(size - len(parts))
        parts += found
    return bytes(parts)


def pack_status(is_directory: bool, size: int, modified: float, allocated: int) -> bytes:
    """Pack what has a name."""
    return _STATUS.pack(is_directory, size, modified, allocated)


def unpack_status(packed: bytes) -> tuple[bool, int, float, int]:
    """Return whether it is a directory, its size, when it was modified, and what it takes."""
    is_directory, size, modified, allocated = _STATUS.unpack(packed)
    return bool(is_directory), size, modified, allocated


def pack_entry(name: str, status: bytes) -> bytes:
    """Pack one name of a listing."""
    encoded = name.encode("utf-8", "surrogateescape")
    return struct.pack("=H", len(encoded)) + encoded + status


def unpack_entries(packed: bytes) -> list[tuple[str, bytes]]:
    """Return names and statuses of a listing."""
    found, at = [], 0
    while at < len(packed):
        (length,) = struct.unpack_from("=H", packed, at)
        name = packed[at + 2 : at + 2 + length].decode("utf-8", "surrogateescape")
        at += 2 + length
        found.append((name, packed[at : at + _STATUS.size]))
        at += _STATUS.size
    return found
