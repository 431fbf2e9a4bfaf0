"""The keys of a repository together: read, added, removed.

How documents become objects is not known here: whoever opens the repository hands in a `KeyDocuments`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from polarvault.errors import IntegrityError, UsageError
from polarvault.model.names import shown_name
from polarvault.repository.keys.sealing import DataKey
from polarvault.repository.keys.wrapped import (
    Random,
    Secret,
    WrappedKey,
    check_recipient,
    parse_wrapped,
    unlock,
    wrap,
)

# People, machines and epochs together; each for a passphrase costs a third of a second to try.
_MOST_KEYS = 256


class KeyDocuments(Protocol):
    """The objects `keys/KEY-ID` of one repository, as the clear parts of their documents."""

    def read_all(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield id and document of every key."""

    def write(self, key_id: str, document: Mapping[str, Any]) -> None:
        """Write a new one; durable on return."""

    def remove(self, key_id: str) -> None:
        """Remove one."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a repository. repository_id: its 16 bytes; address: as messages name it."""

    documents: KeyDocuments
    repository_id: bytes
    address: str

    def read(self) -> list[WrappedKey]:
        """Return every key, sorted by recipient; raise IntegrityError for one that cannot be a key."""
        found: list[WrappedKey] = []
        for key_id, document in self.documents.read_all():
            if len(found) >= _MOST_KEYS:
                raise IntegrityError(f"{self.address} has more than {_MOST_KEYS} keys", hint="see who has added them")
            found.append(parse_wrapped(key_id, document))
        return sorted(found, key=lambda key: (key.recipient, key.epoch, key.key_id))

    def unlock(self, secret: Secret) -> dict[int, DataKey]:
        """Return the data keys that a secret opens, by epoch; raise WrongKey if it opens none."""
        return unlock(self.read(), secret, repository_id=self.repository_id, address=self.address)

    def check_free(self, recipient: str) -> None:
        """Raise UsageError if a name cannot be a new recipient's."""
        check_recipient(recipient)
        if any(key.recipient == recipient for key in self.read()):
            raise UsageError(
                f"{self.address} has a key for {shown_name(recipient)} already",
                hint="choose another name; `polarvault repo key list` shows those that are taken",
            )

    def add(
        self, data_keys: Mapping[int, DataKey], secret: Secret, *, recipient: str, random: Random
    ) -> list[WrappedKey]:
        """Let another recipient open what the data keys open; raise UsageError if it is there already."""
        self.check_free(recipient)
        added = []
        for _, data_key in sorted(data_keys.items()):
            key = wrap(data_key, secret, repository_id=self.repository_id, recipient=recipient, random=random)
            self.documents.write(key.key_id, key.document())
            added.append(key)
        return added

    def remove(self, word: str) -> list[WrappedKey]:
        """Remove the keys of a recipient, or one by its id; return them. The last key of an epoch is kept.

        Whoever has opened the repository with a key may have the data key: taking the key away does not take that.
        """
        keys = self.read()
        chosen = [key for key in keys if word in (key.recipient, key.key_id)]
        if not chosen:
            raise UsageError(
                f"{self.address} has no key {shown_name(word)}", hint="`polarvault repo key list` shows names and ids"
            )
        kept = {key.epoch for key in keys if key not in chosen}
        if lost := sorted({key.epoch for key in chosen} - kept):
            raise UsageError(
                f"{shown_name(word)} is the last key of {self.address}"
                + (f" for epoch {lost[0]}" if len({key.epoch for key in keys}) > 1 else ""),
                hint="add another one first: without a key nothing in it can ever be read",
            )
        for key in chosen:
            self.documents.remove(key.key_id)
        return chosen
