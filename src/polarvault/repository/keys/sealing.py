"""Seal and open what is stored in an object: AES-256-GCM with a key of the object's own.

Every object has a random salt id, and so a key of its own; the nonce is the number of the envelope, and no object has
more than 65 537, so that no nonce is ever used twice with a key. What an envelope is bound to (repository, name of the
object, number) is associated data: nothing opens in another place. Whatever does not open is an IntegrityError; which
of key, place and bytes is wrong cannot be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polarvault.errors import IntegrityError
from polarvault.model.dataclass import dataclass, field

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
SALT_ID_BYTES = 16
REPOSITORY_ID_BYTES = 16
TAG_BYTES = 16
# The chunks of a pack, and its footer.
_MOST_ENVELOPES = 65_537


@dataclass(frozen=True, slots=True)
class DataKey:
    """What the objects of an epoch are sealed with; epochs count from 1."""

    epoch: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.epoch < 1 or len(self.secret) != KEY_BYTES:
            raise ValueError("a data key has 32 bytes, and its epoch counts from 1")


class ObjectSealer:
    """Seals and opens the envelopes of one object; may be used by several threads."""

    def __init__(self, data_key: DataKey, *, repository_id: bytes, salt_id: bytes, name: str) -> None:
        if len(repository_id) != REPOSITORY_ID_BYTES or len(salt_id) != SALT_ID_BYTES:
            raise ValueError("a repository id has 16 bytes, and so has a salt id")
        self._name = name
        self._repository_id = repository_id
        self._cipher = _cipher(derive_key(data_key, salt=salt_id, info=b"polarvault 1 object"))

    def seal(self, number: int, plain: bytes | memoryview) -> bytes:
        """Return ciphertext and tag of an envelope; each number is sealed once."""
        nonce, bound = self._place(number)
        return self._cipher.encrypt(nonce, plain, bound)

    def open(self, number: int, stored: bytes | memoryview) -> bytes:
        """Return what was sealed; raise IntegrityError if this is not it."""
        from cryptography.exceptions import InvalidTag

        nonce, bound = self._place(number)
        if len(stored) < TAG_BYTES:
            raise self._damaged(number)
        try:
            return self._cipher.decrypt(nonce, stored, bound)
        except InvalidTag:
            raise self._damaged(number) from None

    def _place(self, number: int) -> tuple[bytes, bytes]:
        if not 0 <= number < _MOST_ENVELOPES:
            raise ValueError(f"an object has no envelope {number}")
        counted = number.to_bytes(8, "little")
        return counted + bytes(4), self._repository_id + counted + self._name.encode()

    def _damaged(self, number: int) -> IntegrityError:
        return IntegrityError(
            f'part {number} of "{self._name}" does not open with the key of the repository: it was changed, or moved',
            hint="get the object back from another copy; keep this one until it is known why",
        )


def derive_key(data_key: DataKey, *, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes made from a data key: HKDF-SHA-256 (RFC 5869)."""
    import hmac

    # One block of output is enough; with that HKDF is two lines.
    extracted = hmac.digest(salt, data_key.secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def mac_key(data_key: DataKey, *, repository_id: bytes) -> bytes:
    """Return K-mac: the key of the second hash in the trailer of every object of the epoch."""
    return derive_key(data_key, salt=repository_id, info=b"polarvault 1 mac")


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
