"""A position in the WAL: a 64-bit byte offset, written by PostgreSQL as two hexadecimal halves."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_LSN = r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z"


class Lsn(int):
    """A log sequence number; an int in every respect but how it is written."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``16/B374D848``; raise ValueError for anything else."""
        match = re.match(_LSN, text)
        if match is None:
            raise ValueError(f"{text!r} is not an LSN such as 16/B374D848")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)
