"""What the compiled loop and the Python around it share of small files; needs no compiler."""

from __future__ import annotations

from enum import IntEnum


class Word(IntEnum):
    """The 64-bit words of a file's row."""

    # Where its name begins among the names; NOT_WANTED afterwards: it is not as it should be.
    NAME = 0
    SIZE = 1
    # CRC-32C of its content; NOT_WANTED: it is not compared.
    CRC = 2
    # The number of its first page; NOT_WANTED: it has no pages.
    BLOCK = 3


ROW_BYTES = 32
NOT_WANTED = (1 << 64) - 1
