"""The keys of a repository together: read, added, removed.

How documents become objects is not known here: whoever opens the repository hands in a `KeyDocuments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from polarvault.errors import IntegrityError, UsageError, WrongKey
from polarvault.model.dataclass import dataclass
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

    def ids(self) -> Iterable[str]:
        """Yield what stands behind `keys/` in every name."""

    def read(self, key_id: str) -> Mapping[str, Any] | None:
        """Return a document, None for a key of another repository; raise IntegrityError for a damaged one."""

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
        """Return every key that can be read, sorted by recipient."""
        return self.read_with_damage()[0]

    def read_with_damage(self) -> tuple[list[WrappedKey], list[str]]:
        """Return the keys that can be read, and what is wrong with each other one.

        One that is damaged must not keep those who have another one from their backups.
        """
        found: list[WrappedKey] = []
        damage: list[str] = []
        for key_id in self.documents.ids():
            if len(found) + len(damage) >= _MOST_KEYS:
                raise IntegrityError(f"{self.address} has more than {_MOST_KEYS} keys", hint="see who has added them")
            try:
                document = self.documents.read(key_id)
                if document is not None:
                    found.append(parse_wrapped(key_id, document))
            except IntegrityError as problem:
                damage.append(problem.message)
        return sorted(found, key=lambda key: (key.recipient, key.epoch, key.key_id)), damage

    def unlock(self, secret: Secret) -> dict[int, DataKey]:
        """Return the data keys that a secret opens, by epoch; raise WrongKey if it opens none."""
        return self.unlock_with(
            lambda keys: unlock(keys, secret, repository_id=self.repository_id, address=self.address)
        )

    def unlock_with(self, opener: Callable[[list[WrappedKey]], Mapping[int, DataKey]]) -> dict[int, DataKey]:
        """Return what an opener makes of the keys; a WrongKey that it raises tells of damaged ones as well."""
        keys, damage = self.read_with_damage()
        try:
            return dict(opener(keys))
        except WrongKey as problem:
            if damage:
                problem.detail = f"not every key can be read: {'; '.join(damage)}"
            raise

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
