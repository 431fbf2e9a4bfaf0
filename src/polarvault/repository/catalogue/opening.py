"""Open a repository as the configuration has it: store, pinned id, encryption, key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from polarvault.config.model import KeySource, RepositoryConfiguration
from polarvault.errors import RepositoryMismatch
from polarvault.model.dataclass import dataclass, field
from polarvault.repository.catalogue.repository import Repository, read_identity
from polarvault.repository.catalogue.stored_keys import StoredKeys
from polarvault.storage.objects.opening import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    # What is about keys is imported for encrypted repositories only: `wal push` starts once for every segment.
    from polarvault.repository.keys.ring import KeyRing
    from polarvault.repository.keys.sealing import DataKey
    from polarvault.repository.keys.wrapped import Secret, WrappedKey


@dataclass(frozen=True, slots=True)
class OpenedRepository:
    """An open repository, and what opened it: no data key where it is not encrypted."""

    repository: Repository
    data_keys: Mapping[int, DataKey] = field(default_factory=dict, repr=False)

    @property
    def id(self) -> str:
        """The repository's id, as the configuration pins it."""
        return self.repository.codec.repository_id.hex()

    @property
    def keys(self) -> KeyRing:
        """The keys of an encrypted one; RepositoryMismatch for a plain one."""
        from polarvault.repository.keys.ring import KeyRing

        store, codec = self.repository.store, self.repository.codec
        if not self.data_keys:
            raise _not_encrypted(store.address)
        return KeyRing(StoredKeys(store, codec.repository_id, codec), codec.repository_id, store.address)

    def close(self) -> None:
        """Close its store."""
        self.repository.store.close()


def open_repository(configured: RepositoryConfiguration, environment: Mapping[str, str]) -> OpenedRepository:
    """Open the repository that is meant; the caller closes it.

    Whoever names a key expects encryption, even if nothing else is said: a plain repository in its place is refused.
    """
    store = open_store(configured.address, configured.store, environment=environment)
    opened: dict[int, DataKey] = {}

    def find_keys(repository_id: bytes, keys: Sequence[WrappedKey]) -> Mapping[int, DataKey]:
        from polarvault.repository.keys.secrets import read_secret
        from polarvault.repository.keys.wrapped import unlock

        secret = read_secret(configured.key, environment, address=store.address)
        opened.update(unlock(keys, secret, repository_id=repository_id, address=store.address))
        return opened

    expects = True if configured.key != KeySource() else configured.encrypted
    try:
        repository = Repository.open(
            store,
            expected_id=bytes.fromhex(configured.id) if configured.id else None,
            encrypted=expects,
            unlock=find_keys,
        )
        repository.lock_s = configured.lock_s
    except BaseException:
        store.close()
        raise
    return OpenedRepository(repository, opened)


def read_keys(configured: RepositoryConfiguration, environment: Mapping[str, str]) -> list[WrappedKey]:
    """Return the keys of an encrypted repository; none of them is needed for that."""
    from polarvault.repository.keys.ring import KeyRing

    store = open_store(configured.address, configured.store, environment=environment)
    try:
        expected = bytes.fromhex(configured.id) if configured.id else None
        header, _ = read_identity(store, expected_id=expected, encrypted=configured.encrypted)
        if not header.epoch:
            raise _not_encrypted(store.address)
        return KeyRing(StoredKeys(store, header.repository_id), header.repository_id, store.address).read()
    finally:
        store.close()


def make_repository(
    configured: RepositoryConfiguration,
    environment: Mapping[str, str],
    *,
    now: datetime,
    secret: Secret | None = None,
    recipient: str = "",
) -> OpenedRepository:
    """Make a repository, encrypted for a recipient if there is a secret; the caller closes it.

    The directory of a local one is made; buckets are made by their owners.
    """
    from polarvault.repository.keys.sealing import KEY_BYTES, DataKey
    from polarvault.repository.keys.wrapped import wrap

    store = open_store(configured.address, configured.store, create=True, environment=environment)
    data_key = None if secret is None else DataKey(1, os.urandom(KEY_BYTES))

    def wrapped(repository_id: bytes) -> Sequence[WrappedKey]:
        if data_key is None or secret is None:
            return ()
        return [wrap(data_key, secret, repository_id=repository_id, recipient=recipient, random=os.urandom)]

    try:
        repository = Repository.create(store, now=now, data_key=data_key, keys=wrapped)
    except BaseException:
        store.close()
        raise
    return OpenedRepository(repository, {} if data_key is None else {data_key.epoch: data_key})


def _not_encrypted(address: str) -> RepositoryMismatch:
    return RepositoryMismatch(
        f"{address} is not encrypted, so it has no keys",
        hint="encryption is chosen when a repository is made: polarvault repo init --encrypt",
    )
