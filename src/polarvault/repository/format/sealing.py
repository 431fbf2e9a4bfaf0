"""The seam for encryption: what a codec asks for the secrecy and the authenticity of objects.

A repository that is not encrypted has `Plain`: envelopes are what they hold, and the trailer is the hash alone.
"""

from __future__ import annotations

from typing import Protocol

from polarvault.repository.format.frame import NO_SALT, Buffer, Header


class Envelopes(Protocol):
    """Seals and opens the envelopes of one object; may be used by several threads at once."""

    def seal(self, number: int, content: Buffer) -> Buffer:
        """Return what is stored of an envelope."""

    def open(self, number: int, stored: Buffer) -> Buffer:
        """Return what is in an envelope; raise ObjectDamaged if it is not what was sealed under this number."""


class Sealer(Protocol):
    """Makes keys for objects. epoch: the key epoch of new objects; overhead: what sealing adds to an envelope."""

    epoch: int
    overhead: int

    def new_salt(self) -> bytes:
        """Return the salt id of a new object."""

    def envelopes(self, name: str, header: Header) -> Envelopes:
        """Return what seals or opens the envelopes of an object."""

    def authenticate(self, epoch: int, digest: bytes) -> bytes:
        """Return the second hash of a trailer."""


class Plain:
    """No secrets."""

    epoch = 0
    overhead = 0

    def new_salt(self) -> bytes:
        """Nothing: the same content then makes the same object."""
        return NO_SALT

    def envelopes(self, name: str, header: Header) -> Envelopes:
        """Return something that hands through."""
        return _Open()

    def authenticate(self, epoch: int, digest: bytes) -> bytes:
        """Nothing."""
        return b""


class _Open:
    def seal(self, number: int, content: Buffer) -> Buffer:
        return content

    def open(self, number: int, stored: Buffer) -> Buffer:
        return stored
