"""The grammar of a backup_manifest: exactly what PostgreSQL's own parser takes, and no more. No values are judged here.

PostgreSQL reads a manifest as a stream of JSON tokens (server: common/parse_manifest.c). What follows from that, and
what Python's reader alone would get wrong: the version is the first field and the checksum the last one; a field that
is not known is an error; every scalar counts by its text, so that ``"12"`` is as good a size as ``12``, and ``true`` is
a text that is no number; a field given twice counts as it stands the second time, and two lists of files are one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

VERSION, SYSTEM_IDENTIFIER, CHECKSUM = "PostgreSQL-Backup-Manifest-Version", "System-Identifier", "Manifest-Checksum"
_FILE_FIELDS = frozenset({"Path", "Encoded-Path", "Size", "Last-Modified", "Checksum-Algorithm", "Checksum"})
_RANGE_FIELDS = frozenset({"Timeline", "Start-LSN", "End-LSN"})
_ESCAPE = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|.)", re.DOTALL)
_HIGH_SURROGATES, _LOW_SURROGATES = range(0xD800, 0xDC00), range(0xDC00, 0xE000)
_WORDS = {True: "true", False: "false", None: "null"}
_SHOWN_CHARACTERS = 60

Fields = dict[str, str]


class ManifestProblem(Exception):
    """What is wrong with a manifest and where, in words that can follow "could not parse backup manifest: "."""


@dataclass(slots=True)
class ManifestFields:
    """The texts of a manifest's fields; system_identifier and checksum are None when they are not there."""

    version: str = ""
    system_identifier: str | None = None
    checksum: str | None = None
    files: list[Fields] = field(default_factory=list)
    wal_ranges: list[Fields] = field(default_factory=list)


class _Object(list[tuple[str, Any]]):
    """A JSON object as it stands: names may come twice, and their order counts."""


def read_fields(content: bytes) -> ManifestFields:
    """Return the fields of a manifest; raise ManifestProblem for what PostgreSQL's parser would not take."""
    document = _load(content)
    if not isinstance(document, _Object):
        raise ManifestProblem(f"unexpected {_kind(document)} where the manifest itself should be")
    found = ManifestFields()
    for number, (name, value) in enumerate(document):
        if found.checksum is not None:
            raise ManifestProblem(f"unexpected object field {shown(name)} behind {CHECKSUM}")
        if number == 0:
            if name != VERSION:
                raise ManifestProblem(f"expected version indicator as the first field, found {shown(name)}")
            found.version = _text(value, VERSION)
        elif name == SYSTEM_IDENTIFIER:
            found.system_identifier = _text(value, name)
        elif name == CHECKSUM:
            found.checksum = _text(value, name)
        elif name == "Files":
            found.files += _entries(value, name, "file", _FILE_FIELDS, len(found.files))
        elif name == "WAL-Ranges":
            found.wal_ranges += _entries(value, name, "WAL range", _RANGE_FIELDS, len(found.wal_ranges))
        else:
            raise ManifestProblem(f"unrecognized top-level field {shown(name)}")
    if not document:
        raise ManifestProblem("unexpected object end: it holds nothing")
    return found


def shown(text: str) -> str:
    """Return a text of somebody else's in quotes, on one line and not too long."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
    return '"' + "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in short) + '"'


def _entries(value: object, name: str, kind: str, known: frozenset[str], before: int) -> Iterator[Fields]:
    if not isinstance(value, list) or isinstance(value, _Object):
        raise ManifestProblem(f"unexpected {_kind(value)} where the list of {name} should begin")
    for number, entry in enumerate(value, before + 1):
        if not isinstance(entry, _Object):
            raise ManifestProblem(f"unexpected {_kind(entry)} where {kind} {number} should begin")
        fields: Fields = dict(entry)
        if not known.issuperset(fields):
            unknown = next(one for one in fields if one not in known)
            raise ManifestProblem(f"{kind} {number}: unexpected {kind} field {shown(unknown)}")
        for one, content in entry:
            if content.__class__ is not str:
                text = _text(content, f"{one} of {kind} {number}")
                if fields[one] is content:
                    fields[one] = text
        yield fields


def _text(value: object, where: str) -> str:
    """Return what PostgreSQL's parser would see of a scalar."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    raise ManifestProblem(f"unexpected {_kind(value)} in place of a value, as {where}")


def _kind(value: object) -> str:
    return "object start" if isinstance(value, _Object) else "array start" if isinstance(value, list) else "scalar"


def _load(content: bytes) -> object:
    """Read JSON, numbers as their texts; what is no UTF-8 stays as it is, as PostgreSQL's lexer leaves it."""
    try:
        document: object = json.loads(
            content.decode("utf-8", "surrogateescape"),
            object_pairs_hook=_Object, parse_int=str, parse_float=str, parse_constant=_refuse_constant,
        )  # fmt: skip
    except json.JSONDecodeError as wrong:
        raise ManifestProblem(_not_json(wrong)) from wrong
    except RecursionError:
        raise ManifestProblem("objects and arrays are nested more deeply than in any manifest") from None
    if b"\\u" in content:
        _check_escapes(content)
    return document


def _not_json(wrong: json.JSONDecodeError) -> str:
    where = f"at line {wrong.lineno}, column {wrong.colno}"
    rest = wrong.doc[wrong.pos : wrong.pos + 20].partition("\n")[0]
    return f"it is no JSON {where}: found {shown(rest)}" if rest else f"it is no JSON {where}, where it breaks off"


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's reader takes and JSON does not have."""
    raise ManifestProblem(f"it is no JSON: {name} is neither a number nor a text")


def _check_escapes(content: bytes) -> None:
    """Refuse escapes of what is no character: zero, and halves of surrogate pairs (server: common/jsonapi.c)."""
    end_of_high = -1
    for match in _ESCAPE.finditer(content):
        code = int(match[1], 16) if match[1] else None
        follows = match.start() == end_of_high
        is_low = code in _LOW_SURROGATES
        if code == 0 or is_low != follows:
            raise ManifestProblem(f"the escape at byte {match.start()} is no character: {_printable(match[0])}")
        end_of_high = match.end() if code in _HIGH_SURROGATES else -1
        if end_of_high >= 0 and content[end_of_high : end_of_high + 2] != b"\\u":
            raise ManifestProblem(f"the escape at byte {match.start()} is half of a character: {_printable(match[0])}")


def _printable(escape: bytes) -> str:
    return escape.decode("ascii", "backslashreplace")
