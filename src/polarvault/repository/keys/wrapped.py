"""Data keys wrapped for passphrases and key files: the documents `keys/KEY-ID`.

The numbers of scrypt come from the repository, where a stranger may have written them: too small ones would make
guessing cheap for whoever puts such a document there and gets it used, too large ones would take all memory. Both are
refused before anything is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from polarvault.errors import IntegrityError, UsageError, WrongKey
from polarvault.model.dataclass import dataclass, field
from polarvault.model.names import shown_name
from polarvault.repository.keys.sealing import KEY_BYTES, TAG_BYTES, DataKey

_NONCE_BYTES = 12
_WRAPPED_BYTES = _NONCE_BYTES + KEY_BYTES + TAG_BYTES
_SALT_BYTES = 16
_LEAST_N, _MOST_N, _R, _MOST_P = 1 << 15, 1 << 20, 8, 4
_MOST_EPOCH = 0xFFFF_FFFF
_KEY_ID = r"[0-9a-f]{16}"
_RECIPIENT = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}"
_LEAST_CHARACTERS = 8

# Randomness is a parameter: bytes of a length.
Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Scrypt:
    """How a key is made from a passphrase (RFC 7914). 2^17 and 8 take 128 MiB and a third of a second."""

    salt: bytes
    n: int = 1 << 17
    r: int = _R
    p: int = 1

    def key(self, passphrase: bytes) -> bytes:
        """Return the recipient's key."""
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt as Derivation

        return Derivation(salt=self.salt, length=KEY_BYTES, n=self.n, r=self.r, p=self.p).derive(passphrase)


@dataclass(frozen=True, slots=True)
class Secret:
    """What a recipient has: a passphrase, or the 32 bytes of a key file."""

    passphrase: bytes | None = field(default=None, repr=False)
    file_key: bytes | None = field(default=None, repr=False)
    origin: str = ""
    """Where it comes from, as a message names it."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it is kept for one recipient; kdf None: for a key file."""

    key_id: str
    epoch: int
    recipient: str
    kdf: Scrypt | None
    wrapped: bytes = field(repr=False)

    @property
    def kind(self) -> str:
        """How it is opened, in one word."""
        return "file" if self.kdf is None else "passphrase"

    def document(self) -> dict[str, Any]:
        """Return the clear part of `keys/KEY-ID`."""
        kdf: dict[str, Any] = {"name": "file"}
        if self.kdf is not None:
            kdf = {"name": "scrypt", "n": self.kdf.n, "r": self.kdf.r, "p": self.kdf.p, "salt": self.kdf.salt.hex()}
        return {"epoch": self.epoch, "recipient": self.recipient, "kdf": kdf, "wrapped": self.wrapped.hex()}

    def open(self, repository_id: bytes, key: bytes) -> DataKey | None:
        """Return the data key, or None if the recipient's key is not the one."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        bound = _bound(repository_id, self.epoch, self.key_id)
        try:
            secret = AESGCM(key).decrypt(self.wrapped[:_NONCE_BYTES], self.wrapped[_NONCE_BYTES:], bound)
        except InvalidTag:
            return None
        return DataKey(self.epoch, secret)


def parse_wrapped(key_id: str, document: Mapping[str, Any]) -> WrappedKey:
    """Return a wrapped key from the clear part of its document; raise IntegrityError."""
    name = f"keys/{key_id}"
    if not re.fullmatch(_KEY_ID, key_id, re.ASCII):
        raise IntegrityError(f"{shown_name(name)} is not the name of a key")
    epoch, recipient = document.get("epoch"), document.get("recipient")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 1 <= epoch <= _MOST_EPOCH:
        raise _damaged(name, "its epoch is no number from 1")
    if not isinstance(recipient, str) or not re.fullmatch(_RECIPIENT, recipient, re.ASCII):
        raise _damaged(name, "its recipient is no name")
    wrapped = _bytes(name, document, "wrapped", _WRAPPED_BYTES)
    kdf = document.get("kdf")
    if not isinstance(kdf, dict) or kdf.get("name") not in ("scrypt", "file"):
        raise _damaged(name, "it does not say how it is opened, or in a way that this program does not know")
    return WrappedKey(key_id, epoch, recipient, _parse_scrypt(name, kdf) if kdf["name"] == "scrypt" else None, wrapped)


def _parse_scrypt(name: str, kdf: Mapping[str, Any]) -> Scrypt:
    n, r, p = (kdf.get(letter) for letter in ("n", "r", "p"))
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in (n, r, p)):
        raise _damaged(name, "numbers of scrypt are missing")
    assert isinstance(n, int)
    assert isinstance(p, int)
    if not _LEAST_N <= n <= _MOST_N or n & (n - 1) or r != _R or not 1 <= p <= _MOST_P:
        raise _damaged(
            name, f"scrypt with n {n}, r {r}, p {p} is refused: n is a power of two from 2^15 to 2^20, r 8, p 1 to 4"
        )
    return Scrypt(_bytes(name, kdf, "salt", _SALT_BYTES), n, _R, p)


def check_recipient(name: str) -> None:
    """Raise UsageError for what cannot name a key."""
    if not re.fullmatch(_RECIPIENT, name, re.ASCII):
        raise UsageError(
            f"{shown_name(name)} cannot name a key", hint="write letters, digits and . _ @ - only, at most 63"
        )


def wrap(data_key: DataKey, secret: Secret, *, repository_id: bytes, recipient: str, random: Random) -> WrappedKey:
    """Wrap a data key for a recipient, for whatever secret it has."""
    if secret.file_key is not None:
        return wrap_for_file(data_key, secret.file_key, repository_id=repository_id, recipient=recipient, random=random)
    return wrap_for_passphrase(
        data_key, secret.passphrase or b"", repository_id=repository_id, recipient=recipient, random=random
    )


def wrap_for_passphrase(
    data_key: DataKey, passphrase: bytes, *, repository_id: bytes, recipient: str, random: Random
) -> WrappedKey:
    """Wrap a data key for whoever knows a passphrase."""
    if len(passphrase.decode("utf-8", "replace")) < _LEAST_CHARACTERS:
        raise UsageError(
            f"the passphrase has fewer than {_LEAST_CHARACTERS} characters",
            hint="take a long one: several words, or what `openssl rand -base64 24` prints",
        )
    kdf = Scrypt(random(_SALT_BYTES))
    return _wrap(data_key, kdf.key(passphrase), kdf, repository_id, recipient, random)


def wrap_for_file(
    data_key: DataKey, file_key: bytes, *, repository_id: bytes, recipient: str, random: Random
) -> WrappedKey:
    """Wrap a data key for whoever has a key file."""
    return _wrap(data_key, file_key, None, repository_id, recipient, random)


def _wrap(
    data_key: DataKey, key: bytes, kdf: Scrypt | None, repository_id: bytes, recipient: str, random: Random
) -> WrappedKey:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    check_recipient(recipient)
    key_id, nonce = random(8).hex(), random(_NONCE_BYTES)
    bound = _bound(repository_id, data_key.epoch, key_id)
    return WrappedKey(
        key_id, data_key.epoch, recipient, kdf, nonce + AESGCM(key).encrypt(nonce, data_key.secret, bound)
    )


def unlock(keys: Iterable[WrappedKey], secret: Secret, *, repository_id: bytes, address: str) -> dict[int, DataKey]:
    """Return the data keys that a secret opens, by epoch; raise WrongKey if it opens none."""
    found: dict[int, DataKey] = {}
    tried = 0
    for one in keys:
        key = secret.file_key if one.kdf is None else _derived(one.kdf, secret)
        if key is None or one.epoch in found:
            continue
        tried += 1
        if (opened := one.open(repository_id, key)) is not None:
            found[one.epoch] = opened
    if found:
        return found
    kind = "key files" if secret.file_key is not None else "passphrases"
    raise WrongKey(
        f"{secret.origin} opens none of the keys of {address}, of which {tried} are for {kind}"
        if tried
        else f"{address} has no key for {kind}, and {secret.origin} was given",
        hint="take the passphrase or the key file of this repository; `polarvault repo key list` names its keys",
    )


def _derived(kdf: Scrypt, secret: Secret) -> bytes | None:
    return None if secret.passphrase is None else kdf.key(secret.passphrase)


def _bound(repository_id: bytes, epoch: int, key_id: str) -> bytes:
    return repository_id + epoch.to_bytes(4, "little") + key_id.encode() + b"polarvault 1 key"


def _bytes(name: str, document: Mapping[str, Any], key: str, length: int) -> bytes:
    text = document.get(key)
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text, re.ASCII):
        raise _damaged(name, f'its "{key}" does not have {length} bytes')
    return bytes.fromhex(text)


def _damaged(name: str, why: str) -> IntegrityError:
    return IntegrityError(f'the key "{name}" is refused: {why}', hint="use another key of the repository")
