"""Backend messages of the PostgreSQL protocol, version 3: the few kinds that replication connections use.

Source: manual, chapter "Frontend/Backend Protocol", section "Message Formats". Bytes in, values out.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from polarvault.errors import RemoteProtocolError, ServerError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.names import shown_name, shown_text

# Type byte and length word; the length counts itself but not the type byte in front of it.
HEADER_BYTES = 5
# A larger claim means that we lost the frame boundary.
MAX_CONTROL_BYTES = limits.CONTROL_MESSAGE_BYTES

ERROR, NOTICE, READY, ROW_DESCRIPTION, DATA_ROW = b"E", b"N", b"Z", b"T", b"D"
COMMAND_COMPLETE, COPY_OUT, COPY_IN, COPY_BOTH, COPY_DATA, COPY_DONE = b"C", b"H", b"G", b"W", b"d", b"c"
PARAMETER_STATUS, EMPTY_QUERY, NOTIFICATION = b"S", b"I", b"A"
# What follows a column's name in a row description: table oid, attribute, type oid, length, modifier, format.
_COLUMN_BYTES = 18
# An error has a field of each kind, and there are fewer than twenty kinds.
_MOST_FIELDS = 64
_NUMBER = re.compile(r"[0-9]{1,20}\Z")


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

    def lsn(self, row: int, column: int, what: str) -> Lsn:
        """Return an LSN; raise RemoteProtocolError for anything else."""
        return parse_lsn(self.value(row, column), what)

    def timeline(self, row: int, column: int, what: str) -> int:
        """Return a timeline's id; raise RemoteProtocolError for anything else."""
        return parse_number(self.value(row, column), what, least=1, most=limits.TIMELINE_ID)


def parse_lsn(text: str, what: str) -> Lsn:
    """Return what a server says is an LSN; raise RemoteProtocolError that names it otherwise."""
    try:
        return Lsn.parse(text)
    except ValueError:
        raise RemoteProtocolError(f"the server gives {what} as {shown_name(text)}, which is no LSN") from None


def parse_number(text: str, what: str, *, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """Return what a server says is a number; raise RemoteProtocolError that names it otherwise."""
    if _NUMBER.match(text) is None or not least <= int(text) <= most:
        raise RemoteProtocolError(
            f"the server gives {what} as {shown_name(text)}, which is no number from {least} to {most}"
        )
    return int(text)


def encode_query(sql: str) -> bytes:
    """Encode a simple Query message."""
    body = sql.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


def parse_row_description(body: bytes) -> list[str]:
    """Return the column names."""
    names: list[str] = []
    position = 2
    count = int.from_bytes(body[:2], "big")
    if len(body) < 2 or count > limits.RESULT_COLUMNS:
        raise RemoteProtocolError(f"a row description of {len(body)} bytes claims {count} columns")
    for _ in range(count):
        end = body.find(b"\0", position)
        if end < 0 or end + 1 + _COLUMN_BYTES > len(body):
            raise RemoteProtocolError(f"a row description of {count} columns ends after {len(names)} of them")
        names.append(body[position:end].decode("utf-8", "replace"))
        position = end + 1 + _COLUMN_BYTES
    return names


def parse_data_row(body: bytes) -> tuple[str | None, ...]:
    """Return one row's values."""
    values: list[str | None] = []
    count, position = int.from_bytes(body[:2], "big"), 2
    if len(body) < 2 or count > limits.RESULT_COLUMNS:
        raise RemoteProtocolError(f"a row of {len(body)} bytes claims {count} columns")
    for _ in range(count):
        length = int.from_bytes(body[position : position + 4], "big", signed=True)
        position += 4
        if position + max(length, 0) > len(body):
            raise RemoteProtocolError(f"a row of {count} columns ends inside of column {len(values) + 1}")
        if length < 0:
            values.append(None)
            continue
        values.append(body[position : position + length].decode("utf-8", "surrogateescape"))
        position += length
    return tuple(values)


def parse_error(body: bytes) -> ServerError:
    """Turn an ErrorResponse or NoticeResponse into our exception, with every field a person needs."""
    fields = {}
    for part in body.split(b"\0", _MOST_FIELDS):
        if part:
            fields[part[:1]] = shown_text(part[1:].decode("utf-8", "replace"))
    return ServerError(
        fields.get(b"M", "unknown error"),
        sqlstate=fields.get(b"C", ""),
        severity=fields.get(b"V", fields.get(b"S", "ERROR")),
        detail=fields.get(b"D"),
        hint=fields.get(b"H"),
        routine=fields.get(b"R", ""),
    )
