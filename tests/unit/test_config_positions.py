"""Every key of a TOML document is found on its line."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from polarvault.config.positions import Place, key_lines

DOCUMENT = '''\
# [not.a.table]
title = "a # is no comment, ] } \\" neither" # but this is = one
a.b."c d".'e.f' = 1
a.b.g = [ # elements
  1, [2, 3], # more
  { x = 1, y.z = "}" }, "]",
]
text = """
[also.not.a.table]
x = 1 \\"""
""""
literal = \'\'\'
[nor.this]
it's \'\'\'\'
[ repository . "main" ]
address = 's3://bucket/[x]'
retention = { window = "14d", keep = 3 }
dates = [1979-05-27 07:32:00, 1979-05-27T07:32:00Z]

[[list]]
one = 1
[list.below]
two = 2
[[list]]
one = 3
[a.h]
i = +1.5e3
'''

LINES = {
    ("title",): 2,
    ("a", "b", "c d", "e.f"): 3,
    ("a", "b", "g"): 4,
    ("a", "b", "g", 1, 1): 5,
    ("a", "b", "g", 2, "y", "z"): 6,
    ("a", "b", "g", 3): 6,
    ("text",): 8,
    ("literal",): 12,
    ("repository",): 15,
    ("repository", "main"): 15,
    ("repository", "main", "address"): 16,
    ("repository", "main", "retention", "keep"): 17,
    ("list", 0, "one"): 21,
    ("list", 0, "below", "two"): 23,
    ("list", 1, "one"): 25,
    ("a", "h", "i"): 27,
}


def _places(value: Any, place: Place = ()) -> set[Place]:
    """Return the places of everything that tomllib has found."""
    found = {place} if place else set()
    if isinstance(value, dict):
        for name, below in value.items():
            found |= _places(below, (*place, name))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            found |= _places(below, (*place, number))
    return found


def test_keys_of_every_form_are_found_on_their_lines() -> None:
    lines = key_lines(DOCUMENT)
    assert {place: lines[place] for place in LINES} == LINES
    assert set(lines) == _places(tomllib.loads(DOCUMENT))


_NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=6),
)
_TEXTS = st.text(st.sampled_from(list("ab\"'[]{}=#,.\n\\ ")), max_size=12)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


@st.composite
def _written(draw: st.DrawFn) -> tuple[str, dict[Place, int]]:
    """Draw a document, written out here, and the line of each key in it."""
    text, lines = "", {}

    def add(more: str) -> None:
        nonlocal text
        text += more

    def value(depth: int) -> str:
        kind = draw(st.sampled_from(["text", "number", "block", "literal", "list", "table"][: 4 if depth > 1 else 6]))
        if kind == "text":
            return _quoted(draw(_TEXTS))
        if kind == "number":
            return draw(st.sampled_from(["1", "-2.5", "true", "0x1f", "1979-05-27T07:32:00Z"]))
        if kind == "block":
            return '"""\n' + draw(_TEXTS).replace("\\", "\\\\").replace('"', '\\"') + '"""'
        if kind == "literal":
            return "'''" + draw(_TEXTS).replace("'", "") + "'''"
        if kind == "list":
            parts = [value(depth + 1) for _ in range(draw(st.integers(0, 3)))]
            return "[" + draw(st.sampled_from([", ", ",\n  # x ] \n"])).join(parts) + "]"
        names = draw(st.lists(_NAMES, unique=True, max_size=3))
        return "{ " + ", ".join(f"{_quoted(name)} = {value(2)}" for name in names) + " }"

    for table in draw(st.lists(_NAMES, unique=True, max_size=4)):
        add(draw(st.sampled_from(["", "\n", "# a = 1\n\n", "  "])))
        lines[(table,)] = text.count("\n") + 1
        add(f"[ {_quoted(table)} ]{draw(st.sampled_from(['', ' # b = 2']))}\n")
        for name in draw(st.lists(_NAMES, unique=True, max_size=4)):
            add(draw(st.sampled_from(["", "\n", "# c = [\n"])))
            lines[(table, name)] = text.count("\n") + 1
            add(f"{_quoted(name)} = {value(0)}\n")
    return text, lines


@given(_written())
def test_lines_are_those_of_documents_that_were_written_out(document: tuple[str, dict[Place, int]]) -> None:
    text, expected = document
    found = key_lines(text)
    assert {place: found[place] for place in expected} == expected
    assert set(found) == _places(tomllib.loads(text))
