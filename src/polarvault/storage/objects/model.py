"""Values of the object stores: what a name may be, what a store says of an object, what was asked of it."""

from __future__ import annotations

import threading

from polarvault.errors import IntegrityError
from polarvault.model.dataclass import dataclass, replace
from polarvault.model.names import LETTERS, is_spelled, shown_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

# S3 and Google allow 1024 bytes, Azure 1024 characters, with the prefix of the repository in front.
NAME_BYTES = 800
# A file name has at most 255 bytes; a temporary one is longer than the object's.
_WORD_FIRST, _WORD_OTHERS, _WORD_MOST = LETTERS | {"_"}, LETTERS | frozenset("._=+-"), 200


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store says of an object. modified: by the store's own clock, in UTC; never to be compared with ours."""

    name: str
    size_bytes: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What was asked of a store so far: an object store takes money for requests. Bytes are those of objects."""

    puts: int = 0
    gets: int = 0
    stats: int = 0
    lists: int = 0
    deletes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def since(self, earlier: RequestCounts) -> RequestCounts:
        """Return what came after an earlier count."""
        return RequestCounts(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))


class Meter:
    """Counts the requests of all threads that use a store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = RequestCounts()

    def add(self, **more: int) -> None:
        """Add to the counts that are named."""
        with self._lock:
            self._counts = replace(
                self._counts, **{name: getattr(self._counts, name) + count for name, count in more.items()}
            )

    def read(self) -> RequestCounts:
        """Return the counts of this moment."""
        return self._counts


def is_object_name(name: str) -> bool:
    """Tell whether a name is one that an object of ours can have: the same everywhere, no escapes, nothing hidden."""
    return len(name) <= NAME_BYTES and all(
        is_spelled(word, _WORD_FIRST, _WORD_OTHERS, most=_WORD_MOST) for word in name.split("/")
    )


def check_object_name(name: str) -> str:
    """Return the name of an object; raise IntegrityError if it cannot be one.

    Names are made by us, and words of users are checked where they come in: another one was read from bytes that are
    not ours.
    """
    if not is_object_name(name):
        raise IntegrityError(f"{shown_name(name)} cannot be the name of an object")
    return name


def check_folder(folder: str) -> str:
    """Return a folder, "" for everything; raise IntegrityError if it cannot be one. It has no slash at its end."""
    return check_object_name(folder) if folder else folder
