"""Checksums of a manifest's kinds, built up as the bytes go by."""

from __future__ import annotations

import hashlib
from typing import Protocol

import google_crc32c

from polarvault.pgfiles.crc32c import combine, crc_of_zeros

_ZEROS = bytes(1 << 20)


class Digest(Protocol):
    """What takes bytes in order, and holes as the zeros that they read as."""

    def update(self, content: bytes, /) -> None:
        """Take the next bytes."""

    def zeros(self, count: int) -> None:
        """Take that many zero bytes."""

    def hexdigest(self) -> str:
        """Return the checksum as a manifest spells it."""


class Crc32cDigest:
    """CRC-32C with the methods of hashlib's digests; bytes only."""

    def __init__(self) -> None:
        self._crc = 0

    def update(self, content: bytes) -> None:
        """Take the next bytes."""
        self._crc = google_crc32c.extend(self._crc, content)

    def zeros(self, count: int) -> None:
        """Take zero bytes, in a time that hardly depends on their number: a sparse file can have 128 GB of them."""
        self._crc = combine(self._crc, crc_of_zeros(count), count)

    def hexdigest(self) -> str:
        """Return the checksum as a manifest spells it: the four bytes in memory order."""
        return self._crc.to_bytes(4, "little").hex()


class _ShaDigest:
    def __init__(self, name: str) -> None:
        self._digest = hashlib.new(name)
        self.update = self._digest.update
        self.hexdigest = self._digest.hexdigest

    def zeros(self, count: int) -> None:
        while count:
            step = min(count, len(_ZEROS))
            self._digest.update(_ZEROS[:step] if step < len(_ZEROS) else _ZEROS)
            count -= step


def new_digest(algorithm: str | None) -> Digest | None:
    """Return an empty digest of a manifest's algorithm, None for none; raise ValueError for one that is not known."""
    if algorithm is None:
        return None
    return Crc32cDigest() if algorithm == "CRC32C" else _ShaDigest(algorithm)
