"""Errors that every store words the same way."""

from __future__ import annotations

from polarvault.errors import IntegrityError


def too_long(name: str, address: str, size: int, most_bytes: int) -> IntegrityError:
    """Return the error for an object that is longer than its kind can be."""
    return IntegrityError(
        f'"{name}" in {address} has {size} bytes, and what it should be has at most {most_bytes}',
        hint="see what wrote it; nothing of it was read",
    )
