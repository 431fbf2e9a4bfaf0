"""Backend messages of the PostgreSQL protocol, version 3: the few kinds that replication connections use.

Source: manual, chapter "Frontend/Backend Protocol", section "Message Formats". Bytes in, values out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from polarvault.errors import RemoteProtocolError, ServerError

# Type byte and length word; the length counts itself but not the type byte in front of it.
HEADER_BYTES = 5
# Everything but CopyData is small: a result row, an error. A larger claim means we lost the frame boundary.
MAX_CONTROL_BYTES = 16 << 20

ERROR, NOTICE, READY, ROW_DESCRIPTION, DATA_ROW = b"E", b"N", b"Z", b"T", b"D"
COMMAND_COMPLETE, COPY_OUT, COPY_IN, COPY_BOTH, COPY_DATA, COPY_DONE = b"C", b"H", b"G", b"W", b"d", b"c"
PARAMETER_STATUS, EMPTY_QUERY, NOTIFICATION = b"S", b"I", b"A"


@dataclass(slots=True)
class ResultSet:
    """Rows of one result; values are text as the server sent it, None for NULL."""

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str | None, ...]] = field(default_factory=list)

    def value(self, row: int, column: int) -> str:
        """Return a value that the protocol promises to be there; raise RemoteProtocolError otherwise."""
        try:
            found = self.rows[row][column]
        except IndexError:
            found = None
        if found is None:
            raise RemoteProtocolError(f"the server's answer lacks row {row + 1}, column {column + 1}")
        return found


def encode_query(sql: str) -> bytes:
    """Encode a simple Query message."""
    body = sql.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


def parse_row_description(body: bytes) -> list[str]:
    """Return the column names."""
    (count,) = struct.unpack_from("!H", body)
    names, position = [], 2
    for _ in range(count):
        end = body.index(b"\0", position)
        names.append(body[position:end].decode("utf-8", "replace"))
        position = end + 1 + 18  # table oid, attribute, type oid, length, modifier, format
    return names


def parse_data_row(body: bytes) -> tuple[str | None, ...]:
    """Return one row's values."""
    (count,) = struct.unpack_from("!H", body)
    values: list[str | None] = []
    position = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, position)
        position += 4
        if length < 0:
            values.append(None)
            continue
        values.append(body[position : position + length].decode("utf-8", "surrogateescape"))
        position += length
    return tuple(values)


def parse_error(body: bytes) -> ServerError:
    """Turn an ErrorResponse or NoticeResponse into our exception, with every field a person needs."""
    fields = {}
    for part in body.split(b"\0"):
        if part:
            fields[part[:1]] = part[1:].decode("utf-8", "replace")
    return ServerError(
        fields.get(b"M", "unknown error"),
        sqlstate=fields.get(b"C", ""),
        severity=fields.get(b"V", fields.get(b"S", "ERROR")),
        detail=fields.get(b"D"),
        hint=fields.get(b"H"),
        routine=fields.get(b"R", ""),
    )
