"""On which line each key of a TOML document stands: tomllib does not tell. No I/O.

The text must be one that tomllib takes: then a few rules find where keys begin and values end (TOML 1.0, "Keys",
"String", "Array", "Inline Table"). A property test compares the result with documents whose lines are known.
"""

from __future__ import annotations

import re
import tomllib

# A place in the document: names of tables and keys, and numbers of elements.
Place = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
# Between statements, and inside of an array.
_BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\r\n]*")
_STRINGS = (
    # A closing mark may have two more of its kind before it, which belong to the text.
    re.compile(r'"""(?:\\.|[^\\])*?"""{1,3}(?!")', re.DOTALL),
    re.compile(r"'''.*?'''{1,3}(?!')", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\])*"'),
    re.compile(r"'[^']*'"),
)


def key_lines(text: str) -> dict[Place, int]:
    """Return the line of every key, table and element, from 1; of a table that is written in parts, the first."""
    return _Scanner(text).scan()


class _Scanner:
    """Reads a document from its start to its end, once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._lines: dict[Place, int] = {}
        # How many tables of an array of tables have begun.
        self._elements: dict[Place, int] = {}

    def scan(self) -> dict[Place, int]:
        """Read everything."""
        table: Place = ()
        self._skip(_BETWEEN)
        while self._at < len(self._text):
            if self._next("[["):
                table = self._resolved(self._key(), begins_element=True)
                self._expect("]]")
            elif self._next("["):
                table = self._resolved(self._key())
                self._expect("]")
            else:
                self._pair(table)
            self._skip(_BETWEEN)
        return self._lines

    def _pair(self, table: Place) -> None:
        place = table
        for name in self._key():
            place = (*place, name)
            self._note(place)
        self._expect("=")
        self._value(place)

    def _value(self, place: Place) -> None:
        self._skip(_BLANK)
        if self._next("["):
            number = 0
            self._skip(_BETWEEN)
            while not self._next("]"):
                self._note((*place, number))
                self._value((*place, number))
                self._skip(_BETWEEN)
                self._next(",")
                self._skip(_BETWEEN)
                number += 1
        elif self._next("{"):
            self._skip(_BETWEEN)
            while not self._next("}"):
                self._pair(place)
                self._skip(_BETWEEN)
                self._next(",")
                self._skip(_BETWEEN)
        elif self._string() is None:
            self._skip(_SCALAR)

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_BLANK)
            quoted = self._string()
            if quoted is not None:
                names.append(tomllib.loads(f"key = {quoted}")["key"])
            else:
                names.append(self._skip(_BARE))
            self._skip(_BLANK)
            if not self._next("."):
                return names

    def _resolved(self, names: list[str], *, begins_element: bool = False) -> Place:
        """Return the place of a table's header; a name of an array of tables means its last element."""
        place: Place = ()
        for position, name in enumerate(names):
            place = (*place, name)
            self._note(place)
            if begins_element and position == len(names) - 1:
                self._elements[place] = self._elements.get(place, 0) + 1
            if place in self._elements:
                place = (*place, self._elements[place] - 1)
                self._note(place)
        return place

    def _note(self, place: Place) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(place, self._line)

    def _string(self) -> str | None:
        for pattern in _STRINGS:
            if pattern.match(self._text, self._at):
                return self._skip(pattern)
        return None

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError(f"line {self._line} is not what TOML allows")
        self._at = found.end()
        return found[0]

    def _next(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _expect(self, mark: str) -> None:
        self._skip(_BLANK)
        if not self._next(mark):
            raise ValueError(f"line {self._line} is not what TOML allows")
