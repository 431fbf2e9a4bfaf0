"""Messages between client and server as bytes: read them from a socket file, and make those of a server.

Manual, "Message Formats". Written apart from the program's own parser, which these messages test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

READY = b"Z\0\0\0\5I"
AUTHENTICATION_OK = b"R\0\0\0\x08\0\0\0\0"
TEXT_OID, INT2_OID, INT8_OID = 25, 21, 20
SSL_REQUEST, GSSENC_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class Gone(Exception):
    """The peer closed the connection."""


@dataclass(frozen=True, slots=True)
class StartUp:
    """The first packet of a client: code of the request, its parameters, and the bytes as they came."""

    code: int
    parameters: dict[str, str]
    raw: bytes

    @property
    def replication(self) -> bool:
        return self.parameters.get("replication", "") in ("true", "on", "yes", "1")


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise Gone
    return content


def read_startup(stream: BinaryIO) -> StartUp:
    length = read_exactly(stream, 4)
    body = read_exactly(stream, int.from_bytes(length, "big") - 4)
    words = body[4:].decode("utf-8", "replace").split("\0")
    return StartUp(int.from_bytes(body[:4], "big"), dict(zip(words[::2], words[1::2], strict=False)), length + body)


def read_message(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Return type and body of the next message."""
    head = read_exactly(stream, 5)
    return head[:1], read_exactly(stream, int.from_bytes(head[1:], "big") - 4)


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def copy_data(body: bytes) -> bytes:
    return message(b"d", body)


def row_description(columns: Sequence[tuple[str, int]]) -> bytes:
    fields = b"".join(
        name.encode() + b"\0" + struct.pack(">IHIhih", 0, 0, type_oid, -1, -1, 0) for name, type_oid in columns
    )
    return message(b"T", struct.pack(">H", len(columns)) + fields)


def data_row(values: Sequence[str | bytes | None]) -> bytes:
    body = struct.pack(">H", len(values))
    for value in values:
        content = value.encode() if isinstance(value, str) else value
        body += struct.pack(">i", -1) if content is None else struct.pack(">I", len(content)) + content
    return message(b"D", body)


def parse_data_row(body: bytes) -> list[bytes | None]:
    values: list[bytes | None] = []
    at = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        (size,) = struct.unpack_from(">i", body, at)
        at += 4
        values.append(None if size < 0 else body[at : at + size])
        at += max(size, 0)
    return values


def result(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[str | None]], tag: str = "SELECT") -> bytes:
    """Return a whole result set without ReadyForQuery."""
    return row_description(columns) + b"".join(map(data_row, rows)) + message(b"C", tag.encode() + b"\0")


def text_result(rows: Sequence[Sequence[str | None]], names: Sequence[str] | None = None) -> bytes:
    """Return a whole answer of text columns, with ReadyForQuery."""
    names = names or [f"column{n}" for n in range(len(rows[0]) if rows else 1)]
    return result([(name, TEXT_OID) for name in names], rows) + READY


def error(sqlstate: str, text: str, *, severity: str = "ERROR") -> bytes:
    """Return an error message without ReadyForQuery."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text}
    return message(b"E", b"".join(key.encode() + value.encode() + b"\0" for key, value in fields.items()) + b"\0")


def parameter_status(name: str, value: str) -> bytes:
    return message(b"S", f"{name}\0{value}\0".encode())


def backend_key_data(process_id: int = 4242) -> bytes:
    return message(b"K", struct.pack(">II", process_id, 1))
