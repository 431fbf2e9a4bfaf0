"""Numbers as C reads them: what strtol and strtod of PostgreSQL's own programs take, and what they leave.

Only for values that those programs read in this way; a number of ours is read strictly.
"""

from __future__ import annotations

import re

_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", re.ASCII)
_HEX_DIGITS = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX])?([0-9a-fA-F]+)", re.ASCII)
_DECIMAL = re.compile(r"[ \t\n\v\f\r]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)", re.ASCII)
_HEXADECIMAL = re.compile(
    r"[ \t\n\v\f\r]*([+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?)", re.ASCII
)
_WORD = re.compile(r"[ \t\n\v\f\r]*([+-]?(?:infinity|inf|nan))", re.ASCII | re.IGNORECASE)
BLANKS = " \t\n\v\f\r"


def strtol(text: str) -> tuple[int | None, str]:
    """Return the decimal number at the start and what follows it; None and the whole text where there is none.

    Leading blanks and a sign are taken. The number is not limited: the caller knows its range.
    """
    found = _INTEGER.match(text)
    return (int(found[1]), text[found.end() :]) if found else (None, text)


def as_int(number: int) -> int:
    """Return what is left of a number in a C int of 32 bits, for which strtol first limits it to 64."""
    limited = max(-(2**63), min(number, 2**63 - 1))
    return (limited + 2**31) % 2**32 - 2**31


def strtod(text: str) -> tuple[float | None, str]:
    """Return the number at the start, decimal or hexadecimal, with or without exponent, and what follows it."""
    if found := _HEXADECIMAL.match(text):
        try:
            return float.fromhex(found[1]), text[found.end() :]
        except OverflowError:
            return float("inf"), text[found.end() :]
    found = _DECIMAL.match(text) or _WORD.match(text)
    return (float(found[1]), text[found.end() :]) if found else (None, text)


def scan_hex(text: str) -> tuple[int | None, str]:
    """Return the hexadecimal number at the start, in 32 bits, and what follows it, as scanf's %X."""
    found = _HEX_DIGITS.match(text)
    if found is None:
        return None, text
    number = int(found[2], 16)
    return (-number if found[1] == "-" else number) & 0xFFFFFFFF, text[found.end() :]
