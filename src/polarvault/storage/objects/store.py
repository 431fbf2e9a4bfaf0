"""What every store of named byte objects does; the contract is tests/contract/test_objects.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from polarvault.storage.objects.model import RequestCounts, StoredObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime


class ObjectStore(Protocol):
    """Named byte objects, each written once and never changed. Used by several threads at a time.

    Every method raises, with the object's name, the store's address and the next step:
    StoreUnreachable (the only one that is worth another try), StoreForbidden, ObjectMissing, StoreFull, ObjectTruncated
    (fewer bytes than there must be), StorageFailed (anything else that the store refuses), and IntegrityError for a
    name that no object can have.
    """

    @property
    def address(self) -> str:
        """Where it is, as a user writes it, without secrets."""

    def counts(self) -> RequestCounts:
        """Return what has been asked of the store so far, retries included."""

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object from views, one after the other; on return it is durable.

        Something has the name already: a store that `opening.open_store` returns compares; the same bytes are a
        success, others ObjectDiffers. A bare one raises ObjectExists. from_reserve: a small object that makes room (a
        tombstone), and may use what is kept for that on a full disk.
        """

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object; raise IntegrityError, before reading it, if it is longer than most_bytes."""

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length); ObjectTruncated if the object ends before one of them does.

        Ranges that lie close to each other are read together (`ranges.join_ranges`).
        """

    def stat(self, name: str) -> StoredObject:
        """Return size and time of an object."""

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield every object below a folder ("" is everything) whose name is greater than after; page by page.

        In no certain order, though most stores sort by name. What has a name that no object of ours can have is left
        out: it is not ours.
        """

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the last words of the folders directly in a folder, sorted.

        One whose objects are all gone may be among them.
        """

    def delete(self, name: str) -> None:
        """Remove an object; a success if there is none. Durable on return."""

    def extend_retention(self, name: str, until: datetime) -> None:
        """See that nobody can remove an object before a time; never shortens.

        Does nothing where nothing is locked: in a directory, in a bucket without object lock. Of Google's and Azure's
        locks only what the bucket itself prescribes for new objects is used.
        """

    def close(self) -> None:
        """Give back what it holds open; safe to call twice."""
