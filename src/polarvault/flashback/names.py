"""Names of tables as people type them in SQL: folded to small letters unless they stand in double quotes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from polarvault.errors import UsageError

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')
_NEEDS_NO_QUOTES = re.compile(r"[a-z_][a-z0-9_$]*")
# The server cuts longer ones (NAMEDATALEN).
MOST_NAME_BYTES = 63
# Of what follows a table's name in that of an index, with room for a number behind it.
_MOST_TAIL_BYTES = 40


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table's name; schema None: whichever has it."""

    schema: str | None
    name: str

    def __str__(self) -> str:
        parts = [self.name] if self.schema is None else [self.schema, self.name]
        return ".".join(one if _NEEDS_NO_QUOTES.fullmatch(one) else quoted(one) for one in parts)

    @property
    def pattern(self) -> str:
        """As pg_dump's --table takes it: nothing in double quotes has a meaning of its own there."""
        return ".".join(quoted(one) for one in (self.schema, self.name) if one is not None)


def quoted(name: str) -> str:
    """Return an identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def parse_table(text: str, option: str) -> TableName:
    """Parse NAME or SCHEMA.NAME; raise UsageError."""
    parts, at, is_whole = [], 0, False
    while (match := _PART.match(text, at)) is not None:
        # The server folds the letters of ASCII alone.
        parts.append(match[1].replace('""', '"') if match[1] is not None else _folded(match[2]))
        at = match.end()
        is_whole = at == len(text)
        if text[at : at + 1] != ".":
            break
        at += 1
    if not is_whole or len(parts) > 2 or "\0" in text:
        hint = 'write schema.table, and names with capitals, blanks or dots in double quotes: \'"Shop"."Orders 2026"\''
        if len(parts) == 3 and is_whole:
            hint = f"the database is an option of its own: -d DATABASE {option} {text.partition('.')[2]}"
        raise UsageError(f"{option} {text!r} is no table's name", hint=hint)
    for part in parts:
        if len(part.encode("utf-8", "surrogateescape")) > MOST_NAME_BYTES:
            raise UsageError(
                f"{option} {text!r}: a name has at most {MOST_NAME_BYTES} bytes",
                hint="the server has cut it: \\dt in psql shows what it is called",
            )
    return TableName(parts[0] if len(parts) == 2 else None, parts[-1])


def _folded(text: str) -> str:
    return "".join(one.lower() if one.isascii() else one for one in text)


def derived_name(old: str, old_table: str, new_table: str, taken: set[str]) -> str:
    """Return a name for an index or a sequence of a table that gets another name; it is added to those taken.

    What begins with the table's name goes on to do so, as the server names them; it is cut as the server cuts.
    """
    rest = old[len(old_table) :] if old.startswith(old_table) else f"_{old}"
    number = 0
    while True:
        tail = _cut(rest, _MOST_TAIL_BYTES) + (str(number) if number else "")
        found = _cut(new_table, MOST_NAME_BYTES - len(tail.encode("utf-8", "surrogateescape"))) + tail
        if found not in taken:
            taken.add(found)
            return found
        number += 1


def _cut(text: str, most_bytes: int) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    # A letter of several bytes is kept or goes as a whole.
    return text if len(raw) <= most_bytes else raw[:most_bytes].decode("utf-8", "ignore")
