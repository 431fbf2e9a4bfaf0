"""Numbers with units and names of objects, as people read them."""

from __future__ import annotations

from polarvault.model.units import format_bytes

__all__ = ["format_bytes", "printable"]


def printable(text: str) -> str:
    """Return text that no terminal takes for a command; names of objects may hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
