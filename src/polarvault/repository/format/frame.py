"""What every object has in common: a header that says what it is, and a trailer that proves that it still is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

from polarvault.errors import ObjectDamaged, RepositoryMismatch, RepositoryNewer
from polarvault.model.dataclass import dataclass

Buffer: TypeAlias = "bytes | bytearray | memoryview"

MAGIC = b"PVOBJECT"
FORMAT = 1
HEADER_BYTES = 48
DIGEST_BYTES = 32
MAC_BYTES = 32
NO_SALT = bytes(16)
_HEADER = struct.Struct("<8sHHI16s16s")


class Kind(IntEnum):
    """What an object is."""

    REPOSITORY = 1
    FEATURE = 2
    KEY = 3
    INTENT = 4
    MOVES = 5
    GENERATION = 6
    RECORD = 7
    ROOT = 8
    REFS = 9
    MANIFEST = 10
    DATA_PACK = 11
    INDEX_PACK = 12
    WAL_RANGE = 13
    WAL_FILE = 14
    MAP = 15
    STATE = 16


@dataclass(frozen=True, slots=True)
class Header:
    """The first 48 bytes of an object. epoch 0: it is not encrypted."""

    kind: Kind
    epoch: int
    repository_id: bytes
    salt_id: bytes = NO_SALT

    def encode(self) -> bytes:
        """Return the bytes."""
        return _HEADER.pack(MAGIC, FORMAT, self.kind, self.epoch, self.repository_id, self.salt_id)

    @property
    def trailer_bytes(self) -> int:
        """How long the trailer is."""
        return DIGEST_BYTES + (MAC_BYTES if self.epoch else 0)


def parse_header(name: str, content: Buffer) -> Header:
    """Parse a header, of whatever repository and kind; raise ObjectDamaged or RepositoryNewer."""
    if len(content) < HEADER_BYTES:
        raise ObjectDamaged(f'"{name}" ends within its header')
    magic, version, kind, epoch, repository_id, salt_id = _HEADER.unpack_from(content)
    if magic != MAGIC:
        raise ObjectDamaged(f'"{name}" is no object of a repository, or its first bytes are damaged')
    if version != FORMAT:
        raise RepositoryNewer(f'"{name}" has format {version}; this program knows format {FORMAT}')
    try:
        known = Kind(kind)
    except ValueError:
        raise ObjectDamaged(f'"{name}" is of the unknown kind {kind}') from None
    if not epoch and salt_id != NO_SALT:
        raise ObjectDamaged(f'"{name}" has a salt id and is not encrypted')
    return Header(known, epoch, repository_id, salt_id)


def check_header(name: str, header: Header, *, kinds: Sequence[Kind], repository_id: bytes, encrypted: bool) -> None:
    """Compare a header with what must be there."""
    if header.repository_id != repository_id:
        raise RepositoryMismatch(
            f'"{name}" belongs to the repository {header.repository_id.hex()}, not to {repository_id.hex()}',
            hint="find out who copied it there; remove nothing before that",
        )
    if header.kind not in kinds:
        raise ObjectDamaged(f'"{name}" is a {header.kind.name.lower()} where a {kinds[0].name.lower()} must be')
    if encrypted != bool(header.epoch):
        states = ("not encrypted", "encrypted")
        raise RepositoryMismatch(f'"{name}" is {states[not encrypted]}, and its repository is {states[encrypted]}')


def digest_of(name: str, parts: Sequence[Buffer]) -> bytes:
    """Return the first hash of a trailer: of the name and everything before the trailer."""
    from blake3 import blake3

    hasher = blake3(name.encode() + b"\0")
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def split_trailer(name: str, header: Header, content: memoryview) -> tuple[memoryview, bytes, bytes]:
    """Return the body, the hash and the authentication of a whole object; raise ObjectDamaged if the hash is wrong."""
    end = len(content) - header.trailer_bytes
    if end < HEADER_BYTES:
        raise ObjectDamaged(f'"{name}" ends within its header')
    digest = bytes(content[end : end + DIGEST_BYTES])
    if digest_of(name, [content[:end]]) != digest:
        raise ObjectDamaged(
            f'"{name}" is damaged: its bytes and its hash do not agree',
            hint="get the object back from another copy of the repository",
        )
    return content[HEADER_BYTES:end], digest, bytes(content[end + DIGEST_BYTES :])
