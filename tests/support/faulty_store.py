"""A store that fails on demand, for what stands above stores; it goes between the wrappers and the store itself.

`FaultyStore(store, [Fault("put_new", Failure.ANSWER_LOST, nth=3)])` does the third write and then says that the store
did not answer. `hook` is called before and after every request, with its number, and may end the process.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TypeVar

from polarvault.errors import ObjectExists, StoreForbidden, StoreFull, StoreUnreachable
from polarvault.storage.objects.model import StoredObject
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.wrapper import Wrapper

Result = TypeVar("Result")


class Failure(Enum):
    """How a request fails."""

    UNREACHABLE = "nothing was done, nothing was answered"
    SERVER_ERROR = "status 503"
    TIMEOUT = "no answer in time"
    ANSWER_LOST = "done, and the answer was lost"
    EXISTS_BY_MISTAKE = "said to be there already, though nothing was written"
    FORBIDDEN = "refused"
    FULL = "no room"
    TRUNCATED = "the answer is shorter than it says"


@dataclass(slots=True)
class Fault:
    """A request that fails: the nth of its kind whose object's name fits; times in a row, -1 for ever.

    at_byte: only once so many bytes have been written in all. operation "*" is any of them.
    """

    operation: str
    failure: Failure
    nth: int = 1
    times: int = 1
    names: str = "*"
    at_byte: int = 0
    seen: int = field(default=0, init=False)

    def strikes(self, operation: str, name: str, sent_bytes: int) -> bool:
        """Tell whether this request fails."""
        if self.operation not in ("*", operation) or not fnmatch.fnmatchcase(name, self.names):
            return False
        if sent_bytes < self.at_byte:
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times < 0 or self.seen < self.nth + self.times)


@dataclass(frozen=True, slots=True)
class Request:
    """number counts all requests from 1; moment is "before" or "after"."""

    number: int
    moment: str
    operation: str
    name: str


def ignore(request: Request) -> None:
    """Do nothing."""


class FaultyStore(Wrapper):
    """Hands requests on, but for those that a fault strikes; `requests` has all of them."""

    def __init__(
        self, inner: ObjectStore, faults: Sequence[Fault] = (), *, hook: Callable[[Request], None] = ignore
    ) -> None:
        super().__init__(inner)
        self.faults = list(faults)
        self.requests: list[tuple[str, str]] = []
        self._hook = hook
        self._sent_bytes = 0
        self._lock = threading.Lock()

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        def put() -> None:
            self._inner.put_new(name, views, from_reserve=from_reserve)

        self._request("put_new", name, put, size=sum(map(len, views)))

    def get(self, name: str, *, most_bytes: int) -> bytes:
        return self._request("get", name, lambda: self._inner.get(name, most_bytes=most_bytes))

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return self._request("get_ranges", name, lambda: self._inner.get_ranges(name, ranges))

    def stat(self, name: str) -> StoredObject:
        return self._request("stat", name, lambda: self._inner.stat(name))

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        for one in self._request("list_objects", folder, lambda: self._inner.list_objects(folder, after=after)):
            yield one
            # A page ends here, too.
            self._request("next", one.name, lambda: None)

    def list_folders(self, folder: str = "") -> list[str]:
        return self._request("list_folders", folder, lambda: self._inner.list_folders(folder))

    def delete(self, name: str) -> None:
        self._request("delete", name, lambda: self._inner.delete(name))

    def extend_retention(self, name: str, until: datetime) -> None:
        self._request("extend_retention", name, lambda: self._inner.extend_retention(name, until))

    def _request(self, operation: str, name: str, do: Callable[[], Result], *, size: int = 0) -> Result:
        with self._lock:
            self.requests.append((operation, name))
            number = len(self.requests)
            self._sent_bytes += size
            failure = next(
                (fault.failure for fault in self.faults if fault.strikes(operation, name, self._sent_bytes)), None
            )
        self._hook(Request(number, "before", operation, name))
        if failure is not None:
            if failure in (Failure.ANSWER_LOST, Failure.TRUNCATED):
                do()
            raise self._error(failure, name)
        result = do()
        self._hook(Request(number, "after", operation, name))
        return result

    def _error(self, failure: Failure, name: str) -> Exception:
        message = f'"{name}" in {self.address}: {failure.value}'
        kinds = {
            Failure.EXISTS_BY_MISTAKE: ObjectExists,
            Failure.FORBIDDEN: StoreForbidden,
            Failure.FULL: StoreFull,
        }
        return kinds.get(failure, StoreUnreachable)(message, hint="a test did this")
