"""The grammar of one configuration line, and the quoting of values; the server's guc-file.l is the reference.

A line is an optional setting (``name = value``, the equals sign being optional) and an optional comment. No token can
span lines, so a file is edited line by line. Bytes in, spans out: a caller that replaces a span keeps all the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_WHITESPACE = re.compile(rb"[ \t\r]*")
_NUMBER = rb"[-+]?(?:0x[0-9a-fA-F]+|[0-9]+)[a-zA-Z]*"
_REAL = rb"[-+]?[0-9]*\.[0-9]*(?:[Ee][-+]?[0-9]+)?"
_ID = rb"[A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff]*"


class _Token(Enum):
    ID = "identifier"
    QUALIFIED_ID = "qualified identifier"
    STRING = "string"
    UNQUOTED_STRING = "unquoted string"
    INTEGER = "integer"
    REAL = "real"
    EQUALS = "equals sign"


# Order matters: like flex, the longest match wins, and among equals the first rule.
_RULES: tuple[tuple[_Token, re.Pattern[bytes]], ...] = (
    (_Token.ID, re.compile(_ID)),
    (_Token.QUALIFIED_ID, re.compile(_ID + rb"\." + _ID)),
    (_Token.STRING, re.compile(rb"'(?:[^'\\\n]|\\.|'')*'")),
    (_Token.UNQUOTED_STRING, re.compile(rb"[A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff._:/-]*")),
    (_Token.INTEGER, re.compile(_NUMBER)),
    (_Token.REAL, re.compile(_REAL)),
    (_Token.EQUALS, re.compile(rb"=")),
)
# A qualified identifier is not a value: `search_path = a.b` is a syntax error for the server too.
_VALUE_TOKENS = frozenset({_Token.ID, _Token.STRING, _Token.INTEGER, _Token.REAL, _Token.UNQUOTED_STRING})
_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)|''", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """A setting found on a line: lower-case name, value without quotes, and where the value's bytes lie."""

    name: str
    value: str
    value_start: int
    value_end: int


class LineSyntaxError(ValueError):
    """A line that the server would refuse."""


def decode(raw: bytes) -> str:
    """Turn the file's bytes into text without losing any: foreign encodings survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Undo `decode`."""
    return text.encode("utf-8", "surrogateescape")


def parse_line(line: bytes) -> ParsedLine | None:
    """Parse one line (with or without its line end); return None when it holds no setting.

    Raises LineSyntaxError where the server would report a syntax error.
    """
    line = line.removesuffix(b"\n")
    name_token = _next_token(line, 0)
    if name_token is None:
        return None
    kind, name_start, position = name_token
    if kind not in (_Token.ID, _Token.QUALIFIED_ID):
        raise LineSyntaxError(f"a setting's name is expected at column {name_start + 1}")
    name = decode(line[name_start:position])
    value_token = _next_token(line, position)
    if value_token is not None and value_token[0] is _Token.EQUALS:
        value_token = _next_token(line, value_token[2])
    if value_token is None or value_token[0] not in _VALUE_TOKENS:
        raise LineSyntaxError(f"a value for {name!r} is expected")
    value_kind, start, end = value_token
    if (rest := _next_token(line, end)) is not None:
        raise LineSyntaxError(f"text after the value of {name!r}, at column {rest[1] + 1}")
    raw = line[start:end]
    value = decode(_unquote(raw) if value_kind is _Token.STRING else raw)
    return ParsedLine(fold_name(name), value, start, end)


def fold_name(name: str) -> str:
    """Fold a setting's name as the server compares it: ASCII letters only."""
    return encode(name).lower().decode("utf-8", "surrogateescape")


def _next_token(line: bytes, position: int) -> tuple[_Token, int, int] | None:
    blank = _WHITESPACE.match(line, position)
    position = blank.end() if blank else position
    if position == len(line) or line[position : position + 1] == b"#":
        return None
    best: tuple[_Token, int, int] | None = None
    for kind, pattern in _RULES:
        match = pattern.match(line, position)
        if match and match.end() > (best[2] if best else position):
            best = (kind, position, match.end())
    if best is None:
        raise LineSyntaxError(f"unexpected {decode(line[position : position + 1])!r} at column {position + 1}")
    return best


def _unquote(raw: bytes) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        escaped: bytes | None = match[1]
        if escaped is None:
            return b"'"
        if escaped[:1] in b"01234567":
            return bytes([int(escaped, 8) & 0xFF])
        return _ESCAPES.get(escaped, escaped)

    # A NUL that an octal escape makes ends the value: the server keeps C strings.
    return _ESCAPE.sub(replace, raw[1:-1]).split(b"\0", 1)[0]


def quote_value(value: str) -> str:
    """Return the value in quotes, so that `parse_line` and the server read it back unchanged.

    Raises ValueError for a value with a NUL character, which no setting can hold.
    """
    if "\0" in value:
        raise ValueError("a setting cannot hold a NUL character")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def format_value(value: str) -> str:
    """Return the value as people write it: numbers and plain words bare, everything else quoted."""
    raw = encode(value)
    bare = re.fullmatch(rb"[A-Za-z_][A-Za-z_0-9]*|[-+]?[0-9]+[a-zA-Z]*|[-+]?[0-9]+\.[0-9]+", raw)
    return value if bare else quote_value(value)
