"""A store around a store: what a wrapper does not change goes through as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polarvault.storage.objects.model import RequestCounts, StoredObject
from polarvault.storage.objects.store import ObjectStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime


class Wrapper:
    """Hands everything on to another store, which it owns."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    @property
    def address(self) -> str:
        """That of the store within."""
        return self._inner.address

    def counts(self) -> RequestCounts:
        """Return what has been asked of the store within."""
        return self._inner.counts()

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object."""
        self._inner.put_new(name, views, from_reserve=from_reserve)

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object."""
        return self._inner.get(name, most_bytes=most_bytes)

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length)."""
        return self._inner.get_ranges(name, ranges)

    def stat(self, name: str) -> StoredObject:
        """Return size and time of an object."""
        return self._inner.stat(name)

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield every object below a folder."""
        return self._inner.list_objects(folder, after=after)

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the last words of the folders directly in a folder."""
        return self._inner.list_folders(folder)

    def delete(self, name: str) -> None:
        """Remove an object; a success if there is none."""
        self._inner.delete(name)

    def extend_retention(self, name: str, until: datetime) -> None:
        """See that nobody can remove an object before a time."""
        self._inner.extend_retention(name, until)

    def close(self) -> None:
        """Close the store within."""
        self._inner.close()
