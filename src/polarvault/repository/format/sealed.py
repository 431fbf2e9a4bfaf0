"""Encryption as a codec asks for it: `keys.sealing` does the work, here it is bound to objects and epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from polarvault.errors import ObjectDamaged
from polarvault.model.dataclass import dataclass
from polarvault.repository.format.frame import Buffer, Header
from polarvault.repository.format.sealing import Envelopes
from polarvault.repository.keys.sealing import SALT_ID_BYTES, TAG_BYTES, DataKey, ObjectSealer, mac_key


@dataclass(frozen=True, slots=True)
class _ObjectEnvelopes:
    sealer: ObjectSealer

    def seal(self, number: int, content: Buffer) -> Buffer:
        return self.sealer.seal(number, bytes(content))

    def open(self, number: int, stored: Buffer) -> Buffer:
        return self.sealer.open(number, bytes(stored))


class Sealed:
    """Seals with the newest data key, and opens what was sealed with any of them."""

    overhead = TAG_BYTES

    def __init__(
        self, data_keys: Mapping[int, DataKey], *, repository_id: bytes, random: Callable[[int], bytes]
    ) -> None:
        self._data_keys = dict(data_keys)
        self._repository_id = repository_id
        self._random = random
        self._mac_keys = {
            epoch: mac_key(data_key, repository_id=repository_id) for epoch, data_key in data_keys.items()
        }
        self.epoch = max(data_keys)

    def new_salt(self) -> bytes:
        """Return 16 random bytes: each object has a key of its own."""
        return self._random(SALT_ID_BYTES)

    def envelopes(self, name: str, header: Header) -> Envelopes:
        """Return what seals or opens the envelopes of an object."""
        data_key = self._data_key(name, header.epoch)
        return _ObjectEnvelopes(
            ObjectSealer(data_key, repository_id=self._repository_id, salt_id=header.salt_id, name=name)
        )

    def authenticate(self, epoch: int, digest: bytes) -> bytes:
        """Return the keyed hash of a digest."""
        from blake3 import blake3

        self._data_key("an object", epoch)
        return blake3(digest, key=self._mac_keys[epoch]).digest()

    def _data_key(self, name: str, epoch: int) -> DataKey:
        data_key = self._data_keys.get(epoch)
        if data_key is None:
            raise ObjectDamaged(f"{name} is sealed with data key {epoch}, and no key that was given opens that one")
        return data_key
